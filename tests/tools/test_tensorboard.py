"""What docs/tools.md says of TensorBoard: train.py writes what TensorBoard reads."""

import json
import re

import pytest
from helpers import ROOT, run_python

pytest.importorskip("mmengine", reason="mmengine is not installed")
pytest.importorskip("tensorboard", reason="tensorboard is not installed")

TOY = """
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS


@DATASETS.register_module()
class ToySet(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"inputs": torch.tensor([float(index)])}


@MODELS.register_module()
class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode):
        return {"loss": self.layer(torch.stack(inputs)).square().mean()}
"""
CONFIG = """
custom_imports = dict(imports=["toy"])
model = dict(type="Toy")
train_dataloader = dict(
    num_workers=0, dataset=dict(type="ToySet"), sampler=dict(type="DefaultSampler", shuffle=False)
)
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))
default_hooks = dict(logger=dict(type="LoggerHook", interval=1))
visualizer = dict(type="Visualizer")
"""


def test_losses_and_rates(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "base.py").write_text(CONFIG)
    page = (ROOT / "docs" / "tools.md").read_text()
    (lines,) = re.findall(r"^```python\n(vis_backends = .*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "config.py").write_text(f'_base_ = "base.py"\n{lines}')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    run_python(ROOT / "tools" / "train.py", "config.py", "--work-dir=out", cwd=tmp_path)
    (scalars,) = (tmp_path / "out").glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    events = EventAccumulator(str(scalars.parent)).Reload()
    for key in ("loss", "lr"):
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == pytest.approx({record["step"]: record[key] for record in logged})
        assert len(found) == 6
