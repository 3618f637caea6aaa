# Reproduces dino_4scale_flash_internimage_b_1x_coco of the original project.
_base_ = "dino-4scale_flash-internimage-t_8xb4-12e_coco.py"

model = dict(
    backbone=dict(
        arch="b",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[224, 448, 896]),
)
