"""Small random models of transformers."""

import transformers

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
DETR = dict(
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    num_queries=7,
)
# RT-DETR and the models made after it.
HYBRID = dict(
    d_model=16,
    encoder_hidden_dim=16,
    encoder_in_channels=[16, 24, 32],
    encoder_ffn_dim=16,
    encoder_attention_heads=2,
    decoder_in_channels=[16, 16, 16],
    decoder_ffn_dim=16,
    decoder_layers=2,
    decoder_attention_heads=2,
    num_queries=7,
    num_denoising=0,
    freeze_backbone_batch_norms=False,
)
# Mask2Former and OneFormer.
MASKS = dict(
    hidden_dim=32,
    encoder_feedforward_dim=16,
    encoder_layers=2,
    decoder_layers=2,
    num_attention_heads=2,
    dim_feedforward=16,
    num_queries=5,
)


def make(name, task="ObjectDetection", **settings):
    """A model by the prefix of its class name, with these settings of its configuration."""
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}For{task}")(config)


def resnet():
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=STAGES[1:],
    )


def swin(**arguments):
    return transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, **arguments
    )


def deformable_detr(**settings):
    settings |= dict(two_stage_num_proposals=7)
    return make("DeformableDetr", backbone_config=resnet(), **DETR, **settings)


def hybrid(name, **settings):
    return make(name, backbone_config=resnet(), **HYBRID, **settings)


def grounding_dino():
    return make(
        "GroundingDino",
        backbone_config=swin(out_indices=[2, 3, 4]),
        text_config=transformers.BertConfig(**TEXT, vocab_size=2000),
        max_text_len=16,
        **DETR,
    )


def omdet():
    return make(
        "OmDetTurbo",
        backbone_config=swin(out_indices=[2, 3, 4]),
        text_config=transformers.CLIPTextConfig(**TEXT, projection_dim=16, vocab_size=50),
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


def mask2former(backbone=None, **settings):
    return make(
        "Mask2Former",
        "UniversalSegmentation",
        backbone_config=backbone or swin(out_features=STAGES),
        feature_size=32,
        mask_feature_size=32,
        **MASKS,
        **settings,
    )


def oneformer():
    return make(
        "OneFormer",
        "UniversalSegmentation",
        backbone_config=swin(out_features=STAGES),
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=50,
        conv_dim=32,
        mask_dim=32,
        **MASKS,
    )
