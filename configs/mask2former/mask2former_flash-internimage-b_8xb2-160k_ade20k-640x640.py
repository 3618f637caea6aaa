# Reproduces mask2former_flash_internimage_b_640_160k_ade20k_ss of the original project.
_base_ = "mask2former_flash-internimage-s_8xb2-160k_ade20k-640x640.py"

model = dict(
    backbone=dict(
        arch="b",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[112, 224, 448, 896]),
)
