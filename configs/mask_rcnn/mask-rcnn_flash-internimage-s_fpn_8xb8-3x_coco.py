# Reproduces mask_rcnn_flash_intern_image_s_fpn_3x_coco of the original project.
_base_ = "mask-rcnn_flash-internimage-t_fpn_32xb2-3x_coco.py"

model = dict(
    backbone=dict(
        arch="s",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
# 8 GPUs x 8 images
train_dataloader = dict(batch_size=8)
