"""mmdet's DINO with what differs between mmdet 3 and the original's mmdet 2."""

from typing import Any

from mmdet.models import DINO as _DINO
from mmdet.models import DINOHead as _DINOHead
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor

from dcnv4_mm.engine import convert_on_load

__all__ = ["DINO", "DINOHead"]


class DINO(_DINO):
    """mmdet's DINO, which understands the released names wherever it is loaded from, and exports.

    Raises:
        ValueError: The weights are in the released names, and do not fit.
    """

    def forward_decoder(
        self,
        query: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        reference_points: Tensor,
        dn_mask: Tensor | None = None,
        **geometry: Tensor,
    ) -> dict[str, Any]:
        """See the parent.

        In evaluation it leaves out what the parent does for the gradient's sake alone, and for
        which it asks for the batch size as an int: a recorded graph would hold for that one only.
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

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        convert_on_load(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class DINOHead(_DINOHead):
    """mmdet's head of DINO, which keeps references as far from 0 and 1 as mmdet 2 does.

    Note:
        mmdet 3 limits the inverse sigmoid of a reference at 1e-5, mmdet 2 at 1e-3: a box whose
        centre lies at the border, or that is very narrow, comes out differently.
    """

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See the parent.

        Args:
            hidden_states: Of every decoder layer (L, N, Q, C).
            references: Of every decoder layer (N, Q, 4), and one that is not used; in [0, 1].

        Returns:
            Class logits (L, N, Q, classes) and boxes cx, cy, w, h (L, N, Q, 4) in [0, 1].
        """
        limited = [inverse_sigmoid(reference, eps=1e-3).sigmoid() for reference in references]
        return super().forward(hidden_states, limited)
