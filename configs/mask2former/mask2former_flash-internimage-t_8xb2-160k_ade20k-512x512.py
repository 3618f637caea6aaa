# Reproduces mask2former_flash_internimage_t_512_160k_ade20k_ss of the original project.
_base_ = [
    "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
    "../_base_/datasets/ade20k_512.py",
]

# As ../_base_/mmcv_ext.py, and before what mmseg imports for this model.
custom_imports = dict(imports=["dcnv4_mm.registry", "mmdet.models"])
model = dict(
    # The pipelines make every image fit.
    data_preprocessor=dict(test_cfg=None),
    backbone=dict(
        _delete_=True,
        type="dcnv4_mm.FlashInternImage",
        arch="t",
        layer_scale=1.0,
        drop_path_rate=0.2,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    decode_head=dict(
        type="dcnv4_mm.Mask2FormerHead",
        # How scores are made; "host" for mmseg's own way.
        inference="original",
        in_channels=[64, 128, 256, 512],
        num_things_classes=100,
        num_stuff_classes=50,
    ),
)

data_root = "data/ADEChallengeData2016"
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=_base_.train_pipeline_512))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=_base_.test_pipeline_512))
test_dataloader = val_dataloader
tta_pipeline = _base_.tta_pipeline_512

optim_wrapper = dict(
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        offset_lr_scale=1.0,
        offset_prefix="backbone.",
        # The original lets these parts of the head learn as slowly as the stem.
        first_layer_names=[
            f"decode_head.{name}"
            for name in ("mask_embed", "cls_embed", "level_embed", "query_embed", "query_feat")
        ],
    ),
)
param_scheduler = [
    dict(
        type="dcnv4_mm.PolyWarmupLR",
        end=160000,
        warmup_iters=1500,
        warmup_ratio=1e-6,
        by_epoch=False,
    )
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
# A checkpoint fits completely, released files included, or is refused.
custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook"), dict(type="dcnv4_mm.CheckDataHook")]
