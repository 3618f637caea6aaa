"""first_contact.py: a failed step does not stop the next, and the output of each is kept."""

import sys
from pathlib import Path

import pytest
from helpers import ROOT

SLOW = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("begun", child.pid, flush=True)
time.sleep(60)
"""


def _runs(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def first_contact(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    import first_contact

    yield first_contact
    del sys.modules["first_contact"]


def test_every_step_runs_whatever_became_of_the_others(
    first_contact, tmp_path, monkeypatch, capsys
):
    programs = {
        "slow": SLOW,
        "failing": "raise SystemExit(3)",
        "racecheck": "",
        "good": "print('measured')",
    }
    listed = [first_contact.Step(name, 2, ("-c", code)) for name, code in programs.items()]
    listed[2] = first_contact.Step("racecheck", 2, ("-c", ""), tool=("compute-sanitizer",))
    monkeypatch.setattr(first_contact, "steps", lambda device, out: listed)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["first_contact.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        first_contact.main()
    assert ended.value.code == 1
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in summary] == list(programs)
    for line, outcome in zip(
        summary, ("cut after", "status 3", "not installed", "ok"), strict=True
    ):
        assert outcome in line
    # Processes that a step has started end with it.
    begun, child = (tmp_path / "slow.log").read_text().split()
    assert begun == "begun"
    assert not _runs(int(child))
    assert "measured" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_steps_name_programs_of_this_repository(first_contact, tmp_path, monkeypatch, device):
    monkeypatch.setattr(first_contact, "_arch", lambda: "90")
    listed = first_contact.steps(device, tmp_path)
    assert [step.name for step in listed][:2] == ["build", "env"]
    for step in listed:
        assert step.command[0] == "-m" or (ROOT / step.command[0]).is_file()
