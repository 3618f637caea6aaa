"""Command-line options for configs, and reading configs with clear errors."""

import argparse
import difflib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mmengine.config import Config

# Libraries that are no hosts -> the extra of this package that has them.
_EXTRAS = {
    **dict.fromkeys(("cv2", "torchvision"), "mim"),
    **dict.fromkeys(("safetensors", "transformers"), "transformers"),
    "timm": "timm",
}
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
ENV_HINT = "python -m dcnv4_mm.env lists what to install"

# mmengine and mmcv 2.1 warn about this at every lookup of an installed package.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")


def stop(message: str) -> NoReturn:
    """Ends the program with one line and exit status 1."""
    raise SystemExit(f"error: {message}")


@contextmanager
def naming_missing() -> Iterator[None]:
    """Ends the program with one line where a library is missing, with the command to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "dcnv4_mm").partition(".")[0] == "dcnv4_mm":
            raise
        stop(f"a library is missing: {_missing(error)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing have in common."""
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="job launcher")
    # torch.distributed.launch passes the second spelling, older launchers the first.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option that changes settings of a config."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help='settings to change in the config, e.g. train_dataloader.batch_size=4 or key="[1,2]"',
    )


def load_config(args: argparse.Namespace) -> "Config":
    """Reads the config and applies the options.

    Args:
        args: The parsed arguments of :func:`add_arguments`, and ``config``.

    Returns:
        The config, with ``launcher`` and ``work_dir`` set.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    folder = str(Path("work_dirs", Path(args.config).stem))
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or folder
    return cfg


def read_config(name: str, options: list[str]) -> "Config":
    """Reads a config and merges ``KEY=VALUE`` options into it; stops if its host is missing.

    Args:
        name: Path of the config or, for one of this package, its file name alone.
        options: Settings to change.

    Returns:
        The config.
    """
    path = find_config(name)
    install_hosts()
    from mmengine.config import Config

    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        stop(f"{path} needs a library that is missing: {_missing(error)}")
    # A config is a program: it can fail in any way.
    except Exception as error:
        stop(f"{path} cannot be read: {type(error).__name__}: {error}")
    apply_options(cfg, options)
    host = cfg.get("default_scope")
    if host and find_spec(host) is None:
        stop(f"{path} is a config of {host}: {_missing(ModuleNotFoundError(name=host))}")
    return cfg


def _missing(error: ModuleNotFoundError) -> str:
    """The way to install a missing library."""
    from dcnv4_mm.integrations._hosts import HOSTS, missing_host_message

    # For the host of an inherited config, mmengine names the distribution, in the message only.
    name = (error.name or str(error)).partition(" ")[0].partition(".")[0]
    name = next((host for host, (names, _) in HOSTS.items() if name in names), name)
    what = missing_host_message(name) if name in HOSTS else f"{name} is not installed"
    if name in _EXTRAS:
        what += f": pip install 'dcnv4_mm[{_EXTRAS[name]}]'"
    return f"{what} ({ENV_HINT})"


def install_hosts() -> None:
    """Prepares this process for OpenMMLab; warns about incompatible libraries."""
    try:
        from dcnv4_mm.integrations import find_problems, install

        install()
    except ModuleNotFoundError as error:
        stop(f"a library is missing: {_missing(error)}")
    for problem in find_problems():
        print(f"warning: {problem}", file=sys.stderr)


def configs_folder() -> Path:
    """The configs of this package: those that mim uses, or those of a clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / ".mim" / "configs"
    return (installed if installed.is_dir() else package.parent / "configs").resolve()


def find_config(name: str) -> Path:
    """Path of a config, given as a path or as the file name of one of this package; or stops."""
    path = Path(name)
    if path.is_file():
        return path
    known = {p.stem: p for p in configs_folder().rglob("*.py")}
    if (stem := name.removesuffix(".py")) in known:
        return known[stem]
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"; did you mean {known[close[0]]}?" if close else ""
    stop(f"the config {name} does not exist{hint}")


def apply_options(cfg: "Config", pairs: list[str]) -> None:
    """Merges ``KEY=VALUE`` pairs into a config, as mmengine's own tools do."""
    from mmengine.config import DictAction

    if wrong := [pair for pair in pairs if "=" not in pair]:
        stop(f"--cfg-options takes KEY=VALUE, got {wrong[0]!r}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", nargs="*", action=DictAction, default={})
    try:
        cfg.merge_from_dict(parser.parse_args(["--pairs", *pairs] if pairs else []).pairs)
    except (KeyError, TypeError, ValueError) as error:
        stop(f"--cfg-options {' '.join(pairs)} does not fit the config: {error}")
