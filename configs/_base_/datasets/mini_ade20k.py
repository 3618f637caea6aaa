# The generated mini ADE20K dataset (dev/generators/mini_ade20k.py): classes 1 to 6, 0 is ignored.
mini_ade20k = dict(
    type="BaseSegDataset",
    data_root="data/mini_ade20k",
    img_suffix=".jpg",
    seg_map_suffix=".png",
    reduce_zero_label=True,
    metainfo=dict(
        classes=("ground", "disk", "ring", "triangle", "box", "star"),
        palette=[
            *[(128, 128, 128), (230, 25, 75), (255, 225, 25)],
            *[(60, 180, 75), (0, 130, 200), (240, 50, 230)],
        ],
    ),
)
mini_labels = dict(type="dcnv4_mm.LoadSegAnnotations", num_classes=6, reduce_zero_label=True)
