"""first_contact.py: no step stops the next, and what each has printed is kept."""

import sys

import pytest
from helpers import ROOT


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
        "slow": "import time; print('begun', flush=True); time.sleep(60)",
        "failing": "raise SystemExit(3)",
        "racecheck": "",
        "good": "print('measured')",
    }
    listed = [first_contact.Step(name, 2, ("-c", code)) for name, code in programs.items()]
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
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    assert "measured" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_steps_name_programs_of_this_repository(first_contact, tmp_path, monkeypatch, device):
    monkeypatch.setattr(first_contact, "_arch", lambda: "90")
    listed = first_contact.steps(device, tmp_path)
    assert [step.name for step in listed][:2] == ["build", "env"]
    for step in listed:
        assert step.command[0] == "-m" or (ROOT / step.command[0]).is_file()
