"""Layers with which the kernel loader replaces those of a model."""

from collections.abc import Sequence

from torch import Tensor, nn

from .dcnv4_mm.ops.functional import ms_deform_attn

__all__ = ["MultiScaleDeformableAttention"]


class MultiScaleDeformableAttention(nn.Module):
    """The attention of transformers' Deformable DETR, RT-DETR and others, without parameters."""

    can_torch_compile = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Attends; the sizes of the levels are read from the list."""
        return ms_deform_attn(
            value, value_spatial_shapes_list, sampling_locations, attention_weights
        )
