# Reproduces bevformerv2-r50-t8-24ep of the original project.
_base_ = "../_base_/bevformerv2_r50_fpn_nus-3d.py"

frames = (-7, -6, -5, -4, -3, -2, -1, 0)
# In evaluation a frame goes through the backbone once: 125 MiB of feature maps each.
model = dict(
    cached_frames=len(frames),
    pts_bbox_head=dict(fusion=dict(num_frames=len(frames), inter_channels=512)),
)
train_dataloader = dict(dataset=dict(frames=frames))
val_dataloader = dict(dataset=dict(frames=frames))
test_dataloader = val_dataloader
