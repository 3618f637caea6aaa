# Reproduces upernet_flash_internimage_s_512_160k_ade20k of the original project.
_base_ = "upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        arch="s",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)

# What T leaves out.
_base_.test_pipeline_512.insert(2, dict(type="ResizeToMultiple", size_divisor=32))
_base_.tta_pipeline[1].transforms.insert(1, [dict(type="ResizeToMultiple", size_divisor=32)])
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline_512))
test_dataloader = val_dataloader
