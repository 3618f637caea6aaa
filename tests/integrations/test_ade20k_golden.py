"""UperNet and Mask2Former with FlashInternImage-T against numbers recorded from the original."""

import re

import pytest
import torch
from helpers import (
    build_model,
    config_of,
    images,
    load_arrays,
    load_json,
    manifest,
    weights,
)

from dcnv4_mm.checkpoints import load_released

pytestmark = [pytest.mark.mmseg, pytest.mark.mmdet]

ORIGINALS = {
    "upernet_t": "upernet_flash_internimage_t_512_160k_ade20k",
    "mask2former_t": "mask2former_flash_internimage_t_512_160k_ade20k_ss",
}


@pytest.fixture(scope="module")
def models():
    """Both models with the weights of the recordings."""
    built = {}
    for name, original in ORIGINALS.items():
        built[name], _ = build_model(original)
        load_released(built[name], {"state_dict": weights(manifest("segmentation", original))})
        built[name].eval()
    return built


def inputs(name):
    recorded = load_json(name)
    return images(recorded["h"], recorded["w"], seed=recorded["image_seed"])


@pytest.fixture(scope="module")
def outputs(models):
    """Every recorded part of both models, by the names in the recordings."""
    from mmseg.structures import SegDataSample

    parts = {}
    with torch.inference_mode():
        model = models["upernet_t"]
        pixels = inputs("upernet_t")
        maps = model.backbone(pixels)
        meta = [{"img_shape": pixels.shape[2:], "ori_shape": pixels.shape[2:]}]
        parts["upernet_t"] = {
            "fused_feature": model.decode_head._forward_feature(maps),
            "seg_logits": model.decode_head(maps),
            "aux_logits": model.auxiliary_head(maps),
            "full_logits": model.inference(pixels, meta),
        }
        parts["upernet_t"] |= {f"backbone{level}": m for level, m in enumerate(maps)}

        model = models["mask2former_t"]
        pixels = inputs("mask2former_t")
        maps = model.backbone(pixels)
        memory = []
        encoder = model.decode_head.pixel_decoder.encoder
        hook = encoder.register_forward_hook(lambda module, given, result: memory.append(result))
        mask_features, multi_scale = model.decode_head.pixel_decoder(maps)
        hook.remove()
        all_cls, all_masks = model.decode_head(maps, [SegDataSample()])
        classes = all_cls[-1].softmax(-1)[..., :-1]
        parts["mask2former_t"] = {
            "encoder_memory": memory[0],
            "mask_features": mask_features,
            "all_cls": torch.stack(all_cls),
            "all_masks": torch.stack(all_masks),
            "all_masks_first": all_masks[0],
            "all_masks_last": all_masks[-1],
            "seg_probs": torch.einsum("nqc,nqhw->nchw", classes, all_masks[-1].sigmoid()),
            "full_output": model.inference(pixels, meta),
        }
        parts["mask2former_t"] |= {f"backbone{level}": m for level, m in enumerate(maps)}
        parts["mask2former_t"] |= {f"multi_scale{level}": m for level, m in enumerate(multi_scale)}
    return parts


def tolerance(name, part):
    """Five times what float32 changed in the original."""
    noise = load_json(name)["float32_vs_float64_max_abs"]
    return 5 * noise[re.sub("_(first|last)$", "", part)]


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in ORIGINALS for key in load_arrays(name)]
)
def test_stored_tensor(outputs, name, key):
    part, step = re.fullmatch(r"img0/(\w+)(?:\[:,::(\d+)\])?", key).groups()
    result = outputs[name][part][:, :: int(step)] if step else outputs[name][part]
    expected = torch.from_numpy(load_arrays(name)[key])
    assert result.shape == expected.shape
    assert (result - expected).abs().max().item() <= tolerance(name, part)


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name in ORIGINALS for part in load_json(name)["stats"]]
)
def test_samples_of_every_output(outputs, name, part):
    recorded, flat = load_json(name)["stats"][part], outputs[name][part].flatten()
    assert list(outputs[name][part].shape) == recorded["shape"]
    count = len(recorded["samples"])
    picked = flat[torch.arange(count) * flat.numel() // count].double()
    expected = torch.tensor(recorded["samples"], dtype=torch.float64)
    assert (picked - expected).abs().max().item() <= tolerance(name, part)


def test_the_hosts_inference_is_another(models, outputs):
    """mmseg resizes mask logits, and combines them after."""
    head, pixels = models["mask2former_t"].decode_head, inputs("mask2former_t")
    meta = [{"img_shape": pixels.shape[2:], "ori_shape": pixels.shape[2:]}]
    with torch.inference_mode():
        original = models["mask2former_t"].inference(pixels, meta)
        head.inference = "host"
        host = models["mask2former_t"].inference(pixels, meta)
        head.inference = "original"
    all_cls, all_masks = (outputs["mask2former_t"][name][-1] for name in ("all_cls", "all_masks"))
    grown = torch.nn.functional.interpolate(all_masks, pixels.shape[2:], mode="bilinear")
    classes = all_cls.softmax(-1)[..., :-1]
    torch.testing.assert_close(
        host, torch.einsum("nqc,nqhw->nchw", classes, grown.sigmoid()), rtol=0, atol=1e-5
    )
    assert (host - original).abs().max() > 1e-2


def test_inference_must_be_known():
    from mmseg.registry import MODELS

    _, config = build_model(ORIGINALS["mask2former_t"], device="meta")
    with pytest.raises(ValueError, match=r"\"original\" or \"host\", got 'best'"):
        MODELS.build({**config.model.decode_head, "inference": "best"})


@pytest.mark.parametrize("name", ORIGINALS)
def test_host_loads_the_released_file(models, name, tmp_path):
    """The way of mmseg's inference, which does not load strictly."""
    from mmseg.apis import init_model

    original = ORIGINALS[name]
    path = tmp_path / "released.pth"
    meta = {"CLASSES": ("wall",), "PALETTE": [[0, 0, 0]]}
    torch.save({"meta": meta, "state_dict": weights(manifest("segmentation", original))}, path)
    loaded = init_model(str(config_of(original)), str(path), device="cpu")
    for key, tensor in models[name].state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
