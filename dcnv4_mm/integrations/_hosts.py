"""The libraries that can host this package's models, and how to install a missing one."""

from importlib import metadata

__all__ = ["HOSTS", "installed_version", "missing_host_message"]

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
