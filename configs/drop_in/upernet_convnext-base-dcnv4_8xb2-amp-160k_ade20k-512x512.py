# UPerNet on ConvNeXt-B with DCNv4 (table 4 of the paper), trained as mmseg trains ConvNeXt-B.
_base_ = "mmseg::convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py"

# As ../_base_/mmcv_ext.py, instead of mmpretrain's models: the backbone's type imports those.
custom_imports = dict(imports=["dcnv4_mm.registry"])
model = dict(
    # ConvNeXt's own weights, for all but the operator. For the paper's way put the file of
    # convnext-base-dcnv4_32xb128-300e_in1k-224 here.
    backbone=dict(type="dcnv4_mm.DCNv4ConvNeXt"),
)
custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook"), dict(type="dcnv4_mm.CheckDataHook")]
