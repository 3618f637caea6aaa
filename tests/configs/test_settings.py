"""The 24 configs of DCNv4's released models have the settings of the originals.

``config_settings.json`` holds the settings, and what the built models have; see its entry in
tests/data/README.md.
"""

import copy
import json
import math

import pytest
import torch
from configs.settings import build, built, settings_of
from helpers import DATA, build_segmentor, config_of
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS
from torch import nn

TABLES = json.loads((DATA / "config_settings.json").read_text())


def originals(*families):
    """The original configs of some families, marked by the hosts that they need."""
    hosts = {"upernet": ["mmseg", "mmdet"], "mask2former": ["mmseg", "mmdet"]}
    hosts["classification"] = ["mmpretrain"]
    return [
        pytest.param(
            original, marks=[getattr(pytest.mark, host) for host in hosts.get(family, ["mmdet"])]
        )
        for family in families
        for original in TABLES[family]["configs"]
    ]


@pytest.fixture(scope="module", params=originals(*TABLES))
def case(request):
    """The expected settings, our config and the model built from it, without memory."""
    (table,) = (table for table in TABLES.values() if request.param in table["configs"])
    model, config = build(request.param)
    return {**table["common"], **table["configs"][request.param]}, config, model


def test_settings_equal_the_originals(case):
    expected, config, model = case
    found = json.loads(json.dumps(settings_of(config) | built(model)))
    assert found == expected


def test_optimizer_can_be_built(case):
    expected, config, model = case
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in parameters) == expected["built.num_parameters"]


def test_every_transform_can_be_built(case):
    _, config, _ = case
    for loader in (config.train_dataloader, config.test_dataloader):
        for step in (*loader.dataset.pipeline, *config.get("tta_pipeline", [])):
            TRANSFORMS.build(copy.deepcopy(step))


def optimizer_of(config):
    rate = config.optim_wrapper.optimizer.lr
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=rate), rate


@pytest.mark.parametrize("original", originals("mask_rcnn", "cascade", "dino"))
def test_learning_rate_of_detectors(original):
    """The rate at every iteration, with epochs of 700 iterations to see warm-up and steps."""
    config = Config.fromfile(config_of(original))
    optimizer, lr = optimizer_of(config)
    warmup, steps = (
        PARAM_SCHEDULERS.build({"optimizer": optimizer, **scheduler})
        for scheduler in config.param_scheduler
    )
    milestones = config.param_scheduler[1].milestones
    for iteration in range(config.train_cfg.max_epochs * 700):
        expected = lr * 0.1 ** sum(iteration // 700 >= milestone for milestone in milestones)
        if iteration < 500:
            expected *= 1 - (1 - iteration / 500) * (1 - 0.001)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6), iteration
        warmup.step()
        if (iteration + 1) % 700 == 0:
            steps.step()


@pytest.mark.parametrize("original", originals("upernet", "mask2former"))
def test_learning_rate_of_segmentors(original):
    """Every iteration of the warm-up; test_poly_warmup.py has the formula to its end."""
    config = Config.fromfile(config_of(original))
    optimizer, lr = optimizer_of(config)
    (settings,) = config.param_scheduler
    schedule = PARAM_SCHEDULERS.build({"optimizer": optimizer, **settings})
    for iteration in range(1510):
        expected = lr * (1 - iteration / 160000) ** settings.get("power", 1.0)
        if iteration < 1500:
            expected *= 1 - (1 - iteration / 1500) * (1 - settings.warmup_ratio)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12), iteration
        schedule.step()


@pytest.mark.parametrize("original", originals("classification"))
def test_learning_rate_of_classifiers(original):
    """It warms up and falls by iteration, here with epochs of ten."""
    config = Config.fromfile(config_of(original))
    optimizer, lr = optimizer_of(config)
    warmup, cosine = config.param_scheduler
    lowest = cosine.get("eta_min", cosine.get("eta_min_ratio", 0) * lr)
    warm, end = 10 * warmup.end, 10 * config.train_cfg.max_epochs
    schedulers = []
    for settings in copy.deepcopy(config.param_scheduler):
        kind = PARAM_SCHEDULERS.get(settings.pop("type"))
        assert settings.pop("convert_to_iter_based")
        schedulers.append(kind.build_iter_from_epoch(optimizer, epoch_length=10, **settings))
    for iteration in range(end):
        if iteration < warm:
            # mmengine has the full rate in the last of the warm-up's iterations.
            weight = iteration / (warm - 1)
            expected = lr * (warmup.start_factor * (1 - weight) + weight)
        else:
            angle = math.pi * (iteration - warm) / (end - warm)
            expected = lowest + (lr - lowest) * (1 + math.cos(angle)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-5, abs=1e-12)
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.mmseg
def test_one_process_has_no_synchronised_norms():
    """As mmengine's runner does for non-distributed training, so that it works on a CPU."""
    model, _ = build_segmentor("upernet_flash_internimage_t_512_160k_ade20k", device="meta")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in revert_sync_batchnorm(model).modules())
