# The quickstart's model with all offsets kept at zero: what are they worth?
_base_ = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco.py"

custom_hooks = [
    dict(type="NumClassCheckHook"),
    dict(type="dcnv4_mm.StrictLoadHook"),
    dict(type="dcnv4_mm.CheckDataHook"),
    dict(type="dcnv4_mm.FreezeOffsetsHook"),
]
