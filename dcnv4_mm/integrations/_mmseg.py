"""What segmentation needs beyond mmseg's own classes: Mask2Former's inference, checked labels."""

from io import BytesIO
from typing import Any

import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models.decode_heads import Mask2FormerHead as _Mask2FormerHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor

from dcnv4_mm.checkpoints.families import MASK2FORMER
from dcnv4_mm.checkpoints.rules import convert

__all__ = ["LoadSegAnnotations", "Mask2FormerHead"]


class Mask2FormerHead(_Mask2FormerHead):
    """mmseg's Mask2Former head with the original's inference.

    It also understands the released names, wherever the model around it is loaded from.

    Args:
        inference: How class and mask predictions become a map of scores. ``"original"`` combines
            them at stride 4 and resizes the scores, ``"host"`` resizes the mask logits and
            combines after, as mmseg does.
        **arguments: mmseg's own.

    Raises:
        ValueError: There is no such ``inference``.

    Source:
        Cheng et al., "Masked-attention Mask Transformer", CVPR 2022, as in the segmentation code
        that DCNv4 was released with.
    """

    def __init__(self, *, inference: str = "original", **arguments: Any) -> None:
        if inference not in ("original", "host"):
            raise ValueError(f'inference must be "original" or "host", got {inference!r}')
        super().__init__(**arguments)
        self.inference = inference

    def predict(self, x: tuple[Tensor, ...], batch_img_metas: list[dict], test_cfg: Any) -> Tensor:
        """Scores of all classes, (N, classes, H, W), at the size of the network's input."""
        if self.inference == "host":
            return super().predict(x, batch_img_metas, test_cfg)
        samples = [SegDataSample(metainfo=meta) for meta in batch_img_metas]
        all_classes, all_masks = self(x, samples)
        # (N, Q, classes): the last class is "no object". (N, Q, h, w)
        classes, masks = all_classes[-1].softmax(dim=-1)[..., :-1], all_masks[-1].sigmoid()
        scores = (classes.mT @ masks.flatten(2)).unflatten(2, masks.shape[2:])
        # As every other head of mmseg does.
        return BaseDecodeHead.predict_by_feat(self, scores, batch_img_metas)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        outer = prefix.removesuffix("decode_head.")
        renamed = convert(state_dict, MASK2FORMER.rules, prefix=outer)
        state_dict.clear()
        state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LoadSegAnnotations(LoadAnnotations):
    """mmseg's loader of label maps, which also checks what it has loaded.

    Args:
        num_classes: Labels must be below, or 255 (ignored), after ``reduce_zero_label``.
        reduce_zero_label: Whether label 0 is ignored and 1 is the first class; by default what
            the data set says.
        backend_args: How files are read, as in mmseg.

    Raises:
        FileNotFoundError: A picture has no label map.
        ValueError: A label map cannot be read, has another size than its picture, more than one
            channel or 8 bits, or labels out of range.
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
        # mmseg's inferencers take its own loader out of the pipeline, but not this one.
        if "seg_map_path" not in results:
            return
        path = results["seg_map_path"]
        self._check_file(path, results["img_path"], results["ori_shape"])
        super()._load_seg_map(results)
        wrong = [int(v) for v in np.unique(results["gt_seg_map"]) if self.num_classes <= v < 255]
        if wrong:
            # As they are in the file.
            first = int(self.reduce_zero_label)
            raise ValueError(
                f"{path} has the labels {[v + first for v in wrong][:8]}; expected are 0 to "
                f"{self.num_classes - 1 + first} and 255 (ignored): correct the file, or "
                "num_classes in the config"
            )

    def _check_file(self, path: str, picture: str, shape: tuple[int, int]) -> None:
        try:
            with Image.open(BytesIO(fileio.get(path, backend_args=self.backend_args))) as file:
                mode, size = file.mode, file.size
                file.load()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} does not exist, the label map of {picture}: put it there, or remove the "
                "picture"
            ) from None
        # A damaged file can make the reader fail in any way.
        except Exception as error:
            raise ValueError(f"{path} is damaged or not a picture: {error}") from error
        # mmseg keeps 8 bits of any number: 257 would be 1.
        if mode not in ("L", "P"):
            raise ValueError(
                f"{path} has pixels of the kind {mode!r}; a label map has one channel of 8 bits "
                "('L' or 'P')"
            )
        if size != (shape[1], shape[0]):
            raise ValueError(
                f"{path} has {size[0]} x {size[1]} pixels, its picture {picture} {shape[1]} x "
                f"{shape[0]}"
            )
