"""Downloads that are verified against the size and hash that their host states."""

import hashlib
import os
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from dcnv4_mm.atomic_files import write_file

__all__ = ["check_download", "download"]


class _Stay(HTTPRedirectHandler):
    """Does not follow redirects: Hugging Face states size and hash in the redirect response."""

    def redirect_request(self, *_: object) -> None:
        return None


def download(url: str, path: Path) -> None:
    """Downloads a file unless it exists, and stores its SHA-256 beside it at first use.

    Size and SHA-256 are compared with those that the host states, if it does, and with the digits
    in a name such as ``x-1a2b3c4d.pth``.

    Args:
        url: An http or https URL.
        path: The local file; its hash is stored in ``<path>.sha256``, in the format of sha256sum.

    Raises:
        OSError: The download failed.
        ValueError: Size or hash differ from what the host states; a new file is deleted.
    """
    if path.exists() and _note(path).exists():
        return
    size, stated = _stated(url)
    if named := re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name):
        stated = stated or named[1]
    new = not path.exists()
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=os.isatty(0))
        except OSError as error:
            # A failed write has a number and no name, an unreachable host neither.
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
    found, digest = path.stat().st_size, _sha256(path)
    if (size is not None and found != size) or not digest.startswith(stated or ""):
        if new:
            path.unlink()
        raise ValueError(
            f"{path} is not the file that {url} states: got {found} bytes with the SHA-256 "
            f"{digest}, expected {size or 'any number of'} bytes with {stated or 'any'}; "
            f"{'download it again' if new else 'delete it to download it again'}"
        )
    write_file(_note(path), f"{digest}  {path.name}\n".encode())


def check_download(path: Path) -> None:
    """Compares a file with its hash at first use.

    Args:
        path: The file; it is not checked if :func:`download` has not stored its hash.

    Raises:
        ValueError: The file has changed.
    """
    if _note(path).exists() and _note(path).read_text().split()[:1] != [_sha256(path)]:
        raise ValueError(
            f"{path} has changed since it was first used ({_note(path)} has its SHA-256): delete "
            "both to download it again"
        )


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _stated(url: str) -> tuple[int | None, str | None]:
    """Size and SHA-256 of a file, as far as its host states them."""
    try:
        with build_opener(_Stay).open(Request(url, method="HEAD"), timeout=10) as answer:
            headers, length = answer.headers, "Content-Length"
    except HTTPError as error:
        # For example a redirect, whose length is not the file's.
        headers, length = error.headers, ""
    except OSError:
        return None, None
    size = headers.get("X-Linked-Size") or headers.get(length) or ""
    digest = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag") or "")
    return int(size) if size.isdecimal() else None, digest[1] if digest else None
