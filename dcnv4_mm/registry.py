"""Registries of this package with the scope ``dcnv4_mm``, children of mmengine's registries.

mmengine imports this module when a config names a type ``dcnv4_mm.X``; the modules with the classes
are imported at the first lookup. It also installs the operators that mmcv-lite does not have
(:mod:`dcnv4_mm.integrations.mmcv_ext`).
"""

from importlib import import_module
from typing import Any

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.registry", "mim"):
    from mmengine import registry as _mmengine
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.registry import DefaultScope, Registry

__all__ = [
    "DATASETS",
    "HOOKS",
    "METRICS",
    "MODELS",
    "OPTIM_WRAPPERS",
    "OPTIM_WRAPPER_CONSTRUCTORS",
    "PARAM_SCHEDULERS",
    "STRATEGIES",
    "TRANSFORMS",
]

_SCOPE = "dcnv4_mm"
_HOST_CLASSES = "dcnv4_mm.integrations._host_classes"


class _Registry(Registry):
    """A registry that falls back to the config's default scope for types without a scope.

    mmengine marks each typed dict of a config that is inherited by ``dcnv4_mm::`` with this
    package's scope, and builds it and its nested dicts from these registries, although their types
    are the host's.
    """

    def get(self, key: str) -> Any:
        """Returns the class of a type: ours, else the host's, else mmengine's."""
        scope, name = self.split_scope_key(key)
        self.import_from_location()
        if scope is None and name not in self.module_dict:
            host = next(filter(_SCOPE.__ne__, reversed(_active_scopes())), None)
            if host is not None:
                _import_registries(host)
                child = self._get_root_registry()._search_child(host)
                if child is not None:
                    return child.get(key)
        return super().get(key)


def _import_registries(host: str) -> None:
    """Imports a host's registries; one that is not installed is named, with the extra."""
    try:
        import_module(f"{host}.registry")
    except ModuleNotFoundError as error:
        # By name: the integrations import this module.
        hosts = import_module("dcnv4_mm.integrations._hosts")
        if error.name != host or host not in hosts.HOSTS:
            raise
        raise ImportError(hosts.missing_host_message(host)) from None


def _active_scopes() -> list[str]:
    """mmengine's default scopes; the last one is in use."""
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
OPTIM_WRAPPERS = _child(_mmengine.OPTIM_WRAPPERS, "dcnv4_mm.engine.amp")
OPTIM_WRAPPER_CONSTRUCTORS = _child(_mmengine.OPTIM_WRAPPER_CONSTRUCTORS, "dcnv4_mm.optim")
PARAM_SCHEDULERS = _child(_mmengine.PARAM_SCHEDULERS, "dcnv4_mm.optim")
STRATEGIES = _child(_mmengine.STRATEGIES, "dcnv4_mm.engine.fsdp")
DATASETS = _child(_mmengine.DATASETS, _HOST_CLASSES)
METRICS = _child(_mmengine.METRICS, _HOST_CLASSES)
TRANSFORMS = _child(_mmengine.TRANSFORMS, _HOST_CLASSES)
# This package has no classes of other kinds, but mmengine requires a registry of the scope.
_OTHERS = [
    _child(root, __name__)
    for root in vars(_mmengine).values()
    if isinstance(root, Registry) and root.parent is None and _SCOPE not in root.children
]

# mmengine resolves `dcnv4_mm::mask_rcnn/...` only for the packages in its own table.
MODULE2PACKAGE.setdefault(_SCOPE, _SCOPE)
# By name, as the locations above.
MODULE2PACKAGE.update(import_module("dcnv4_mm.integrations._hosts").fork_packages())
# Before any host, as hosts import mmcv's operators.
import_module("dcnv4_mm.integrations.mmcv_ext").install()
