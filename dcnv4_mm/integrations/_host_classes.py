"""Registration of the classes that need a host, which is imported when one of them is built.

Importing a host takes seconds, and not every user has all of them.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from dcnv4_mm.integrations._hosts import installed_version, missing_host_message
from dcnv4_mm.registry import DATASETS, METRICS, MODELS, TRANSFORMS

# By registry: (host, module below this package) -> names of classes.
CLASSES = {
    MODELS: {
        ("mmdet", "integrations._mmdet"): ("DINO", "DINOHead"),
        ("mmseg", "integrations._mmseg"): ("Mask2FormerHead",),
        ("mmpretrain", "integrations._mmpretrain"): (
            "DCNv4ConvNeXt",
            "DCNv4VisionTransformer",
            "FlashInternImageHead",
        ),
        ("mmdet3d", "bev.detector"): ("BEVFormerV2",),
        ("mmdet3d", "bev.heads.bev_head"): ("BEVFormerV2Head",),
        ("mmdet3d", "bev.heads.dd3d_head"): ("DD3DHead",),
    },
    DATASETS: {("mmdet3d", "bev.data.dataset"): ("BEVFormerV2NuScenesDataset",)},
    METRICS: {("mmdet3d", "bev.data.metric"): ("StrictNuScenesMetric",)},
    TRANSFORMS: {
        ("mmseg", "integrations._mmseg"): ("LoadSegAnnotations",),
        ("mmdet3d", "bev.data.transforms"): (
            "BEVAugmentation",
            "LoadMultiViewImageFromFiles",
            "MonoTargets",
            "Pack3DDetInputs",
            "PhotoMetricDistortionMultiViewImage",
            "ResizeCropFlipImage",
        ),
    },
}


def _build_late(host: str, module: str, name: str) -> Callable[..., Any]:
    """Creates a function that imports a class and builds an object of it."""

    def build(*args: Any, **kwargs: Any) -> Any:
        if installed_version(host) is None:
            raise ImportError(f"dcnv4_mm.{name} needs {host}: {missing_host_message(host)}")
        return getattr(import_module(f"dcnv4_mm.{module}"), name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    return build


for _registry, _modules in CLASSES.items():
    for (_host, _module), _names in _modules.items():
        for _name in _names:
            _registry.register_module(name=_name, module=_build_late(_host, _module, _name))

# Former names of transforms, which configs of mmdet3d users may still have.
_RENAMED = {
    "CropResizeFlip": "ResizeCropFlipImage",
    "LoadCameras": "LoadMultiViewImageFromFiles",
    "PackBEVInputs": "Pack3DDetInputs",
    "PhotometricDistortion": "PhotoMetricDistortionMultiViewImage",
}
for _old, _new in _RENAMED.items():
    TRANSFORMS.register_module(name=_old, module=TRANSFORMS.get(_new))
