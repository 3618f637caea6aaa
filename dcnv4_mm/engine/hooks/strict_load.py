"""A hook that lets a checkpoint reach the model whole or not at all."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from dcnv4_mm.checkpoints.loading import match_state_dict
from dcnv4_mm.engine.mmengine_io import install
from dcnv4_mm.registry import HOOKS

__all__ = ["StrictLoadHook"]


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Converts a released checkpoint that a runner loads, and refuses one that does not fit.

    Without it mmengine loads what happens to fit, warns in the log, and goes on. It acts on
    ``load_from``, on ``resume`` and on the checkpoint argument of ``test.py``; what was converted
    is logged. A backbone's ``init_cfg`` is checked without it.

    Args:
        allow: Beginnings of names that need not fit and then stay as they are. To start from a
            detector that knows other classes:
            ``["roi_head.bbox_head.fc_", "roi_head.mask_head.conv_logits."]``.

    Raises:
        ValueError: The checkpoint does not fit; the model is unchanged. The message names the
            file and the config.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.StrictLoadHook")]
    """

    # Before hooks that read the checkpoint's state dict, such as EMAHook.
    priority = "VERY_HIGH"

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self.allow = allow

    def before_run(self, runner: Runner) -> None:
        """Makes mmengine read checkpoints safely and write them atomically from here on."""
        install()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replaces the checkpoint's weights by ones with exactly the model's names."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        try:
            weights, report = match_state_dict(model, checkpoint, allow=self.allow)
        except ValueError as error:
            file = runner._load_from or "the checkpoint"
            raise ValueError(
                f"{file} into {runner.cfg.filename or 'the model'}: {error}"
            ) from error
        checkpoint["state_dict"] = weights
        runner.logger.info(f"Checkpoint: {report}")
