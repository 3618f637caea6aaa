# Reproduces bevformerv2-r50-t1-24ep of the original project.
_base_ = "../_base_/bevformerv2_r50_fpn_nus-3d.py"
