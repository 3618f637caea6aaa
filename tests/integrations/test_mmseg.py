"""The checked loader of label maps, and its errors."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg", reason="mmseg is not installed")

from mmengine.registry import TRANSFORMS

pytestmark = [pytest.mark.mmseg, pytest.mark.mmdet]

SHAPE = (6, 8)


@pytest.fixture
def load(tmp_path):
    """Function that writes a label map, loads it as that of an image of 6 x 8, and returns it."""
    path = tmp_path / "labels.png"

    def run(labels, *, num_classes=3, reduce=True, mode=None):
        if isinstance(labels, bytes):
            path.write_bytes(labels)
        elif labels is not None:
            image = Image.fromarray(labels)
            (image.convert(mode) if mode else image).save(path)
        loader = TRANSFORMS.build(
            {"type": "dcnv4_mm.LoadSegAnnotations", "num_classes": num_classes}
        )
        results = {
            "img_path": "image.jpg",
            "ori_shape": SHAPE,
            "seg_map_path": str(path),
            "reduce_zero_label": reduce,
            "seg_fields": [],
        }
        return loader(results)["gt_seg_map"]

    return run


def labels_of(*values):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, : len(values)] = values
    return labels


def test_labels_are_reduced(load):
    loaded = load(labels_of(1, 2, 3, 255))
    assert loaded[0].tolist() == [0, 1, 2, 255, 255, 255, 255, 255]


def test_labels_may_stay(load):
    assert load(labels_of(1, 2, 255), reduce=False)[0].tolist() == [1, 2, 255, 0, 0, 0, 0, 0]


def test_palettes_do_not_matter(load):
    image = Image.fromarray(labels_of(1, 2, 3), mode="P")
    image.putpalette([9] * 768)
    assert load(np.asarray(image))[0, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("reduce", [True, False])
def test_labels_out_of_range(load, reduce):
    with pytest.raises(ValueError, match=r"labels\.png has the labels \[4, 150\]") as caught:
        load(labels_of(1, 4, 150), reduce=reduce)
    assert f"0 to {3 if reduce else 2} and 255" in str(caught.value)


def test_another_size(load):
    with pytest.raises(ValueError, match=r"labels.png has 7 x 6 .* 8 x 6 .*image.jpg"):
        load(labels_of(1)[:, :7].copy())


def test_a_missing_file(load):
    with pytest.raises(FileNotFoundError, match=r"labels.png .*image.jpg"):
        load(None)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_file(load, content):
    with pytest.raises(ValueError, match=r"labels.png is damaged"):
        load(content)


@pytest.mark.parametrize(("kind", "mode"), [(np.uint8, "RGB"), (np.uint16, None)])
def test_more_than_eight_bits_or_channels(load, kind, mode):
    with pytest.raises(ValueError, match=r"labels\.png.*8 bits"):
        load(labels_of(1, 2).astype(kind), mode=mode)


def test_an_image_alone_has_no_labels():
    """As mmseg's inferencers call a test pipeline."""
    loader = TRANSFORMS.build({"type": "dcnv4_mm.LoadSegAnnotations", "num_classes": 3})
    assert loader({"img": np.zeros((2, 2, 3))}).keys() == {"img"}
