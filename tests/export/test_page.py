"""The examples of docs/export.md that take an exported file; a function stands for the file."""

import re
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT

pytest.importorskip("mmdet", reason="mmdet is not installed")

from integrations.host_models import small_config
from mmengine.registry import MODELS, init_default_scope

from dcnv4_mm.export import metadata as metadata_module
from dcnv4_mm.export.wrappers import wrap_for_export

pytestmark = pytest.mark.mmdet
SIZE = (70, 100)
NAMES = ["boxes", "scores", "labels", "masks"]


def block(section):
    """The Python code of a section of the page."""
    text = (ROOT / "docs" / "export.md").read_text().split(f"\n## {section}\n")[1]
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files of the examples, and the exported part of the model."""
    folder = tmp_path_factory.mktemp("page")
    config = small_config("mask_rcnn")
    config.dump(folder / "CONFIG.py")
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    for name, parameter in model.named_parameters():
        # Scores that differ clearly.
        if name.endswith(("fc_cls.weight", "rpn_cls.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"meta": {}, "state_dict": model.state_dict()}, folder / "FILE.pth")
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    cv2.imwrite(str(folder / "image.jpg"), cv2.GaussianBlur(image, (0, 0), 5))
    part = wrap_for_export(model, "mmdet").eval()
    metadata = metadata_module.describe(config, task=part.task, name="CONFIG")
    return folder, part, {**metadata, "size_divisor": 1}


@pytest.fixture
def execute(files, monkeypatch):
    """Function that executes a section's code, and returns its names."""
    folder, part, metadata = files
    monkeypatch.chdir(folder)
    monkeypatch.setattr(metadata_module, "read_metadata", lambda path: metadata)

    @torch.no_grad()
    def run(outputs, inputs):
        return [x.numpy() for x in part(*map(torch.from_numpy, inputs.values())).values()]

    def get_outputs():
        return [SimpleNamespace(name=name) for name in NAMES]

    session = SimpleNamespace(run=run, get_outputs=get_outputs)
    fake = SimpleNamespace(InferenceSession=lambda path: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)

    def execute(section):
        names = {}
        exec(block(section), names)
        return names

    return execute


def test_boxes_and_masks_are_those_of_the_host(execute):
    from mmdet.apis import inference_detector, init_detector

    names = execute("Boxes and masks")
    detector = init_detector("CONFIG.py", "FILE.pth", device="cpu")
    expected = inference_detector(detector, "image.jpg").pred_instances.numpy()
    assert len(expected) > 0
    np.testing.assert_allclose(names["boxes"], expected.bboxes, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(names["found"]["scores"], expected.scores, rtol=1e-4, atol=1e-5)
    assert np.array_equal(names["found"]["labels"], expected.labels)
    assert (names["masks"] == expected.masks).mean() > 0.999
    assert names["masks"].shape[1:] == SIZE


def test_the_metadata_prepare_an_image(execute):
    names = execute("Metadata")
    assert names["image"].dtype == np.float32
    assert names["image"].shape[2:] == SIZE
    padded = metadata_module.prepare(
        cv2.imread("image.jpg"), {**names["metadata"], "size_divisor": 32}
    )
    assert padded.shape[2:] == (96, 128)
    assert list(names["outputs"]) == NAMES
