"""Imports that name the extra to install where a library is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["naming_extra"]


@contextmanager
def naming_extra(what: str, extra: str) -> Iterator[None]:
    """Adds to a failed import which extra of this package has the missing library.

    Args:
        what: What is imported.
        extra: The extra that contains all its libraries.

    Raises:
        ModuleNotFoundError: A library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in ("", "dcnv4_mm"):
            raise
        message = f"{what} needs {name}, which is not installed: pip install 'dcnv4_mm[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
