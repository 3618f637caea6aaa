"""The tools on classifiers: released files through mim, training, fine-tuning, images."""

import pickle
import re

import numpy as np
import pytest
import torch
from helpers import NO_WORKERS, ROOT, config_of, generator, manifest, run_python, weights
from PIL import Image

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mmengine.config import Config
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from torchvision import transforms

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released

pytestmark = pytest.mark.mmpretrain

TOOLS = ROOT / "tools"
T = "flash_intern_image_t_1k_224"
NANO = next(ROOT.glob("configs/quickstart/flash-internimage-nano*.py"))
EXAMPLE = next(ROOT.glob("configs/classification/*_own-data-224.py"))
SIZES = [(300, 200), (97, 130), (224, 224), (225, 500), (640, 251), (64, 64)]

# The original's test transform.
TRANSFORM = transforms.Compose(
    [
        transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file as the original publishes them: the averaged weights are others."""
    path = tmp_path_factory.mktemp("released") / f"{T}.pth"
    plain = weights(manifest("classification", T))
    averaged = {name: tensor + 1 for name, tensor in plain.items()}
    torch.save({"model": plain, "model_ema": averaged, "epoch": 299}, path)
    return path


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory, released):
    """A folder with a data/imagenet of six images, and the scores that each must get.

    The scores come from this package's plain classifier and torchvision's transforms. Labels are
    such that four images are right at rank 1 and a fifth at rank 2.
    """
    folder = tmp_path_factory.mktemp("imagenet")
    (folder / "data/imagenet/val").mkdir(parents=True)
    (folder / "data/imagenet/meta").mkdir()
    model = FlashInternImage("t", layer_scale=None, num_classes=1000).eval()
    load_released(model, released)
    lines, scores = [], []
    for index, (height, width) in enumerate(SIZES):
        coarse = generator(f"image {index}").integers(0, 256, (9, 7, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = image.getexif()
        # Turned by a quarter, which neither path may heed.
        exif[0x0112] = 6 if index == 1 else 1
        image = image.convert("L" if index == 2 else "RGB")
        path = folder / f"data/imagenet/val/{index}.JPEG"
        image.save(path, quality=90, exif=exif)
        with torch.inference_mode():
            logits = model(TRANSFORM(Image.open(path).convert("RGB"))[None])[0]
        order = logits.argsort(descending=True)
        rank = {4: 1, 5: 700}.get(index, 0)
        lines.append(f"{path.name} {order[rank]}")
        scores.append(logits.softmax(0))
    (folder / "data/imagenet/meta/val.txt").write_text("\n".join(lines))
    return folder, torch.stack(scores)


def test_test_transform_gives_the_same_pixels(imagenet):
    """To the bit those of PIL and torchvision: decoding, resizing, cropping."""
    folder, _ = imagenet
    settings = Config.fromfile(config_of(T)).test_dataloader.dataset.pipeline
    pipeline = Compose([TRANSFORMS.build(step) for step in settings])
    crop = transforms.Compose([*TRANSFORM.transforms[:2], transforms.PILToTensor()])
    for path in (folder / "data/imagenet/val").iterdir():
        found = pipeline({"img_path": str(path)})["inputs"]
        expected = crop(Image.open(path).convert("RGB"))
        assert torch.equal(found.flip(0), expected), path.name


def test_mim_evaluates_a_released_file(imagenet, released):
    folder, scores = imagenet
    printed = run_python(
        *("-m", "mim", "test", "dcnv4_mm", config_of(T).name, "--checkpoint", released),
        *("--gpus", "0", "--work-dir", "work", "--out", "scores.pkl"),
        *("--cfg-options", *NO_WORKERS, "test_dataloader.batch_size=2"),
        cwd=folder,
    )
    assert "393 tensors loaded, from the entry 'model'; 393 renamed" in printed
    top1, top5 = re.search(r"accuracy/top1: (\S+)\s+accuracy/top5: (\S+)", printed).groups()
    assert (float(top1), float(top5)) == (pytest.approx(100 * 4 / 6, abs=1e-3),
                                          pytest.approx(100 * 5 / 6, abs=1e-3))  # fmt: skip
    found = torch.stack(
        [s["pred_score"] for s in pickle.loads((folder / "scores.pkl").read_bytes())]
    )
    # A crop of 256 to 224 would change them by 6e-5 to 1e-4 (measured).
    assert (found - scores).abs().max().item() <= 1e-6


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """A folder with one training and one held-out image of each class."""
    folder = tmp_path_factory.mktemp("own_data")
    sizes = ("--num-train", 1, "--num-val", 1)
    run_python(ROOT / "dev/generators/mini_imagenet.py", "data/my_images", *sizes, cwd=folder)
    return folder


def test_fine_tuning_example(own_data, released):
    classes = tuple(sorted(p.name for p in (own_data / "data/my_images/train").iterdir()))
    text = EXAMPLE.read_text().replace("data/own", "data/my_images")
    text = re.sub(r"^classes = .*$", f"classes = {classes}", text, flags=re.MULTILINE)
    (own_data / EXAMPLE.name).write_text(text)
    options = [*NO_WORKERS, "train_cfg.max_epochs=1", f"load_from={released}"]
    options += ["train_dataloader.batch_size=5", "default_hooks.logger.interval=1"]
    train = (TOOLS / "train.py", EXAMPLE.name, "--work-dir", "out")
    printed = run_python(*train, "--cfg-options", *options, cwd=own_data)
    assert "391 tensors loaded, from the entry 'model'" in printed
    assert "left out 2 (allowed not to fit)" in printed
    assert "accuracy/top1" in printed
    saved = torch.load(own_data / "out/epoch_1.pth", weights_only=False)
    assert saved["state_dict"]["head.head.weight"].shape == (10, 768)
    assert saved["meta"]["dataset_meta"]["classes"][0] == "cold_box"

    demo = (
        TOOLS / "visualization/demo.py",
        "data/my_images/val/cold_box",
        EXAMPLE.name,
        "out/epoch_1.pth",
    )
    printed = run_python(*demo, "--out-dir", "drawn", cwd=own_data)
    assert re.search(r"cold_box_00001.JPEG: (\w+_\w+ [\d.]+, ){4}\w+_\w+ [\d.]+", printed)
    assert (own_data / "drawn/cold_box_00001.png").is_file()

    test = (TOOLS / "test.py", EXAMPLE.name, "out/epoch_1.pth", "--show-dir", "shown")
    run_python(*test, "--cfg-options", *NO_WORKERS, cwd=own_data)
    source = Image.open(own_data / "data/my_images/val/cold_box/cold_box_00001.JPEG")
    expected = transforms.Compose(TRANSFORM.transforms[:2])(source)
    (shown,) = (own_data / "shown").glob("cold_box_00001*.png")
    with Image.open(shown) as drawn:
        # The text is in the upper half.
        pixels = [np.asarray(p.convert("RGB"), float)[112:] for p in (drawn, expected)]
    assert abs(pixels[0] - pixels[1]).mean() < 2
    assert abs(pixels[0] - pixels[1][..., ::-1]).mean() > 20


def test_missing_data(run_tool, tmp_path):
    config = config_of(T)
    message = run_tool("train.py", config, cwd=tmp_path).message
    assert f"{tmp_path / 'data/imagenet'} does not exist" in message
    (tmp_path / "data/imagenet").mkdir(parents=True)
    message = run_tool("train.py", config, cwd=tmp_path).message
    assert f"{tmp_path / 'data/imagenet/train'} does not exist" in message


def test_checkpoint_of_another_model(run_tool, tmp_path, own_data):
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    image = next((own_data / "data/my_images/val").rglob("*.JPEG"))
    arguments = (image, config_of(T), tmp_path / "other.pth")
    for tool in ("demo.py", "visualize_offsets.py"):
        message = run_tool(tool, *arguments, cwd=tmp_path).message
        assert "other.pth: the checkpoint does not fit" in message
