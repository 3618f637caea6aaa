# Reproduces flash_intern_image_l_22kto1k_384 of the original project.
_base_ = "flash-internimage-t_4xb128-300e_in1k-224.py"

model = dict(
    backbone=dict(
        arch="l",
        layer_scale=1e-5,
        drop_path_rate=0.1,
        with_cp=True,
        # The head starts anew: the original's settings name no file, this is the released one.
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    head=dict(in_channels=1280, loss=dict(label_smooth_val=0.3)),
    train_cfg=None,
)

# Larger images, without random erasing.
train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomErasing"]
train_pipeline[1].scale = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = test_pipeline[2].crop_size = 384
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=2e-5), paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.1)
)
max_epochs, warmup_epochs = 20, 2
param_scheduler = [
    dict(
        type="LinearLR",
        # From 0, which mmengine cannot multiply.
        start_factor=1e-8,
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=warmup_epochs,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=0.0,
        by_epoch=True,
        convert_to_iter_based=True,
        begin=warmup_epochs,
        end=max_epochs,
    ),
]
train_cfg = dict(max_epochs=max_epochs)
