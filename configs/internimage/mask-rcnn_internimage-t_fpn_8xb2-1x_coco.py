# Reproduces mask_rcnn_internimage_t_fpn_1x_coco of the original project.
_base_ = "../mask_rcnn/mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco.py"

model = dict(
    backbone=dict(
        core_op="DCNv3",
        with_cp=False,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth"
        ),
    ),
    # A plain feature pyramid.
    neck=dict(norm_cfg=None),
)
