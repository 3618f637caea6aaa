"""The workflows of GitHub Actions: what they run is what a contributor runs."""

import re

import pytest
import yaml
from helpers import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(path.read_text())["jobs"]
    asked = set()
    for job in jobs.values():
        commands = [step.get("run", "") for step in job["steps"]]
        asked |= {name for line in commands for name in re.findall(r"^make ([a-z-]+)", line)}
        asked |= set(job.get("strategy", {}).get("matrix", {}).get("target", ()))
    assert asked
    assert asked <= targets


def test_the_tests_are_those_of_the_local_run():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    local = set(re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    # One job each.
    local = local - {"check"} | {"lint", "test"}
    assert set(jobs["make"]["strategy"]["matrix"]["target"]) == local


def test_issue_forms_ask_for_the_environment():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text())
    (field,) = (part for part in form["body"] if part.get("id") == "environment")
    assert "python -m dcnv4_mm.env" in field["attributes"]["description"]
    assert field["validations"]["required"]
