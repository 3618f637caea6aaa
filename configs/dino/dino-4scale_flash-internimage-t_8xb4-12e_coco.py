# Reproduces dino_4scale_flash_internimage_t_1x_coco of the original project.
_base_ = [
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    "../_base_/tta/coco-boxes_tta.py",
    "../_base_/mmcv_ext.py",
]

model = dict(
    # The names of released files; in the head, the original's limit of inverse sigmoids.
    type="dcnv4_mm.DINO",
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type="dcnv4_mm.FlashInternImage",
        arch="t",
        out_indices=(1, 2, 3),
        layer_scale=1.0,
        drop_path_rate=0.2,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[128, 256, 512]),
    bbox_head=dict(type="dcnv4_mm.DINOHead"),
)

train_pipeline = _base_.train_pipeline
train_pipeline[3].transforms[1][1].update(allow_negative_crop=False)
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(
        layer_decay_rate=0.9,
        offset_lr_scale=1.0,
        # The original's "level_embeds".
        first_layer_names=["level_embed"],
    ),
)
param_scheduler = [
    # mmengine reaches the full rate one iteration before `end`, the original at iteration 500.
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1),
]
val_evaluator = dict(classwise=True)
test_evaluator = dict(classwise=True)
# With class-wise results "auto" would follow the first class.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best="coco/bbox_mAP"))
# The second: a checkpoint fits completely, released files included, or is refused.
custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
# 8 GPUs x 4 images
auto_scale_lr = dict(enable=False, base_batch_size=32)
