"""docs/own_data/bev.md: the recipe trains on a synthetic set."""

import pytest
import torch

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from test_docs_own_data import FILES, own_config, train

pytestmark = [pytest.mark.mmdet3d, pytest.mark.slow]


def test_the_recipe_trains_and_evaluates(nuscenes_root, tmp_path):
    (stem,) = (stem for stem in FILES if stem.startswith("bevformerv2"))
    cfg = own_config(stem, tmp_path, max_epochs=1, data_root=f'"{nuscenes_root}/"')
    cfg.model.pts_bbox_head.bev_shape = (16, 16)
    torch.manual_seed(0)
    logged = train(cfg, tmp_path)
    assert "val/pred_instances_3d_NuScenes/mAP" in logged or any(
        name.endswith("NuScenes/mAP") for name in logged
    ), sorted(logged)
