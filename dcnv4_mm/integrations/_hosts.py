"""The libraries that can host this package's models, and how to install a missing one."""

from importlib import metadata
from typing import Any, NoReturn

__all__ = ["HOSTS", "installed_version", "missing_host_message", "stub"]
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

__all__ = ["HOSTS", "build_late", "installed_version", "missing_host_message"]

# Import name -> (distribution name, requirement of the tested version).
HOSTS = {
    "mmengine": ("mmengine", "mmengine==0.10.7"),
    "mmcv": ("mmcv", "mmcv==2.1.0"),
    "mmdet": ("mmdet", "mmdet==3.3.0"),
    "mmseg": ("mmsegmentation", "mmsegmentation==1.2.2"),
    "mmpretrain": ("mmpretrain", "mmpretrain==1.2.0"),
    "mmdet3d": ("mmdet3d", "mmdet3d==1.4.0"),
}


def installed_version(host: str) -> str | None:
    """Version of an installed host, or ``None``; the host is not imported."""
    try:
        return metadata.version(HOSTS[host][0])
    except metadata.PackageNotFoundError:
        return None


def missing_host_message(host: str) -> str:
    """Says in one line that a host is missing and how to install it."""
    return f"{host} is not installed: pip install {HOSTS[host][1]}"


def stub(name: str, host: str, reason: Exception) -> type:
    """Makes a class that stands in for one of a host that cannot be imported.

    Args:
        name: Name of the class.
        host: The host that it needs.
        reason: Why the host cannot be imported.

    Returns:
        A class whose constructor raises ``ImportError`` and says what to install.
    """

    def refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        if installed_version(host) is None:
            raise ImportError(f"{name} needs {host}: {missing_host_message(host)}")
        raise ImportError(f"{name} needs {host}, which cannot be imported: {reason}") from reason

    return type(name, (), {"__init__": refuse})
def build_late(host: str, module: str, name: str) -> Callable[..., Any]:
    """Makes a function that stands in a registry for a class which needs a host.

    The host, which may take seconds to import, is imported when an object is built.

    Args:
        host: Import name of the host.
        module: Module of the class.
        name: Name of the class.

    Returns:
        A function that builds an object of the class; without the host it raises ``ImportError``
        and says what to install.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        if installed_version(host) is None:
            raise ImportError(f"{name} needs {host}: {missing_host_message(host)}")
        return getattr(import_module(module), name)(*args, **kwargs)

    return build
