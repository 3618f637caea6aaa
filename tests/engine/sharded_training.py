"""Trains a small model in several processes, replicated or sharded."""

import torch
from engine import training
from engine.small_model import Images, Model
from helpers import ROOT
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

CONFIG = ROOT / "configs" / "_base_" / "strategies" / "fsdp.py"


def train(rank, processes, port, folder, options):
    """One process of a training with layer-wise learning rates and gradient clipping."""
    training.join(rank, processes, port)
    torch.manual_seed(0)
    optimizer = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.5}
    settings = {
        "model": Model(with_cp=True),
        "work_dir": str(folder),
        "train_dataloader": {
            "batch_size": 2,
            "num_workers": 0,
            "dataset": Images(8),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        },
        "train_cfg": {"by_epoch": True, "max_epochs": 2},
        "optim_wrapper": {
            "optimizer": optimizer,
            "constructor": "dcnv4_mm.LayerDecayOptimWrapperConstructor",
            "paramwise_cfg": {"layer_decay_rate": 0.5},
            "clip_grad": {"max_norm": 0.1},
        },
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        "resume": options.get("resume", False),
        "load_from": options.get("load_from"),
        "log_level": "WARNING",
    }
    if options["sharded"]:
        strategy = Config.fromfile(CONFIG).strategy
        strategy.model_wrapper.device_id = "cpu"
        # On the CPU torch 2.13 crashes with sharded state dicts.
        strategy.state_dict_cfg = {
            "state_dict_type": "FULL_STATE_DICT",
            "state_dict_config": {"type": "FullStateDictConfig"},
            "optim_state_dict_config": {"type": "FullOptimStateDictConfig"},
        }
        runner = FlexibleRunner(**settings, strategy=strategy)
    else:
        wrapper = {"type": "MMDistributedDataParallel", "device_ids": None}
        runner = Runner(**settings, launcher="pytorch", cfg={"model_wrapper_cfg": wrapper})
    runner.train()
