"""For mmseg: Mask2Former's original inference, and label maps that are checked on loading."""

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

from dcnv4_mm.engine.released import convert_on_load
from dcnv4_mm.integrations import swap_deformable_attention

__all__ = ["LoadSegAnnotations", "Mask2FormerHead"]


class Mask2FormerHead(_Mask2FormerHead):
    """mmseg's Mask2Former head with the original's inference and our attention operator.

    It accepts released keys wherever the model is loaded from; a file with released keys that does
    not fit raises a ``ValueError``.

    Args:
        inference: How class and mask predictions are combined to scores. ``"original"`` combines
            them at stride 4 and resizes the scores; ``"host"`` resizes the mask logits first, as
            mmseg does.
        swap_attention: Whether the deformable attention runs on this package's operator
            (:func:`dcnv4_mm.integrations.swap_deformable_attention`) or on mmcv's.
        **arguments: Those of mmseg's ``Mask2FormerHead``.

    Raises:
        ValueError: ``inference`` is neither of the two.

    Source:
        Cheng et al., "Masked-attention Mask Transformer", CVPR 2022, as in the segmentation code
        that DCNv4 was released with.
    """

    def __init__(
        self, *, inference: str = "original", swap_attention: bool = True, **arguments: Any
    ) -> None:
        if inference not in ("original", "host"):
            raise ValueError(f'inference must be "original" or "host", got {inference!r}')
        super().__init__(**arguments)
        self.inference = inference
        if swap_attention:
            swap_deformable_attention(self)
        convert_on_load(self)

    def predict(self, x: tuple[Tensor, ...], batch_img_metas: list[dict], test_cfg: Any) -> Tensor:
        """Scores of all classes (N, classes, H, W) at the size of the input."""
        if self.inference == "host":
            return super().predict(x, batch_img_metas, test_cfg)
        samples = [SegDataSample(metainfo=meta) for meta in batch_img_metas]
        all_classes, all_masks = self(x, samples)
        # (N, Q, classes): the last class is "no object". (N, Q, h, w)
        classes, masks = all_classes[-1].softmax(dim=-1)[..., :-1], all_masks[-1].sigmoid()
        scores = (classes.mT @ masks.flatten(2)).unflatten(2, masks.shape[2:])
        # As every other head of mmseg does.
        return BaseDecodeHead.predict_by_feat(self, scores, batch_img_metas)


class LoadSegAnnotations(LoadAnnotations):
    """mmseg's loader of label maps, which also validates them.

    Args:
        num_classes: Number of classes; after ``reduce_zero_label`` labels must be below it, or 255
            (ignored).
        reduce_zero_label: Whether label 0 is ignored and 1 is the first class; the dataset's
            setting by default.
        backend_args: Arguments of mmengine's file backend.

    Raises:
        FileNotFoundError: An image has no label map.
        ValueError: A label map cannot be read, has another size than its image, more than one
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
        # mmseg's inferencers remove mmseg's own loader from the pipeline, but not this one.
        if "seg_map_path" not in results:
            return
        path = results["seg_map_path"]
        self._check_file(path, results["img_path"], results["ori_shape"])
        super()._load_seg_map(results)
        wrong = [int(v) for v in np.unique(results["gt_seg_map"]) if self.num_classes <= v < 255]
        if wrong:
            # The labels as they are in the file.
            first = int(self.reduce_zero_label)
            raise ValueError(
                f"{path} has the labels {[v + first for v in wrong][:8]}, expected 0 to "
                f"{self.num_classes - 1 + first} and 255 (ignored): correct the file, or "
                "num_classes in the config"
            )

    def _check_file(self, path: str, image: str, shape: tuple[int, int]) -> None:
        try:
            with Image.open(BytesIO(fileio.get(path, backend_args=self.backend_args))) as file:
                mode, size = file.mode, file.size
                file.load()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} does not exist, the label map of {image}: add it, or remove the image"
            ) from None
        # A damaged file can fail in any way.
        except Exception as error:
            raise ValueError(f"{path} is damaged or not an image: {error}") from error
        # mmseg keeps the lower 8 bits of a label: 257 would become 1.
        if mode not in ("L", "P"):
            raise ValueError(
                f"{path} has the mode {mode!r}, expected one channel of 8 bits ('L' or 'P')"
            )
        if size != (shape[1], shape[0]):
            raise ValueError(
                f"{path} has {size[0]} x {size[1]} pixels, expected {shape[1]} x {shape[0]} as its "
                f"image {image}"
            )
