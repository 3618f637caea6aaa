"""What segmentation needs beyond mmseg's own classes: Mask2Former's inference, checked labels."""

from io import BytesIO
from typing import Any

from dcnv4_mm.checkpoints.families import MASK2FORMER
from dcnv4_mm.checkpoints.rules import convert
from dcnv4_mm.integrations._hosts import stub
from dcnv4_mm.registry import MODELS, TRANSFORMS

__all__ = ["LoadSegAnnotations", "Mask2FormerHead"]

try:
    import numpy as np
    from mmdet.models.dense_heads import Mask2FormerHead as _  # noqa: F401
    from mmengine import fileio
    from mmseg.datasets.transforms import LoadAnnotations
    from mmseg.models.decode_heads import Mask2FormerHead as HostMask2FormerHead
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.structures import SegDataSample
    from PIL import Image, UnidentifiedImageError
    from torch import Tensor
# A host of another version can fail in any way while it is imported.
except Exception as error:
    for registry, name in ((MODELS, "Mask2FormerHead"), (TRANSFORMS, "LoadSegAnnotations")):
        registry.register_module(name=name, module=stub(name, "mmseg", error))
else:

    @MODELS.register_module()
    class Mask2FormerHead(HostMask2FormerHead):
        """mmseg's Mask2Former head with the original's inference.

        Args:
            inference: How class and mask predictions become a map of scores. ``"original"``
                combines them at stride 4 and resizes the scores, ``"host"`` resizes the mask
                logits and combines after, as mmseg does.
            **arguments: mmseg's own.

        Raises:
            ValueError: There is no such ``inference``.

        Source:
            Cheng et al., "Masked-attention Mask Transformer", CVPR 2022, as in the segmentation
            code that DCNv4 was released with.
        """

        def __init__(self, *, inference: str = "original", **arguments: Any) -> None:
            if inference not in ("original", "host"):
                raise ValueError(f'inference must be "original" or "host", got {inference!r}')
            super().__init__(**arguments)
            self.inference = inference

        def predict(
            self, x: tuple[Tensor, ...], batch_img_metas: list[dict], test_cfg: Any
        ) -> Tensor:
            """Scores of all classes, (N, classes, H, W), at the size of the network's input."""
            if self.inference == "host":
                return super().predict(x, batch_img_metas, test_cfg)
            samples = [SegDataSample(metainfo=meta) for meta in batch_img_metas]
            all_classes, all_masks = self(x, samples)
            scores = combine(all_classes[-1], all_masks[-1])
            # As every other head of mmseg does.
            return BaseDecodeHead.predict_by_feat(self, scores, batch_img_metas)

        def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: Any) -> None:
            """Takes released names too, by whatever route a model is loaded."""
            outer = prefix.removesuffix("decode_head.")
            renamed = convert(state_dict, MASK2FORMER.rules, prefix=outer)
            state_dict.clear()
            state_dict.update(renamed)
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def combine(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
        """Scores of all classes at the masks' size.

        Args:
            class_logits: (N, Q, classes + 1), the last for "no object".
            mask_logits: (N, Q, H, W).

        Returns:
            (N, classes, H, W): the sum over queries of class probability times mask probability.
        """
        classes = class_logits.softmax(dim=-1)[..., :-1]
        return (classes.transpose(1, 2) @ mask_logits.sigmoid().flatten(2)).unflatten(
            2, mask_logits.shape[2:]
        )

    @TRANSFORMS.register_module()
    class LoadSegAnnotations(LoadAnnotations):
        """mmseg's loader of label maps, which also checks what it has loaded.

        Args:
            num_classes: Labels must be below, or 255 (ignored), after ``reduce_zero_label``.
            reduce_zero_label: Whether label 0 is ignored and 1 is the first class; by default
                what the data set says.
            backend_args: How files are read, as in mmseg.

        Raises:
            FileNotFoundError: A picture has no label map.
            ValueError: A label map cannot be read, has another size than its picture, more than
                one channel or 8 bits, or labels out of range.
        """

        def __init__(
            self,
            *,
            num_classes: int,
            reduce_zero_label: bool | None = None,
            backend_args: dict | None = None,
        ) -> None:
            super().__init__(reduce_zero_label=reduce_zero_label, backend_args=backend_args)
            self.num_classes = num_classes

        def _load_seg_map(self, results: dict) -> None:
            path, picture = results["seg_map_path"], results["img_path"]
            self._check_file(path, picture, results["ori_shape"])
            super()._load_seg_map(results)
            # After the reduction, but a label map cannot tell 255 from the 0 it stands for.
            found = np.unique(results["gt_seg_map"])
            wrong = [int(v) for v in found if self.num_classes <= v < 255]
            if wrong:
                first = 1 if self.reduce_zero_label else 0
                raise ValueError(
                    f"{path} has the labels {[v + first for v in wrong][:8]}; expected are {first} "
                    f"to {self.num_classes - 1 + first}{', 0' if first else ''} and 255 (ignored): "
                    "correct the file, or num_classes in the config"
                )

        def _check_file(self, path: str, picture: str, shape: tuple[int, int]) -> None:
            try:
                header = Image.open(BytesIO(fileio.get(path, backend_args=self.backend_args)))
                header.verify()
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{path} does not exist, the label map of {picture}: put it there, or remove "
                    "the picture"
                ) from None
            except (UnidentifiedImageError, OSError, SyntaxError) as error:
                raise ValueError(f"{path} is damaged or not a picture: {error}") from error
            # mmseg keeps 8 bits of any number: 257 would be 1.
            if header.mode not in ("L", "P"):
                raise ValueError(
                    f"{path} has pixels of the kind {header.mode!r}; a label map has one channel "
                    "of 8 bits ('L' or 'P')"
                )
            if header.size != (shape[1], shape[0]):
                raise ValueError(
                    f"{path} has {header.size[0]} x {header.size[1]} pixels, its picture {picture} "
                    f"{shape[1]} x {shape[0]}"
                )
