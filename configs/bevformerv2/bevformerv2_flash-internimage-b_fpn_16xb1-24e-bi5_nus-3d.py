# As S; the paper names this backbone too.
_base_ = "bevformerv2_flash-internimage-s_fpn_16xb1-24e-bi5_nus-3d.py"

model = dict(
    img_backbone=dict(
        arch="b",
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/mask_rcnn_flash_internimage_b_fpn_3x_coco.pth",
        ),
    ),
    img_neck=dict(in_channels=[224, 448, 896]),
)
