"""Builds the kernel library from csrc and lays out dcnv4_mm/.mim; the rest is in pyproject.toml.

Environment variables:
    DCNV4_MM_REQUIRE_EXT=1: fail where the kernel library cannot be built.
    DCNV4_MM_NO_EXT=1: build a pure-Python wheel on purpose.
    CXX: the C++ compiler, by default g++.
    MAX_JOBS: how many files to compile at a time, by default one per core.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

MIM_CONTENT = ("model-index.yml", "dataset-index.yml", "configs", "tools")

CXX_FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
    # Positions are rounded as in the reference; where a fused operation is meant, it is written.
    "-ffp-contract=off",
    # Built against any torch, the library runs on every torch from 2.10 on.
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = [
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    "-mprefer-vector-width=512",
]
# Sources with these endings are built on x86-64 alone; the kernels pick a variant at run time.
X86_FLAGS = {"_avx2": AVX2_FLAGS, "_avx512": [*AVX2_FLAGS, *AVX512_FLAGS]}


def why_no_library() -> str | None:
    """The reason why the kernel library is not built, or None when it is."""
    if os.environ.get("DCNV4_MM_NO_EXT") == "1":
        return "DCNV4_MM_NO_EXT=1 is set"
    if sys.platform != "linux":
        return f"the kernels are built on Linux only, this is {sys.platform}"
    if importlib.util.find_spec("torch") is None:
        return "torch is not importable here (install torch, then pip with --no-build-isolation)"
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 10):
        return f"torch >= 2.10 is needed, torch {version} is installed"
    return None


def torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


def cpu_sources() -> dict[str, list[str]]:
    """The sources of the CPU library, each with the flags of its own."""
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    sources = {}
    for path in sorted(Path("csrc").glob("*/*cpu*.cpp")):
        ending = next((e for e in X86_FLAGS if path.stem.endswith(e)), None)
        if ending is None or on_x86:
            sources[path.as_posix()] = X86_FLAGS.get(ending, [])
    return sources


class BuildLibraries(build_ext):
    """Compiles and links each library; objects that are up to date are kept."""

    def get_ext_filename(self, fullname: str) -> str:
        # Loaded by path, not imported: no tag of one Python version in the name.
        return fullname.replace(".", os.sep) + ".so"

    def copy_extensions_to_source(self) -> None:
        # git keeps no empty folder to copy to.
        Path("dcnv4_mm", "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        compiler = os.environ.get("CXX", "g++")
        common = [compiler, *CXX_FLAGS, "-Icsrc", f"-I{torch_folder() / 'include'}"]
        objects_folder = Path(self.build_temp)
        objects_folder.mkdir(parents=True, exist_ok=True)
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            tasks = [
                pool.submit(compile_object, [*common, *flags], source, objects_folder)
                for source, flags in cpu_sources().items()
            ]
        objects = [task.result() for task in tasks]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # torch has loaded libtorch_cpu before, so its name is enough: no path in the library.
        libtorch = [f"-L{torch_folder() / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"]
        link = [compiler, "-shared", "-s", "-Wl,-z,defs", *map(str, objects), *libtorch]
        run_into(target, link)


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
    # A make rule, "target: file file \\<newline> file".
    files = depends.read_text().replace("\\\n", " ").split(": ", 1)[1].split()
    built = target.stat().st_mtime
    return all(os.path.exists(f) and os.stat(f).st_mtime <= built for f in files)


def run_into(target: Path, command: list[str]) -> None:
    """Runs a compiler; ``target`` appears only when it has succeeded."""
    unfinished = target.with_name(target.name + ".part")
    print(" ".join([*command, "-o", str(target)]), flush=True)
    try:
        subprocess.run([*command, "-o", str(unfinished)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        status = getattr(error, "returncode", None)
        reason = error if status is None else f"{command[0]} ended with status {status}"
        sys.exit(
            f"error: building {target.name} failed ({reason}). Install a C++17 compiler "
            "(or name one in CXX), or set DCNV4_MM_NO_EXT=1 to install without kernels."
        )
    os.replace(unfinished, target)


class BuildPython(build_py):
    """Copies the Python files, then what mim looks for (wheels cannot hold symbolic links)."""

    def run(self) -> None:
        package = Path(self.build_lib, "dcnv4_mm")
        # What was deleted from the sources since the last build must not reach the wheel.
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        if REASON:
            print(f"dcnv4_mm: pure-Python build without kernels: {REASON}", flush=True)
        if self.editable_mode:
            return
        for name in MIM_CONTENT:
            if Path(name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(name, package / ".mim" / name, ignore=ignored)
            else:
                (package / ".mim").mkdir(exist_ok=True)
                shutil.copy2(name, package / ".mim")


class Wheel(bdist_wheel):
    """One wheel per platform serves every Python and every torch from 2.10 on."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


REASON = why_no_library()
if REASON and os.environ.get("DCNV4_MM_REQUIRE_EXT") == "1":
    sys.exit(f"error: DCNV4_MM_REQUIRE_EXT=1 is set, but the kernels cannot be built: {REASON}")

setup(
    ext_modules=[] if REASON else [Extension("dcnv4_mm.lib.libdcnv4_mm_cpu", sources=[])],
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython, "bdist_wheel": Wheel},
)
