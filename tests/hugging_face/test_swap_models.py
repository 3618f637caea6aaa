"""Whole models of transformers, before and after their attention is swapped."""

import copy

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from dcnv4_mm.integrations import swap_deformable_attention

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
# The second image is smaller than the first, which is what valid ratios are for.
MASK = torch.ones(2, 64, 96, dtype=torch.long)
MASK[1, 40:] = 0
MASK[1, :, 70:] = 0


def resnet(*stages):
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=[f"stage{stage}" for stage in stages],
    )


def swin(**arguments):
    return transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, **arguments
    )


def deformable_detr(**arguments):
    return transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone_config=resnet(2, 3, 4),
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=7,
            two_stage_num_proposals=7,
            **arguments,
        )
    )


# Of RT-DETR and the models made after it.
HYBRID = dict(
    encoder_hidden_dim=16,
    encoder_in_channels=[16, 24, 32],
    encoder_ffn_dim=16,
    encoder_attention_heads=2,
    d_model=16,
    num_queries=7,
    decoder_in_channels=[16, 16, 16],
    decoder_ffn_dim=16,
    decoder_layers=2,
    decoder_attention_heads=2,
    num_denoising=0,
    freeze_backbone_batch_norms=False,
)


def rt_detr():
    config = transformers.RTDetrConfig(backbone_config=resnet(2, 3, 4), **HYBRID)
    return transformers.RTDetrForObjectDetection(config)


def rt_detr_v2():
    config = transformers.RTDetrV2Config(backbone_config=resnet(2, 3, 4), **HYBRID)
    return transformers.RTDetrV2ForObjectDetection(config)


def d_fine():
    config = transformers.DFineConfig(
        backbone_config=resnet(2, 3, 4), **HYBRID, decoder_n_points=[3, 6, 3], lqe_hidden_dim=8
    )
    return transformers.DFineForObjectDetection(config)


def grounding_dino():
    text = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=2000,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin(out_indices=[2, 3, 4]),
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=7,
        max_text_len=16,
    )
    return transformers.GroundingDinoForObjectDetection(config)


def omdet():
    text = transformers.CLIPTextConfig(
        hidden_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=50,
    )
    config = transformers.OmDetTurboConfig(
        text_config=text,
        backbone_config=swin(out_indices=[2, 3, 4]),
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        task_encoder_hidden_dim=16,
        class_embed_dim=16,
        num_queries=7,
        encoder_hidden_dim=32,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=2,
        encoder_dim_feedforward=16,
        decoder_hidden_dim=32,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=16,
    )
    return transformers.OmDetTurboForObjectDetection(config)


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(out_features=STAGES),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=5,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def oneformer():
    config = transformers.OneFormerConfig(
        backbone_config=swin(out_features=STAGES),
        num_queries=5,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=50,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


TOKENS = torch.tensor([[101, 5, 1012, 6, 7, 1012, 102]] * 2)
CLASSES = torch.tensor([[1, 4, 49], [1, 5, 49]])
# Model, arguments beside the images, attention layers.
MODELS = {
    "deformable_detr": (deformable_detr, {"pixel_mask": MASK}, 3),
    "two_stage": (
        lambda: deformable_detr(two_stage=True, with_box_refine=True),
        {"pixel_mask": MASK},
        3,
    ),
    "rt_detr": (rt_detr, {}, 2),
    "rt_detr_v2": (rt_detr_v2, {}, 2),
    "d_fine": (d_fine, {}, 2),
    "grounding_dino": (grounding_dino, {"pixel_mask": MASK, "input_ids": TOKENS}, 3),
    "omdet": (
        omdet,
        {
            "classes_input_ids": CLASSES,
            "classes_attention_mask": torch.ones_like(CLASSES),
            "classes_structure": torch.tensor([1, 1]),
            "tasks_input_ids": CLASSES,
            "tasks_attention_mask": torch.ones_like(CLASSES),
        },
        2,
    ),
    "mask2former": (mask2former, {"pixel_mask": MASK}, 2),
    "oneformer": (oneformer, {"pixel_mask": MASK, "task_inputs": torch.rand(2, 77).double()}, 2),
}


def make_model(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().double().eval()
    for layer_name, layer in model.named_modules():
        # They start at whole pixels, where grid_sample has no derivative.
        if layer_name.endswith(("sampling_offsets", "attention_weights")):
            nn.init.normal_(layer.weight, std=0.3)
            nn.init.normal_(layer.bias, std=0.3)
    return model


def run(model, arguments):
    """All floating-point outputs, and the gradients of the parameters."""
    images = IMAGES[:, :, :, :64] if "classes_input_ids" in arguments else IMAGES
    outputs = model(images, **arguments).to_tuple()
    tensors = [x for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    total = sum(x.clamp(-10, 10).square().sum() for x in tensors if x.requires_grad)
    gradients = torch.autograd.grad(total, parameters.values(), allow_unused=True)
    return tensors, dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_and_gradients(name):
    _, arguments, count = MODELS[name]
    model = make_model(name)
    swapped = copy.deepcopy(model)
    assert swap_deformable_attention(swapped) == count
    (outputs, gradients), (expected, other) = run(swapped, arguments), run(model, arguments)
    assert len(outputs) >= 2
    torch.testing.assert_close(outputs, expected, rtol=1e-7, atol=1e-7)
    reached = [key for key, value in gradients.items() if value is not None]
    assert any("sampling_offsets" in key for key in reached)
    for key in reached:
        torch.testing.assert_close(gradients[key], other[key], rtol=1e-7, atol=1e-7)
