# Three frames, to compare with the single one of bevformerv2_r18_fpn_1xb4-12e-t1_motion-nus-3d:
# scenes in which no single image tells how fast an object is (make trial-motion).
_base_ = "bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d.py"

channels = 32
# An object moves by up to four cells of a metre between two keyframes.
point_cloud_range = [-16.0, -16.0, -3.0, 16.0, 16.0, 1.0]
# Other frames are encoded in evaluation mode: a batch's own statistics would set them apart.
norm = dict(type="GN", num_groups=4)
layers = dict(feedforward_channels=64)
model = dict(
    img_backbone=dict(
        num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,), norm_cfg=norm
    ),
    img_neck=dict(in_channels=[32], out_channels=channels, num_outs=1, add_extra_convs=False),
    pts_bbox_head=dict(
        point_cloud_range=point_cloud_range,
        embed_dims=channels,
        num_queries=24,
        num_groups=4,
        num_levels=1,
        encoder=dict(num_layers=1, **layers),
        decoder=layers,
        fusion=dict(inter_channels=48, norm_cfg=norm),
        # Velocities are the last two numbers of a code. With a weight of 1, nothing is learned of
        # them while locations are being learned.
        code_weights=[1.0] * 8 + [5.0] * 2,
    ),
    # The perspective head would cost as much as all the rest.
    fcos3d_bbox_head=None,
)

version = dict(version="v1.0-trainval")
frame_pipeline = [
    dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
    dict(type="dcnv4_mm.ResizeCropFlipImage", heights=[64]),
]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        ann_file="bevformerv2_infos_train.pkl",
        metainfo=version,
        mono_source=None,
        frame_pipeline=frame_pipeline,
        pipeline=[
            dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
            dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
            dict(type="ObjectNameFilter", classes={{_base_.class_names}}),
            dict(type="dcnv4_mm.Pack3DDetInputs"),
        ],
    ),
)
val_dataloader = dict(dataset=dict(metainfo=version, frame_pipeline=frame_pipeline))
test_dataloader = val_dataloader

epochs = 12
train_cfg = dict(max_epochs=epochs, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = param_scheduler[1].T_max = epochs
default_hooks = dict(checkpoint=dict(interval=1))
