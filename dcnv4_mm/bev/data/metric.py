"""The nuScenes metric, with a check of the samples, and submissions to the test server."""

import logging
from collections.abc import Sequence
from typing import Any

from mmdet3d.evaluation.metrics import NuScenesMetric
from mmengine.logging import print_log

from dcnv4_mm.bev.data.infos import read_infos

__all__ = ["StrictNuScenesMetric"]

# All that the format demands; mmdet3d's default has two of them, for a LiDAR model.
_MODALITY = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


class StrictNuScenesMetric(NuScenesMetric):
    """mmdet3d's metric with a check of each prediction's sample, for camera models.

    mmdet3d finds the sample of a prediction by its index in the dataset. A wrapper, a filter or
    another order would silently score every prediction against another sample's objects.

    With ``format_only=True`` and ``jsonfile_prefix`` it writes the submission file instead of
    scoring it, as the test set needs.

    Args:
        modality: What the submission file says of the model's inputs; by default cameras alone,
            and no external data.

    Raises:
        ValueError: A prediction's token is not that of the info at its index.
    """

    def __init__(self, *args: Any, modality: dict[str, bool] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, modality={**_MODALITY, **(modality or {})}, **kwargs)
        self.data_infos: list[dict] | None = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collects the predictions of a batch."""
        infos = self._read()
        for sample in data_samples:
            index = sample["sample_idx"]
            if index >= len(infos) or infos[index]["token"] != sample["token"]:
                raise ValueError(
                    f"the prediction for sample {sample['token']} has index {index}, where "
                    f"{self.ann_file} has another sample: test on the plain dataset, in the order "
                    "of its infos, without a wrapper"
                )
        super().process(data_batch, data_samples)

    def _read(self) -> list[dict]:
        """Fields of the infos that the metric needs, read once: others would stay in memory."""
        if self.data_infos is None:
            infos = read_infos(self.ann_file, self.backend_args)["data_list"]
            keys = ("token", "ego2global", "lidar_points")
            self.data_infos = [{key: info[key] for key in keys} for info in infos]
        return self.data_infos

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Writes the submission file, and scores it unless ``format_only``.

        Without any prediction, which the devkit refuses to score, the scores are 0.
        """
        classes, self.version = self.dataset_meta["classes"], self.dataset_meta["version"]
        self._read()
        if not self.format_only and not any(
            len(result["pred_instances_3d"]["scores_3d"]) for result in results
        ):
            print_log(
                "There is no prediction in any sample", logger="current", level=logging.WARNING
            )
            return {f"pred_instances_3d_NuScenes/{name}": 0.0 for name in ("NDS", "mAP")}
        files, folder = self.format_results(results, classes, self.jsonfile_prefix)
        if self.format_only:
            print_log(f"Submission: {', '.join(files.values())}", logger="current")
            return {}
        scores = {}
        for metric in self.metrics:
            scores.update(self.nus_evaluate(files, metric, classes))
        if folder is not None:
            folder.cleanup()
        return scores
