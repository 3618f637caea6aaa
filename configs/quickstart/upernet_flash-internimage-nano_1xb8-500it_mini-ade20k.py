# A UPerNet that learns the generated mini ADE20K set (dev/generators/mini_ade20k.py) on two cores.
_base_ = [
    "../upernet/upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py",
    "../_base_/datasets/mini_ade20k.py",
]

num_classes = 6
channels = 64
norm_cfg = dict(type="BN")
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(arch="nano", drop_path_rate=0.0, with_cp=False, init_cfg=None),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=channels,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
    ),
    auxiliary_head=dict(
        in_channels=128, channels=channels, num_classes=num_classes, norm_cfg=norm_cfg
    ),
)

# Images keep their size, 160 to 256 pixels.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    _base_.mini_labels,
    dict(type="RandomCrop", crop_size=(160, 160)),
    dict(type="RandomFlip", prob=[0.35, 0.35], direction=["horizontal", "vertical"]),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), _base_.mini_labels, dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(**_base_.mini_ade20k, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(**_base_.mini_ade20k, pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 500
train_cfg = dict(max_iters=max_iters, val_interval=100)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(
        type="dcnv4_mm.PolyWarmupLR",
        end=max_iters,
        warmup_iters=50,
        warmup_ratio=0.01,
        by_epoch=False,
    )
]
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=20))
auto_scale_lr = dict(base_batch_size=8)
