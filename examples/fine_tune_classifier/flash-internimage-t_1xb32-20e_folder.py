# Fine-tunes the released T classifier on a folder of pictures. Change the first line to yours.
data_root = "data/my_pictures"

_base_ = "dcnv4_mm::classification/flash-internimage-t_4xb128-300e_in1k-224.py"

import os  # noqa: E402

# A class is a folder below train/.
classes = sorted(entry.name for entry in os.scandir(f"{data_root}/train") if entry.is_dir())
model = dict(head=dict(num_classes=len(classes)), train_cfg=None)
data_preprocessor = dict(num_classes=len(classes))
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=32, num_workers=4, dataset=data)
val_dataloader = dict(batch_size=32, num_workers=4, dataset=data)
test_dataloader = val_dataloader

load_from = "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth"
# The last layer starts anew, for other classes than those of the file.
custom_hooks = [
    dict(type="dcnv4_mm.StrictLoadHook", allow=["head.head."]),
    dict(type="dcnv4_mm.CheckDataHook"),
]

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs)
# Layers near the pictures change little.
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.9))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, convert_to_iter_based=True, end=1),
    dict(
        type="CosineAnnealingLR",
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
        begin=1,
        end=max_epochs,
    ),
]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
