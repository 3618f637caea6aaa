"""Loading of released checkpoints into models, and export of weights in the released spelling."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.checkpoints.bevformerv2 import convert_released_boxes
from dcnv4_mm.checkpoints.files import naming_file, read_file
from dcnv4_mm.checkpoints.flash_intern_image import is_dcnv3, is_head, is_layer_scale
from dcnv4_mm.checkpoints.identify import identify
from dcnv4_mm.checkpoints.key_mappings import (
    CLASSIFIER,
    FLASH_INTERN_IMAGE,
    convert_keys,
    find_key_mappings,
)
from dcnv4_mm.checkpoints.rules import ConversionReport

__all__ = [
    "WEIGHT_ENTRIES",
    "find_entries",
    "load_released",
    "match_state_dict",
    "select_entry",
    "select_part",
    "strip_wrappers",
    "to_released",
]

# The entries of a checkpoint that may hold weights, in the order in which the originals look for
# them: downstream, DCNv4 prefers the averaged weights and InternImage the plain ones; both evaluate
# a classifier with the plain ones.
WEIGHT_ENTRIES = ("state_dict", "model_ema", "model")
_DCNV3_ENTRIES = ("state_dict", "model", "model_ema")
_CLASSIFIER_ENTRIES = ("model", "model_ema", "state_dict")
# "module" is a wrapper's only at the start of a key; a model may have a submodule of that name.
_WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod)\.)+|"
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def load_released(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    allow: Sequence[str] = (),
) -> ConversionReport:
    """Loads weights that the original project published into a model.

    The model is a FlashInternImage, with DCNv4 or DCNv3, or contains one. A backbone takes a
    classification file or a complete detector's. A file in our spelling is accepted too.

    Args:
        model: The model, filled in place.
        source: A file, or the content of one: a state dict, or a checkpoint that has one as
            ``state_dict``, ``model_ema`` or ``model``.
        allow: Key prefixes that need not fit, such as ``head.fc.`` or ``roi_head.bbox_head.fc_``
            for other classes; the model keeps its values there.

    Returns:
        What was loaded, renamed and left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or does not fit. The model is then unchanged.

    Note:
        Two differences are no errors: a classification head that the model does not have, and
        missing layer scales where the model's are all 1.

    Example:
        >>> from dcnv4_mm.backbones import FlashInternImage
        >>> weights = to_released(FlashInternImage("nano", num_classes=10))
        >>> report = load_released(FlashInternImage("nano"), {"model": weights})
        >>> report.entry
        'model'
    """
    if isinstance(source, (str, Path)):
        checkpoint = read_file(source)
        with naming_file(source):
            weights, report = match_state_dict(model, checkpoint, allow=allow)
    else:
        weights, report = match_state_dict(model, source, allow=allow)
    model.load_state_dict(weights)
    return report


def to_released(model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's state dict in the released spelling.

    Args:
        model: A FlashInternImage, or a model that contains one.

    Returns:
        The model's own tensors by released key, in the model's order.
    """
    weights: dict[str, Tensor] = model.state_dict()
    return convert_keys(weights, find_key_mappings(weights), to_released=True)


