"""``python -m dcnv4_mm.env``: installed versions, kernels in use, and the next command."""

import platform

import torch

import dcnv4_mm
from dcnv4_mm.integrations import mmcv_ext
from dcnv4_mm.integrations._hosts import (
    HOSTS,
    find_problems,
    installed_version,
    missing_host_message,
)
from dcnv4_mm.ops.functional import backend_info, how_to_build

__all__ = ["report"]


def report() -> str:
    """Describes this installation in a few lines."""
    rows = [
        ("dcnv4_mm", dcnv4_mm.__version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            rows.append((f"cuda:{index}", torch.cuda.get_device_name(index)))
    for host in HOSTS:
        rows.append((host, installed_version(host) or missing_host_message(host)))
    rows.append(("mmcv's operators", mmcv_ext.serving()))
    rows.extend(("problem", problem) for problem in find_problems())
    for op, serving in backend_info().items():
        for device_type, kernels in serving.items():
            rows.append((f"{op} on {device_type}", kernels))
    lines = [f"{name:<20} {text}" for name, text in rows]
    return "\n".join([*lines, "", f"Next: {_next_command()}"])


def _next_command() -> str:
    serving = backend_info()["dcnv4"]
    if any("make install" in kernels for kernels in serving.values()):
        return "make install"
    if serving["cpu"].startswith("reference"):
        return how_to_build("cpu")
    if torch.cuda.is_available() and serving["cuda"].startswith("reference"):
        return how_to_build("cuda")
    if problems := find_problems():
        return problems[0]
    installed = [host for host in HOSTS if installed_version(host)]
    if not installed:
        return (
            "operators, layers and backbones are ready; OpenMMLab models need, in a clone of "
            'dcnv4_mm: pip install --no-build-isolation ".[all]"'
        )
    if missing := [host for host in ("mmengine", "mmcv", "mmdet") if host not in installed]:
        return missing_host_message(missing[0])
    return "mim train dcnv4_mm mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco.py"


if __name__ == "__main__":
    print(report())
