# Reproduces upernet_internimage_xl_640_160k_ade20k of the original project.
_base_ = "upernet_internimage-l_8xb2-160k_ade20k-640x640.py"

model = dict(
    backbone=dict(
        arch="xl",
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth"
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