def match_state_dict(
    model: nn.Module, checkpoint: Any, *, allow: Sequence[str] = ()
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Converts a released checkpoint, or one in our spelling, to a state dict for a model.

    Every route by which a checkpoint reaches a model ends here: :func:`load_released`,
    ``init_cfg``, mmengine's ``load_from``, ``resume`` and test, and the hosts' inferencers.

    Args:
        model: The model; it is not changed.
        checkpoint: The content of the file.
        allow: As in :func:`load_released`.

    Returns:
        A state dict with exactly the model's keys, and a report of the conversion.

    Raises:
        TypeError: ``allow`` is a str, not a sequence of them.
        ValueError: The checkpoint does not fit the model.
    """
    if isinstance(allow, str):
        raise TypeError(f"allow: expected a sequence of str, got the str {allow!r}")
    own: dict[str, Tensor] = model.state_dict()
    mappings = find_key_mappings(own)
    entry, weights = select_entry(
        convert_released_boxes(checkpoint),
        classifier=_is_classifier(own),
        dcnv3=any(map(is_dcnv3, own)),
    )
    stripped, dropped = _strip(weights, own)
    converted = convert_keys(stripped, mappings)
    in_file = dict(zip(converted, stripped, strict=True))
    report = _compare(own, converted, allow=tuple(allow))
    report = replace(
        report,
        entry=entry,
        renamed={in_file[key]: key for key in report.loaded if in_file[key] != key},
        dropped={**dropped, **{in_file[key]: why for key, why in report.dropped.items()}},
        unexpected=[in_file[key] for key in report.unexpected],
    )
    if not report.fits:
        backbones = [prefix for prefix, mapping in mappings if mapping is FLASH_INTERN_IMAGE]
        meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}, which is unchanged.\n"
            f"{report}\n"
            f"The file holds {identify(strip_wrappers(weights), meta)}.\n"
            f"The model is {identify(own)}.\n"
            f"{_advice(report, backbones, weights)}"
        )
    filled = {key: converted[key] if key in report.loaded else own[key] for key in own}
    return filled, report


def select_entry(
    checkpoint: Any, *, classifier: bool, dcnv3: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """Selects the weights in a checkpoint.

    Args:
        checkpoint: The content of a file.
        classifier: Whether they are for a classifier, which prefers the plain weights.
        dcnv3: Whether they are for InternImage, which prefers the plain weights too.

    Returns:
        Name of the entry that holds them, empty for the checkpoint itself, and the weights.

    Raises:
        ValueError: The checkpoint holds no weights.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"the checkpoint: expected a dict of tensors, got a {type(checkpoint).__name__}"
        )
    entries = _DCNV3_ENTRIES if dcnv3 else WEIGHT_ENTRIES
    for entry in _CLASSIFIER_ENTRIES if classifier else entries:
        if isinstance(checkpoint.get(entry), Mapping):
            return entry, _checked(checkpoint[entry])
    return "", _checked(checkpoint)


def find_entries(checkpoint: Mapping[Any, Any]) -> list[str]:
    """Names of the entries of a checkpoint that are dicts with tensors."""
    return [
        str(name)
        for name, part in checkpoint.items()
        if isinstance(part, Mapping) and any(isinstance(x, Tensor) for x in part.values())
    ]


def select_part(checkpoint: Any, prefix: str) -> dict[str, Tensor]:
    """Selects the weights of one module from a checkpoint of the model that contains it.

    Args:
        checkpoint: The content of a file.
        prefix: The module's name in that model, such as ``img_backbone``; a dot may follow.

    Returns:
        The module's weights, by its own keys.

    Raises:
        ValueError: No key has this prefix.
    """
    prefix = prefix.rstrip(".") + "."
    weights = strip_wrappers(select_entry(checkpoint, classifier=False)[1])
    part = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    if not part:
        first = sorted({name.split(".", 1)[0] for name in weights})
        raise ValueError(f"no key has the prefix {prefix!r}; expected one of: {', '.join(first)}")
    return part


