# Reproduces upernet_internimage_b_512_160k_ade20k of the original project.
_base_ = "../upernet/upernet_flash-internimage-b_8xb2-160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        core_op="DCNv3",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_b_1k_224.pth"
        ),
    ),
)
