# A classifier for the generated mini ImageNet (dev/generators/mini_imagenet.py), on two CPU cores.
_base_ = "../classification/flash-internimage-t_4xb128-300e_in1k-224.py"

classes = [
    f"{c}_{o}" for c in ("cold", "warm") for o in ("box", "disk", "ring", "star", "triangle")
]
model = dict(
    backbone=dict(arch="nano", drop_path_rate=0.0),
    head=dict(num_classes=len(classes), in_channels=256),
    train_cfg=None,
)
data_preprocessor = dict(num_classes=len(classes))

size = 96
load, *_, pack = _base_.train_pipeline
train_pipeline = [
    load,
    dict(type="RandomResizedCrop", scale=size, crop_ratio_range=(0.7, 1.0), backend="pillow"),
    dict(type="RandomFlip", prob=[0.35, 0.35], direction=["horizontal", "vertical"]),
    pack,
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = test_pipeline[2].crop_size = size
data = dict(data_root="data/mini_imagenet", metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=32, num_workers=1, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(batch_size=32, num_workers=1, dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader

max_epochs, warmup_epochs = 40, 2
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
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
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(max_keep_ckpts=1))
# The average of so few steps would be that of the beginning.
custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook"), dict(type="dcnv4_mm.CheckDataHook")]
auto_scale_lr = dict(base_batch_size=32)
