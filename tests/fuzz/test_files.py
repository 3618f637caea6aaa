"""Files with random damage: read as they were, or refused with a message; never anything else."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released, to_released

ARCH = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 1, 1, 1)}
FILES = settings(max_examples=100 if settings.default.max_examples > 100 else 20)


@st.composite
def damages(draw):
    """Functions that change one to four bytes of a file."""
    changes = draw(
        st.lists(
            st.tuples(
                st.floats(0, 1, exclude_max=True),
                st.sampled_from(["replace", "insert", "delete", "cut", "double"]),
                st.binary(min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def damage(content):
        for fraction, kind, new in changes:
            at = int(fraction * len(content))
            head, tail = content[:at], content[at:]
            content = {
                "replace": head + new + tail[len(new) :],
                "insert": head + new + tail,
                "delete": head + tail[len(new) :],
                "cut": head,
                "double": head + tail[:64] + tail,
            }[kind]
        return content

    return damage


@pytest.fixture(scope="module", params=["zip", "legacy"])
def released(request, tmp_path_factory):
    """A model, and the bytes of a checkpoint of it in one of torch's two formats."""
    torch.manual_seed(0)
    model = FlashInternImage(ARCH)
    path = tmp_path_factory.mktemp("released") / "model.pth"
    weights = {"model": to_released(model), "epoch": 3}
    torch.save(weights, path, _use_new_zipfile_serialization=request.param == "zip")
    return request.param, model, path.read_bytes()


@FILES
@given(damage=damages())
def test_checkpoints(released, tmp_path, damage):
    """The format before torch 1.6 has no check sums: there a changed number may go unnoticed."""
    kind, source, content = released
    path = tmp_path / "damaged.pth"
    path.write_bytes(damage(content))
    model = FlashInternImage(ARCH)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load_released(model, path)
        expected = source.state_dict() if kind == "zip" else model.state_dict()
    except ValueError:
        expected = before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def check_coco():
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from dcnv4_mm.integrations.data_checks.on_disk import check_coco

    return check_coco


@pytest.fixture
def coco(tmp_path):
    """Two images and their annotations in COCO's format."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 5} for i in (1, 2)]
    box = {"bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, **box}]
    for image in images:
        Image.new("RGB", (5, 4)).save(tmp_path / image["file_name"])
    names = [{"id": 1, "name": "person"}]
    return tmp_path, {"images": images, "annotations": boxes, "categories": names}


@FILES
@given(damage=damages())
def test_annotations(coco, check_coco, damage):
    """Bytes are changed at random."""
    folder, content = coco
    path = folder / "all.json"
    changed = damage(json.dumps(content).encode())
    path.write_bytes(changed)
    if not check_coco(path, folder).faults:
        found = {image["file_name"] for image in json.loads(changed)["images"]}
        assert found <= {"1.jpg", "2.jpg"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@FILES
@given(part=st.sampled_from(["file", "images", "image", "file_name"]), new=JSON)
def test_annotations_of_another_kind(coco, check_coco, part, new):
    """Parts are replaced by anything that JSON knows."""
    folder, content = coco[0], copy.deepcopy(coco[1])
    if part == "image":
        content["images"][0] = new
    elif part == "file_name":
        content["images"][0]["file_name"] = new
    else:
        content = new if part == "file" else {**content, part: new}
    path = folder / "all.json"
    path.write_text(json.dumps(content))
    faults = check_coco(path, folder).faults
    assert len(faults) <= 3
    # Annotations of images that are not listed.
    assert faults
