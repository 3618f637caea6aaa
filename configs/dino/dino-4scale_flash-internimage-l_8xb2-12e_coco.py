# Reproduces dino_4scale_flash_internimage_l_1x_coco of the original project.
_base_ = "dino-4scale_flash-internimage-t_8xb4-12e_coco.py"

model = dict(
    backbone=dict(
        arch="l",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    neck=dict(in_channels=[320, 640, 1280]),
)
train_dataloader = dict(batch_size=2)
# Unlike T, S and B: the plain constructor, and weight decay on every parameter.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}),
)
# 8 GPUs x 2 images
auto_scale_lr = dict(base_batch_size=16)
