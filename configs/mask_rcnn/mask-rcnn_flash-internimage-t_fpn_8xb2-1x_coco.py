# Reproduces mask_rcnn_flash_intern_image_t_fpn_1x_coco of the original project.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/mmcv_ext.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="dcnv4_mm.FlashInternImage",
        arch="t",
        layer_scale=1.0,
        drop_path_rate=0.2,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    neck=dict(
        in_channels=[64, 128, 256, 512], norm_cfg=dict(type="dcnv4_mm.LN2d", requires_grad=True)
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=1.0, offset_lr_scale=1.0),
)
param_scheduler = [
    # mmengine reaches the full rate one iteration before `end`, the original at iteration 500.
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
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
