# A small DINO that overfits eight images of a mini COCO dataset, on CPU cores.
_base_ = "../dino/dino-4scale_flash-internimage-t_8xb4-12e_coco.py"

num_classes = 5
model = dict(
    num_queries=100,
    backbone=dict(arch="nano", drop_path_rate=0.0, with_cp=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256]),
    encoder=dict(num_layers=3, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    decoder=dict(num_layers=3, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    bbox_head=dict(num_classes=num_classes),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=40)),
    test_cfg=dict(max_per_img=100),
)

# Images keep their size; Resize only records the scale factor for the evaluation.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale_factor=1.0, keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale_factor=1.0, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
data_root = "data/mini_coco/"
dataset = dict(
    data_root=data_root,
    metainfo=dict(classes=("disk", "ring", "triangle", "box", "star")),
    ann_file="annotations/train.json",
    data_prefix=dict(img="train/"),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=25,
        dataset=dict(
            type="CocoDataset",
            pipeline=train_pipeline,
            filter_cfg=dict(filter_empty_gt=True),
            **dataset,
        ),
    ),
)
# It is evaluated on its training images.
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/train.json")
test_evaluator = val_evaluator

max_epochs = 9
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0), paramwise_cfg=dict(layer_decay_rate=1.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=51),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=max_epochs, milestones=[7], gamma=0.1),
]
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=20))
auto_scale_lr = dict(base_batch_size=2)
