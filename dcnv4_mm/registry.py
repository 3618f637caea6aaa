"""Registries of this package, children of mmengine's, with the scope ``dcnv4_mm``.

mmengine imports this module by itself when a config names a type ``dcnv4_mm.X``; the modules
that hold the classes are imported at the first look-up. The operators that mmcv-lite lacks are
served from then on (:mod:`dcnv4_mm.integrations.mmcv_ext`).
"""

from importlib import import_module
from typing import Any

from mmengine import registry as _mmengine
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DefaultScope, Registry

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


class _Registry(Registry):
    """A registry that finds a type without a scope as the config's own default scope would.

    mmengine marks each typed dict of a config that is inherited by ``dcnv4_mm::`` with this
    package's scope, and builds it, and what is inside of it, from these registries. The host's
    classes are meant all the same.
    """

    def get(self, key: str) -> Any:
        """Returns the class of a type: this package's, else the host's, else mmengine's."""
        scope, name = self.split_scope_key(key)
        self.import_from_location()
        if scope is None and name not in self.module_dict:
            host = next(filter(_SCOPE.__ne__, reversed(_active_scopes())), None)
            if host is not None:
                import_module(f"{host}.registry")
                child = self._get_root_registry()._search_child(host)
                if child is not None:
                    return child.get(key)
        return super().get(key)


def _active_scopes() -> list[str]:
    """mmengine's default scopes, the one in use last."""
    return [scope.scope_name for scope in DefaultScope._instance_dict.values()]


def _child(root: Registry, *locations: str) -> _Registry:
    return _Registry(root.name, parent=root, scope=_SCOPE, locations=list(locations))


MODELS = _child(_mmengine.MODELS, "dcnv4_mm.integrations._mmengine", _HOST_CLASSES)
HOOKS = _child(
    _mmengine.HOOKS,
    "dcnv4_mm.engine",
    "dcnv4_mm.integrations._hooks",
    "dcnv4_mm.integrations.data_checks",
)
OPTIM_WRAPPER_CONSTRUCTORS = _child(_mmengine.OPTIM_WRAPPER_CONSTRUCTORS, "dcnv4_mm.optim")
PARAM_SCHEDULERS = _child(_mmengine.PARAM_SCHEDULERS, "dcnv4_mm.optim")
STRATEGIES = _child(_mmengine.STRATEGIES, "dcnv4_mm.engine.fsdp")
DATASETS = _child(_mmengine.DATASETS, _HOST_CLASSES)
METRICS = _child(_mmengine.METRICS, _HOST_CLASSES)
TRANSFORMS = _child(_mmengine.TRANSFORMS, _HOST_CLASSES)
# Nothing of other kinds is here, but mmengine looks for a registry of the scope.
_OTHERS = [
    _child(root, __name__)
    for root in vars(_mmengine).values()
    if isinstance(root, Registry) and root.parent is None and _SCOPE not in root.children
]

# mmengine resolves `dcnv4_mm::mask_rcnn/...` only for packages in its own table.
MODULE2PACKAGE.setdefault(_SCOPE, _SCOPE)
# By name, as the locations above. Hosts import mmcv's operators, so it must be before them.
import_module("dcnv4_mm.integrations.mmcv_ext").install()
