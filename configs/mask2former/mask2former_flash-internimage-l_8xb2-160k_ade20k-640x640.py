# Reproduces mask2former_flash_internimage_l_640_160k_ade20k_ss of the original project.
_base_ = "mask2former_flash-internimage-s_8xb2-160k_ade20k-640x640.py"

model = dict(
    backbone=dict(
        arch="l",
        drop_path_rate=0.5,
        with_cp=True,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    decode_head=dict(in_channels=[160, 320, 640, 1280]),
)

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.94))
train_cfg = dict(val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000))
