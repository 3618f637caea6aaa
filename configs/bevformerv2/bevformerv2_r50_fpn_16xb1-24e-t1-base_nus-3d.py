# Reproduces bevformerv2-r50-t1-base-24ep of the original project: one group of queries, images
# of one size, neither mirrored nor with an augmented BEV.
_base_ = "../_base_/bevformerv2_r50_fpn_nus-3d.py"

model = dict(pts_bbox_head=dict(num_groups=1))
train_dataloader = dict(
    dataset=dict(
        frame_pipeline=[
            dict(type="dcnv4_mm.LoadMultiViewImageFromFiles"),
            dict(type="dcnv4_mm.ResizeCropFlipImage"),
            dict(type="dcnv4_mm.PhotoMetricDistortionMultiViewImage"),
        ],
        pipeline=[
            dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
            dict(type="ObjectRangeFilter", point_cloud_range={{_base_.point_cloud_range}}),
            dict(type="ObjectNameFilter", classes={{_base_.class_names}}),
            dict(type="dcnv4_mm.MonoTargets"),
            dict(type="dcnv4_mm.Pack3DDetInputs"),
        ],
    )
)
