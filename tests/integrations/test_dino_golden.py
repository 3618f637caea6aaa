"""DINO with FlashInternImage-T against numbers recorded from the original project."""

import re

import pytest
import torch
from helpers import (
    build_model,
    config_of,
    dino_samples,
    dino_weights,
    images,
    load_arrays,
    load_json,
)

from dcnv4_mm.checkpoints import load_released

pytestmark = pytest.mark.mmdet

ORIGINAL = "dino_4scale_flash_internimage_t_1x_coco"
RECORDED = load_json("dino_t")


@pytest.fixture(scope="module")
def model():
    model, _ = build_model(ORIGINAL)
    load_released(model, {"state_dict": dino_weights(ORIGINAL)})
    return model.eval()


def padded_images(case):
    """The recorded batch: zeros outside each image."""
    height, width = case["batch_input_shape"]
    shapes = case["img_shapes"]
    batch = images(height, width, batch=len(shapes), seed=case["image_seed"])
    for image, (h, w) in zip(batch, shapes, strict=True):
        image[:, h:] = 0
        image[:, :, w:] = 0
    return batch, dino_samples(case)


def run(model, case, order):
    """Every recorded part of the model, by its name in the recording.

    ``order`` says which encoder tokens become queries: two of nearly the same score would else
    swap places in float32, and everything behind them too.
    """
    batch, samples = padded_images(RECORDED[case])
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        pyramid = model.extract_feat(batch)
        encoder_inputs, decoder_inputs = model.pre_transformer(pyramid, samples)
        encoded = model.forward_encoder(**encoder_inputs)
        memory, _ = model.gen_encoder_output_proposals(**encoded)
        logits = model.bbox_head.cls_branches[-1](memory)
        deltas = model.bbox_head.reg_branches[-1](memory)
        patch.setattr(torch, "topk", lambda *_, **__: (None, order))
        queries, _ = model.pre_decoder(**encoded, batch_data_samples=samples)
        patch.undo()
        decoded = model.forward_decoder(**decoder_inputs, **queries)
        scores, boxes = model.bbox_head(**decoded)
        found = model.bbox_head.predict(**decoded, batch_data_samples=samples, rescale=False)
    return {
        **{f"neck{level}": maps for level, maps in enumerate(pyramid)},
        "encoder_memory": encoded["memory"],
        "enc_output_memory": memory,
        "enc_cls": logits,
        "enc_reg_delta": deltas,
        "enc_cls_max": logits.max(-1).values,
        "enc_topk_anchor": queries["reference_points"],
        "enc_topk_score": logits.gather(1, order[..., None].expand(-1, -1, logits.shape[-1])),
        "decoder_states": decoded["hidden_states"].transpose(1, 2),
        "decoder_references": torch.stack(decoded["references"]),
        "all_cls_scores": scores,
        "all_bbox_preds": boxes,
        "final_boxes": torch.stack([torch.cat([f.bboxes, f.scores[:, None]], 1) for f in found]),
        "final_labels": torch.stack([f.labels for f in found]),
    }


@pytest.fixture(scope="module")
def outputs(model):
    arrays = load_arrays("dino_t")
    orders = {case: torch.from_numpy(arrays[f"{case}/topk_indices"]) for case in RECORDED}
    return {case: run(model, case, order) for case, order in orders.items()}


def tolerance(case, name):
    """Five times what float32 changed in the original."""
    noise = RECORDED[case]["float32_vs_float64_max_abs"]
    return 5 * noise["enc_cls" if name == "enc_cls_max" else name]


STORED = [key for key in load_arrays("dino_t") if "topk_indices" not in key]


@pytest.mark.parametrize("key", STORED)
def test_stored_tensor(outputs, key):
    case, name, steps = re.fullmatch(r"(\w+)/(\w+)(\[.*\])?", key).groups()
    result = outputs[case][name]
    for axis, step in enumerate((steps or "").strip("[]").split(",")):
        if step.strip(":"):
            result = result[(slice(None),) * axis + (slice(None, None, int(step.strip(":"))),)]
    expected = torch.from_numpy(load_arrays("dino_t")[key])
    assert result.shape == expected.shape
    assert (result - expected).abs().max().item() <= tolerance(case, name)


SAMPLED = [(case, name) for case in RECORDED for name in RECORDED[case]["stats"]]


@pytest.mark.parametrize(("case", "name"), SAMPLED)
def test_samples_of_every_output(outputs, case, name):
    recorded, flat = RECORDED[case]["stats"][name], outputs[case][name].flatten()
    assert list(outputs[case][name].shape) == recorded["shape"]
    count = len(recorded["samples"])
    picked = flat[torch.arange(count) * flat.numel() // count].double()
    expected = torch.tensor(recorded["samples"], dtype=torch.float64)
    assert (picked - expected).abs().max().item() <= tolerance(case, name)


@pytest.mark.parametrize("case", RECORDED)
def test_the_best_tokens_become_queries(outputs, case):
    """The recorded order is that of our scores, except for scores that are equal in float32."""
    scores = outputs[case]["enc_cls_max"]
    order = torch.from_numpy(load_arrays("dino_t")[f"{case}/topk_indices"])
    chosen = scores.gather(1, order)
    slack = 2 * tolerance(case, "enc_cls")
    assert (chosen.diff(dim=1) <= slack).all()
    rest = scores.scatter(1, order, -torch.inf)
    assert (rest.amax(1) <= chosen[:, -1] + slack).all()
    found = scores.topk(order.shape[1], dim=1).indices
    assert (found == order).float().mean() > 0.99


@pytest.mark.parametrize("case", RECORDED)
def test_whole_model(model, outputs, case):
    """As a user calls it; queries of nearly the same score may be swapped."""
    batch, samples = padded_images(RECORDED[case])
    with torch.inference_mode():
        found = model.predict(batch, samples, rescale=False)
    for prediction, expected in zip(found, outputs[case]["final_boxes"], strict=True):
        instances = prediction.pred_instances
        assert torch.allclose(instances.scores, expected[:, 4], atol=5e-3)
        distances = (instances.bboxes[:, None] - expected[None, :, :4]).abs().amax(-1)
        assert (distances.min(1).values < 0.05).float().mean() > 0.98


def test_hosts_load_the_released_file(model, tmp_path):
    """The ways of mmdet's inference and of its test script, which do not load strictly."""
    from mmdet.apis import DetInferencer, init_detector

    path = tmp_path / "released.pth"
    meta = {"CLASSES": ("a",) * 80, "epoch": 12}
    torch.save({"meta": meta, "state_dict": dino_weights(ORIGINAL)}, path)
    loaded = init_detector(str(config_of(ORIGINAL)), str(path), palette="coco", device="cpu")
    inferencer = DetInferencer(str(config_of(ORIGINAL)), str(path), device="cpu", palette="coco")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(inferencer.model.state_dict()[name], tensor), name
