# Reproduces cascade_flash_intern_image_l_fpn_3x_coco of the original project.
_base_ = "cascade-mask-rcnn_flash-internimage-l_fpn_8xb2-1x_coco.py"

short_sides = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="RandomChoiceResize", scales=short_sides, keep_ratio=True)],
            [
                dict(
                    type="RandomChoiceResize",
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True,
                ),
                dict(
                    type="RandomCrop",
                    crop_type="absolute_range",
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(type="RandomChoiceResize", scales=short_sides, keep_ratio=True),
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))

model = dict(backbone=dict(with_cp=True))
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(
        type="MultiStepLR", by_epoch=True, begin=0, end=max_epochs, milestones=[27, 33], gamma=0.1
    ),
]
custom_hooks = [
    # Averages the buffers too; validates with and stores the averaged weights, as the original.
    dict(
        type="EMAHook", ema_type="ExpMomentumEMA", momentum=1e-4, update_buffers=True, priority=49
    ),
    dict(type="NumClassCheckHook"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
# 16 GPUs x 4 images
auto_scale_lr = dict(base_batch_size=64)
