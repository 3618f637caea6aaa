# Reproduces mask_rcnn_internimage_t_fpn_3x_coco of the original project.
_base_ = "../mask_rcnn/mask-rcnn_flash-internimage-t_fpn_32xb2-3x_coco.py"

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
# 8 GPUs x 2 images
auto_scale_lr = dict(base_batch_size=16)
