# Reproduces upernet_flash_internimage_b_512_160k_ade20k of the original project.
_base_ = "upernet_flash-internimage-s_8xb2-160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        arch="b",
        with_cp=False,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[112, 224, 448, 896]),
    auxiliary_head=dict(in_channels=448),
)
