"""The programs of docs/transformers.md."""

import re

import pytest
import torch
from helpers import ROOT

pytest.importorskip("transformers", reason="transformers is not installed")

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import to_released
from dcnv4_mm.transformers import FlashInternImageForImageClassification, from_released
from dcnv4_mm.transformers import image_processor as make_image_processor

PAGE = ROOT / "docs" / "transformers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
FILE = "flash_intern_image_t_1k_224.pth"


def released_file():
    model = FlashInternImage("t", layer_scale=None, num_classes=1000)
    torch.save({"model": to_released(model)}, FILE)


def test_attention(capsys):
    names = {}
    exec(BLOCKS[0], names)
    assert capsys.readouterr().out == "6\n"
    assert names["boxes"].shape == (1, 300, 4)


def test_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    released_file()
    model = from_released(FILE)
    model.save_pretrained("flash-internimage-t")
    make_image_processor(model.config).save_pretrained("flash-internimage-t")
    names = {}
    exec(BLOCKS[1], names)
    assert type(names["model"]) is FlashInternImageForImageClassification
    assert names["label"].shape == ()
    assert names["segmentor"].backbone.channels == [64, 128, 256, 512]


def test_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    released_file()
    # The block's "." is a clone.
    names = {}
    exec(BLOCKS[2].replace('"."', repr(str(ROOT))), names)
    assert names["model"].eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
