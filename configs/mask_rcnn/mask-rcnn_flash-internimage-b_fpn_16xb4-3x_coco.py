# Reproduces mask_rcnn_flash_intern_image_b_fpn_3x_coco of the original project.
_base_ = "mask-rcnn_flash-internimage-t_fpn_32xb2-3x_coco.py"

model = dict(
    backbone=dict(
        arch="b",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.01),
)
# 16 GPUs x 4 images
train_dataloader = dict(batch_size=4)
