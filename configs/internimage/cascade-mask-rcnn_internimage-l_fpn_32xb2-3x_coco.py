# Reproduces cascade_internimage_l_fpn_3x_coco of the original project.
_base_ = "../cascade_mask_rcnn/cascade-mask-rcnn_flash-internimage-l_fpn_16xb4-3x_coco.py"

model = dict(
    backbone=dict(
        core_op="DCNv3",
        with_cp=False,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth"
        ),
    ),
    # A plain feature pyramid.
    neck=dict(norm_cfg=None),
)
# 32 GPUs x 2 images
train_dataloader = dict(batch_size=2)
