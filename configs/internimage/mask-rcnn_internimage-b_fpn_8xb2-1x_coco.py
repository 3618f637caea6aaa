# Reproduces mask_rcnn_internimage_b_fpn_1x_coco of the original project.
_base_ = "mask-rcnn_internimage-t_fpn_8xb2-1x_coco.py"

model = dict(
    backbone=dict(
        arch="b",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_b_1k_224.pth"
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
