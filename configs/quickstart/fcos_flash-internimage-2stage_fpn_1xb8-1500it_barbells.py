# A detector with a small receptive field, two stages of FlashInternImage and one feature map, that
# learns generated barbells (dev/generators/barbells.py) on two CPU cores: it has to learn where to
# sample.
_base_ = ["mmdet::_base_/default_runtime.py", "../_base_/mmcv_ext.py"]

num_classes = 5
channels = 64
model = dict(
    type="FCOS",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=8,
    ),
    backbone=dict(
        type="dcnv4_mm.FlashInternImage",
        arch=dict(channels=32, depths=(1, 1), groups=(2, 4)),
        layer_scale=1.0,
        out_indices=(1,),
    ),
    neck=dict(
        type="FPN",
        in_channels=[64],
        out_channels=channels,
        num_outs=1,
        norm_cfg=dict(type="dcnv4_mm.LN2d", requires_grad=True),
    ),
    bbox_head=dict(
        type="FCOSHead",
        num_classes=num_classes,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=1,
        strides=[8],
        regress_ranges=((-1, 100000),),
        center_sampling=True,
        centerness_on_reg=True,
        norm_on_bbox=True,
        conv_bias=True,
        norm_cfg=dict(type="GN", num_groups=8),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        # mmdet has no scores for a model that finds nothing, as an untrained one would.
        score_thr=0.0,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=50,
    ),
)

dataset_type = "CocoDataset"
data_root = "data/barbells/"
metainfo = dict(
    classes=("red-green", "red-blue", "green-blue", "red-red", "green-green"),
    palette=[(230, 200, 25), (200, 60, 220), (40, 200, 200), (220, 40, 40), (60, 190, 60)],
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    # Keeps the size; the evaluation needs the scale.
    dict(type="Resize", scale_factor=1.0, keep_ratio=True),
    dict(type="RandomFlip", prob=[0.35, 0.35], direction=["horizontal", "vertical"]),
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
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/train.json",
        data_prefix=dict(img="train/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file=data_root + "annotations/val.json", metric="bbox")
test_evaluator = val_evaluator

max_iters = 1500
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    # So few steps would move the offsets by a pixel or two.
    paramwise_cfg=dict(offset_lr_scale=8.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=51),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=max_iters, eta_min_ratio=0.01),
]
default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
