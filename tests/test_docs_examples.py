"""Python in the documentation: programs run, on small inputs, and configs can be built."""

import re
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import to_released

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.md")]
BLOCKS = {
    f"{page.relative_to(ROOT)}:{number}": code
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    )
}
# They need an exported file, minutes, released weights, or a folder of configs.
ELSEWHERE = {
    "docs/bev.md:0": "tests/bev/test_inferencer.py",
    "docs/bev.md:1": "tests/bev/test_inferencer.py",
    "docs/export.md:0": "tests/export/test_page.py",
    "docs/export.md:1": "tests/ops/test_onnx.py",
    "docs/export.md:2": "tests/export/test_page.py",
    "docs/export.md:3": "tests/bev/test_bev_export.py",
    "docs/export.md:4": "tests/tools/test_export.py",
    "docs/export.md:5": "tests/tools/test_export.py",
    "docs/tools.md:1": "tests/integrations/test_inferencers.py",
    "docs/training.md:4": "tests/engine/test_fsdp.py",
}
ELSEWHERE |= {name: "tests/hugging_face" for name in BLOCKS if "docs/transformers.md" in name}
ELSEWHERE |= {
    name: "tests/test_docs_own_data.py" for name in BLOCKS if name.startswith("docs/own_data/")
}
PROGRAMS = [name for name, code in BLOCKS.items() if re.search("^(import|from) ", code, re.M)]
CONFIGS = [name for name in BLOCKS if name not in PROGRAMS]


def attention():
    """Two levels, three heads, eight points."""
    return {
        "value": torch.randn(2, 54, 3, 16),
        "spatial_shapes": [(6, 7), (3, 4)],
        "locations_logits": torch.randn(2, 9, 3, 48),
        "sampling_locations": torch.rand(2, 9, 3, 2, 8, 2),
        "attention_weights": torch.rand(2, 9, 3, 2, 8),
    }


def attention_of_cameras():
    return {
        "value": torch.randn(1, 6, 54, 3, 16),
        "spatial_shapes": [(6, 7), (3, 4)],
        "offsets_logits": torch.randn(1, 9, 3, 48),
        "reference_points": torch.rand(1, 6, 9, 4, 2),
        "bev_mask": torch.rand(1, 6, 9) < 0.5,
    }


def dcnv4():
    return {"value": torch.randn(2, 6, 7, 64), "offset_mask": torch.randn(2, 6, 7, 112)}


def dcnv3():
    offset, mask = torch.randn(2, 6, 7, 72), torch.rand(2, 6, 7, 36)
    return {"value": torch.randn(2, 6, 7, 64), "offset": offset, "mask": mask}


def released(name, **arguments):
    """Writes a released file of FlashInternImage-T."""
    torch.save({"model": to_released(FlashInternImage("t", **arguments))}, name)
    return {}


def exported():
    return {"program": torch.export.export(torch.nn.ReLU(), (torch.randn(1),))}


FLASH_T = partial(released, "flash_intern_image_t_1k_224.pth")
PREPARE = {
    "docs/backbones.md:1": partial(FLASH_T, layer_scale=None, num_classes=1000),
    "docs/backbones.md:2": partial(FLASH_T, layer_scale=None, num_classes=1000),
    "docs/checkpoints.md:0": FLASH_T,
    "docs/internimage.md:1": lambda: released("internimage_t_1k_224.pth", core_op="DCNv3"),
    "docs/internimage.md:2": dcnv3,
    "docs/ops/dcnv4.md:0": dcnv4,
    "docs/ops/dcnv4.md:1": exported,
    "docs/ops/flash_deform_attn.md:0": attention,
    "docs/ops/flash_deform_attn.md:2": lambda: {"model": torch.nn.ReLU()},
    "docs/ops/bev_cross_attn.md:0": attention_of_cameras,
}
NEEDS = {
    "docs/backbones.md:1": pytest.mark.mmcv,
    "docs/backbones.md:2": pytest.mark.skipif(
        find_spec("timm") is None, reason="timm is not installed"
    ),
    "docs/drop_in.md:0": pytest.mark.mmpretrain,
    "docs/drop_in.md:1": pytest.mark.mmpretrain,
    "docs/ops/flash_deform_attn.md:2": pytest.mark.mmcv,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=NEEDS.get(n, ())) for n in PROGRAMS if n not in ELSEWHERE],
)
def test_programs_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[name], PREPARE.get(name, dict)())


@pytest.mark.mmdet
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ELSEWHERE])
def test_configs_fit(name, tmp_path):
    """With their bases they are configs; their own hooks, and the model, can be built."""
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.registry import HOOKS, MODELS, VISBACKENDS

    import dcnv4_mm.registry  # noqa: F401

    register_all_modules(init_default_scope=True)
    path = tmp_path / "config.py"
    path.write_text(BLOCKS[name])
    complete, own = Config.fromfile(path), {}
    exec(BLOCKS[name], own)
    for hook in [*own.get("custom_hooks", []), *own.get("default_hooks", {}).values()]:
        HOOKS.build(hook)
    for backend in own.get("vis_backends", []):
        assert VISBACKENDS.get(backend["type"])
    with torch.device("meta"):
        for model in filter(None, (complete.get("model"), complete.get("backbone"))):
            MODELS.build(model)


def test_every_exception_is_a_block():
    assert {*ELSEWHERE, *PREPARE, *NEEDS} <= set(BLOCKS)
