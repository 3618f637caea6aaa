"""Runs the compilers and remembers what they read; used by setup.py alone."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Paths of sources, each with the flags of its own; one can be compiled more than once.
Sources = list[tuple[str, list[str]]]


def torch_folder() -> Path:
    # An environment that borrows torch by a link finds what was compiled before.
    return Path(importlib.util.find_spec("torch").origin).resolve().parent


def torch_cuda_version() -> str | None:
    """The CUDA version that torch was built with, such as ``"12.8"``."""
    # Read, not imported: that takes seconds.
    text = (torch_folder() / "version.py").read_text()
    match = re.search(r"^cuda\b[^=]*= ['\"]([\d.]+)", text, re.MULTILINE)
    return match and match[1]


def find_compiler() -> str:
    """The C++ compiler; ends the build where it is not installed."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        sys.exit(
            f"error: the C++ compiler {compiler} is not installed. Install it (apt-get install "
            "g++, dnf install gcc-c++), name another in CXX, or set DCNV4_MM_NO_EXT=1 to install "
            "without kernels."
        )
    return compiler


def compile_objects(command: list[str], sources: Sources, folder: Path) -> list[str]:
    """Compiles each source with its own flags, as many at a time as there are jobs."""
    common = [*command, "-Icsrc", f"-I{torch_folder() / 'include'}"]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [
            pool.submit(compile_object, [*common, *flags], source, folder)
            for source, flags in sources
        ]
    return [str(task.result()) for task in tasks]


def compile_object(command: list[str], source: str, folder: Path) -> Path:
    """Compiles ``source`` unless its object is newer than all that it includes."""
    # The command is part of the name: other flags, another object.
    digest = hashlib.sha256(" ".join(command).encode()).hexdigest()[:10]
    target = folder / f"{source.replace('/', '-')}-{digest}.o"
    depends = target.with_suffix(".d")
    if not up_to_date(target, depends):
        run_into(target, [*command, "-c", source, "-MD", "-MF", str(depends)])
    return target


def up_to_date(target: Path, depends: Path) -> bool:
    if not (target.exists() and depends.exists()):
        return False
    built = target.stat().st_mtime
    return all(os.path.exists(f) and os.stat(f).st_mtime <= built for f in included_files(depends))


def included_files(depends: Path) -> list[str]:
    # A make rule, "target: file file \\<newline> file".
    return depends.read_text().replace("\\\n", " ").split(": ", 1)[1].split()


def run_into(target: Path, command: list[str]) -> None:
    """Runs a compiler; ``target`` appears only when it has succeeded."""
    unfinished = target.with_name(target.name + ".part")
    print(" ".join([*command, "-o", str(target)]), flush=True)
    try:
        subprocess.run([*command, "-o", str(unfinished)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        status = getattr(error, "returncode", None)
        reason = error if status is None else f"{command[0]} ended with status {status}"
        remedy = (
            "Set DCNV4_MM_CUDA_ARCHS to your GPU's architecture alone (90 for an H100), or "
            "DCNV4_MM_NO_CUDA=1 to install without CUDA kernels."
            if Path(command[0]).name == "nvcc"
            else "Install a C++17 compiler (or name one in CXX), or set DCNV4_MM_NO_EXT=1 to "
            "install without kernels."
        )
        sys.exit(f"error: building {target.name} failed ({reason}). {remedy}")
    os.replace(unfinished, target)


def record_sources(record: Path, objects: list[str]) -> None:
    """Writes the digests of all sources of a library, in the format of ``sha256sum``."""
    sources = {p.as_posix() for p in Path("dcnv4_mm", "ops").glob("*/registration.py")}
    for path in objects:
        sources |= {
            p for p in included_files(Path(path).with_suffix(".d")) if p.startswith("csrc/")
        }
    lines = (f"{hashlib.sha256(Path(p).read_bytes()).hexdigest()}  {p}\n" for p in sorted(sources))
    record.write_text("".join(lines))
