# ConvNeXt-B with DCNv4 (table 4 of the paper), trained as mmpretrain trains ConvNeXt-B.
_base_ = "mmpretrain::convnext/convnext-base_32xb128_in1k.py"

model = dict(
    # For those who inherit this file as dcnv4_mm::...: mmengine would set its scope else.
    _scope_="mmpretrain",
    backbone=dict(type="dcnv4_mm.DCNv4ConvNeXt"),
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
]
