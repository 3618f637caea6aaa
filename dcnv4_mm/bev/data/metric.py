"""nuScenes' metric, which refuses to score predictions of other samples than it thinks."""

import logging
from collections.abc import Sequence

from mmdet3d.evaluation.metrics import NuScenesMetric
from mmengine.fileio import load
from mmengine.logging import print_log

__all__ = ["StrictNuScenesMetric"]


class StrictNuScenesMetric(NuScenesMetric):
    """mmdet3d's metric with a check of each prediction's sample.

    mmdet3d finds the sample of a prediction by its position in the dataset. A wrapper, a filter
    or another order would silently score every prediction against another sample's objects.

    Raises:
        ValueError: A prediction's token is not that of the info at its position.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Takes the predictions of a batch."""
        if not hasattr(self, "_tokens"):
            infos = load(self.ann_file, backend_args=self.backend_args)["data_list"]
            self._tokens = [info["token"] for info in infos]
        for sample in data_samples:
            index = sample["sample_idx"]
            if index >= len(self._tokens) or self._tokens[index] != sample["token"]:
                raise ValueError(
                    f"the prediction for sample {sample['token']} comes at position {index}, where "
                    f"{self.ann_file} has another one: test on the plain dataset, in the order "
                    "of its infos, without a wrapper"
                )
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Scores the predictions; without any, which the devkit refuses to score, they are 0."""
        if any(len(result["pred_instances_3d"]["scores_3d"]) for result in results):
            return super().compute_metrics(results)
        print_log("There is no prediction in any sample", logger="current", level=logging.WARNING)
        return {f"pred_instances_3d_NuScenes/{name}": 0.0 for name in ("NDS", "mAP")}
