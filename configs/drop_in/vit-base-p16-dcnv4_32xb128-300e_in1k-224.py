# ViT-B/16 with DCNv4 (table 4 of the paper), trained as mmpretrain trains ViT-B/16.
_base_ = "mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py"

model = dict(
    # For those who inherit this file as dcnv4_mm::...: mmengine would set its scope else.
    _scope_="mmpretrain",
    backbone=dict(type="dcnv4_mm.DCNv4VisionTransformer"),
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
