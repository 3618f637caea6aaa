"""OpenMMLab without a compiled mmcv: provides ``mmcv._ext``, which mmcv-lite does not have.

mmcv-lite is one wheel for every torch and Python with all of mmcv but the compiled operators.
:func:`install` adds an import finder that provides them, on the kernels of torchvision and of this
package, and never replaces a compiled module of mmcv. Detectors and segmentors call the operators
of ``_operators.py``; every other operator exists too, and raises when it is called.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any, NoReturn

from dcnv4_mm.integrations._hosts import (
    compiled_mmcv_problem,
    compiled_mmcv_spec,
    installed_version,
    missing_host_message,
    torchvision_problem,
)

__all__ = ["install", "serving"]

_NAME = "mmcv._ext"


class _Finder:
    """Finds and loads ``mmcv._ext``; last in ``sys.meta_path``, so that mmcv's own comes first."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self, origin=__name__) if name == _NAME else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Uses Python's default."""

    def exec_module(self, module: ModuleType) -> None:
        problem = torchvision_problem()
        if problem is not None:
            raise ImportError(f"mmcv-lite's operators need torchvision. {problem}")
        operators = import_module(f"{__name__}._operators").OPERATORS
        module.__dict__.update(operators)
        # For mmcv.utils.collect_env.
        module.get_compiler_version = module.get_compiling_cuda_version = serving
        module.__getattr__ = _missing_operator


_FINDER = _Finder()


def install() -> bool:
    """Provides ``mmcv._ext`` unless mmcv has its own; imports nothing else.

    Call it before ``mmcv.ops`` is imported, which the OpenMMLab libraries do on their own import.
    ``mmcv.cnn``, which leaves out the deformable attention where it finds no operators, is
    completed if it was imported before. It is idempotent.

    Returns:
        Whether this package provides ``mmcv._ext``: False if mmcv is compiled, or not installed.

    Example:
        >>> install()  # doctest: +SKIP
        True
        >>> from mmdet.apis import DetInferencer  # doctest: +SKIP
    """
    loaded = sys.modules.get(_NAME)
    if loaded is not None:
        return loaded.__spec__ is not None and loaded.__spec__.loader is _FINDER
    if find_spec("mmcv") is None or compiled_mmcv_spec() is not None:
        return False
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    _complete_transformer()
    return True


def _complete_transformer() -> None:
    """Adds the attention that ``mmcv.cnn`` could not import when it was imported too early."""
    module, name = sys.modules.get("mmcv.cnn.bricks.transformer"), "MultiScaleDeformableAttention"
    if module is not None and not hasattr(module, name) and torchvision_problem() is None:
        setattr(module, name, getattr(import_module("mmcv.ops.multi_scale_deform_attn"), name))


def serving() -> str:
    """Which mmcv provides the operators, or why none does.

    Imports torchvision, and mmcv's compiled operators if there are any.
    """
    if find_spec("mmcv") is None:
        return missing_host_message("mmcv")
    version = installed_version("mmcv")
    if compiled_mmcv_spec() is not None:
        return compiled_mmcv_problem() or f"compiled mmcv {version}"
    torchvision = torchvision_problem()
    if torchvision is not None:
        return f"mmcv-lite {version} lacks its operators: {torchvision}"
    torchvision = import_module("torchvision").__version__
    return f"mmcv-lite {version} with torchvision {torchvision} and dcnv4_mm kernels"


def _missing_operator(name: str) -> Callable[..., NoReturn]:
    """Replaces a missing operator; ``mmcv.ops`` looks up all operators on import."""
    if name.startswith("_"):
        raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")

    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv._ext.{name} is none of the operators that dcnv4_mm provides for mmcv-lite; it "
            "needs mmcv compiled for this torch: pip uninstall -y mmcv-lite && MMCV_WITH_OPS=1 "
            "pip install --no-build-isolation --no-cache-dir mmcv==2.1.0"
        )

    call.__name__ = call.__qualname__ = name
    return call
