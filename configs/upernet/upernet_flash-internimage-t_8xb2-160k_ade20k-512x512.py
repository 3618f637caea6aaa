# Reproduces upernet_flash_internimage_t_512_160k_ade20k of the original project.
_base_ = [
    "mmseg::_base_/models/upernet_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/schedules/schedule_160k.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/datasets/ade20k_512.py",
    "../_base_/mmcv_ext.py",
]

num_classes = 150
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="dcnv4_mm.FlashInternImage",
        arch="t",
        layer_scale=1.0,
        drop_path_rate=0.2,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=num_classes),
    auxiliary_head=dict(in_channels=256, num_classes=num_classes),
)

# Unlike S, B and L it is tested on images of any size, not only of multiples of 32.
_base_.test_pipeline_512.pop(2)
_base_.tta_pipeline_512[1].transforms.pop(1)
data_root = "data/ADEChallengeData2016"
train_dataloader = dict(
    batch_size=2, dataset=dict(data_root=data_root, pipeline=_base_.train_pipeline_512)
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=_base_.test_pipeline_512))
test_dataloader = val_dataloader
tta_pipeline = _base_.tta_pipeline_512

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="dcnv4_mm.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=1.0, offset_lr_scale=1.0, offset_prefix="backbone."),
)
param_scheduler = [
    dict(
        type="dcnv4_mm.PolyWarmupLR",
        end=160000,
        warmup_iters=1500,
        warmup_ratio=1e-6,
        by_epoch=False,
    )
]
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=1, save_best="mIoU"))
# A checkpoint fits completely, released files included, or is refused.
custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook"), dict(type="dcnv4_mm.CheckDataHook")]
auto_scale_lr = dict(enable=False, base_batch_size=16)
