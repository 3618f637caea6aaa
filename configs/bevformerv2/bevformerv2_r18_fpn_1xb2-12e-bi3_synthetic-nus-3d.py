# A small model for the synthetic set (tools/data/synthetic_nuscenes.py) on two processor cores.
_base_ = "../_base_/bevformerv2_r50_fpn_nus-3d.py"

channels = 64
frames = (-1, 0, 1)
heights = dict(type="dcnv4_mm.CropResizeFlip", heights=[160])
batch_norm = dict(type="BN")
layers = dict(num_layers=2, feedforward_channels=128, dropout=0.0)
model = dict(
    img_backbone=dict(depth=18, style="pytorch", norm_cfg=batch_norm),
    img_neck=dict(in_channels=[128, 256, 512], out_channels=channels),
    pts_bbox_head=dict(
        bev_shape=(64, 64),
        embed_dims=channels,
        num_queries=100,
        num_groups=3,
        encoder=layers,
        decoder=layers,
        fusion=dict(num_frames=len(frames), inter_channels=channels, norm_cfg=batch_norm),
    ),
    fcos3d_bbox_head=dict(in_channels=channels, norm_cfg=batch_norm),
    grid_mask_prob=0.0,
)

data_root = "data/nuscenes-synthetic/"
version = dict(version="v1.0-mini")
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=version,
        frames=frames,
        frame_pipeline=[dict(type="dcnv4_mm.LoadCameras"), heights],
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=version,
        frames=frames,
        frame_pipeline=[dict(type="dcnv4_mm.LoadCameras"), heights],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + "bevformerv2_infos_val.pkl")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=12, val_interval=12)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=1.0)}))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", begin=0, end=12, T_max=12, convert_to_iter_based=True),
]
randomness = dict(seed=0)
