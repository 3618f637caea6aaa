"""Runs a tool in this process, as its command line would."""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Base names are unique, as mim finds a tool by its base name.
PROGRAMS = {p.name: p for folder in ("tools", "dev") for p in (ROOT / folder).rglob("*.py")}


@dataclass
class Result:
    """The output of a tool, and the message or status with which it stopped, if it failed."""

    stdout: str
    stderr: str
    message: str | int | None


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Function that runs a tool in a folder with arguments; any exception but an exit is raised."""
    # The tools set it; it must not reach other tests.
    monkeypatch.setenv("LOCAL_RANK", "0")

    def run(tool, *arguments, cwd):
        path = PROGRAMS[tool]
        monkeypatch.chdir(cwd)
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        message = None
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as error:
            message = error.code if error.code else None
        return Result(*capsys.readouterr(), message)

    return run
