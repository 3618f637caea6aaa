# Three frames, to compare with the single one of bevformerv2_r18_fpn_1xb2-6e-t1_motion-nus-3d:
# scenes of five keyframes in which no single picture tells how fast an object is (docs/bev.md).
_base_ = "bevformerv2_r18_fpn_1xb2-40e-bi3_synthetic-nus-3d.py"

data_root = "data/nuscenes-motion/"
version = dict(version="v1.0-trainval")
model = dict(
    # Velocities, the last two numbers of a code, weigh as much as places.
    pts_bbox_head=dict(code_weights=[1.0] * 10),
    # The perspective head would cost as much as all the rest.
    fcos3d_bbox_head=None,
)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="bevformerv2_infos_train.pkl",
        metainfo=version,
        mono_source=None,
        pipeline=[
            dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
            dict(type="ObjectRangeFilter", point_cloud_range={{_base_.point_cloud_range}}),
            dict(type="ObjectNameFilter", classes={{_base_.class_names}}),
            dict(type="dcnv4_mm.PackBEVInputs"),
        ],
    )
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=version))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + "bevformerv2_infos_val.pkl")
test_evaluator = val_evaluator

epochs = 6
train_cfg = dict(max_epochs=epochs, val_interval=1)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type="CosineAnnealingLR",
        begin=0,
        end=epochs,
        T_max=epochs,
        convert_to_iter_based=True,
        eta_min_ratio=0.02,
    ),
]
default_hooks = dict(checkpoint=dict(interval=1))
