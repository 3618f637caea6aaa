# The quickstart's model with all offsets kept at zero: what are they worth?
_base_ = "fcos_flash-internimage-2stage_fpn_1xb8-1500it_barbells.py"

custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
    dict(type="dcnv4_mm.FreezeOffsetsHook"),
]
