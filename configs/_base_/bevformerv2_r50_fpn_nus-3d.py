# What all BEVFormerV2 share; as it stands, the single-frame model t1 with all augmentation.
_base_ = "mmdet3d::_base_/default_runtime.py"

class_names = [
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
]
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
data_root = "data/nuscenes/"
frames = (0,)
# Backbone and neck start from mmdet's FCOS, trained on COCO, as the original's do from another FCOS
# (docs/bev.md names the original's file).
fcos = "https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco-d92ceeea.pth"

model = dict(
    type="dcnv4_mm.BEVFormerV2",
    data_preprocessor=dict(
        type="Det3DDataPreprocessor",
        mean=[103.53, 116.28, 123.675],
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    img_backbone=dict(
        type="mmdet.ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="SyncBN"),
        norm_eval=False,
        style="caffe",
        init_cfg=dict(type="Pretrained", checkpoint=fcos, prefix="backbone."),
    ),
    img_neck=dict(
        type="mmdet.FPN",
        in_channels=[512, 1024, 2048],
        out_channels=256,
        start_level=0,
        add_extra_convs="on_output",
        num_outs=5,
        relu_before_extra_convs=True,
        init_cfg=dict(type="Pretrained", checkpoint=fcos, prefix="neck."),
    ),
    pts_bbox_head=dict(
        type="dcnv4_mm.BEVFormerV2Head",
        num_classes=len(class_names),
        point_cloud_range=point_cloud_range,
        bev_shape=(200, 200),
        num_queries=900,
        num_groups=11,
    ),
    fcos3d_bbox_head=dict(type="dcnv4_mm.DD3DHead", num_classes=len(class_names)),
)

frame_pipeline = [
    dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
    dict(
        type="dcnv4_mm.ResizeCropFlipImage",
        heights=[512, 544, 576, 608, 640, 672, 704, 736, 768],
        flip_prob=0.5,
    ),
    dict(type="dcnv4_mm.PhotoMetricDistortionMultiViewImage"),
]
test_frame_pipeline = [
    dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
    dict(type="dcnv4_mm.ResizeCropFlipImage"),
]
train_pipeline = [
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="dcnv4_mm.BEVAugmentation"),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    # Also takes out what belongs to no class (label -1).
    dict(type="ObjectNameFilter", classes=class_names),
    dict(type="dcnv4_mm.MonoTargets"),
    dict(type="dcnv4_mm.Pack3DDetInputs"),
]
test_pipeline = [dict(type="dcnv4_mm.Pack3DDetInputs")]

cameras = ["FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT"]
dataset = dict(
    type="dcnv4_mm.BEVFormerV2NuScenesDataset",
    data_root=data_root,
    data_prefix={f"CAM_{camera}": f"samples/CAM_{camera}" for camera in cameras},
    metainfo=dict(classes=class_names, version="v1.0-trainval"),
    frames=frames,
)
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        ann_file="bevformerv2_infos_train.pkl",
        frame_pipeline=frame_pipeline,
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        ann_file="bevformerv2_infos_val.pkl",
        frame_pipeline=test_frame_pipeline,
        pipeline=test_pipeline,
        test_mode=True,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="dcnv4_mm.StrictNuScenesMetric",
    data_root=data_root,
    ann_file=data_root + "bevformerv2_infos_val.pkl",
    metric="bbox",
)
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=24, val_interval=4)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.5)}),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=2000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=24, milestones=[20], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3))
custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook"), dict(type="dcnv4_mm.CheckDataHook")]
