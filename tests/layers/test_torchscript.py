"""torch.jit.script of layers, and of models that have them, is refused by name."""

import pytest
import torch
from torch import nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv3, DCNv4, FlashDeformAttn

MODELS = {
    "DCNv4": lambda: nn.Sequential(DCNv4(16, groups=1)),
    "DCNv3": lambda: nn.Sequential(DCNv3(16, groups=1)),
    "FlashDeformAttn": lambda: nn.Sequential(FlashDeformAttn(16, num_heads=2)),
    "FlashInternImage": lambda: FlashInternImage("nano"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_script_is_refused(name):
    expected = "DCNv4" if name == "FlashInternImage" else name
    with pytest.raises(NotImplementedError, match=rf"{expected}.*torch\.export.*trace"):
        torch.jit.script(MODELS[name]())
