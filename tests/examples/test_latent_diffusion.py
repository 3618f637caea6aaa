"""The example on diffusion: the U-Net, training, sampling, distances, the trial on shapes."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed")

from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from dcnv4_mm.layers.drop_in import DCNv4Conv2d

pytestmark = pytest.mark.diffusers

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "latent_diffusion"
MINI_SHAPES = ROOT / "dev" / "generators" / "mini_shapes.py"
MINI, LARGE = (EXAMPLE / "configs" / name for name in ("mini.yaml", "imagenet-256.yaml"))
FEW = (
    "batch_size=4",
    "save_every=2",
    "sample_every=3",
    "sample_steps=1",
    "log_every=1",
    "warmup_steps=1",
)

# The example's modules are found beside its programs, by name.
sys.path.insert(0, str(EXAMPLE))
import dcnv4_unet
import pipeline as pipelines
import settings as configs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The mini shapes, with five training images of each class."""
    folder = tmp_path_factory.mktemp("mini") / "shapes"
    subprocess.run(
        [sys.executable, MINI_SHAPES, folder, "--num-train", "5", "--num-val", "2"], check=True
    )
    return folder


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Function that runs a program of the example; gives its output and, if any, its message."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        message = None
        try:
            runpy.run_path(str(EXAMPLE / name), run_name="__main__")
        except SystemExit as error:
            message = error.code
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        return capsys.readouterr().out, message

    return run


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Folder of a training of four updates by two processes, as a user would start it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += [EXAMPLE / "train.py", MINI, shapes / "train", "--out-dir", folder]
    result = subprocess.run(
        [*map(str, command), "--set", "steps=4", *FEW],
        # Elsewhere than in the sources, which -m would put in front of the installed package.
        cwd=folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def small(kind, **changes):
    arguments = dict(configs.read_settings(MINI).unet, num_class_embeds=5) | changes
    torch.manual_seed(0)
    return kind(**arguments).eval()


def evaluate(unet):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor([10, 900]), torch.tensor([0, 4])).sample


def test_every_convolution_of_the_residual_blocks_is_replaced():
    unet = small(dcnv4_unet.DCNv4UNet2DModel)
    left = {
        name.rpartition(".")[2]
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
    }
    # The first and the last, and those that change the size.
    assert left == {"conv_in", "conv", "conv_out"}
    blocks = 3 + 2 + 3 * 2
    assert sum(isinstance(module, DCNv4Conv2d) for module in unet.modules()) == 2 * blocks


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="a multiple of group_channels = 16, got 24"):
        small(dcnv4_unet.DCNv4UNet2DModel, block_out_channels=(24, 32, 64))


def test_saved_networks_reload_with_safetensors(tmp_path):
    unet = small(dcnv4_unet.DCNv4UNet2DModel)
    unet.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = dcnv4_unet.DCNv4UNet2DModel.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.config.block_out_channels == [16, 32, 64]
    torch.testing.assert_close(evaluate(loaded), evaluate(unet), rtol=0, atol=0)


@pytest.mark.parametrize("config", [MINI, LARGE])
def test_the_convolutional_twin_has_as_many_parameters(config):
    settings = configs.read_settings(config)
    with torch.device("meta"):
        first, second = (
            configs.build_unet(settings, operator, 4).num_parameters()
            for operator in configs.OPERATORS
        )
    # Widths are multiples of the norm's groups.
    assert second == pytest.approx(first, rel=0.02)


def test_the_table_of_the_large_config():
    result = runpy.run_path(str(EXAMPLE / "count.py"))["rows"](LARGE)
    text = (EXAMPLE / "README.md").read_text()
    for row in result:
        assert row in text


