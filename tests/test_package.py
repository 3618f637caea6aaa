"""Every module of the package: its public names exist, its examples are true."""

import doctest
import pkgutil
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

import dcnv4_mm

NAMES = [module.name for module in pkgutil.walk_packages(dcnv4_mm.__path__, "dcnv4_mm.")]
# They register with libraries that not every environment has.
for _library in ("timm", "transformers"):
    if find_spec(_library) is None:
        NAMES.remove(f"dcnv4_mm.{_library}")
# This one is imported only where a class of it is built.
LATE = {"dcnv4_mm.integrations._mmpretrain": pytest.mark.mmpretrain}
MODULES = [pytest.param(name, marks=LATE.get(name, ())) for name in NAMES]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist(name):
    module = import_module(name)
    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    # Examples take `import torch` for granted.
    failed, _ = doctest.testmod(import_module(name), extraglobs={"torch": torch})
    assert failed == 0
