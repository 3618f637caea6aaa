"""The published networks, by operator and name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcnv4_mm.ops.arguments import read_int

__all__ = ["ARCHS", "DCNV3_ARCHS", "Arch", "read_arch", "read_out_indices"]


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Sizes and options of a FlashInternImage or InternImage.

    Attributes:
        channels: Channels after the stem; they double from stage to stage.
        depths: Blocks of the four stages.
        groups: Groups of the operator in the four stages.
        offset_scale: Factor on the grid of sampling points and on the offsets.
        post_norm: Norms behind the branches (S, B, L), or in front of them and behind each
            stage (T).
        dw_kernel_size: Size of the depthwise convolution before offsets and masks are predicted.
        dcn_output_bias: Whether DCNv4's output projection has a bias; DCNv3's always has one.
        mlp_fc2_bias: Whether the MLP's second layer has a bias; it always has one with DCNv3.
        mlp_ratio: Width of the MLP by that of the stage.
        center_feature_scale: Whether the value itself is mixed into the output of the operator.
        remove_center: Whether the middle point of the grid is left out.
        res_post_norm: Norms in front of the branches and behind them; without effect where
            ``post_norm`` or layer scale is on, although the parameters are there.
        extra_norms: Blocks of the third stage behind which the maps themselves are normed.
        attention_pooling: The classifier pools the last two stages by attention.
    """

    channels: int
    depths: Sequence[int]
    groups: Sequence[int]
    offset_scale: float = 1.0
    post_norm: bool = False
    dw_kernel_size: int | None = None
    dcn_output_bias: bool = False
    mlp_fc2_bias: bool = False
    mlp_ratio: float = 4.0
    center_feature_scale: bool = False
    remove_center: bool = False
    res_post_norm: bool = False
    extra_norms: Sequence[int] = ()
    attention_pooling: bool = False


ARCHS: Mapping[str, Arch] = {
    # Small enough to learn on two CPU cores; not a model of the paper.
    "nano": Arch(channels=32, depths=(1, 1, 2, 1), groups=(2, 4, 8, 16)),
    "t": Arch(channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32)),
    "s": Arch(
        channels=80,
        depths=(4, 4, 21, 4),
        groups=(5, 10, 20, 40),
        post_norm=True,
        dw_kernel_size=3,
    ),
    "b": Arch(
        channels=112,
        depths=(4, 4, 21, 4),
        groups=(7, 14, 28, 56),
        offset_scale=0.5,
        post_norm=True,
        dw_kernel_size=3,
    ),
    "l": Arch(
        channels=160,
        depths=(5, 5, 22, 5),
        groups=(10, 20, 40, 80),
        offset_scale=2.0,
        post_norm=True,
        dw_kernel_size=3,
        dcn_output_bias=True,
        mlp_fc2_bias=True,
    ),
}

# InternImage has none of these options of FlashInternImage.
_DCNV3: dict[str, Any] = dict(dw_kernel_size=None, dcn_output_bias=False, mlp_fc2_bias=False)
# InternImage's. Its T, S and L have the sizes of FlashInternImage's, its B another offset_scale.
DCNV3_ARCHS: Mapping[str, Arch] = {
    **{name: replace(arch, **_DCNV3) for name, arch in ARCHS.items()},
    "b": replace(ARCHS["b"], **_DCNV3, offset_scale=1.0),
    "xl": Arch(
        channels=192,
        depths=(5, 5, 24, 5),
        groups=(12, 24, 48, 96),
        offset_scale=2.0,
        post_norm=True,
    ),
    "h": Arch(
        channels=320,
        depths=(6, 6, 32, 6),
        groups=(10, 20, 40, 80),
        dw_kernel_size=5,
        center_feature_scale=True,
        res_post_norm=True,
        extra_norms=(5, 11, 17, 23, 29),
        attention_pooling=True,
    ),
    "g": Arch(
        channels=512,
        depths=(2, 2, 48, 4),
        groups=(16, 32, 64, 128),
        post_norm=True,
        dw_kernel_size=5,
        center_feature_scale=True,
        extra_norms=(5, 11, 17, 23, 29, 35, 41, 47),
        attention_pooling=True,
    ),
}

_TABLES = {"DCNv4": ARCHS, "DCNv3": DCNV3_ARCHS}
# The same networks by the words that other libraries use.
_LONG_NAMES = {
    "tiny": "t",
    "small": "s",
    "base": "b",
    "large": "l",
    "xlarge": "xl",
    "huge": "h",
    "giant": "g",
}


def read_arch(arch: str | Mapping[str, Any], core_op: str) -> Arch:
    """Looks an architecture up, or makes one of its fields.

    Args:
        arch: Name in the table of the operator, in its short or long form ("t" or "tiny"), or a
            mapping of :class:`Arch`'s fields.
        core_op: ``"DCNv4"`` or ``"DCNv3"``.

    Raises:
        ValueError: There is no such operator, name or field, or a field is missing.
    """
    if core_op not in _TABLES:
        raise ValueError(f"core_op must be one of {sorted(_TABLES)}, got {core_op!r}")
    if isinstance(arch, str):
        table = _TABLES[core_op]
        name = _LONG_NAMES.get(arch.lower(), arch.lower())
        if name not in table:
            known = [*table, *(long for long, short in _LONG_NAMES.items() if short in table)]
            raise ValueError(
                f"arch: expected one of {known} for {core_op}, or a mapping, got {arch!r}"
            )
        return table[name]
    fields = Arch.__dataclass_fields__
    if unknown := sorted(set(arch) - set(fields)):
        raise ValueError(f"arch has the unknown fields {unknown}; known are {sorted(fields)}")
    if missing := sorted({"channels", "depths", "groups"} - set(arch)):
        raise ValueError(f"arch lacks the fields {missing}")
    return Arch(**arch)


def read_out_indices(out_indices: Sequence[int], stages: int) -> tuple[int, ...]:
    """Reads the stages whose maps are output.

    Raises:
        TypeError: They are not a sequence of ints.
        ValueError: There are none, they are not ascending, or there is no such stage.
    """
    try:
        indices = tuple(read_int("out_indices", index, minimum=0) for index in out_indices)
    except TypeError:
        raise TypeError(f"out_indices must be a sequence of ints, got {out_indices!r}") from None
    if not indices or list(indices) != sorted(set(indices)) or indices[-1] >= stages:
        raise ValueError(f"out_indices must be ascending stages in 0..{stages - 1}, got {indices}")
    return indices
