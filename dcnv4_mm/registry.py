"""Registries of this package, children of mmengine's, with the scope ``dcnv4_mm``.

mmengine imports this module by itself when a config names a type ``dcnv4_mm.X``; the modules
that hold the classes are imported at the first look-up. The operators that mmcv-lite lacks are
served from then on (:mod:`dcnv4_mm.integrations.mmcv_ext`).
"""

from importlib import import_module

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as _OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as _PARAM_SCHEDULERS
from mmengine.registry import STRATEGIES as _STRATEGIES
from mmengine.registry import TRANSFORMS as _TRANSFORMS
from mmengine.registry import Registry

__all__ = [
    "DATASETS",
    "HOOKS",
    "METRICS",
    "MODELS",
    "OPTIM_WRAPPER_CONSTRUCTORS",
    "PARAM_SCHEDULERS",
    "STRATEGIES",
    "TRANSFORMS",
]

_SCOPE = "dcnv4_mm"
_HOST_CLASSES = "dcnv4_mm.integrations._host_classes"

MODELS = Registry(
    "model",
    parent=_MODELS,
    scope=_SCOPE,
    locations=["dcnv4_mm.integrations._mmengine", _HOST_CLASSES],
)
HOOKS = Registry(
    "hook",
    parent=_HOOKS,
    scope=_SCOPE,
    locations=["dcnv4_mm.engine", "dcnv4_mm.integrations._hooks"],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=_OPTIM_WRAPPER_CONSTRUCTORS,
    scope=_SCOPE,
    locations=["dcnv4_mm.optim"],
)
PARAM_SCHEDULERS = Registry(
    "parameter scheduler", parent=_PARAM_SCHEDULERS, scope=_SCOPE, locations=["dcnv4_mm.optim"]
)
STRATEGIES = Registry(
    "strategy", parent=_STRATEGIES, scope=_SCOPE, locations=["dcnv4_mm.engine.fsdp"]
)
DATASETS = Registry("dataset", parent=_DATASETS, scope=_SCOPE, locations=[_HOST_CLASSES])
METRICS = Registry("metric", parent=_METRICS, scope=_SCOPE, locations=[_HOST_CLASSES])
TRANSFORMS = Registry("transform", parent=_TRANSFORMS, scope=_SCOPE, locations=[_HOST_CLASSES])

# mmengine resolves `dcnv4_mm::mask_rcnn/...` only for packages in its own table.
MODULE2PACKAGE.setdefault(_SCOPE, _SCOPE)
# By name, as the locations above. Hosts import mmcv's operators, so it must be before them.
import_module("dcnv4_mm.integrations.mmcv_ext").install()
