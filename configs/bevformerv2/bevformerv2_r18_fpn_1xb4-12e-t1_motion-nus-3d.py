# A single frame, to compare with the three of bevformerv2_r18_fpn_1xb4-12e-bi3_motion-nus-3d.
_base_ = "bevformerv2_r18_fpn_1xb4-12e-bi3_motion-nus-3d.py"

frames = (0,)
model = dict(pts_bbox_head=dict(fusion=None))
train_dataloader = dict(dataset=dict(frames=frames))
val_dataloader = dict(dataset=dict(frames=frames))
test_dataloader = val_dataloader
