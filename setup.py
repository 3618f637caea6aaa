"""Builds the kernel libraries from csrc and lays out dcnv4_mm/.mim; the rest is in pyproject.toml.

Environment variables:
    DCNV4_MM_REQUIRE_EXT=1: fail where the CPU library cannot be built.
    DCNV4_MM_NO_EXT=1: build a pure-Python wheel on purpose.
    DCNV4_MM_REQUIRE_CUDA=1: build the CUDA library against any torch, or fail.
    DCNV4_MM_CUDA_ARCHS: the same, for these architectures, such as "80;90".
    DCNV4_MM_NO_CUDA=1: leave the CUDA library out.
    DCNV4_MM_ONNXRUNTIME: the folder of onnxruntime_cxx_api.h; builds custom operators for it.
    DCNV4_MM_TENSORRT: the folder of NvInferRuntime.h; builds a plugin for it with nvcc.
    CUDA_HOME: where CUDA is, if nvcc is not on PATH.
    CXX: the C++ compiler, by default g++.
    MAX_JOBS: how many files to compile at a time, by default one per core.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
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

# Built against any torch, the libraries run on every torch from 2.10 on.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX_FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
    # Positions are rounded as in the reference; where a fused operation is meant, it is written.
    "-ffp-contract=off",
    STABLE_ABI,
]
NVCC_FLAGS = [
    *("-O3", "-std=c++17", "--fmad=false"),
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off",
    # Declares what the stable interface has for CUDA.
    *("-DUSE_CUDA", STABLE_ABI),
]
# Every GPU from Turing on; later ones than the last compile its PTX.
CUDA_ARCHS = "75;80;86;89;90;100;120"
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


def why_no_cuda_library() -> str | None:
    """The reason why the CUDA library is not built, or None when it is."""
    if reason := why_no_library():
        return reason
    if os.environ.get("DCNV4_MM_NO_CUDA") == "1":
        return "DCNV4_MM_NO_CUDA=1 is set"
    if find_nvcc() is None:
        return "nvcc is neither on PATH nor in CUDA_HOME nor in /usr/local/cuda"
    asked = os.environ.get("DCNV4_MM_REQUIRE_CUDA") == "1" or "DCNV4_MM_CUDA_ARCHS" in os.environ
    # Read, not imported: that takes seconds.
    version = (torch_folder() / "version.py").read_text()
    if not asked and not re.search(r"^cuda\b[^=]*= ['\"]", version, re.MULTILINE):
        return "torch is a CPU-only build (DCNV4_MM_REQUIRE_CUDA=1 builds it nevertheless)"
    return None


def why_no_library_for(variable: str, header: str) -> str | None:
    """The reason why the operators are not built for another runtime, or None when they are."""
    if reason := why_no_library():
        return reason
    folder = os.environ.get(variable)
    if not folder:
        return f"{variable} does not name the folder of {header}"
    if not Path(folder, header).exists():
        sys.exit(f"error: {variable}={folder}: {header} is not there")
    return None


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [Path(home, "bin").as_posix() for home in homes if home]
    # CUDA_HOME is a wish, /usr/local/cuda a guess.
    places = [*folders[:-1], os.environ.get("PATH", ""), folders[-1]]
    return shutil.which("nvcc", path=os.pathsep.join(places))


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


def cuda_sources() -> dict[str, list[str]]:
    """The sources of the CUDA library, each with the flags of its own."""
    archs = re.findall(r"\d+", os.environ.get("DCNV4_MM_CUDA_ARCHS", CUDA_ARCHS))
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    sources = sorted([*Path("csrc").glob("*/*.cu"), *Path("csrc").glob("*/*cuda*.cpp")])
    return {path.as_posix(): targets if path.suffix == ".cu" else [] for path in sources}


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
        target, folder = Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        build = {
            CPU_LIBRARY: build_cpu_library,
            CUDA_LIBRARY: build_cuda_library,
            SCHEMA_LIBRARY: build_schema_library,
            ONNXRUNTIME_LIBRARY: build_onnxruntime_library,
            TENSORRT_LIBRARY: build_tensorrt_library,
        }[ext.name]
        build(target, folder)


def build_cpu_library(target: Path, folder: Path) -> None:
    """Builds the CPU library as ``target``; objects go to ``folder``."""
    compiler = os.environ.get("CXX", "g++")
    objects = compile_objects([compiler, *CXX_FLAGS], cpu_sources(), folder)
    link_library(target, compiler, objects)


def build_schema_library(target: Path, folder: Path) -> None:
    """Builds the library that defines the operators for processes without Python."""
    compiler = os.environ.get("CXX", "g++")
    lines = ["#include <torch/csrc/stable/library.h>", "STABLE_TORCH_LIBRARY(dcnv4_mm, m) {"]
    lines += [f'  m.def("{schema}");' for schema in read_schemas()]
    text, source = "\n".join([*lines, "}", ""]), folder / "schemas.cpp"
    # What has not changed is not compiled again.
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    objects = compile_objects([compiler, *CXX_FLAGS], {str(source): []}, folder)
    link_library(target, compiler, objects)


def build_onnxruntime_library(target: Path, folder: Path) -> None:
    """Builds the custom operators of onnxruntime: the CPU kernels, without torch."""
    compiler = os.environ.get("CXX", "g++")
    kernels = {
        path: flags
        for path, flags in cpu_sources().items()
        if re.match("csrc/(dcnv4|flash_deform_attn)/cpu", path)
    }
    operators = {"csrc/onnxruntime/custom_ops.cpp": []}
    headers = f"-I{os.environ['DCNV4_MM_ONNXRUNTIME']}"
    objects = compile_objects([compiler, *CXX_FLAGS], kernels, folder)
    objects += compile_objects([compiler, *CXX_FLAGS, headers], operators, folder)
    run_into(target, [compiler, "-shared", "-s", "-Wl,-z,defs", *objects])


def build_tensorrt_library(target: Path, folder: Path) -> None:
    """Builds the plugin of TensorRT: CUDA kernels of the forward operator, without torch."""
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("error: DCNV4_MM_TENSORRT needs nvcc: name its folder in CUDA_HOME")
    command = [nvcc, f"-ccbin={os.environ.get('CXX', 'g++')}"]
    kernels = {
        path: flags
        for path, flags in cuda_sources().items()
        if re.match("csrc/dcnv4/kernels_fwd_f(16|32)", path)
    }
    plugin = {"csrc/tensorrt/plugin.cpp": []}
    headers = f"-I{os.environ['DCNV4_MM_TENSORRT']}"
    objects = compile_objects([*command, *NVCC_FLAGS], kernels, folder)
    objects += compile_objects([*command, *NVCC_FLAGS, headers], plugin, folder)
    # CUDA's own packages on PyPI have lib where nvcc looks for lib64.
    search = f"-L{Path(nvcc).parents[1] / 'lib'}"
    run_into(target, [*command, "-shared", "-cudart=static", search, "-Xlinker=-s", *objects])


def read_schemas() -> list[str]:
    """The schemas of all operators: constants of Python files that need torch to be imported."""
    schemas = []
    for path in sorted(Path("dcnv4_mm", "ops").glob("*/registration.py")):
        assignments = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign)]
        constants = {}
        exec(compile(ast.Module(assignments, []), str(path), "exec"), constants)
        schemas += constants["SCHEMAS"]
    return schemas


def link_library(target: Path, compiler: str, objects: list[str]) -> None:
    # torch has loaded libtorch_cpu before, so its name is enough: no path in the library.
    libtorch = [f"-L{torch_folder() / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"]
    run_into(target, [compiler, "-shared", "-s", "-Wl,-z,defs", *objects, *libtorch])


def build_cuda_library(target: Path, folder: Path) -> None:
    """Builds the CUDA library as ``target``, also against a torch without CUDA."""
    compiler = os.environ.get("CXX", "g++")
    nvcc = [find_nvcc(), f"-ccbin={compiler}"]
    objects = compile_objects([*nvcc, *NVCC_FLAGS], cuda_sources(), folder)
    # CUDA's own packages on PyPI have lib where nvcc looks for lib64.
    search = [f"-L{torch_folder() / 'lib'}", f"-L{Path(nvcc[0]).parents[1] / 'lib'}"]
    if not (torch_folder() / "lib" / "libtorch_cuda.so").exists():
        # The library that has to be loaded with this one is not here: an empty one has its name.
        stub, soname = folder / "libtorch_cuda.so", "-Wl,-soname,libtorch_cuda.so"
        run_into(stub, [compiler, "-shared", "-x", "c", os.devnull, soname])
        search.append(f"-L{folder}")
    libtorch = [*search, "-Xlinker=-s,--no-as-needed", "-ltorch_cpu", "-ltorch_cuda"]
    run_into(target, [*nvcc, "-shared", "-cudart=static", *objects, *libtorch])


def compile_objects(command: list[str], sources: dict[str, list[str]], folder: Path) -> list[str]:
    """Compiles each source with its own flags, as many at a time as there are jobs."""
    common = [*command, "-Icsrc", f"-I{torch_folder() / 'include'}"]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [
            pool.submit(compile_object, [*common, *flags], source, folder)
            for source, flags in sources.items()
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
        remedy = (
            "Set DCNV4_MM_NO_CUDA=1 to install without CUDA kernels."
            if Path(command[0]).name == "nvcc"
            else "Install a C++17 compiler (or name one in CXX), or set DCNV4_MM_NO_EXT=1 to "
            "install without kernels."
        )
        sys.exit(f"error: building {target.name} failed ({reason}). {remedy}")
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
        elif CUDA_REASON:
            print(f"dcnv4_mm: build without CUDA kernels: {CUDA_REASON}", flush=True)
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


CPU_LIBRARY, CUDA_LIBRARY = "dcnv4_mm.lib.libdcnv4_mm_cpu", "dcnv4_mm.lib.libdcnv4_mm_cuda"
SCHEMA_LIBRARY = "dcnv4_mm.lib.libdcnv4_mm_schemas"
ONNXRUNTIME_LIBRARY = "dcnv4_mm.lib.libdcnv4_mm_onnxruntime"
TENSORRT_LIBRARY = "dcnv4_mm.lib.libdcnv4_mm_tensorrt"
REASON, CUDA_REASON = why_no_library(), why_no_cuda_library()
for variable, reason in (("REQUIRE_EXT", REASON), ("REQUIRE_CUDA", CUDA_REASON)):
    if reason and os.environ.get(f"DCNV4_MM_{variable}") == "1":
        sys.exit(f"error: DCNV4_MM_{variable}=1 is set, but the kernels cannot be built: {reason}")
libraries = {
    CPU_LIBRARY: REASON,
    SCHEMA_LIBRARY: REASON,
    CUDA_LIBRARY: CUDA_REASON,
    ONNXRUNTIME_LIBRARY: why_no_library_for("DCNV4_MM_ONNXRUNTIME", "onnxruntime_cxx_api.h"),
    TENSORRT_LIBRARY: why_no_library_for("DCNV4_MM_TENSORRT", "NvInferRuntime.h"),
}

setup(
    ext_modules=[Extension(name, sources=[]) for name, reason in libraries.items() if not reason],
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython, "bdist_wheel": Wheel},
)
