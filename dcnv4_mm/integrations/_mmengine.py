"""Registration of the pure PyTorch classes with mmengine."""

from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import nn

from dcnv4_mm import backbones, layers
from dcnv4_mm.checkpoints.loading import match_state_dict, select_part
from dcnv4_mm.engine import load_checkpoint
from dcnv4_mm.engine.released import convert_on_load, rename_classifier
from dcnv4_mm.registry import MODELS

__all__ = ["FlashInternImage"]


def _as_base_module(backbone: type[nn.Module]) -> type[nn.Module]:
    """Derives an mmengine module from a backbone, with the same keys.

    It takes ``init_cfg``, and accepts the released keys wherever it is loaded from.
    """

    class Adapted(backbone, BaseModule):
        def __init__(
            self, *args: Any, init_cfg: dict | list[dict] | None = None, **kwargs: Any
        ) -> None:
            super().__init__(*args, **kwargs)
            self.init_cfg = init_cfg
            convert_on_load(self)

        def init_weights(self) -> None:
            """Loads ``init_cfg``'s checkpoint completely, or raises; without one, does nothing.

            In a list the checkpoint is loaded last, as in mmengine.
            """
            steps = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg]
            pretrained = [step for step in steps if step and step["type"] == "Pretrained"]
            if not pretrained or len(pretrained) < len(steps):
                init_cfg = self.init_cfg
                self.init_cfg = [step for step in steps if step and step not in pretrained]
                super().init_weights()
                self.init_cfg = init_cfg
            for step in pretrained:
                source, prefix = step["checkpoint"], step.get("prefix")
                checkpoint = load_checkpoint(source)
                try:
                    if prefix:
                        checkpoint = select_part(checkpoint, prefix)
                    weights, report = match_state_dict(self, checkpoint)
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from error
                self.load_state_dict(weights)
                print_log(f"{source}: {report}", logger="current")
                self._is_init = True

        def _checkpoint_filter(self, state_dict: dict, prefix: str, *_: Any) -> None:
            """Converts what mmpretrain's classifier loads; it calls a method of this name."""
            rename_classifier(state_dict, prefix)

    Adapted.__name__ = Adapted.__qualname__ = backbone.__name__
    Adapted.__doc__ = backbone.__doc__
    return Adapted


FlashInternImage = _as_base_module(backbones.FlashInternImage)
MODELS.register_module(name="FlashInternImage", module=FlashInternImage)
MODELS.register_module(name="LN2d", module=layers.LN2d)
# For `conv_cfg`, and `dcn` of ResNet: arguments as those of a convolution.
MODELS.register_module(name="DCNv4", module=layers.DCNv4Conv2d)
