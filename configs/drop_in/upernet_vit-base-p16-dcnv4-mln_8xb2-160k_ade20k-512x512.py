# UPerNet on ViT-B/16 with DCNv4 (table 4 of the paper), trained as mmseg trains ViT-B/16.
_base_ = [
    "mmseg::vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py",
    "../_base_/mmcv_ext.py",
]

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="dcnv4_mm.DCNv4VisionTransformer",
        arch="base",
        img_size=512,
        patch_size=16,
        out_indices=[2, 5, 8, 11],
        out_type="featmap",
        final_norm=False,
        # ViT's own weights, for all but attention. For the paper's way put the file of
        # vit-base-p16-dcnv4_32xb128-300e_in1k-224 here.
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://download.openmmlab.com/mmclassification/v0/vit/vit-base-p16_pt-32xb128-mae_in1k_20220623-4c544545.pth",
            prefix="backbone.",
        ),
    ),
)
custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook"), dict(type="dcnv4_mm.CheckDataHook")]
