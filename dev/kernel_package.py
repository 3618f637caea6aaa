"""Writes the operators as a folder that the kernel loader of Hugging Face's Hub takes.

    python dev/kernel_package.py [FOLDER]

The folder has variants of the compiled kernels for CPUs and, where nvcc is found, for CUDA, each
for every torch from 2.10 on (stable ABI), and one of plain PyTorch for everything else. The
operators get a namespace of their own, so that a process can load the kernel beside the installed
package, or in two versions.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import dcnv4_mm

ROOT = Path(__file__).resolve().parents[1]
ABI = "torch-stable-abi210"
VERSION = 1
PYTHON = ("dcnv4_mm/__init__.py", "dcnv4_mm/ops")
KERNEL = {"kernel_init.py": "__init__.py", "kernel_layers.py": "layers.py"}
BUILD = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
README = """---
library_name: kernels
license: mit
---

DCNv4, multi-scale deformable attention and attention of BEV queries to cameras: forward and
backward on CPUs and CUDA GPUs, in float64, float32, float16 and bfloat16. From dcnv4_mm {version}.
"""


def copy_sources(target: Path, namespace: str, *names: str) -> None:
    """Copies files and folders of the clone, with relative imports and another namespace."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    for path in target.rglob("*"):
        if path.suffix in (".py", ".cpp"):
            text = path.read_text()
            if (renamed := rename(text, namespace, path.relative_to(target))) != text:
                path.write_text(renamed)


def rename(text: str, namespace: str, path: Path) -> str:
    """A source with relative imports, and with another namespace of operators."""
    text = re.sub(r"(TORCH_LIBRARY\w*\()dcnv4_mm\b", rf"\1{namespace}", text)
    if path.suffix == ".py" and path.parts[0] == "dcnv4_mm":
        text = re.sub(r"(torch\.ops\.|Library\(\")dcnv4_mm\b", rf"\1{namespace}", text)
        text = text.replace("dcnv4_mm::", f"{namespace}::")
        text = text.replace("from dcnv4_mm.", f"from {'.' * (len(path.parts) - 1)}")
    return text


def digest() -> str:
    """Checksum of all sources, for a namespace that no other version has."""
    paths = [p for name in ("csrc", "dcnv4_mm/ops") for p in (ROOT / name).rglob("*") if p.suffix]
    sources = sorted(path for path in paths if path.suffix != ".pyc")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:10]


def build(work: Path, namespace: str) -> Path:
    """Compiles the kernels for a namespace; returns the folder of the libraries."""
    copy_sources(work, namespace, "csrc", *PYTHON, *BUILD)
    # Objects of the clone are reused; only sources with the namespace are compiled again.
    for objects in (ROOT / "build").glob("temp.*"):
        shutil.copytree(objects, work / "build" / objects.name)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=work, check=False).returncode:
        raise SystemExit("error: the kernels were not built")
    return work / "dcnv4_mm" / "lib"


def write_variant(
    folder: Path, namespace: str, backend: dict[str, object], libraries: Sequence[Path] = ()
) -> None:
    """Writes a variant: Python, the libraries that its backend needs, and what the loader reads."""
    copy_sources(folder, namespace, *PYTHON)
    for source, name in KERNEL.items():
        shutil.copy2(ROOT / "dev" / "kernel" / source, folder / name)
    for library in libraries:
        (folder / "dcnv4_mm" / "lib").mkdir(exist_ok=True)
        shutil.copy2(library, folder / "dcnv4_mm" / "lib")
    metadata = {
        "id": f"{namespace}_{backend['type']}",
        "name": "dcnv4-mm",
        "version": VERSION,
        "license": "MIT",
        "python-depends": [],
        "backend": backend,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def cuda_backend() -> tuple[str, dict[str, object]]:
    """The name of the toolkit, such as cu130, and what the CUDA library was compiled for."""
    sys.path.insert(0, str(ROOT / "csrc"))
    from nvcc import choose_archs, find_nvcc, version_of

    nvcc = find_nvcc()
    assert nvcc is not None
    archs = choose_archs(nvcc)
    names = [f"{a // 10}.{a % 10}{'+PTX' if a in archs.ptx else ''}" for a in archs.code]
    return f"cu{version_of(nvcc).replace('.', '')}", {"type": "cuda", "archs": names}


def write(target: Path) -> list[str]:
    """Writes the folder, in place of an earlier one; returns the names of its variants."""
    package = (target / "build" / "torch-universal").is_dir()
    if target.exists() and not package and (target.is_file() or any(target.iterdir())):
        raise SystemExit(f"error: {target} exists and is no kernel package: give another folder")
    namespace, machine = f"_dcnv4_mm_{digest()}", f"{platform.machine()}-linux"
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    variants = unfinished / "build"
    # Plain PyTorch, where no other variant fits.
    write_variant(variants / "torch-universal", f"{namespace}_python", {"type": "cpu"})
    with tempfile.TemporaryDirectory() as work:
        libraries = build(Path(work), namespace)
        cpu, cuda = (libraries / f"libdcnv4_mm_{name}.so" for name in ("cpu", "cuda"))
        if cpu.exists():
            write_variant(variants / f"{ABI}-cpu-{machine}", namespace, {"type": "cpu"}, [cpu])
        if cuda.exists():
            toolkit, backend = cuda_backend()
            write_variant(variants / f"{ABI}-{toolkit}-{machine}", namespace, backend, [cpu, cuda])
    (unfinished / "README.md").write_text(README.format(version=dcnv4_mm.__version__))
    shutil.copy2(ROOT / "LICENSE", unfinished)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)
    return sorted(folder.name for folder in (target / "build").iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist" / "dcnv4-mm-kernel")
    target = parser.parse_args().folder
    target.parent.mkdir(parents=True, exist_ok=True)
    for name in write(target):
        print(target / "build" / name)


if __name__ == "__main__":
    main()
