# Reproduces flash_intern_image_b_1k_224 of the original project.
_base_ = "flash-internimage-t_4xb128-300e_in1k-224.py"

model = dict(
    backbone=dict(arch="b", layer_scale=1e-5, drop_path_rate=0.5),
    head=dict(in_channels=896),
)
