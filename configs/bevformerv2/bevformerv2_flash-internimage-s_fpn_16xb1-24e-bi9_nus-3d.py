# The other reading of the paper's "8 seconds of past and future": 8 each way, in steps of 2.
_base_ = "bevformerv2_flash-internimage-s_fpn_16xb1-24e-bi5_nus-3d.py"

frames = (-16, -12, -8, -4, 0, 4, 8, 12, 16)
model = dict(
    cached_frames=4 * len(frames),
    pts_bbox_head=dict(fusion=dict(num_frames=len(frames))),
)
train_dataloader = dict(dataset=dict(frames=frames))
val_dataloader = dict(dataset=dict(frames=frames))
test_dataloader = val_dataloader
