# Reproduces mask2former_flash_internimage_s_640_160k_ade20k_ss of the original project.
_base_ = [
    "mask2former_flash-internimage-t_8xb2-160k_ade20k-512x512.py",
    "../_base_/datasets/ade20k_640.py",
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        arch="s",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth",
        ),
    ),
    decode_head=dict(
        in_channels=[80, 160, 320, 640],
        num_queries=200,
        pixel_decoder=dict(
            encoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=2048))),
        ),
    ),
)

train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline_640))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline_640))
test_dataloader = val_dataloader
tta_pipeline = _base_.tta_pipeline_640

optim_wrapper = dict(
    clip_grad=dict(max_norm=0.1),
    paramwise_cfg=dict(layer_decay_rate=1.0),
)
