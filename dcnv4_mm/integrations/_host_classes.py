"""Registers the classes that inherit from a host's; where it is missing, what says so instead."""

from importlib import import_module

from dcnv4_mm.integrations._hosts import missing_host_message
from dcnv4_mm.registry import MODELS

CLASSES = {"mmdet": ("DINO", "DINOHead")}


def _stub(host: str, name: str, reason: str) -> type:
    """A class that cannot be built, and says why."""

    def refuse(self, *args, **kwargs) -> None:
        raise ImportError(f"dcnv4_mm.{name} needs {host}: {reason}")

    return type(name, (), {"__init__": refuse, "__doc__": refuse.__doc__})


for _host, _names in CLASSES.items():
    try:
        import_module(f"dcnv4_mm.integrations._{_host}")
    # A host that is there can still refuse, by an assertion on mmcv's version for one.
    except Exception as _error:
        _absent = isinstance(_error, ModuleNotFoundError) and _error.name == _host
        _reason = missing_host_message(_host) if _absent else f"{type(_error).__name__}: {_error}"
        for _name in _names:
            MODELS.register_module(name=_name, module=_stub(_host, _name, _reason), force=True)
