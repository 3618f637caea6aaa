"""Files of another model: the message names the mismatches, and nothing is loaded."""

import pytest
import torch
from helpers import build_model, manifest

from dcnv4_mm.checkpoints.loading import match_state_dict

pytestmark = pytest.mark.mmdet

DINO = "dino_4scale_flash_internimage_{}_1x_coco"


def file_of(shapes):
    """A file's content, with one number's memory for each tensor."""
    kinds = {name: torch.int64 if name.endswith("tracked") else torch.float32 for name in shapes}
    tensors = {name: torch.zeros((), dtype=kinds[name]) for name in shapes}
    return {"state_dict": {name: tensors[name].expand(shape) for name, shape in shapes.items()}}


@pytest.fixture(scope="module")
def dino():
    return build_model(DINO.format("t"), device="meta")[0]


def test_the_right_file(dino):
    match_state_dict(dino, file_of(manifest("dino", DINO.format("t"))))


def test_a_larger_model(dino):
    with pytest.raises(ValueError, match="does not fit this DINO, which is unchanged") as error:
        match_state_dict(dino, file_of(manifest("dino", DINO.format("s"))))
    message = str(error.value)
    assert "unexpected" in message
    assert "backbone.levels.0.blocks.0.dcn.offset_mask_dw.weight" in message
    assert "backbone.patch_embed.conv1.weight ((40, 3, 3, 3) float32 in the file, (32," in message


def test_a_segmentor(dino):
    shapes = manifest("backbone", "upernet_flash_internimage_t_512_160k_ade20k")
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    shapes |= {"decode_head.conv_seg.weight": [150, 512, 1, 1], "decode_head.conv_seg.bias": [150]}
    with pytest.raises(ValueError, match=r"unexpected 2: decode_head\.conv_seg\.weight") as error:
        match_state_dict(dino, file_of(shapes))
    assert "missing 309: level_embed, neck.convs.0.conv.weight" in str(error.value)


@pytest.mark.parametrize(
    ("stem", "kind", "name"),
    [
        (DINO.format("t"), "dino", "bbox_head.cls_branches.0.weight"),
        ("cascade_flash_intern_image_l_fpn_1x_coco", "cascade", "roi_head.bbox_head.0.fc_cls"),
        ("mask_rcnn_flash_intern_image_t_fpn_1x_coco", "mask_rcnn", "roi_head.bbox_head.fc_cls"),
    ],
)
def test_other_classes(stem, kind, name):
    shapes = {
        name: [{80: 20, 81: 21, 320: 80}.get(shape[0], shape[0]), *shape[1:]]
        if any(part in name for part in ("cls", "fc_reg", "conv_logits", "label_embedding"))
        else shape
        for name, shape in manifest(kind, stem).items()
    }
    model, _ = build_model(stem, device="meta")
    with pytest.raises(ValueError, match="of another shape or type") as error:
        match_state_dict(model, file_of(shapes))
    assert name in str(error.value)
    assert "Build the model that the file belongs to, or name with `allow`" in str(error.value)
