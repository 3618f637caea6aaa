"""A hook that loads a checkpoint completely or not at all."""

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

    Without it mmengine loads the tensors that fit, warns in the log, and continues. It acts on
    ``load_from``, on ``resume`` and on the checkpoint argument of ``test.py``, and logs a report. A
    backbone's ``init_cfg`` is strict without it.

    Args:
        allow: Key prefixes that need not fit; the model keeps its values there. To start from a
            detector for other classes:
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
        """Makes mmengine read checkpoints safely and write them atomically."""
        install()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Converts the checkpoint's state dict to one with exactly the model's keys."""
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
