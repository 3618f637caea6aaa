# Fine-tunes the released T classifier on folders of your own: docs/own_data/classification.md.
_base_ = "dcnv4_mm::classification/flash-internimage-t_4xb128-300e_in1k-224.py"
# Weights to start from.
load_from = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth"

# The dataset: one folder per class, named in alphabetical order.
data_root = "data/own"
classes = ("bolt", "nut", "washer")
batch_size, num_workers = 32, 4
max_epochs = 20
lr = 1e-4 * (batch_size / 32) ** 0.5
# Layers near the image change little.
layer_decay_rate = 0.9

# Everything below follows from the lines above.
model = dict(head=dict(num_classes=len(classes)), train_cfg=None)
data_preprocessor = dict(num_classes=len(classes))
# The last layer is initialized anew; averaged weights would lag behind in so few steps.
custom_hooks = [
    dict(type="dcnv4_mm.StrictLoadHook", allow=["head.head."]),
    dict(type="dcnv4_mm.CheckDataHook"),
]

loader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    dataset=dict(data_root=data_root, metainfo=dict(classes=classes)),
)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(topk=(1, min(5, len(classes))))
test_evaluator = val_evaluator

# Warm-up and decay follow max_epochs.
warmup_epochs = max(1, max_epochs // 20)
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(layer_decay_rate=layer_decay_rate))
by_step = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_epochs, **by_step),
    dict(
        type="CosineAnnealingLR",
        begin=0,
        end=max_epochs,
        eta_min_ratio=0.01,
        **by_step,
    ),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=batch_size)
