# Reproduces cascade_internimage_xl_fpn_3x_coco of the original project.
_base_ = "cascade-mask-rcnn_internimage-l_fpn_32xb2-3x_coco.py"

model = dict(
    backbone=dict(
        arch="xl",
        drop_path_rate=0.6,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth"
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
