"""What docs/tools.md says of TensorBoard: train.py writes what TensorBoard reads."""

import json
import re
from pathlib import Path

import pytest
from helpers import ROOT, run_python

pytest.importorskip("mmengine", reason="mmengine is not installed")
pytest.importorskip("tensorboard", reason="tensorboard is not installed")

TOY = Path(__file__).with_name("toy_config.py")


def test_losses_and_rates(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    page = (ROOT / "docs" / "tools.md").read_text()
    (lines,) = re.findall(r"^```python\n(vis_backends = .*?)^```", page, re.DOTALL | re.MULTILINE)
    lines += "train_cfg = dict(max_epochs=1)\n"
    lines += "default_hooks = dict(logger=dict(type='LoggerHook', interval=1))\n"
    (tmp_path / "config.py").write_text(f"_base_ = {str(TOY)!r}\n{lines}")
    monkeypatch.setenv("PYTHONPATH", str(TOY.parent), prepend=":")
    run_python(ROOT / "tools" / "train.py", "config.py", "--work-dir=out", cwd=tmp_path)
    (scalars,) = (tmp_path / "out").glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    events = EventAccumulator(str(scalars.parent)).Reload()
    for key in ("loss", "lr"):
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == pytest.approx({record["step"]: record[key] for record in logged})
        assert len(found) == 6
