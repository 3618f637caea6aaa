# Reproduces flash_intern_image_t_1k_224 of the original project.
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    # For those who inherit this file as dcnv4_mm::...: mmengine would set its scope else.
    _scope_="mmpretrain",
    type="ImageClassifier",
    backbone=dict(
        type="dcnv4_mm.FlashInternImage",
        arch="t",
        out_indices=(3,),
        layer_scale=None,
        drop_path_rate=0.1,
    ),
    head=dict(
        type="dcnv4_mm.FlashInternImageHead",
        num_classes=1000,
        in_channels=512,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
    ),
    # One of the two for every batch.
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)

# PIL's decoder, and no turning by EXIF, as where the weights come from.
load = dict(
    type="LoadImageFromFile", imdecode_backend="pillow", color_type="color_ignore_orientation"
)
train_pipeline = [load, *_base_.train_pipeline[1:]]
test_pipeline = [
    load,
    # The full short side: no border is cut off before the crop.
    dict(type="ResizeEdge", scale=224, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
loading = dict(pin_memory=True, persistent_workers=True)
train_dataloader = dict(
    batch_size=128, num_workers=8, dataset=dict(pipeline=train_pipeline), **loading
)
val_dataloader = dict(
    batch_size=128, num_workers=8, dataset=dict(pipeline=test_pipeline), **loading
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(recipe="classification"),
    clip_grad=dict(max_norm=5.0),
)
max_epochs, warmup_epochs = 300, 20
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-3,
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=warmup_epochs,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
        begin=warmup_epochs,
        end=max_epochs,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# All rates are for this batch size; `--auto-scale-lr` adapts them to another.
auto_scale_lr = dict(base_batch_size=512)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="accuracy/top1"))
# The second: a checkpoint fits completely, released files included, or is refused.
custom_hooks = [
    dict(type="mmpretrain.EMAHook", momentum=1e-4, update_buffers=True, priority="ABOVE_NORMAL"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
randomness = dict(seed=0)
