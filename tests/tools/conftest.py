"""Runs a tool in this process, as its command line would."""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@dataclass
class Result:
    """What a tool left: its output and, if it stopped with a message, that message."""

    stdout: str
    message: str | None


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Function that runs a tool in a folder with arguments; any exception but an exit is raised."""
    monkeypatch.syspath_prepend(str(TOOLS))
    # The tools set it; it must not reach other tests.
    monkeypatch.setenv("LOCAL_RANK", "0")

    def run(tool, *arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.syspath_prepend(str((TOOLS / tool).parent))
        monkeypatch.setattr(sys, "argv", [str(TOOLS / tool), *map(str, arguments)])
        message = None
        try:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
        except SystemExit as error:
            message = error.code if error.code else None
        return Result(capsys.readouterr().out, message)

    return run
