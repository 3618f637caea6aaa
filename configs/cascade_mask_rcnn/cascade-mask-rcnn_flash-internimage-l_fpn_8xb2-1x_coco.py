# Reproduces cascade_flash_intern_image_l_fpn_1x_coco of the original project.
_base_ = [
    "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/mmcv_ext.py",
]

# Three stages: four convolutions and one linear layer, boxes for each class, GIoU on decoded boxes.
bbox_heads = [
    dict(
        type="ConvFCBBoxHead",
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[centre, centre, size, size],
        ),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
    )
    for centre, size in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
]
model = dict(
    backbone=dict(
        _delete_=True,
        type="dcnv4_mm.FlashInternImage",
        arch="l",
        layer_scale=1.0,
        drop_path_rate=0.4,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    neck=dict(
        in_channels=[160, 320, 640, 1280],
        norm_cfg=dict(type="dcnv4_mm.LN2d", requires_grad=True),
    ),
    roi_head=dict(bbox_head=bbox_heads),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=0.94, offset_lr_scale=1.0),
)
param_scheduler = [
    # mmengine reaches the full rate one iteration before `end`, the original at iteration 500.
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
val_evaluator = dict(classwise=True)
test_evaluator = dict(classwise=True)
# With class-wise results "auto" would follow the first class.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best="coco/bbox_mAP"))
# The second: a checkpoint fits completely, released files included, or is refused.
custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
