# The single-frame model on v1.0-mini: eight scenes to train on, two to evaluate, to try things.
_base_ = "bevformerv2_r50_fpn_16xb1-24e-t1_nus-3d.py"

metainfo = dict(version="v1.0-mini")
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
