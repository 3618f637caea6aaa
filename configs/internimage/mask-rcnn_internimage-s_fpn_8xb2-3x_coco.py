# Reproduces mask_rcnn_internimage_s_fpn_3x_coco of the original project.
_base_ = "mask-rcnn_internimage-t_fpn_8xb2-3x_coco.py"

model = dict(
    backbone=dict(
        arch="s",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_s_1k_224.pth"
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