@pytest.mark.slow
def test_one_step_of_the_large_config():
    settings = configs.read_settings(LARGE)
    torch.manual_seed(0)
    unet = configs.build_unet(settings, "dcnv4", 1000)
    optimizer = torch.optim.SGD(unet.parameters(), 0.01)
    before = unet.conv_out.weight.detach().clone()
    predicted = unet(torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.tensor([7])).sample
    predicted.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in unet.parameters() if p.grad is not None)
    optimizer.step()
    assert not torch.equal(unet.conv_out.weight, before)


def test_two_processes_train_and_save(trained):
    steps = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoint-00000004",
        "log.jsonl",
        "pipeline",
        "samples",
    ]
    with Image.open(trained / "samples" / "00000004.png") as grid:
        assert grid.size == (8 * 32, 4 * 32)
    assert not list((trained / "pipeline").rglob("*.bin"))


def test_a_resumed_training_ends_as_an_uninterrupted_one(run_example, shapes, tmp_path):
    def train(folder, steps, *more):
        arguments = (MINI, shapes / "train", "--out-dir", tmp_path / folder, *more)
        # A cosine would depend on the number of steps, which stands for the interruption here.
        settings = (f"steps={steps}", "schedule=constant_with_warmup", *FEW)
        run = run_example("train.py", *arguments, "--set", *settings)
        assert run[1] is None
        return load_file(next((tmp_path / folder / "pipeline" / "unet").glob("*.safetensors")))

    full = train("full", 7)
    # Five images of four classes are five batches of four: it resumes in the second epoch.
    train("parts", 6)
    parts = train("parts", 7, "--resume")
    for name, tensor in full.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=0, msg=name)


def test_a_checkpoint_of_another_network_is_refused(run_example, trained, shapes):
    arguments = (MINI, shapes / "train", "--out-dir", trained, "--resume")
    _, message = run_example("train.py", *arguments, "--operator", "convolution")
    assert "checkpoint-00000004 is damaged, or of another network" in message


def test_samples_follow_from_their_number_alone(run_example, trained, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    few = ("--steps", "2", "--device", "cpu")
    out, message = run_example(
        "sample.py", trained / "pipeline", "--out-dir", first, "--count", "2", *few
    )
    assert message is None
    assert str(first / "grid.png") in out
    assert len(list(first.rglob("*.png"))) == 4 * 2 + 1
    run_example(
        *("sample.py", trained / "pipeline", "--out-dir", second, "--count", "1", *few),
        *("--classes", "square", "--batch-size", "1"),
    )
    images = [np.int16(Image.open(folder / "square" / "000000.png")) for folder in (first, second)]
    # Batches of other sizes add up in another order.
    assert np.abs(images[0] - images[1]).max() <= 1


def test_bad_arguments(run_example, trained, shapes, tmp_path):
    _, message = run_example("sample.py", tmp_path, "--out-dir", tmp_path / "out")
    assert "holds no pipeline" in message
    _, message = run_example(
        "sample.py", trained / "pipeline", "--out-dir", tmp_path / "out", "--classes", "hexagon"
    )
    assert "names (cross, ring, square, triangle), got" in message
    _, message = run_example("train.py", MINI, shapes / "train", "--out-dir", trained)
    assert "holds a training run: add --resume" in message
    _, message = run_example("train.py", MINI, tmp_path, "--out-dir", tmp_path / "out")
    assert "must hold a folder of images" in message
    _, message = run_example(
        "train.py", MINI, shapes / "train", "--out-dir", tmp_path / "out", "--set", "stepz=1"
    )
    assert "unknown: stepz" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "0"}, "training.steps must be at least 1, got 0"),
        ({"batch_size": "many"}, "batch_size must be int, got 'many'"),
        ({"label_dropout": "1"}, r"training.label_dropout must be in \[0, 1\), got 1"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        configs.read_settings(MINI, change)


def test_pixels_and_latents(run_example, shapes, tmp_path):
    vae = AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=4, layers_per_block=1
    )
    vae.save_pretrained(tmp_path / "vae")
    _, message = run_example(
        *("encode.py", shapes / "train", "--vae", tmp_path / "vae", "--size", "32"),
        *("--out-dir", tmp_path / "latents", "--per-file", "12", "--workers", "0"),
    )
    assert message is None
    files = sorted((tmp_path / "latents").iterdir())
    assert [load_file(file)["latents"].shape for file in files] == [(12, 4, 32, 32), (8, 4, 32, 32)]
    config = tmp_path / "latents.yaml"
    text = MINI.read_text().replace("_channels: 3", "_channels: 4")
    config.write_text(f"vae: {tmp_path / 'vae'}\n{text}")
    arguments = (config, tmp_path / "latents", "--out-dir", tmp_path / "out")
    _, message = run_example("train.py", *arguments, "--set", "steps=1", *FEW)
    assert message is None
    pipeline = pipelines.load_pipeline(tmp_path / "out" / "pipeline")
    assert pipeline.vae is not None
    assert pipeline(["ring"], num_inference_steps=1).images[0].size == (32, 32)
    save_file({"latents": torch.zeros(2, 3, 8, 8)}, files[0])
    _, message = run_example("train.py", *arguments, "--resume")
    assert "must hold latents (N, 4, 32, 32) and labels" in message


