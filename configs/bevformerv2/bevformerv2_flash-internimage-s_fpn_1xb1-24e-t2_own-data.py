# Trains BEVFormer v2 on recordings of your own in nuScenes' format: docs/own_data/bev.md.
_base_ = "dcnv4_mm::bevformerv2/bevformerv2_flash-internimage-s_fpn_16xb1-24e-bi5_nus-3d.py"
# The backbone starts from the released Mask R-CNN S. Or the file of a complete model of yours.
load_from = None

# The dataset: nuScenes' classes or some of them, in alphabetical order, each with the width, length
# and height of a typical box in metres.
data_root = "data/own_nuscenes/"
version = "v1.0-trainval"
classes = dict(car=(1.98, 4.64, 1.74), pedestrian=(0.67, 0.72, 1.76), truck=(2.50, 6.93, 2.84))
# The keyframe before, and the current one.
frames = (-1, 0)
batch_size, num_workers = 1, 4
max_epochs = 24
# The published rate is for 16 samples per step.
lr = 4e-4 * (batch_size / 16) ** 0.5

# Everything below follows from the lines above.
model = dict(
    pts_bbox_head=dict(num_classes=len(classes), fusion=dict(num_frames=len(frames))),
    fcos3d_bbox_head=dict(num_classes=len(classes), canonical_wlh=list(classes.values())),
)
# The last layers are initialized anew where load_from has other classes.
custom_hooks = [
    dict(
        type="dcnv4_mm.StrictLoadHook",
        allow=["pts_bbox_head.cls_branches.", "fcos3d_bbox_head."],
    ),
    dict(type="dcnv4_mm.CheckDataHook"),
]

train_pipeline = [
    {**step, "classes": list(classes)} if step.type == "ObjectNameFilter" else step
    for step in _base_.train_dataloader.dataset.pipeline
]
dataset = dict(
    data_root=data_root, metainfo=dict(classes=list(classes), version=version), frames=frames
)
loader = dict(batch_size=batch_size, num_workers=num_workers)
train_dataloader = dict(
    dataset=dict(ann_file="bevformerv2_infos_train.pkl", pipeline=train_pipeline, **dataset),
    **loader,
)
val_dataloader = dict(dataset=dict(ann_file="bevformerv2_infos_val.pkl", **dataset), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + "bevformerv2_infos_val.pkl")
test_evaluator = val_evaluator

# Warm-up and decay follow max_epochs.
warmup_epochs = max(1, max_epochs // 25)
train_cfg = dict(max_epochs=max_epochs, val_interval=max(1, max_epochs // 6))
optim_wrapper = dict(optimizer=dict(lr=lr))
by_step = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_epochs, **by_step),
    dict(type="CosineAnnealingLR", begin=0, end=max_epochs, eta_min_ratio=0.01, **by_step),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1))
auto_scale_lr = dict(base_batch_size=batch_size)
