"""Common to all tests: the environment, skips and their committed list, and `run_tool`."""

import os
import runpy
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Read by libgomp when torch is imported, hence before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.update(PIP_NO_INDEX="1", PIP_REQUIRE_VIRTUALENV="1")

import pytest
import torch

if find_spec("mmengine"):
    # Before a test imports a host.
    from dcnv4_mm.integrations import install

    install()

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")
ROOT = Path(__file__).resolve().parents[1]
# Base names are unique, as mim finds a tool by its base name.
PROGRAMS = {p.name: p for folder in ("tools", "dev") for p in (ROOT / folder).rglob("*.py")}
HOSTS = ("mmcv", "mmdet", "mmseg", "mmpretrain", "mmdet3d", "diffusers")


def pytest_configure(config):
    # Known to pytest-xdist, which lanes of the matrix do without.
    config.addinivalue_line("markers", "xdist_group(name): tests that one process runs")
    if hasattr(config, "workerinput"):
        # One of several processes (`-n`), each with a core of its own, and so its subprocesses:
        # sums depend on the number of threads.
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    for item in items:
        # A file's tests stay in one process, and so do those that share the CUDA library's build.
        shared = "cuda_build" if "cuda_build" in item.fixturenames else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(shared))
    missing = {host: f"{host} is not installed" for host in HOSTS if find_spec(host) is None}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="module")
def no_default_scope():
    """Begins each file as if it ran alone: a host's default scope of mmengine would stay."""
    if find_spec("mmengine"):
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def nan_filled_empties(request):
    """Fills what ``torch.empty`` returns, in kernels too, with NaN: none may be read."""
    if request.node.get_closest_marker("gpu"):
        # Deterministic mode would keep the default CUDA kernels from being tested.
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter, config):
    counts = skip_counts(terminalreporter)
    expected = set(EXPECTED_SKIPS.read_text().splitlines())
    if counts:
        terminalreporter.section("skips by reason")
    for reason, count in sorted(counts.items()):
        note = "" if reason in expected else f"   NOT in {EXPECTED_SKIPS.name}"
        terminalreporter.line(f"{count:5d}  {reason}{note}")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus != pytest.ExitCode.OK or reporter is None:
        return
    counts = skip_counts(reporter)
    unexpected = set(counts) - set(EXPECTED_SKIPS.read_text().splitlines())
    # A run that asks for marked tests (`-m gpu`) promises to have what they need.
    nothing_ran = session.config.option.markexpr and not reporter.stats.get("passed")
    if unexpected or (counts and nothing_ran):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def skip_counts(reporter) -> Counter[str]:
    # A skip's longrepr is (file, line, "Skipped: reason").
    skips = reporter.stats.get("skipped", [])
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skips)


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