def test_guidance_of_one_is_the_prediction_itself():
    unet = small(dcnv4_unet.DCNv4UNet2DModel)
    pipeline = pipelines.ClassConditionalPipeline(unet, DDIMScheduler(), None, ["cross", "ring"])
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    for scale in (1.0, 2.0):
        pipeline(["ring", 0], guidance_scale=scale, num_inference_steps=1)
    assert calls == [2, 4]
    with pytest.raises(ValueError, match="at least 1"):
        pipeline(["ring"], guidance_scale=0.5)


def test_plain_convolutions_need_no_class_of_ours(run_example, shapes, tmp_path):
    arguments = (MINI, shapes / "train", "--out-dir", tmp_path / "out")
    changes = ("--operator", "convolution", "--set", "steps=1", *FEW)
    assert run_example("train.py", *arguments, *changes)[1] is None
    unet = UNet2DModel.from_pretrained(tmp_path / "out" / "pipeline" / "unet")
    assert (
        unet.config.block_out_channels == configs.read_settings(MINI).narrow["block_out_channels"]
    )


def test_distance_of_a_folder_from_itself_and_from_noise(run_example, shapes, tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    # A network without training: the library's own, with other weights.
    weights = tmp_path / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        network = FeatureExtractorInceptionV3(
            "network", ["2048"], feature_extractor_weights_path="x"
        )
    torch.save(network.state_dict(), weights)
    noise = tmp_path / "noise"
    noise.mkdir()
    for index in range(8):
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(noise / f"{index}.png")
    same, other = (
        float(
            run_example("fid.py", shapes / "val", folder, "--size", "32", "--weights", weights)[
                0
            ].split()[1]
        )
        for folder in (shapes / "val", noise)
    )
    assert abs(same) < 1e-3
    assert other > 100 * abs(same)


def test_distances_say_what_they_lack(run_example, shapes, tmp_path, monkeypatch):
    both = (shapes / "val", shapes / "train", "--size", "32")
    _, message = run_example("fid.py", shapes / "val", tmp_path, "--size", "32")
    assert "must hold at least two images, got 0" in message
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    _, message = run_example("fid.py", *both, "--weights", tmp_path / "weights.pth")
    assert "cannot be read from" in message
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    _, message = run_example("fid.py", *both)
    assert "give the file as --weights" in message


def test_the_trial_runs_through(run_example, tmp_path):
    arguments = ("--quick", "--work-dir", tmp_path / "work", "--record", tmp_path / "record")
    out, message = run_example("trial.py", *arguments)
    assert message is None
    assert "| samples of the requested class |" in out
    assert sorted(path.name for path in (tmp_path / "record").iterdir()) == [
        "convolution.jsonl",
        "dcnv4.jsonl",
        "outcome.png",
        "summary.md",
    ]
