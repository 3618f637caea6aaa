# Reproduces upernet_internimage_l_640_160k_ade20k of the original project.
_base_ = "../upernet/upernet_flash-internimage-l_8xb2-160k_ade20k-640x640.py"

model = dict(
    backbone=dict(
        core_op="DCNv3",
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth"
        ),
    ),
)
