"""mmdet's DINO with the differences between mmdet 3 and the original's mmdet 2."""

from typing import Any

from mmdet.models import DINO as _DINO
from mmdet.models import DINOHead as _DINOHead
from mmdet.models.layers import MLP, inverse_sigmoid
from torch import Tensor

from dcnv4_mm.engine.released import convert_on_load
from dcnv4_mm.integrations import swap_deformable_attention

__all__ = ["DINO", "DINOHead", "ReferencePointHead"]


class DINO(_DINO):
    """mmdet's DINO with our attention operator, released checkpoints and export.

    It accepts released keys wherever it is loaded from; a file with released keys that does not fit
    raises a ``ValueError``.

    Args:
        *args: Those of mmdet's ``DINO``.
        swap_attention: Whether the deformable attention runs on this package's operator
            (:func:`dcnv4_mm.integrations.swap_deformable_attention`) or on mmcv's.
        **kwargs: Those of mmdet's ``DINO``.
    """

    def __init__(self, *args: Any, swap_attention: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = self.decoder.ref_point_head
        if head.layers[0].in_features != 2 * self.embed_dims:
            self.decoder.ref_point_head = ReferencePointHead(self.embed_dims)
        if swap_attention:
            swap_deformable_attention(self)
        convert_on_load(self)

    def forward_decoder(
        self,
        query: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        reference_points: Tensor,
        dn_mask: Tensor | None = None,
        **geometry: Tensor,
    ) -> dict[str, Any]:
        """Runs the decoder, with the arguments and results of mmdet's method.

        In evaluation it omits a step that only serves gradients and that reads the batch size as an
        int, which would fix the batch size of an exported graph.
        """
        if self.training:
            return super().forward_decoder(
                query, memory, memory_mask, reference_points, dn_mask=dn_mask, **geometry
            )
        states, references = self.decoder(
            query=query,
            value=memory,
            key_padding_mask=memory_mask,
            self_attn_mask=dn_mask,
            reference_points=reference_points,
            reg_branches=self.bbox_head.reg_branches,
            **geometry,
        )
        return dict(hidden_states=states, references=list(references))


class ReferencePointHead(MLP):
    """DINO's embedding of encoded reference points in mmdet, for a fork with a longer encoding.

    onedl-mmdetection 3.5 encodes a coordinate with twice as many frequencies as mmdet, so that
    neither released checkpoints nor those of mmdet fit its layer. Every second one is in mmdet too.

    Args:
        embed_dims: Channels of a query.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__(2 * embed_dims, embed_dims, embed_dims, 2)

    def forward(self, encoding: Tensor) -> Tensor:
        """Embeds encoded boxes (N, Q, 4 * embed_dims): y, x, w, h, (sin, cos) by frequency."""
        every_second = encoding.unflatten(-1, (-1, 2, 2))[..., 0, :]
        return super().forward(every_second.flatten(-2))


class DINOHead(_DINOHead):
    """mmdet's DINO head with the clamping of reference points of mmdet 2.

    Note:
        mmdet 3 clamps reference points to [1e-5, 1 - 1e-5] in the inverse sigmoid, mmdet 2 to
        [1e-3, 1 - 1e-3]: boxes at the border of the image and very narrow boxes differ.
    """

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Predicts classes and boxes for every decoder layer.

        Args:
            hidden_states: Outputs of the decoder layers (L, N, Q, C).
            references: Reference points of each layer (N, Q, 4) in [0, 1], and one more that is not
                used.

        Returns:
            Class logits (L, N, Q, classes) and boxes cx, cy, w, h (L, N, Q, 4) in [0, 1].
        """
        clamped = [inverse_sigmoid(reference, eps=1e-3).sigmoid() for reference in references]
        return super().forward(hidden_states, clamped)
