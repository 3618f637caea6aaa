"""A `save_best` metric that the evaluator does not return is reported once; training continues."""

import pytest


@pytest.mark.parametrize(
    ("save_best", "best"),
    [
        ("other", []),
        (["other", "ap"], ["best_ap_epoch_1.pth"]),
        ("ap", ["best_ap_epoch_1.pth"]),
        ("auto", ["best_ap_epoch_1.pth"]),
    ],
)
def test_a_metric_that_is_missing(make_runner, tmp_path, save_best, best):
    checkpoint = {"type": "dcnv4_mm.SafeCheckpointHook", "save_best": save_best}
    make_runner(checkpoint=checkpoint).train()
    run = tmp_path / "run"
    assert (run / "epoch_2.pth").is_file()
    assert [path.name for path in run.glob("best_*.pth")] == best
    log = next(run.rglob("*.log")).read_text()
    warnings = [line for line in log.splitlines() if "WARNING" in line and "save_best" in line]
    assert len(warnings) == ("other" in save_best)
    assert all("other" in line and "ap, count, loss" in line for line in warnings)
