"""mmcv's deformable attention on this package's operator."""

from typing import Any

from mmcv.ops import MultiScaleDeformableAttention
from mmengine.utils import deprecated_api_warning
from torch import Tensor

from dcnv4_mm.layers._torchscript import refuse_script
from dcnv4_mm.ops.flash_deform_attn.layout import sampling_locations
from dcnv4_mm.ops.functional import ms_deform_attn

__all__ = ["DeformableAttention"]


class DeformableAttention(MultiScaleDeformableAttention):
    """The class that :func:`dcnv4_mm.integrations.swap_deformable_attention` gives mmcv's modules.

    Arguments, parameters, results and errors are mmcv's; the operator checks the numbers of pixels.
    """

    __prepare_scriptable__ = refuse_script

    @deprecated_api_warning({"residual": "identity"}, cls_name="MultiScaleDeformableAttention")
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Applies the layer as mmcv does; ``level_start_index`` is not used."""
        value = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)

        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        logits = self.attention_weights(query).unflatten(-1, points)
        output = ms_deform_attn(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            sampling_locations(reference_points, offsets, spatial_shapes),
            logits.flatten(-2).softmax(-1).view_as(logits),
        )
        output = self.output_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return self.dropout(output) + identity
