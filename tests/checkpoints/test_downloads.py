"""Downloads are checked against the size and hash that the server states."""

import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dcnv4_mm.checkpoints.downloads import check_download, download

CONTENT = b"weights " * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Hub(SimpleHTTPRequestHandler):
    """Redirects /resolve/x to /files/x, and states size and hash as Hugging Face does."""

    stated: dict[str, str]

    def send_head(self):
        if not self.path.startswith("/resolve/"):
            return super().send_head()
        self.send_response(302)
        self.send_header("Location", self.path.replace("/resolve/", "/files/"))
        for name, value in self.stated.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


@pytest.fixture
def hub(tmp_path):
    """The address of a file, and its stated size and hash."""
    (tmp_path / "hub" / "files").mkdir(parents=True)
    (tmp_path / "hub" / "files" / "a.pth").write_bytes(CONTENT)
    stated = {"X-Linked-Size": str(len(CONTENT)), "X-Linked-ETag": f'"{DIGEST}"'}
    served = type("Served", (Hub,), {"stated": stated})
    handler = functools.partial(served, directory=tmp_path / "hub")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/resolve/a.pth", stated
        serving.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "a.pth"


def test_what_is_stated_is_taken_and_remembered(hub, path):
    download(hub[0], path)
    assert path.read_bytes() == CONTENT
    assert path.with_name("a.pth.sha256").read_text() == f"{DIGEST}  a.pth\n"
    check_download(path)


@pytest.mark.parametrize(
    "wrong", [{"X-Linked-ETag": f'"{"0" * 64}"'}, {"X-Linked-Size": "7"}], ids=["hash", "size"]
)
def test_another_file_than_stated_is_refused(hub, path, wrong):
    address, stated = hub
    stated |= wrong
    with pytest.raises(ValueError, match="is not the file that"):
        download(address, path)
    assert list(path.parent.iterdir()) == []


def test_size_of_a_plain_server(hub, path, monkeypatch):
    address = hub[0].replace("/resolve/", "/files/")
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="delete it to download it again"):
        download(address, path)
    # The user may have put it there on purpose.
    assert path.read_bytes() == CONTENT[:-1]
    path.unlink()
    download(address, path)
    assert path.read_bytes() == CONTENT


def test_what_is_no_hash_of_the_content_is_not_compared(hub, path):
    """A small file's ETag is git's hash of it."""
    address, stated = hub
    stated["X-Linked-ETag"] = '"da39a3ee5e6b4b0d3255bfef95601890afd80709"'
    download(address, path)
    assert path.exists()


@pytest.mark.parametrize("digits", [DIGEST[:8], "0" * 8])
def test_digits_in_the_name(hub, tmp_path, digits):
    address, stated = hub
    stated.clear()
    path = tmp_path / "cache" / f"a-{digits}.pth"
    if DIGEST.startswith(digits):
        download(address, path)
        assert path.exists()
    else:
        with pytest.raises(ValueError, match="expected any number of bytes with 00000000"):
            download(address, path)
        assert not path.exists()


def test_file_that_was_put_there_is_used_offline(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    download("http://127.0.0.1:9/a.pth", path)
    check_download(path)
    assert path.with_name("a.pth.sha256").exists()


def test_changed_file_is_refused(hub, path):
    download(hub[0], path)
    path.write_bytes(CONTENT.replace(b"w", b"v", 1))
    with pytest.raises(ValueError, match=r"has changed since.*delete both"):
        check_download(path)
    path.unlink()
    path.with_name("a.pth.sha256").unlink()
    download(hub[0], path)
    check_download(path)
