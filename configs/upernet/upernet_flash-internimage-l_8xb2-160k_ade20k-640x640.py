# Reproduces upernet_flash_internimage_l_640_160k_ade20k of the original project.
_base_ = [
    "upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py",
    "../_base_/datasets/ade20k_640.py",
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        arch="l",
        drop_path_rate=0.4,
        with_cp=False,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    decode_head=dict(in_channels=[160, 320, 640, 1280]),
    auxiliary_head=dict(in_channels=640),
)

train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline_640))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline_640))
test_dataloader = val_dataloader
tta_pipeline = _base_.tta_pipeline_640

optim_wrapper = dict(
    optimizer=dict(lr=2e-5),
    paramwise_cfg=dict(layer_decay_rate=0.94),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
