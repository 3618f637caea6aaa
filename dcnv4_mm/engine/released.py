"""Conversion of released checkpoints on loading, for routes that know nothing of this package.

:class:`~dcnv4_mm.engine.hooks.StrictLoadHook` and ``init_cfg`` convert the complete checkpoint. The
hosts' inferencers call ``load_state_dict`` instead, where the hooks of this module convert it.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from dcnv4_mm.checkpoints import convert
from dcnv4_mm.checkpoints.identify import identify
from dcnv4_mm.checkpoints.key_mappings import CLASSIFIER, FLASH_INTERN_IMAGE, find_key_mappings
from dcnv4_mm.checkpoints.loading import (
    find_entries,
    match_state_dict,
    select_entry,
    strip_wrappers,
)

__all__ = ["convert_on_load", "remember_source", "rename_classifier"]

# Tensor -> the file that it is from, and what that holds: a hook sees the keys of its module alone.
_SOURCES = WeakIdKeyDictionary()


def convert_on_load(module: nn.Module) -> None:
    """Makes a module accept released keys wherever it is loaded from.

    Args:
        module: A backbone, a head or a complete model with a key mapping of its own
            (:mod:`dcnv4_mm.checkpoints.key_mappings`). A state dict with released keys that does
            not fit it raises a ``ValueError`` on loading.
    """
    module.register_load_state_dict_pre_hook(_convert)


def remember_source(filename: str, checkpoint: Mapping[str, Any]) -> None:
    """Remembers the file that weights are from, so that an error about them can name it.

    Args:
        filename: The file.
        checkpoint: Its content; forgotten with its tensors.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, Mapping):
        return
    tensors = {
        k.removeprefix("module."): t
        for k, t in weights.items()
        if isinstance(k, str) and isinstance(t, Tensor)
    }
    if tensors:
        found = f"{filename} (it holds {identify(tensors, checkpoint.get('meta'))})"
        for tensor in tensors.values():
            _SOURCES[tensor] = found


def _convert(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Renames the released keys below ``prefix`` to those of a module, in place.

    Raises:
        ValueError: The weights do not fit, or are in an entry that the caller did not select.
    """
    # Seen where a module is loaded by itself; children see the keys with their prefix alone.
    held = [key for key in find_entries(state_dict) if not key.endswith("_extra_state")]
    if held:
        raise ValueError(
            f"expected a state dict, got a checkpoint that holds tensors under {', '.join(held)}: "
            "load that entry, or save it as 'state_dict'"
        )
    keys = [key for key in state_dict if key.startswith(prefix)]
    mappings = [mapping for _, mapping in find_key_mappings(module.state_dict())]
    inner = {key.removeprefix(prefix): state_dict[key] for key in keys}
    if not any(mapping.find_prefixes(inner, released=True) for mapping in mappings):
        return
    try:
        weights, report = match_state_dict(module, inner)
    except ValueError as error:
        source = next((_SOURCES[t] for t in inner.values() if t in _SOURCES), None)
        raise ValueError(f"{source}: {error}" if source else str(error)) from error
    for key in keys:
        del state_dict[key]
    state_dict.update({prefix + key: tensor for key, tensor in weights.items()})
    name = prefix.rstrip(".") or type(module).__name__
    print_log(f"Released keys of {name}: {report}", logger="current")


def rename_classifier(state_dict: dict[str, Any], prefix: str) -> None:
    """Converts a released classification checkpoint to mmpretrain's classifier, in place.

    That classifier calls its backbone's ``_checkpoint_filter`` whenever it is loaded.

    Args:
        state_dict: A checkpoint or a state dict; unchanged if it has no released keys.
        prefix: Key prefix of the classifier.

    Raises:
        ValueError: It holds no weights.
    """
    keys = [key for key in state_dict if key.startswith(prefix)]
    inner = {key.removeprefix(prefix): state_dict[key] for key in keys}
    entry, weights = select_entry(inner, classifier=True)
    weights = strip_wrappers(weights)
    if not FLASH_INTERN_IMAGE.find_prefixes(weights, released=True):
        return
    for key in keys:
        del state_dict[key]
    renamed = convert(weights, CLASSIFIER.rules)
    state_dict.update({prefix + key: tensor for key, tensor in renamed.items()})
    source = f"the entry {entry!r}" if entry else "the file itself"
    print_log(f"Released classifier: {len(renamed)} tensors, from {source}", logger="current")
