"""The report of ``python -m dcnv4_mm.env``."""

import torch

import dcnv4_mm
from dcnv4_mm import env
from dcnv4_mm.integrations import _hosts


def test_report_names_versions_kernels_and_the_next_command():
    report = env.report()
    assert dcnv4_mm.__version__ in report
    assert torch.__version__ in report
    assert "dcnv4 on cpu" in report
    assert report.splitlines()[-1].startswith("Next: ")


def test_a_missing_host_comes_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(_hosts.HOSTS, "mmdet", (("no-such-distribution",), "mmdet==3.3.0"))
    assert "mmdet is not installed: pip install mmdet==3.3.0" in env.report()
