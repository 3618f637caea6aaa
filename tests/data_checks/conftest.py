"""Tiny datasets, and runners that train one step on them behind the check."""

import itertools
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from torch import nn

CAMERAS = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
# In the order of mmdet3d's labels.
CATEGORIES = (
    *("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle"),
    *("pedestrian", "traffic_cone", "barrier"),
)
_COUNTER = itertools.count()


class Model(BaseModel):
    """A model whose heads say how many classes they know, by name."""

    def __init__(self, **heads):
        super().__init__()
        for name, attributes in heads.items():
            head = nn.Linear(1, 1)
            vars(head).update(attributes)
            self.add_module(name, head)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return {"loss": sum(p.sum() for p in self.parameters())}


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Leaves out what takes a runner and its datasets a second each and checks nothing."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    monkeypatch.setattr(Config, "pretty_text", "")


@pytest.fixture
def make_runner(tmp_path):
    """Function that makes a runner with `CheckDataHook` of a host's datasets and heads."""

    def make(host, train, val=None, evaluator=None, *, hook=(), **heads):
        def loader(dataset):
            return {
                "batch_size": 1,
                "dataset": dataset,
                "sampler": {"type": "DefaultSampler", "shuffle": False},
                "collate_fn": {"type": "pseudo_collate"},
            }

        evaluated = val is not None
        return Runner(
            model=Model(**heads),
            work_dir=str(tmp_path / "run"),
            train_dataloader=loader(train),
            train_cfg={"by_epoch": True, "max_epochs": 1, "val_begin": 9},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
            val_dataloader=loader(val) if evaluated else None,
            val_cfg={} if evaluated else None,
            val_evaluator=evaluator if evaluated else None,
            custom_hooks=[{"type": "dcnv4_mm.CheckDataHook", **dict(hook)}],
            default_scope=host,
            experiment_name=f"{tmp_path.name}_{next(_COUNTER)}",
        )

    torch.manual_seed(0)
    return make


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder with two images of two classes in COCO's format, with label maps, and in folders.

    And with an info file of three samples.
    """
    root = tmp_path_factory.mktemp("tiny")
    for split in ("train", "val"):
        write_images(root / split)
    for name in CAMERAS:
        (root / "samples" / f"CAM_{name}").mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(root / "samples" / f"CAM_{name}" / "0.jpg")
    dump(infos("v1.0-trainval"), root / "infos.pkl")
    return root


def write_images(folder):
    for kind in ("images", "maps", "folders/disk", "folders/ring"):
        (folder / kind).mkdir(parents=True)
    labels = np.repeat(np.array([0, 1, 2, 255], np.uint8), 16)[None].repeat(48, 0)
    for index, name in enumerate(("disk", "ring")):
        image = Image.new("RGB", (64, 48))
        image.save(folder / "images" / f"{index}.jpg")
        image.save(folder / "folders" / name / f"{index}.jpg")
        Image.fromarray(labels).save(folder / "maps" / f"{index}.png")
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(2)]
    square = [[8, 8, 28, 8, 28, 28, 8, 28]]
    box = {"bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0, "segmentation": square}
    objects = [{"id": i + 1, "image_id": i, "category_id": i, **box} for i in range(2)]
    categories = [{"id": i, "name": name} for i, name in enumerate(("disk", "ring"))]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))


def infos(version):
    identity = np.eye(4).tolist()
    camera = {"cam2img": np.eye(3).tolist(), "lidar2cam": identity, "img_path": "0.jpg"}
    car = {"bbox_3d": [5.0, 0, 0, 4, 2, 1, 0], "bbox_label_3d": 0, "bbox_label": 0}
    car |= {"velocity": [0.0, 0.0], "num_lidar_pts": 9, "bbox_3d_isvalid": True}
    samples = [
        {
            "sample_idx": index,
            "token": f"sample {index}",
            "scene_token": "scene",
            "frame_idx": index,
            "timestamp": 0.5 * index,
            "ego2global": identity,
            "lidar_points": {"lidar_path": "0.bin", "lidar2ego": identity, "num_pts_feats": 5},
            "images": {f"CAM_{name}": dict(camera) for name in CAMERAS},
            "instances": [dict(car)],
            "mono_instances": {f"CAM_{name}": [] for name in CAMERAS},
        }
        for index in range(3)
    ]
    categories = {name: label for label, name in enumerate(CATEGORIES)}
    meta = {"version": version, "dataset": "nuscenes", "categories": categories}
    return {"metainfo": {**meta, "info_version": "1.1"}, "data_list": samples}
