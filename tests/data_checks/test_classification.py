"""mmpretrain's data: classes of head and datasets, and the same folders in all splits."""

import pytest

pytestmark = pytest.mark.mmpretrain

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
from mmpretrain.utils import register_all_modules
from PIL import Image

from dcnv4_mm.integrations.data_checks import DataError


@pytest.fixture
def run(tmp_path, make_runner):
    """Function that trains an epoch on folders of images."""
    register_all_modules(init_default_scope=False)

    def train(*, val=("cat", "dog"), classes=None, num_classes=2, listed=None):
        for split, folders in {"train": ("cat", "dog"), "val": val}.items():
            for folder in folders:
                (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(tmp_path / split / folder / "1.png")
        data = {
            "type": "CustomDataset",
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackInputs"}],
            "metainfo": {"classes": classes} if classes else None,
        }
        if listed:
            (tmp_path / "list.txt").write_text(listed)
            data["ann_file"] = str(tmp_path / "list.txt")
        splits = [{**data, "data_prefix": str(tmp_path / name)} for name in ("train", "val")]
        evaluator = {"type": "Accuracy"}
        make_runner("mmpretrain", *splits, evaluator, head={"num_classes": num_classes}).train()

    return train


def test_folders_that_fit(run):
    run()
    run(classes=("cat", "dog"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1000}, "head of Model has num_classes=1000"),
        ({"classes": ("dog", "cat")}, "not in the order of the folders"),
        ({"val": ("cat", "horse")}, r"(?s)other folders than .*\*   1 dog +horse"),
        ({"val": ("dog",)}, "other classes, or another order, than in train_dataloader"),
    ],
)
def test_folders_that_do_not_fit(run, settings, message):
    with pytest.raises(DataError, match=message):
        run(**settings)


def test_a_list_of_images_and_labels(run):
    fits = "cat/1.png 0\ndog/1.png 1\n"
    run(listed=fits, classes=("cat", "dog"))
    for listed, message in (
        (fits.replace(" 1", " 2"), "1 labels are not 0 to 1, the classes of head: such as 2 of"),
        (fits.replace("dog", "hen"), "1 of 2 images are missing, such as .*hen/1.png"),
    ):
        with pytest.raises(DataError, match=message):
            run(listed=listed, classes=("cat", "dog"))
