"""Registers BEVFormerV2 for mmdet3d, which is imported only when one of its parts is built.

Importing mmdet3d takes seconds and asks for much that other hosts' users do not have.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from dcnv4_mm.integrations._hosts import installed_version, missing_host_message
from dcnv4_mm.registry import DATASETS, METRICS, MODELS, TRANSFORMS

# By registry: the name of a class, and its module below dcnv4_mm.bev.
_CLASSES = {
    MODELS: {
        "BEVFormerV2": "detector",
        "BEVFormerV2Head": "heads.bev_head",
        "DD3DHead": "heads.dd3d_head",
    },
    DATASETS: {"BEVFormerV2NuScenesDataset": "data.dataset"},
    METRICS: {"StrictNuScenesMetric": "data.metric"},
    TRANSFORMS: {
        "BEVAugmentation": "data.transforms",
        "CropResizeFlip": "data.transforms",
        "LoadCameras": "data.transforms",
        "MonoTargets": "data.transforms",
        "PackBEVInputs": "data.transforms",
        "PhotometricDistortion": "data.transforms",
    },
}


def _on_demand(name: str, module: str) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        if installed_version("mmdet3d") is None:
            raise ImportError(f"dcnv4_mm.{name} needs mmdet3d: {missing_host_message('mmdet3d')}")
        return getattr(import_module(f"dcnv4_mm.bev.{module}"), name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    return build


for _registry, _names in _CLASSES.items():
    for _name, _module in _names.items():
        _registry.register_module(name=_name, module=_on_demand(_name, _module))
