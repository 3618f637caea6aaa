"""Multi-scale deformable attention as a layer: queries predict sampling locations and weights."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.layers._torchscript import refuse_script
from dcnv4_mm.ops.arguments import read_bool, read_int
from dcnv4_mm.ops.flash_deform_attn.layout import pack, sampling_locations
from dcnv4_mm.ops.functional import flash_deform_attn

__all__ = ["FlashDeformAttn"]


class FlashDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections.

    Every head of a query samples ``num_points`` locations on each level, at learned offsets from
    the query's reference point, and sums the samples by learned weights.

    Args:
        embed_dims: Channels of queries, values and output, a multiple of ``num_heads``.
        num_levels: Number of feature maps.
        num_heads: Number of heads.
        num_points: Number of points per head and level.
        half_precision_locations: Rounds sampling locations to float16, as the original always
            does. That moves points by up to a quarter of a thousandth of the map's size; it is
            there to reproduce the original's outputs.
        device: Where the parameters are created; by default as for ``torch.nn.Linear``.
        dtype: Type of the parameters, likewise.

    Raises:
        TypeError: An argument is not an int, or a bool, as it must be.
        ValueError: An argument is out of its range.

    Source:
        Zhu et al., "Deformable DETR", ICLR 2021, section 4.1 and appendix A.3; the softmax is part
        of the operator as in Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section
        3.2. Other than there, locations keep their precision by default.

    Example:
        >>> layer = FlashDeformAttn(64, num_levels=2)
        >>> query, value = torch.randn(2, 5, 64), torch.randn(2, 8 * 8 + 4 * 4, 64)
        >>> layer(query, torch.rand(2, 5, 2, 2), value, [(8, 8), (4, 4)]).shape
        torch.Size([2, 5, 64])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        embed_dims: int = 256,
        *,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        half_precision_locations: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dims = read_int("embed_dims", embed_dims, minimum=1)
        num_levels = read_int("num_levels", num_levels, minimum=1)
        num_heads = read_int("num_heads", num_heads, minimum=1)
        num_points = read_int("num_points", num_points, minimum=1)
        if embed_dims % num_heads:
            raise ValueError(
                f"embed_dims: expected a multiple of num_heads = {num_heads}, got {embed_dims}"
            )
        self.embed_dims = embed_dims
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.half_precision_locations = read_bool(
            "half_precision_locations", half_precision_locations
        )

        points = num_heads * num_levels * num_points
        linear = partial(nn.Linear, embed_dims, device=device, dtype=dtype)
        self.sampling_offsets = linear(2 * points)
        self.attention_weights = linear(points)
        self.value_proj = linear(embed_dims)
        self.output_proj = linear(embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets point in one direction per head, by as many pixels as the point's number."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        # On the square around the reference point, not on the circle.
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        # [G, L, P, 2]
        steps = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        offsets = (directions[:, None, None] * steps).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @fx_leaf
    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Applies the layer.

        Args:
            query: (batch, num_queries, embed_dims).
            reference_points: (batch, num_queries, num_levels, 2), points (x, y); or (batch,
                num_queries, num_levels, 4), boxes (center x, center y, width, height). In units of
                the image, 0 to 1.
            value: (batch, num_keys, embed_dims), the pixels of all levels one after the other.
            spatial_shapes: (H, W) for every level, or a (num_levels, 2) integer tensor.
            padding_mask: (batch, num_keys) bool, True where ``value`` is padding and counts as 0.

        Returns:
            (batch, num_queries, embed_dims).

        Raises:
            ValueError: A shape does not fit the layer or another one.
        """
        self._check(query, reference_points, value, spatial_shapes, padding_mask)
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        locations = sampling_locations(reference_points, offsets, spatial_shapes)
        if self.half_precision_locations:
            locations = locations.half().to(locations.dtype)
        logits = self.attention_weights(query).unflatten(-1, points)
        output = flash_deform_attn(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            pack(locations, logits),
            num_points=self.num_points,
        )
        return self.output_proj(output)

    def _check(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        padding_mask: Tensor | None,
    ) -> None:
        for name, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.embed_dims:
                raise ValueError(
                    f"{name} must be (N, length, {self.embed_dims}), got {tuple(tensor.shape)}"
                )
        expected = (*query.shape[:2], self.num_levels)
        if reference_points.dim() != 4 or tuple(reference_points.shape[:3]) != expected:
            raise ValueError(
                f"reference_points must be {expected} points or boxes, got "
                f"{tuple(reference_points.shape)}"
            )
        if len(spatial_shapes) != self.num_levels:
            raise ValueError(
                f"spatial_shapes must have {self.num_levels} levels, got {len(spatial_shapes)}"
            )
        if padding_mask is not None and padding_mask.shape != value.shape[:2]:
            raise ValueError(
                f"padding_mask must have the shape {tuple(value.shape[:2])}, got "
                f"{tuple(padding_mask.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dims}, num_levels={self.num_levels}, num_heads={self.num_heads}, "
            f"num_points={self.num_points}, "
            f"half_precision_locations={self.half_precision_locations}"
        )
