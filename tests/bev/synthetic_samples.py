"""Infos, datasets and ground truth of the synthetic nuScenes; needs mmdet3d."""

import pickle

import torch
from helpers import ROOT
from mmdet3d.registry import DATASETS
from mmdet3d.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData

from dcnv4_mm.bev.data.dataset import CLASSES

CONFIG = ROOT / "configs" / "_base_" / "bevformerv2_r50_fpn_nus-3d.py"


def load_infos(root, split="train"):
    return pickle.loads((root / f"bevformerv2_infos_{split}.pkl").read_bytes())


def build_dataset(root, split="train", **changes):
    """The config's dataset on the synthetic data, with smaller images."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(CONFIG)
    loader = config.train_dataloader if split == "train" else config.val_dataloader
    settings = loader.dataset
    settings.update(data_root=str(root), metainfo=dict(classes=CLASSES, version="v1.0-mini"))
    for step in settings.frame_pipeline:
        if step["type"] == "dcnv4_mm.ResizeCropFlipImage":
            step["heights"] = [96, 128, 144]
    settings.update(changes)
    return DATASETS.build(settings)


def ground_truth(data, index):
    """The predictions of a perfect model for a sample of the validation set."""
    info = data.get_data_info(index)
    annotations = data.parse_ann_info(info)
    kept = annotations["gt_labels_3d"] >= 0
    return InstanceData(
        bboxes_3d=annotations["gt_bboxes_3d"][torch.from_numpy(kept)],
        labels_3d=torch.from_numpy(annotations["gt_labels_3d"][kept]),
        scores_3d=torch.ones(int(kept.sum())),
    )


def changed_copy(root, target, change):
    """Writes changed validation infos; the images stay where they are."""
    target.mkdir()
    infos = load_infos(root, "val")
    change(infos)
    (target / "infos.pkl").write_bytes(pickle.dumps(infos))
    return str(target / "infos.pkl")
