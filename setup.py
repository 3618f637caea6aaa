"""Builds the kernel libraries from csrc and lays out dcnv4_mm/.mim; the rest is in pyproject.toml.

Environment variables:
    DCNV4_MM_REQUIRE_EXT=1: fail where the CPU library cannot be built.
    DCNV4_MM_NO_EXT=1: build a pure-Python wheel on purpose.
    DCNV4_MM_REQUIRE_CUDA=1: build the CUDA library against any torch, or fail.
    DCNV4_MM_CUDA_ARCHS: the same, for these architectures, such as "80;90" or "8.0;9.0+PTX".
    TORCH_CUDA_ARCH_LIST: for which architectures the CUDA library is built if it is, as in torch.
    DCNV4_MM_NO_CUDA=1: leave the CUDA library out.
    DCNV4_MM_ONNXRUNTIME: the folder of onnxruntime_cxx_api.h; builds custom operators for it.
    DCNV4_MM_TENSORRT: the folder of NvInferRuntime.h; builds a plugin for it with nvcc.
    CUDA_HOME: where CUDA is, if nvcc is not on PATH.
    CXX: the C++ compiler, by default g++.
    MAX_JOBS: how many files to compile at a time, by default one per core.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (pip runs this file before it looks at pyproject.toml)
    sys.exit(f"error: dcnv4_mm needs Python >= 3.10, this is Python {sys.version.split()[0]}")

import ast
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"error: setuptools >= 77 is needed, {setuptools.__version__} is installed: "
        'python -m pip install "setuptools>=77,<81"'
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "csrc"))
from compilers import (
    Sources,
    compile_objects,
    find_compiler,
    record_sources,
    run_into,
    torch_cuda_version,
    torch_folder,
)
from nvcc import choose_archs, find_nvcc, remarks

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
# Before torch's libraries: some versions have symbols of it too, but without their versions.
LIBSTDCXX = "-lstdc++"
# For each, the kernels of an operator are compiled by themselves.
STORAGE_TYPES = ("double", "float", "Half", "BFloat16")
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
        sys.exit(
            f"error: torch >= 2.10 is needed, torch {version} is installed: python -m pip install "
            '"torch>=2.10" first, or set DCNV4_MM_NO_EXT=1 to install without kernels.'
        )
    return None


def why_no_cuda_library() -> str | None:
    """The reason why the CUDA library is not built, or None when it is."""
    if reason := why_no_library():
        return reason
    if os.environ.get("DCNV4_MM_NO_CUDA") == "1":
        return "DCNV4_MM_NO_CUDA=1 is set"
    if find_nvcc() is None:
        return "nvcc is neither on PATH nor in CUDA_HOME nor in /usr/local/cuda"
    wanted = os.environ.get("DCNV4_MM_REQUIRE_CUDA") == "1" or os.environ.get("DCNV4_MM_CUDA_ARCHS")
    if not wanted and not torch_cuda_version():
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


def cpu_sources() -> Sources:
    """The sources of the CPU library."""
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    sources = []
    for path in sorted(Path("csrc").glob("*/*cpu*.cpp")):
        ending = next((e for e in X86_FLAGS if path.stem.endswith(e)), None)
        if ending is None or on_x86:
            sources.append((path.as_posix(), X86_FLAGS.get(ending, [])))
    return sources


def kernel_sources(pattern: str, types: Sequence[str] = STORAGE_TYPES) -> Sources:
    """Sources of CUDA kernels, once for each storage type."""
    targets = choose_archs(find_nvcc()).flags()
    return [
        (path.as_posix(), [*targets, f"-DDCNV4_MM_STORAGE={storage}"])
        for path in sorted(Path("csrc").glob(pattern))
        for storage in types
    ]


def cuda_sources() -> Sources:
    """The sources of the CUDA library."""
    bindings = sorted(Path("csrc").glob("*/*cuda*.cpp"))
    return [*kernel_sources("*/*.cu"), *((path.as_posix(), []) for path in bindings)]


class BuildLibraries(build_ext):
    """Compiles and links each library; objects that are up to date are kept."""

    def get_ext_filename(self, fullname: str) -> str:
        # Loaded by path, not imported: no tag of one Python version in the name.
        return fullname.replace(".", os.sep) + ".so"

    def run(self) -> None:
        if self.editable_mode:
            # Where `build_ext --inplace` keeps objects, not in a folder that is removed after use.
            name = f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
            self.build_temp = os.path.join("build", name)
        super().run()

    def copy_extensions_to_source(self) -> None:
        # git keeps no empty folder to copy to.
        Path("dcnv4_mm", "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()
        # Beside sources that may change, a library is loaded with a look at what it was built of.
        for record in Path(self.build_temp).glob("*.sources"):
            if f"dcnv4_mm.lib.{record.stem}" in self.ext_map:
                shutil.copy2(record, Path("dcnv4_mm", "lib"))

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
    compiler = find_compiler()
    objects = compile_objects([compiler, *CXX_FLAGS], cpu_sources(), folder)
    link_library(target, compiler, objects)
    record_sources(folder / f"{target.stem}.sources", objects)


def build_schema_library(target: Path, folder: Path) -> None:
    """Builds the library that defines the operators for processes without Python."""
    compiler = find_compiler()
    lines = ["#include <torch/csrc/stable/library.h>", "STABLE_TORCH_LIBRARY(dcnv4_mm, m) {"]
    lines += [f'  m.def("{schema}");' for schema in read_schemas()]
    text, source = "\n".join([*lines, "}", ""]), folder / "schemas.cpp"
    # What has not changed is not compiled again.
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    objects = compile_objects([compiler, *CXX_FLAGS], [(str(source), [])], folder)
    link_library(target, compiler, objects)


def build_onnxruntime_library(target: Path, folder: Path) -> None:
    """Builds the custom operators of onnxruntime: the CPU kernels, without torch."""
    compiler = find_compiler()
    operators = [("csrc/onnxruntime/custom_ops.cpp", [])]
    kernels = [s for s in cpu_sources() if re.match("csrc/(dcnv4|flash_deform_attn)/cpu", s[0])]
    headers = f"-I{os.environ['DCNV4_MM_ONNXRUNTIME']}"
    objects = compile_objects([compiler, *CXX_FLAGS], kernels, folder)
    objects += compile_objects([compiler, *CXX_FLAGS, headers], operators, folder)
    run_into(target, [compiler, "-shared", "-s", "-Wl,-z,defs", *objects])


def build_tensorrt_library(target: Path, folder: Path) -> None:
    """Builds the plugin of TensorRT: CUDA kernels of the forward operator, without torch."""
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("error: DCNV4_MM_TENSORRT needs nvcc: name its folder in CUDA_HOME")
    command = [nvcc, f"-ccbin={find_compiler()}"]
    kernels = kernel_sources("dcnv4/kernels_fwd.cu", ("float", "Half"))
    plugin = [("csrc/tensorrt/plugin.cpp", [])]
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
        names = [node.targets[0].id for node in assignments]
        # Those behind the schemas need torch.
        assignments = assignments[: names.index("SCHEMAS") + 1]
        constants = {}
        exec(compile(ast.Module(assignments, []), str(path), "exec"), constants)
        schemas += constants["SCHEMAS"]
    return schemas


def link_library(target: Path, compiler: str, objects: list[str]) -> None:
    # torch has loaded libtorch_cpu before, so its name is enough: no path in the library.
    libtorch = [f"-L{torch_folder() / 'lib'}", LIBSTDCXX, "-Wl,--no-as-needed", "-ltorch_cpu"]
    run_into(target, [compiler, "-shared", "-s", "-Wl,-z,defs", *objects, *libtorch])


def build_cuda_library(target: Path, folder: Path) -> None:
    """Builds the CUDA library as ``target``, also against a torch without CUDA."""
    compiler = find_compiler()
    nvcc = [find_nvcc(), f"-ccbin={compiler}"]
    for line in remarks(nvcc[0], torch_cuda_version()):
        print(f"dcnv4_mm: {line}", flush=True)
    objects = compile_objects([*nvcc, *NVCC_FLAGS], cuda_sources(), folder)
    # CUDA's own packages on PyPI have lib where nvcc looks for lib64.
    search = [f"-L{torch_folder() / 'lib'}", f"-L{Path(nvcc[0]).parents[1] / 'lib'}"]
    if not (torch_folder() / "lib" / "libtorch_cuda.so").exists():
        # The library that has to be loaded with this one is not here: an empty one has its name.
        stub, soname = folder / "libtorch_cuda.so", "-Wl,-soname,libtorch_cuda.so"
        run_into(stub, [compiler, "-shared", "-x", "c", os.devnull, soname])
        search.append(f"-L{folder}")
    libtorch = [*search, LIBSTDCXX, "-Xlinker=-s,--no-as-needed", "-ltorch_cpu", "-ltorch_cuda"]
    run_into(target, [*nvcc, "-shared", "-cudart=static", *objects, *libtorch])
    record_sources(folder / f"{target.stem}.sources", objects)


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
        for name in MIM_CONTENT:
            if self.editable_mode:
                link_into_package(name)
            elif Path(name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(name, package / ".mim" / name, ignore=ignored)
            else:
                (package / ".mim").mkdir(exist_ok=True)
                shutil.copy2(name, package / ".mim")


def link_into_package(name: str) -> None:
    """Makes ``dcnv4_mm/.mim/<name>`` a link to ``name``, as the hosts' editable installs do."""
    link = Path("dcnv4_mm", ".mim", name)
    link.parent.mkdir(exist_ok=True)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(Path("..", "..", name))


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
