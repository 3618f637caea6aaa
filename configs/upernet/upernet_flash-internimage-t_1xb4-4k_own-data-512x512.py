# Fine-tunes the released UPerNet T on a dataset of your own: docs/own_data/segmentation.md.
_base_ = "dcnv4_mm::upernet/upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py"
# Weights to start from; None for those of the backbone alone.
load_from = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/upernet_flash_internimage_t_512_160k_ade20k.pth"
init_cfg = None

# The dataset: label 0 is the first class, 255 is ignored.
data_root = "data/own"
classes = ("background", "bolt", "nut", "washer")
palette = [(96, 96, 96), (230, 25, 75), (60, 180, 75), (0, 130, 200)]
# True where 0 means "not labelled" and is ignored; label 1 then is the first class.
reduce_zero_label = False
img_suffix, seg_map_suffix = ".jpg", ".png"
# Images are resized to fit into (long side, short side), and trained on in crops.
scale, crop_size = (2048, 512), (512, 512)
batch_size, num_workers = 4, 2
max_iters = 4000
# The published rate is for 16 images per step.
lr = 6e-5 * (batch_size / 16) ** 0.5

# Everything below follows from the lines above.
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=init_cfg),
    decode_head=dict(num_classes=len(classes)),
    auxiliary_head=dict(num_classes=len(classes)),
)
# The last layers are initialized anew, since ADE20K has other classes.
custom_hooks = [
    dict(
        type="dcnv4_mm.StrictLoadHook",
        allow=["decode_head.conv_seg.", "auxiliary_head.conv_seg."],
    ),
    dict(type="dcnv4_mm.CheckDataHook"),
]

load_labels = dict(
    type="dcnv4_mm.LoadSegAnnotations",
    num_classes=len(classes),
    reduce_zero_label=reduce_zero_label,
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    load_labels,
    dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.95),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    load_labels,
    dict(type="PackSegInputs"),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[-2] = [load_labels]
dataset = dict(
    _delete_=True,
    type="BaseSegDataset",
    data_root=data_root,
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    reduce_zero_label=reduce_zero_label,
    metainfo=dict(classes=classes, palette=palette),
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    dataset=dict(
        data_prefix=dict(img_path="images/train", seg_map_path="labels/train"),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    num_workers=num_workers,
    dataset=dict(
        data_prefix=dict(img_path="images/val", seg_map_path="labels/val"),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader

# Warm-up and decay follow max_iters.
interval = max(1, max_iters // 10)
train_cfg = dict(max_iters=max_iters, val_interval=interval)
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(
        type="dcnv4_mm.PolyWarmupLR",
        end=max_iters,
        warmup_iters=max(1, max_iters // 20),
        warmup_ratio=0.01,
        by_epoch=False,
    )
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=interval))
auto_scale_lr = dict(base_batch_size=batch_size)
