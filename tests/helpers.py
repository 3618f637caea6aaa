"""Recorded results in ``tests/data`` with their weights and inputs; programs as subprocesses."""

import copy
import gzip
import json
import math
import os
import subprocess
import sys
import zlib
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
# Options of a config: no worker processes.
NO_WORKERS = [
    f"{phase}_dataloader.{option}"
    for phase in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False")
]


def run_python(*command, cwd, check=True, **environment):
    """Runs Python with arguments as a subprocess.

    Returns:
        Its exit status, unless it is checked to be 0, and its output and errors together.
    """
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert not check or result.returncode == 0, result.stdout[-4000:]
    return result.stdout if check else (result.returncode, result.stdout)


@cache
def load_json(name):
    """Reads ``tests/data/<name>.json.gz``; the result is shared, so do not change it."""
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@cache
def load_arrays(name):
    """Reads ``tests/data/<name>.npz`` as a dictionary of arrays."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


@cache
def load_all(name):
    """Reads ``tests/data/<name>*.json.gz`` into one dictionary; two levels deep are merged."""
    merged = {}
    for path in sorted(DATA.glob(f"{name}*.json.gz")):
        for key, value in load_json(path.name.removesuffix(".json.gz")).items():
            merged.setdefault(key, {}).update(value)
    return merged


def manifest(kind, stem):
    """Shapes by released name, in order, of one released model."""
    segmentation = kind == "segmentation"
    manifests = load_json("ade20k_manifests") if segmentation else load_all("manifests")
    return manifests["tensors"][manifests["models"][kind][stem]["tensors"]]


def manifest_stems(kind):
    return sorted(load_all("manifests")["models"][kind])


@cache
def hyperparameters(*families):
    """Settings of the original's configs by name, of some families or of all."""
    found = {}
    for path in sorted(DATA.glob("*_hyperparameters.json")):
        if not families or path.name.removesuffix("_hyperparameters.json") in families:
            table = json.loads(path.read_text())
            for original, values in table["configs"].items():
                found[original] = {**table["common"], **values}
    return found


def generator(seed):
    """A generator of the recordings: seeded by a number, or by the checksum of a str."""
    if isinstance(seed, str):
        seed = zlib.crc32(seed.encode())
    return np.random.Generator(np.random.PCG64(seed))


def normal(seed, shape):
    """Standard normal float64 values."""
    return generator(seed).standard_normal(shape)


def images(height, width, *, batch=1, seed=0):
    """A batch of normalised images, float32."""
    return torch.from_numpy(normal(seed, (batch, 3, height, width)).astype(np.float32))


def weights(shapes):
    """Float32 weights for a state dict of shapes by released name."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name, shape):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    z = normal(name, shape)
    if name.endswith("running_var"):
        z = 1 + 0.1 * abs(z)
    elif len(shape) >= 2:
        z = z * 0.5 / math.sqrt(math.prod(shape[1:]))
    elif len(shape) == 1 and name.endswith(".weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def backbone_kwargs(kwargs):
    """This package's arguments for the original's; what only concerns training is left out."""
    arch = {
        "channels": kwargs["channels"],
        "depths": kwargs["depths"],
        "groups": kwargs["groups"],
        "offset_scale": kwargs["offset_scale"],
        "post_norm": kwargs["post_norm"],
        "dw_kernel_size": kwargs.get("dw_kernel_size"),
        "dcn_output_bias": kwargs.get("dcn_output_bias", False),
        "mlp_fc2_bias": kwargs.get("mlp_fc2_bias", False),
        "mlp_ratio": kwargs["mlp_ratio"],
    }
    return {"arch": arch, "layer_scale": kwargs["layer_scale"]}


def config_of(original):
    """The config, not yet loaded, that reproduces one of the original's, by the model index."""
    import yaml

    for metafile in sorted(ROOT.glob("configs/*/metafile.yml")):
        for model in yaml.safe_load(metafile.read_text())["Models"]:
            if model.get("Metadata", {}).get("Original Config") == original:
                return ROOT / model["Config"]
    raise LookupError(f"no metafile entry has `Original Config: {original}`")


def build_model(original, device="cpu"):
    """The host's model of the config that reproduces one of the original's, and the config."""
    from mmengine.config import Config

    config = Config.fromfile(config_of(original))
    host = config.default_scope
    import_module(f"{host}.utils").register_all_modules(init_default_scope=True)
    # Building writes into what it is given.
    settings = copy.deepcopy(config.model)
    if "data_preprocessor" not in settings:
        # As mmengine's runner does.
        settings.data_preprocessor = copy.deepcopy(config.data_preprocessor)
    with torch.device(device):
        return import_module(f"{host}.registry").MODELS.build(settings), config


def dino_weights(original):
    """The recorded DINO's weights by released name."""
    tensors = weights(manifest("dino", original))
    # Otherwise all invalid tokens have one high score, and the choice of queries is undefined.
    tensors["bbox_head.transformer.enc_output.bias"] *= 0.01
    return tensors


def dino_samples(case):
    """The data samples of a recorded batch, with the ground truth if the recording has any."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for index, shape in enumerate(case["img_shapes"]):
        meta = {"img_shape": tuple(shape), "batch_input_shape": tuple(case["batch_input_shape"])}
        samples.append(DetDataSample(metainfo=meta))
        if "gt" in case:
            truth = case["gt"][index]
            samples[-1].gt_instances = InstanceData(
                bboxes=torch.tensor(truth["bboxes"]), labels=torch.tensor(truth["labels"])
            )
    return samples


def label_maps(recorded):
    """The label maps of a recording of training losses, uint8 (N, H, W), 255 ignored."""
    block, draw = recorded["gt_block"], generator(recorded["gt_seed"])
    rows, columns = (-(-recorded[side] // block) for side in ("h", "w"))
    picked = draw.integers(0, len(recorded["gt_classes"]), (recorded["n"], rows, columns))
    labels = np.asarray(recorded["gt_classes"], np.uint8)[picked]
    labels[draw.random(picked.shape) < 0.1] = recorded["ignore_label"]
    pixels = labels.repeat(block, axis=1).repeat(block, axis=2)
    return torch.from_numpy(pixels[:, : recorded["h"], : recorded["w"]].copy())
