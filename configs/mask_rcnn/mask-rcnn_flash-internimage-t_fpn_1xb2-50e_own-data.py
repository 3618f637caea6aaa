# Fine-tunes the released Mask R-CNN T on a dataset of your own: docs/own_data/detection.md.
_base_ = "dcnv4_mm::mask_rcnn/mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco.py"
# Weights to start from; None for those of the backbone alone.
load_from = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/mask_rcnn_flash_internimage_t_fpn_3x_coco.pth"
init_cfg = None

# The dataset. The classes are named in the order of "categories" in the annotation files.
data_root = "data/own/"
classes = ("bolt", "nut", "washer")
# Images are resized to fit into (long side, short side).
scale = (1333, 800)
batch_size, num_workers = 2, 2
max_epochs = 50
# The published rate is for 16 images per step.
lr = 1e-4 * (batch_size / 16) ** 0.5

# Everything below follows from the lines above.
model = dict(
    backbone=dict(init_cfg=init_cfg),
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))
    ),
)
# The last layers are initialized anew, since COCO has other classes.
custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(
        type="dcnv4_mm.StrictLoadHook",
        allow=["roi_head.bbox_head.fc_", "roi_head.mask_head.conv_logits."],
    ),
    dict(type="dcnv4_mm.CheckDataHook"),
]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=scale, ratio_range=(0.6, 1.0), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
dataset = dict(
    _delete_=True, type="CocoDataset", data_root=data_root, metainfo=dict(classes=classes)
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    dataset=dict(
        ann_file="annotations/train.json",
        data_prefix=dict(img="train/"),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    num_workers=num_workers,
    dataset=dict(
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/val.json")
test_evaluator = val_evaluator

# Warm-up and decay follow max_epochs.
warmup_epochs = max(1, max_epochs // 25)
train_cfg = dict(max_epochs=max_epochs, val_interval=max(1, max_epochs // 10))
optim_wrapper = dict(optimizer=dict(lr=lr), clip_grad=dict(max_norm=10.0))
by_step = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_epochs, **by_step),
    dict(
        type="CosineAnnealingLR",
        begin=0,
        end=max_epochs,
        eta_min_ratio=0.01,
        **by_step,
    ),
]
default_hooks = dict(logger=dict(interval=10))
auto_scale_lr = dict(base_batch_size=batch_size)
