"""mmseg's data: classes of heads, loaders and datasets agree, and label maps teach something."""

import numpy as np
import pytest

pytestmark = pytest.mark.mmseg

pytest.importorskip("mmseg", reason="mmseg is not installed")
from mmseg.utils import register_all_modules
from PIL import Image

from dcnv4_mm.integrations.data_checks import DataError


@pytest.fixture
def run(tmp_path, make_runner):
    """Function that trains an epoch on label maps with the given values in two halves."""
    register_all_modules(init_default_scope=False)

    def train(values=(0, 1), names=2, loader=(), data=(), change=None, **heads):
        for index in range(4):
            labels = np.repeat(np.array(values, np.uint8), 16)[None].repeat(32, 0)
            Image.new("RGB", labels.shape[::-1]).save(tmp_path / f"{index}.jpg")
            Image.fromarray(labels).save(tmp_path / f"{index}.png")
        if change:
            change(tmp_path)
        step = {"type": "dcnv4_mm.LoadSegAnnotations", "num_classes": 2, **dict(loader)}
        dataset = {
            "type": "BaseSegDataset",
            "data_root": str(tmp_path),
            "data_prefix": {"img_path": "", "seg_map_path": ""},
            "metainfo": {"classes": ("ground", "thing", "other")[:names]},
            "pipeline": [{"type": "LoadImageFromFile"}, step, {"type": "PackSegInputs"}],
            **dict(data),
        }
        heads = heads or {"decode_head": {"num_classes": 2, "out_channels": 2}}
        runner = make_runner("mmseg", dataset, **heads, hook={"label_maps": 4})
        runner.train()
        logs = (tmp_path / "run").rglob("*.log")
        return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()

    return train


def test_the_classes_that_occur_are_logged(run):
    assert "The first label maps show 2 of 2 classes" in run()
    heads = {"decode_head": {"num_classes": 3, "out_channels": 3}}
    printed = run(names=3, loader={"num_classes": 3}, **heads)
    assert "show 2 of 3 classes; not: other" in printed


@pytest.mark.parametrize("values", [(0, 255), (255, 255), (0, 0)])
def test_label_maps_that_teach_nothing(run, values):
    with pytest.raises(DataError, match="255 is ignored: write 1"):
        run(values)


def test_label_maps_of_which_zero_is_ignored_too(run):
    with pytest.raises(DataError, match="no class at all"):
        run((0, 255), data={"reduce_zero_label": True})


def test_heads_with_other_classes(run):
    heads = {
        "decode_head": {"num_classes": 3, "out_channels": 3},
        "auxiliary_head": {"num_classes": 150, "out_channels": 150},
    }
    with pytest.raises(DataError) as error:
        run(loader={"num_classes": 9}, **heads)
    for part in ("decode_head of Model has num_classes=3", "auxiliary_head", "num_classes=9"):
        assert part in str(error.value)


def test_zero_label_on_the_wrong_side(run):
    with pytest.raises(DataError, match="has reduce_zero_label=True, the dataset False"):
        run(loader={"reduce_zero_label": True})


def test_one_class_with_softmax(run):
    head = {"num_classes": 1, "out_channels": 1}
    with pytest.raises(DataError, match="num_classes=1 with softmax"):
        run((0, 0), names=1, loader={"num_classes": 1}, decode_head=head)


def test_no_image_of_the_suffix(run):
    with pytest.raises(DataError, match=r"has no sample.*img_suffix='\.JPG'"):
        run(data={"img_suffix": ".JPG"})


def remove_a_map(folder):
    (folder / "2.png").unlink()


def turn_a_map(folder):
    Image.new("RGB", (48, 32)).save(folder / "2.jpg")
    Image.new("L", (32, 48)).save(folder / "2.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_a_map, "1 of 4 label maps are missing, such as .*2.png"),
        (turn_a_map, "2.png has 32 x 48 pixels, its image 48 x 32: EXIF orientation"),
    ],
)
def test_maps_that_do_not_fit_their_images(run, change, message):
    with pytest.raises(DataError, match=message):
        run(change=change)
