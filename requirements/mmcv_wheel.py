"""Builds mmcv with its CPU ops in about two CPU-minutes, keeps the wheel in a cache, installs it.

Usage: .venv/bin/python requirements/mmcv_wheel.py

mmcv publishes no wheel for recent torch, and its stock build takes 15 to 30 minutes on two cores.
Two changes make it fast, and leave mmcv's sources untouched: no debug information, and a unity
build, in which a few generated files include the original ones so that torch's headers are parsed
a dozen times instead of 77.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

MMCV_VERSION = "2.1.0"
# These define macros that clash with those of their neighbours, so each stays a unit of its own.
OWN_UNIT = {
    "pybind.cpp",
    "cpu/psamask.cpp",
    "cpu/bezier_align.cpp",
    "cpu/roi_align.cpp",
    "cpu/roi_align_rotated.cpp",
}
FILES_PER_UNIT = 12


def cached_wheel() -> Path:
    """Path of the wheel for this torch, Python, platform and mmcv version; it may not exist."""
    import torch

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    system = f"{sys.platform}_{platform.machine()}"
    key = f"mmcv-{MMCV_VERSION}-torch-{torch.__version__}-{tag}-{system}"
    return cache / "dcnv4_mm" / "wheels" / key / f"mmcv-{MMCV_VERSION}-{tag}-{tag}-{system}.whl"


def unity_sources(folder: Path) -> list[str]:
    """Writes the files that include mmcv's CPU sources in groups; returns what to compile."""
    sources = []
    for part, files in (
        ("host", sorted(folder.glob("*.cpp"))),
        ("cpu", sorted(folder.glob("cpu/*.cpp"))),
    ):
        own = [f for f in files if f.relative_to(folder).as_posix() in OWN_UNIT]
        grouped = [f for f in files if f not in own]
        sources += [f.as_posix() for f in own]
        for start in range(0, len(grouped), FILES_PER_UNIT):
            unit = folder / f"unity_{part}_{start // FILES_PER_UNIT}.cc"
            group = grouped[start : start + FILES_PER_UNIT]
            unit.write_text("".join(f'#include "{f.relative_to(folder)}"\n' for f in group))
            sources.append(unit.as_posix())
    return sources


def run_mmcv_setup() -> None:
    """Runs mmcv's setup.py in the current folder, with unity sources in place of its own list."""
    from torch.utils import cpp_extension

    stock_extension = cpp_extension.CppExtension
    folder = Path("mmcv/ops/csrc/pytorch")

    def unity_extension(name, sources, include_dirs, **options):
        include_dirs = [*include_dirs, str(folder.resolve()), str((folder / "cpu").resolve())]
        return stock_extension(name, unity_sources(folder), include_dirs=include_dirs, **options)

    cpp_extension.CppExtension = unity_extension
    sys.argv = ["setup.py", "-q", "bdist_wheel", "--dist-dir", "dist"]
    runpy.run_path("setup.py", run_name="__main__")


def build(target: Path) -> None:
    """Builds the wheel in a temporary folder and puts it at ``target`` once it is known good."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mmcv-") as scratch:
        say(f"building mmcv {MMCV_VERSION} (once; about two minutes on two cores)")
        source = download(Path(scratch))
        # An empty device list keeps mmcv from choosing its CUDA build where a GPU is visible.
        env = {"MMCV_WITH_OPS": "1", "FORCE_CUDA": "0", "CUDA_VISIBLE_DEVICES": ""}
        env["CFLAGS"] = f"{os.environ.get('CFLAGS', '')} -O2 -g0 -w"
        log = Path(scratch, "build.log")
        with log.open("w") as output:
            command = [sys.executable, __file__, "--run-mmcv-setup"]
            redirect = {"stdout": output, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, cwd=source, env=os.environ | env, **redirect)
            while process.returncode is None:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    seconds, objects = time.monotonic() - started, len(list(source.rglob("*.o")))
                    say(f"{seconds:.0f} s: {objects} files compiled of about a dozen")
        if process.returncode:
            sys.exit(
                f"{log.read_text()[-6000:]}\nmmcv did not build; the compiler's report is above"
            )
        (wheel,) = source.glob("dist/*.whl")
        check_ops(wheel, Path(scratch, "unpacked"))
        # Two steps, the second atomic: an interrupted copy is never taken for the wheel.
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy(wheel, unfinished)
        os.replace(unfinished, target)
    say(f"built in {time.monotonic() - started:.0f} s, kept at {target}")


def download(folder: Path) -> Path:
    """Fetches mmcv's sdist and unpacks it; returns the folder that holds setup.py."""
    pip("download", "--no-deps", "--no-binary=mmcv", "--no-build-isolation", f"--dest={folder}",
        f"mmcv=={MMCV_VERSION}")  # fmt: skip
    (archive,) = folder.glob("mmcv-*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / f"mmcv-{MMCV_VERSION}"


def check_ops(wheel: Path, folder: Path) -> None:
    """Exits unless the ops of the wheel import: mmcv's build can succeed without having any."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    env = os.environ | {"PYTHONPATH": str(folder)}
    if subprocess.run([sys.executable, "-c", "import mmcv.ops"], cwd=folder, env=env).returncode:
        sys.exit("the mmcv that was built has no working ops (`import mmcv.ops` failed, see above)")


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def say(message: str) -> None:
    print(f"[mmcv] {message}", flush=True)


def main() -> None:
    wheel = cached_wheel()
    if zipfile.is_zipfile(wheel):
        say(f"found {wheel}")
    else:
        build(wheel)
    pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))


if __name__ == "__main__":
    if sys.argv[1:] == ["--run-mmcv-setup"]:
        run_mmcv_setup()
    else:
        main()