def strip_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the key prefixes of data parallelism, FSDP, torch.compile and checkpointing.

    Raises:
        ValueError: Two keys are then equal.
    """
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    if len(plain) < len(weights):
        raise ValueError("the state dict holds keys twice, with and without a wrapper's prefix")
    return plain


def _checked(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Refuses what is not a plain tensor: it could fail halfway through loading."""
    if not weights:
        raise ValueError("the checkpoint holds no weights: its state dict is empty")
    if not any(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(_no_weights(weights))
    wrong = [
        str(name)
        for name, tensor in weights.items()
        if not (
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type != "meta"
            and not tensor.is_quantized
        )
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            "a state dict must hold plain tensors by str keys, which these entries are not: "
            f"{', '.join(wrong[:5])}{more}"
        )
    return dict(weights)


def _no_weights(checkpoint: Mapping[Any, Any]) -> str:
    """What a dict without tensors holds instead, and where weights in it are."""
    held = find_entries(checkpoint)
    hint = f"; pass the entry {held[0]!r} alone" if held else ""
    return (
        f"the checkpoint holds no weights: expected {', '.join(WEIGHT_ENTRIES)} or tensors by "
        f"key, got {', '.join(map(str, list(checkpoint)[:5]))}{hint}"
    )


def _strip(
    weights: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Removes key prefixes, averaged copies, and the keys outside the backbone."""
    dropped: dict[str, str] = {}
    weights = strip_wrappers(weights)
    # The EMA hook of mmdet 2 stores the weights that it has swapped out under flat keys.
    for name in weights:
        copy = "ema_" + name.replace(".", "_")
        if copy in weights:
            dropped[copy] = "a second copy of the weights"
    backbone_alone = not any(name.startswith("backbone.") for name in own)
    if backbone_alone and any(name.startswith("backbone.") for name in weights):
        for name in weights:
            if not name.startswith("backbone."):
                dropped.setdefault(name, "not part of the backbone")
        weights = {name: tensor for name, tensor in weights.items() if name not in dropped}
        weights = strip_wrappers(_without_prefix(weights, "backbone."))
    return {name: weights[name] for name in weights if name not in dropped}, dropped


def _without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    stripped = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if len(stripped) < len(weights):
        raise ValueError(f"the state dict holds keys twice, with and without {prefix!r}")
    return stripped


def _compare(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, allow: tuple[str, ...]
) -> ConversionReport:
    """Classifies the keys of model and file by whether the two agree on them."""
    loaded: dict[str, None] = {}
    dropped: dict[str, str] = {}
    kept: dict[str, str] = {}
    missing: list[str] = []
    unexpected: list[str] = []
    mismatched: dict[str, str] = {}
    keeps_layer_scale = _layer_scale_may_stay(own, weights)
    for name, tensor in own.items():
        difference = _difference(weights[name], tensor) if name in weights else None
        if name in weights and difference is None:
            loaded[name] = None
        elif name.startswith(allow):
            kept[name] = "allowed not to fit"
        elif difference is not None:
            mismatched[name] = difference
        elif keeps_layer_scale and is_layer_scale(name):
            kept[name] = "the file has no layer scale, the model's is 1 everywhere"
        else:
            missing.append(name)
    for name in weights:
        if name in loaded or name in mismatched:
            continue
        if name.startswith(allow):
            dropped[name] = "allowed not to fit"
        elif is_head(name) and not _is_classifier(own):
            dropped[name] = "the model has no classification head"
        else:
            unexpected.append(name)
    return ConversionReport(
        entry="",
        loaded=loaded.keys(),
        dropped=dropped,
        kept=kept,
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
    )


def _is_classifier(own: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of our classifier, or of mmpretrain's."""
    return bool(CLASSIFIER.find_prefixes(own)) or (
        "" in FLASH_INTERN_IMAGE.find_prefixes(own) and any(map(is_head, own))
    )


def _layer_scale_may_stay(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """A file without any layer scale means 1, so the model's must be 1 already."""
    scales = [name for name in own if is_layer_scale(name)]
    return not any(name in weights for name in scales) and all(
        bool((own[name] == 1).all()) for name in scales
    )


def _difference(tensor: Tensor, own: Tensor) -> str | None:
    """Describes how a file's tensor differs from the model's; ``None`` if it fits."""
    if tensor.shape == own.shape and (
        tensor.dtype == own.dtype or (tensor.is_floating_point() and own.is_floating_point())
    ):
        return None
    kinds = [
        f"{tuple(kind.shape)} {str(kind.dtype).removeprefix('torch.')}" for kind in (tensor, own)
    ]
    return f"{kinds[0]} in the file, {kinds[1]} in the model"


def _advice(
    report: ConversionReport, backbones: Sequence[str], weights: Mapping[str, Tensor]
) -> str:
    if all(map(is_layer_scale, report.missing)) and not (report.unexpected or report.mismatched):
        return "A file without layer scales needs layer_scale=1.0 or layer_scale=None"
    found = any(FLASH_INTERN_IMAGE.find_prefixes(weights, released=r) for r in (False, True))
    if found and backbones and all(backbones) and not report.loaded:
        return f"To start from a backbone's file, load it into model.{backbones[0][:-1]}"
    return "Build the model that the file belongs to, or name with `allow` what need not fit"
