# Reproduces bevformerv2-r50-t2-48ep of the original project.
_base_ = "bevformerv2_r50_fpn_16xb1-24e-t2_nus-3d.py"

train_cfg = dict(max_epochs=48)
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=2000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=48, milestones=[44], gamma=0.1),
]
