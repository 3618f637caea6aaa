# Pipelines of ADE20K for short sides of about 640: training, testing, testing at several scales.
train_pipeline_640 = [
    dict(type="LoadImageFromFile"),
    dict(type="dcnv4_mm.LoadSegAnnotations", num_classes=150, reduce_zero_label=True),
    dict(type="RandomResize", scale=(2560, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(640, 640), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline_640 = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2560, 640), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="dcnv4_mm.LoadSegAnnotations", num_classes=150, reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
# The original scales the target sizes, mmseg the image.
tta_pipeline_640 = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(2560 * ratio), int(640 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="ResizeToMultiple", size_divisor=32)],
            [
                dict(type="RandomFlip", prob=0.0, direction="horizontal"),
                dict(type="RandomFlip", prob=1.0, direction="horizontal"),
            ],
            [dict(type="dcnv4_mm.LoadSegAnnotations", num_classes=150, reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
