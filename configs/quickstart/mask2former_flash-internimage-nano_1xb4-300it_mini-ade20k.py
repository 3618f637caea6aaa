# A Mask2Former that overfits eight images of the mini ADE20K dataset, on two CPU cores.
_base_ = [
    "../mask2former/mask2former_flash-internimage-t_8xb2-160k_ade20k-512x512.py",
    "../_base_/datasets/mini_ade20k.py",
]

num_classes = 6
channels = 64
heads = 4
attention = dict(embed_dims=channels, num_heads=heads)
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    backbone=dict(arch="nano", drop_path_rate=0.0, init_cfg=None),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        feat_channels=channels,
        out_channels=channels,
        num_classes=num_classes,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=attention,
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=256),
                ),
            ),
            positional_encoding=dict(num_feats=channels // 2),
        ),
        positional_encoding=dict(num_feats=channels // 2),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=channels, feedforward_channels=256),
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        train_cfg=dict(num_points=2048),
    ),
)

train_pipeline = [dict(type="LoadImageFromFile"), _base_.mini_labels, dict(type="PackSegInputs")]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeToMultiple", size_divisor=32),
    _base_.mini_labels,
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(**_base_.mini_ade20k, indices=8, pipeline=train_pipeline),
)
# Tested on what it has learned.
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        **_base_.mini_ade20k,
        indices=8,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=100)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(layer_decay_rate=1.0),
)
param_scheduler = [
    dict(
        type="dcnv4_mm.PolyWarmupLR",
        end=max_iters,
        warmup_iters=50,
        warmup_ratio=0.01,
        by_epoch=False,
    )
]
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=20))
auto_scale_lr = dict(base_batch_size=4)
