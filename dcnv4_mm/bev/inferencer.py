"""Inference on samples of several cameras, with visualization."""

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.bev", "mmdet3d"):
    # First: it serves the operators of mmcv that mmdet3d imports.
    import dcnv4_mm.registry  # noqa: F401

    # isort: split
    import mmdet3d  # noqa: F401

# isort: split
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer import BaseInferencer
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from dcnv4_mm.bev.data.transforms import LoadMultiViewImageFromFiles
from dcnv4_mm.bev.drawing import CameraView, draw_mosaic
from dcnv4_mm.bev.feature_cache import useful_capacity
from dcnv4_mm.checkpoints import load_released
from dcnv4_mm.registry import DATASETS, MODELS

__all__ = ["MultiViewDet3DInferencer"]


class MultiViewDet3DInferencer(BaseInferencer):
    """Inferencer for samples of an info file.

    A sample is given by its index, as its images alone hold no calibration and no history. For
    other sources of images there is :class:`dcnv4_mm.bev.streaming.StreamingDetector`.

    Frames that several samples have in common are loaded and go through the backbone once, if the
    samples follow each other in time.

    Args:
        model: A config, its path, or the name of one of this package's.
        weights: A checkpoint file, which must fit completely.
        infos: An info file in the root folder of its dataset; ``None`` for the test set of the
            config.
        device: Such as ``"cuda:1"``; ``None`` for a GPU where there is one.
        cached_frames: Number of frames whose feature maps and images are kept; ``None`` for as
            many as are of use, 0 for none.
        show_progress: Whether to show a bar.

    Raises:
        FileNotFoundError: There is no such checkpoint or info file.
        ValueError: There is no config of that name, the checkpoint does not fit, or an index is
            not one of a sample.

    Note:
        Info files are pickles, as all of mmdet3d's: only read files that you trust.

    Example:
        >>> name = "bevformerv2_r50_fpn_16xb1-24e-t1_nus-3d"
        >>> find = MultiViewDet3DInferencer(name, "epoch_24.pth")  # doctest: +SKIP
        >>> find([0, 1], out_dir="found")["predictions"][1]["scores_3d"]  # doctest: +SKIP
    """

    visualize_kwargs: ClassVar[set[str]] = {
        "ground_truth",
        "out_dir",
        "pred_score_thr",
        "return_vis",
    }

    def __init__(
        self,
        model: str | Config,
        weights: str | Path,
        *,
        infos: str | Path | None = None,
        device: str | None = None,
        cached_frames: int | None = None,
        show_progress: bool = True,
    ) -> None:
        if not (model and weights):
            raise ValueError(
                "give a config and a checkpoint of it: no weights were released, and a config in a "
                f"checkpoint is not read; got {model!r} and {weights!r}"
            )
        self.infos, self.cached_frames = infos, cached_frames
        # The scope in whose model index names are looked up.
        super().__init__(model, weights, device, scope="dcnv4_mm", show_progress=show_progress)

    def __call__(
        self,
        inputs: int | Iterable[int],
        return_datasamples: bool = False,
        batch_size: int = 1,
        *,
        return_vis: bool = False,
        out_dir: str | Path | None = None,
        pred_score_thr: float = 0.3,
        ground_truth: bool = False,
    ) -> dict[str, Any]:
        """Predicts boxes.

        Args:
            inputs: Indexes of samples, or one.
            return_datasamples: Whether to return predictions as mmdet3d's data samples.
            batch_size: Number of samples per forward pass.
            return_vis: Whether to return images.
            out_dir: A folder for images, which are named by the index: ``00000.jpg``.
            pred_score_thr: Minimum score of a box to draw.
            ground_truth: Whether to draw the annotations too.

        Returns:
            ``predictions``: for each sample ``bboxes_3d`` (x, y, z of the bottom's centre, length,
            width, height, yaw, vx, vy in the LiDAR frame: metres, radians and metres per second),
            ``scores_3d`` and ``labels_3d``, the best first. ``visualization``: images (H, W, 3),
            BGR, or ``None``.
        """
        return super().__call__(
            inputs,
            return_datasamples,
            batch_size,
            return_vis=return_vis,
            out_dir=out_dir,
            pred_score_thr=pred_score_thr,
            ground_truth=ground_truth,
        )

    def _init_model(self, cfg: Config, weights: str | Path, device: str = "cpu") -> nn.Module:
        init_default_scope("mmdet3d")
        frames = cfg.test_dataloader.dataset.frames
        if self.cached_frames is None:
            self.cached_frames = useful_capacity(frames)
        cfg.model.cached_frames = self.cached_frames
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        load_released(model, weights)
        return model.to(device).eval()

    def _init_pipeline(self, cfg: Config) -> Callable[[int], dict]:
        dataset = cfg.test_dataloader.dataset
        if self.infos is not None:
            path = Path(self.infos).resolve()
            dataset.update(data_root=str(path.parent), ann_file=path.name)
        self.dataset = DATASETS.build({**dataset, "cached_frames": self.cached_frames})
        self.reach = cfg.model.pts_bbox_head.point_cloud_range[3]
        return self.dataset.__getitem__

    def _init_collate(self, cfg: Config) -> Callable:
        return pseudo_collate

    def _init_visualizer(self, cfg: Config) -> None:
        """mmdet3d's visualizer draws into one image at a time, and is not used."""

    def _inputs_to_list(self, inputs: int | Iterable[int]) -> list[int]:
        indexes = [inputs] if isinstance(inputs, int) else list(inputs)
        count = len(self.dataset)
        for index in indexes:
            if not (isinstance(index, (int, np.integer)) and 0 <= index < count):
                raise ValueError(f"inputs: expected indexes from 0 to {count - 1}, got {index!r}")
        return indexes

    def visualize(
        self,
        inputs: Sequence[int],
        preds: Sequence[Det3DDataSample],
        *,
        return_vis: bool,
        out_dir: str | Path | None,
        pred_score_thr: float,
        ground_truth: bool,
    ) -> list[np.ndarray] | None:
        """Draws the boxes of each sample into its original images, and from above."""
        if not return_vis and out_dir is None:
            return None
        if out_dir is not None:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
        drawn = []
        for index, pred in zip(inputs, preds, strict=True):
            found = pred.pred_instances_3d.to("cpu")
            drawn.append(
                draw_mosaic(
                    self.views(index),
                    found[found.scores_3d >= pred_score_thr],
                    self.dataset.ground_truth(index) if ground_truth else None,
                    class_names=self.dataset.metainfo["classes"],
                    reach=self.reach,
                    title=self.dataset.get_data_info(index)["token"],
                )
            )
            if out_dir is not None:
                cv2.imwrite(str(Path(out_dir, f"{index:05}.jpg")), drawn[-1])
        return drawn if return_vis else None

    def views(self, index: int) -> list[CameraView]:
        """The original images of a sample, with their projections."""
        images = self.dataset.get_data_info(index)["images"]
        loaded = LoadMultiViewImageFromFiles()(dict(images=images))
        matrices = zip(loaded["cam2img"], loaded["lidar2cam"], strict=True)
        return [
            CameraView(name, image, np.vstack((cam2img @ lidar2cam[:3], [0, 0, 0, 1])))
            for name, image, (cam2img, lidar2cam) in zip(
                images, loaded["imgs"], matrices, strict=True
            )
        ]

    def postprocess(
        self,
        preds: Sequence[Det3DDataSample],
        visualization: list[np.ndarray] | None,
        return_datasample: bool = False,
    ) -> dict[str, Any]:
        """Predictions as lists, or as data samples if ``return_datasample``, and the images."""
        if not return_datasample:
            preds = [_plain(pred) for pred in preds]
        return dict(predictions=preds, visualization=visualization)


def _plain(pred: Det3DDataSample) -> dict[str, list]:
    found = pred.pred_instances_3d
    return dict(
        bboxes_3d=found.bboxes_3d.tensor.tolist(),
        scores_3d=found.scores_3d.tolist(),
        labels_3d=found.labels_3d.tolist(),
    )
