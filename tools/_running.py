"""What the tools share: arguments, checks before anything starts, process groups."""

import argparse
import difflib
import os
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mmengine.config import Config

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")

# mmengine and mmcv 2.1 say this at every look-up of an installed package.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")


def stop(message: str) -> NoReturn:
    """Ends the program with one line and exit status 1."""
    raise SystemExit(f"error: {message}")


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
        stop(f"{path} needs a library that is missing: {error} ({ENV_HINT})")
    # A config is a program: it can fail in any way.
    except Exception as error:
        stop(f"{path} cannot be read: {type(error).__name__}: {error}")
    apply_options(cfg, options)
    host = cfg.get("default_scope")
    if host and find_spec(host) is None:
        stop(f"{path} is a config of {host}, which is not installed ({ENV_HINT})")
    return cfg


def install_hosts() -> None:
    """Prepares this process for OpenMMLab; warns of installed libraries that do not fit."""
    try:
        from dcnv4_mm.integrations import find_problems, install

        install()
    except ModuleNotFoundError as error:
        stop(f"a library is missing: {error} ({ENV_HINT})")
    for problem in find_problems():
        print(f"warning: {problem}", file=sys.stderr)


def find_config(name: str) -> Path:
    """Path of a config: as given, or of one of this package by its file name; stops without."""
    path = Path(name)
    if path.is_file():
        return path
    known = {p.stem: p for p in (Path(__file__).resolve().parents[1] / "configs").rglob("*.py")}
    if (stem := name.removesuffix(".py")) in known:
        return known[stem]
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"; did you mean {known[close[0]]}?" if close else ""
    stop(f"the config {name} does not exist{hint}")


ENV_HINT = "python -m dcnv4_mm.env says what to install"


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


def make_work_dir(cfg: "Config") -> None:
    """Makes the work folder, and stops if nothing can be written there."""
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.work_dir):
            pass
    except OSError as error:
        stop(f"cannot write to {cfg.work_dir}: {error.strerror}; give another --work-dir")


def check_checkpoint(path: str) -> None:
    """Stops if a checkpoint that is a local file does not exist."""
    if "://" not in path and not Path(path).is_file():
        stop(f"the checkpoint {path} does not exist")


def check_data(cfg: "Config", *phases: str) -> None:
    """Stops if a data set that a phase ("train", "val", "test") reads is not there."""
    for phase in phases:
        loader = cfg.get(f"{phase}_dataloader")
        for dataset in plain_datasets(loader["dataset"]) if loader else ():
            root = dataset.get("data_root") or ""
            # The pictures' and the label maps' folders of segmentation sets.
            prefix = dataset.get("data_prefix")
            folders = prefix if isinstance(prefix, dict) else {}
            parts = [folders.get(kind) for kind in ("img_path", "seg_map_path")]
            # mmpretrain's ImageNet names a folder of the root so.
            parts.append(dataset.get("split") if dataset.get("type") == "ImageNet" else None)
            for path in filter(None, (root, dataset.get("ann_file"), *parts)):
                whole = path if path == root else os.path.join(root, path)
                if "://" not in whole and not os.path.exists(whole):
                    stop(
                        f"{os.path.abspath(whole)} does not exist; put or link the data there, or "
                        f"set data_root and ann_file of {phase}_dataloader.dataset with "
                        "--cfg-options (and ann_file of the evaluator)"
                    )


def add_guards(cfg: "Config") -> None:
    """Adds the hooks that stop before work is lost, whatever the config's ``custom_hooks`` lists.

    A list in a config replaces the inherited one, and the guards in it. ``strict_load = False`` and
    ``check_data = False`` at the top level of the config turn them off.
    """
    guards = {
        "strict_load": ["dcnv4_mm.StrictLoadHook"],
        "check_data": ["dcnv4_mm.CheckDataHook"],
    }
    if cfg.get("default_scope") == "mmdet":
        guards["check_data"].append("mmdet.NumClassCheckHook")
    hooks = list(cfg.get("custom_hooks") or [])
    for switch, names in guards.items():
        for name in names:
            found = [hook for hook in hooks if hook_name(hook) == hook_name({"type": name})]
            if not cfg.get(switch, True):
                hooks = [hook for hook in hooks if hook not in found]
            elif not found:
                hooks.append({"type": name})
    cfg.custom_hooks = hooks


def hook_name(hook: dict) -> str:
    """Class name of a hook's config, without its scope."""
    kind = hook["type"]
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__


def plain_datasets(dataset: dict) -> list[dict]:
    """The data sets inside of wrappers such as RepeatDataset and ConcatDataset."""
    if "datasets" in dataset:
        return [inner for d in dataset["datasets"] for inner in plain_datasets(d)]
    return plain_datasets(dataset["dataset"]) if "dataset" in dataset else [dataset]


def start_processes(cfg: "Config") -> None:
    """Joins the process group over gloo where there is no CUDA; mmengine does so where there is."""
    import torch

    if cfg.launcher == "none" or torch.cuda.is_available():
        return
    if cfg.launcher == "slurm":
        names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS"}
    elif cfg.launcher == "mpi":
        names = {"RANK": "OMPI_COMM_WORLD_RANK", "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE"}
    else:
        names = {}
    for name, source in names.items():
        if source in os.environ:
            os.environ[name] = os.environ[source]
    os.environ.setdefault("MASTER_PORT", "29500")
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    if missing := [name for name in needed if name not in os.environ]:
        stop(
            f"--launcher {cfg.launcher} needs the environment variables {', '.join(missing)}: "
            "start this program with the launcher (torchrun, srun, mpirun)"
        )
    torch.distributed.init_process_group("gloo")
    cfg.setdefault("model_wrapper_cfg", {})
    cfg.model_wrapper_cfg = {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
        **cfg.model_wrapper_cfg,
        "device_ids": None,
        "output_device": None,
    }


def end_processes() -> None:
    """Leaves the process group, if there is one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_runner(cfg: "Config"):
    """Builds mmengine's runner, or the one that the config asks for."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    if cfg.get("default_scope") == "mmdet":
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)


def stop_if_unloadable(runner, config: str) -> None:
    """Makes a checkpoint that cannot be loaded end the program with one message."""
    load_or_resume = runner.load_or_resume

    def load_or_stop() -> None:
        try:
            load_or_resume()
        except (ValueError, OSError) as error:
            # One of a file that cannot be read names the file alone.
            stop(str(error) if config in str(error) else f"{error} (for {config})")

    runner.load_or_resume = load_or_stop
