# Reproduces upernet_internimage_s_512_160k_ade20k of the original project.
_base_ = "../upernet/upernet_flash-internimage-s_8xb2-160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        core_op="DCNv3",
        with_cp=False,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_s_1k_224.pth"
        ),
    ),
)
