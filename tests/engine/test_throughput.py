"""The hook that logs speed, memory and kernels."""

import json

import pytest

from dcnv4_mm.ops.functional import backend_info


def test_speed_memory_and_kernels_are_logged(make_runner, tmp_path):
    runner = make_runner(custom_hooks=[{"type": "dcnv4_mm.ThroughputHook"}])
    runner.train()
    (log,) = (tmp_path / "run").glob("*/*.log")
    for op, serving in backend_info().items():
        assert f"{op} on cpu: {serving['cpu']}" in log.read_text()
    (scalars,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    steps = [record for record in records if "lr" in record]
    assert len(steps) == 4
    times = runner.message_hub.get_scalar("train/time").data[0]
    speeds = runner.message_hub.get_scalar("train/images_per_s").data[0]
    assert speeds == pytest.approx([2 / time for time in times])
    assert all(record["images_per_s"] > 0 for record in steps)
    assert all(0.01 < record["peak_gb"] < 100 for record in steps)
