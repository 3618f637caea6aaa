"""Fills a model with a released file, and gives a model's weights in the released spelling."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.checkpoints.families import CLASSIFIER, Family, find_families
from dcnv4_mm.checkpoints.files import read_file
from dcnv4_mm.checkpoints.flash_intern_image import (
    RULES,
    find_backbones,
    is_dcnv3,
    is_head,
    is_layer_scale,
)
from dcnv4_mm.checkpoints.rules import ConversionReport, convert

__all__ = ["fit", "load_released", "select_entry", "select_part", "to_released", "unwrap"]

# The parts of a file that may hold weights, in the order in which the originals look for them:
# downstream DCNv4's prefers the averaged weights, InternImage does not; both evaluate a classifier
# with the plain ones.
_ENTRIES = ("state_dict", "model_ema", "model")
_DCNV3_ENTRIES = ("state_dict", "model", "model_ema")
_CLASSIFIER_ENTRIES = ("model", "model_ema", "state_dict")
# "module" is a wrapper's at the beginning only; a model may have a part of that name.
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
    """Fills a model with weights that the original project published.

    The model is a FlashInternImage, with DCNv4 or DCNv3, or contains one. A backbone takes a
    classification file or a whole detector's. A file in this package's spelling fits too.

    Args:
        model: The model, filled in place.
        source: A file, or what is in one: a state dict, or a checkpoint that has one as
            ``state_dict``, ``model_ema`` or ``model``.
        allow: Beginnings of names that need not fit, such as ``head.fc.`` or
            ``roi_head.bbox_head.fc_`` for other classes; what does not fit there stays as it is.

    Returns:
        What was used, renamed and left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or does not fit. The model is then unchanged.

    Note:
        Two things that a file may lack or have too much are no errors: the classification head
        where the model has none, and layer scales where the model's are all 1.

    Example:
        >>> from dcnv4_mm.backbones import FlashInternImage
        >>> weights = to_released(FlashInternImage("nano", num_classes=10))
        >>> report = load_released(FlashInternImage("nano"), {"model": weights})
        >>> report.entry
        'model'
    """
    checkpoint = source if isinstance(source, Mapping) else read_file(source)
    weights, report = fit(model, checkpoint, allow=allow)
    model.load_state_dict(weights)
    return report


def to_released(model: nn.Module) -> dict[str, Tensor]:
    """Gives a model's state dict in the released spelling.

    Args:
        model: A FlashInternImage, or a model that contains one.

    Returns:
        The model's own tensors, by released name, in the model's order.
    """
    own: dict[str, Tensor] = model.state_dict()
    weights = dict(own)
    for family in find_families(own):
        weights = convert(weights, [rule.inverse() for rule in family.rules])
    for prefix in find_backbones(own):
        weights = convert(weights, [rule.inverse() for rule in RULES], prefix=prefix)
    return weights


def fit(
    model: nn.Module, checkpoint: Any, *, allow: Sequence[str] = ()
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Makes a state dict for a model of a released checkpoint, or of one in our spelling.

    Args:
        model: The model; it is not changed.
        checkpoint: What was in the file.
        allow: As in :func:`load_released`.

    Returns:
        A state dict with exactly the model's names, and what was done to get there.

    Raises:
        TypeError: ``allow`` is a text, not a sequence of texts.
        ValueError: The checkpoint does not fit the model.
    """
    if isinstance(allow, str):
        raise TypeError(f"allow must be a sequence of texts, got the text {allow!r}")
    own: dict[str, Tensor] = model.state_dict()
    backbones, families = find_backbones(own), find_families(own)
    entry, weights = select_entry(
        checkpoint, classifier=_is_classifier(own), dcnv3=any(map(is_dcnv3, own))
    )
    stripped, dropped = _strip(weights, own, families)
    converted = stripped
    for prefix in backbones:
        converted = convert(converted, RULES, prefix=prefix)
    for family in families:
        converted = convert(converted, family.rules)
    in_file = dict(zip(converted, stripped, strict=True))
    report = _compare(own, converted, allow=tuple(allow))
    report = replace(
        report,
        entry=entry,
        renamed={in_file[name]: name for name in report.loaded if in_file[name] != name},
        dropped={**dropped, **{in_file[name]: why for name, why in report.dropped.items()}},
        unexpected=[in_file[name] for name in report.unexpected],
    )
    if not report.fits:
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}, which is unchanged.\n"
            f"{report}\n{_advice(report, backbones)}"
        )
    filled = {name: converted[name] if name in report.loaded else own[name] for name in own}
    return filled, report


