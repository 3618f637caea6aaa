"""Process groups on machines without a GPU."""

import os
from typing import TYPE_CHECKING

from dcnv4_mm.cli.configs import stop

if TYPE_CHECKING:
    from mmengine.config import Config


def start_processes(cfg: "Config") -> None:
    """Joins the process group over gloo without CUDA; with CUDA, mmengine does it."""
    import torch

    if cfg.launcher == "none" or torch.cuda.is_available():
        return
    if cfg.launcher == "slurm":
        names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS"}
    elif cfg.launcher == "mpi":
        names = {"RANK": "OMPI_COMM_WORLD_RANK", "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE"}
    else:
        names = {}
    for name, source in names.items():
        if source in os.environ:
            os.environ[name] = os.environ[source]
    os.environ.setdefault("MASTER_PORT", "29500")
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    if missing := [name for name in needed if name not in os.environ]:
        stop(
            f"--launcher {cfg.launcher} needs the environment variables {', '.join(missing)}: "
            "start this program with the launcher (torchrun, srun, mpirun)"
        )
    torch.distributed.init_process_group("gloo")
    cfg.setdefault("model_wrapper_cfg", {})
    cfg.model_wrapper_cfg = {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
        **cfg.model_wrapper_cfg,
        "device_ids": None,
        "output_device": None,
    }


def end_processes() -> None:
    """Leaves the process group, if there is one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
