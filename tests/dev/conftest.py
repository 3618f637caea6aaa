"""Imports of the generators, which lie beside each other."""

import importlib

import pytest


@pytest.fixture
def generator(monkeypatch, request):
    """Function that imports a module of dev/generators by name."""
    monkeypatch.syspath_prepend(str(request.config.rootpath / "dev" / "generators"))
    return importlib.import_module