def select_entry(
    checkpoint: Any, *, classifier: bool, dcnv3: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """Finds the weights in a checkpoint.

    Args:
        checkpoint: What was in a file.
        classifier: Whether they are for a classifier, which prefers the plain weights.
        dcnv3: Whether they are for InternImage, which prefers the plain weights too.

    Returns:
        Name of the part that holds them, empty for the checkpoint itself, and the weights.

    Raises:
        ValueError: There are none.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"a checkpoint must be a dictionary, got {type(checkpoint).__name__}")
    entries = _DCNV3_ENTRIES if dcnv3 else _ENTRIES
    for entry in _CLASSIFIER_ENTRIES if classifier else entries:
        if isinstance(checkpoint.get(entry), Mapping):
            return entry, _checked(checkpoint[entry])
    return "", _checked(checkpoint)


def select_part(checkpoint: Any, prefix: str) -> dict[str, Tensor]:
    """Takes the weights of one module out of a checkpoint of a model around it.

    Args:
        checkpoint: What was in a file.
        prefix: The module's name in that model, such as ``img_backbone``; a dot may follow.

    Returns:
        The module's weights, by its own names.

    Raises:
        ValueError: There are none.
    """
    prefix = prefix.rstrip(".") + "."
    weights = unwrap(select_entry(checkpoint, classifier=False)[1])
    part = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    if not part:
        first = sorted({name.split(".", 1)[0] for name in weights})
        raise ValueError(f"no name begins with {prefix!r}; the first parts are {', '.join(first)}")
    return part


def unwrap(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off the names what data parallelism, FSDP, torch.compile and checkpointing add.

    Raises:
        ValueError: Two names are then equal.
    """
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    if len(plain) < len(weights):
        raise ValueError("the state dict holds names twice, with and without a wrapper's prefix")
    return plain


def _checked(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Refuses what is not a plain tensor: it could fail halfway through the loading."""
    if not weights:
        raise ValueError("the checkpoint holds no weights: its state dict is empty")
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
            "a state dict must hold plain tensors by name, which these entries are not: "
            f"{', '.join(wrong[:5])}{more}"
        )
    return dict(weights)


def _strip(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], families: Sequence[Family]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Takes prefixes off the names, and leaves out copies and what is outside of the backbone."""
    dropped: dict[str, str] = {}
    weights = unwrap(weights)
    # The averaging hook of mmdet 2 stores the weights it has swapped out under flat names.
    for name in weights:
        copy = "ema_" + name.replace(".", "_")
        if copy in weights:
            dropped[copy] = "a second copy of the weights"
        if any(family.drops(name) for family in families):
            dropped[name] = "without a counterpart in the model"
    backbone_alone = not any(name.startswith("backbone.") for name in own)
    if backbone_alone and any(name.startswith("backbone.") for name in weights):
        for name in weights:
            if not name.startswith("backbone."):
                dropped.setdefault(name, "not part of the backbone")
        weights = {name: tensor for name, tensor in weights.items() if name not in dropped}
        weights = unwrap(_without_prefix(weights, "backbone."))
    return {name: weights[name] for name in weights if name not in dropped}, dropped


def _without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    stripped = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if len(stripped) < len(weights):
        raise ValueError(f"the state dict holds names twice, with and without {prefix!r}")
    return stripped


def _compare(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, allow: tuple[str, ...]
) -> ConversionReport:
    """Sorts the names of model and file by whether the two agree on them."""
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
    """Whether names are those of this package's classifier, or of mmpretrain's."""
    return CLASSIFIER.mark in own or ("" in find_backbones(own) and any(map(is_head, own)))


def _layer_scale_may_stay(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """A file without any layer scale means 1: the model must already say so."""
    scales = [name for name in own if is_layer_scale(name)]
    return not any(name in weights for name in scales) and all(
        bool((own[name] == 1).all()) for name in scales
    )


def _difference(tensor: Tensor, own: Tensor) -> str | None:
    """Says how a file's tensor differs in kind from the model's; ``None`` if it fits."""
    if tensor.shape == own.shape and (
        tensor.dtype == own.dtype or (tensor.is_floating_point() and own.is_floating_point())
    ):
        return None
    kinds = [
        f"{tuple(kind.shape)} {str(kind.dtype).removeprefix('torch.')}" for kind in (tensor, own)
    ]
    return f"{kinds[0]} in the file, {kinds[1]} in the model"


def _advice(report: ConversionReport, backbones: Sequence[str]) -> str:
    if all(map(is_layer_scale, report.missing)) and not (report.unexpected or report.mismatched):
        return "A file without layer scales needs layer_scale=1.0 or layer_scale=None"
    if backbones and all(backbones) and not report.loaded:
        return f"To start from a backbone's file, load it into model.{backbones[0][:-1]}"
    return "Build the model that the file belongs to, or name with `allow` what need not fit"
