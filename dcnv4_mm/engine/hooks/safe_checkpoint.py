"""A checkpoint hook that keeps a resumable checkpoint through crashes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from dcnv4_mm.engine.atomic_writes import find_complete_checkpoint
from dcnv4_mm.engine.mmengine_io import install
from dcnv4_mm.registry import HOOKS

__all__ = ["SafeCheckpointHook"]


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic writes and checked resuming.

    It removes old checkpoints only after the new one is written. A run that resumes from its latest
    checkpoint takes the latest that is readable, and logs those that it skipped.

    A ``save_best`` metric that the evaluator does not return is reported once, with the available
    metrics; training continues without a best checkpoint for it.

    Args:
        *args: Those of mmengine's ``CheckpointHook``.
        **kwargs: Those of mmengine's ``CheckpointHook``.

    Raises:
        ValueError: On resuming, if none of the checkpoints is readable, or the checkpoint has
            another optimizer.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type="dcnv4_mm.SafeCheckpointHook", interval=1))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reported: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        """Makes writes atomic, and selects the checkpoint to resume from, for all processes."""
        install()
        # A path is given, or the run does not resume.
        if not runner._resume or runner._load_from is not None:
            return
        chosen: list[str | ValueError | None] = [None]
        if is_main_process():
            try:
                chosen = [find_complete_checkpoint(runner.work_dir, self.filename_tmpl.format("*"))]
            except ValueError as error:
                chosen = [error]
        broadcast_object_list(chosen)
        if isinstance(chosen[0], ValueError):
            raise chosen[0]
        runner._load_from = chosen[0]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Logs the optimizer settings of a resumed run; refuses another optimizer's."""
        own = getattr(runner.optim_wrapper, "param_groups", None)
        saved = checkpoint.get("optimizer", {}).get("param_groups")
        if not runner._resume or not own or not saved:
            return
        theirs, ours = (sorted(groups[0].keys() - _BOOKKEEPING) for groups in (saved, own))
        if theirs != ours:
            raise ValueError(
                f"the checkpoint's optimizer has the settings {', '.join(theirs)}, the config's "
                f"{', '.join(ours)}: resume with the same optimizer, or start a new training from "
                "these weights with load_from"
            )
        changed = [
            f"{key} {_setting(saved, key)} (config: {_setting(own, key)})"
            for key in ours
            if _setting(saved, key) != _setting(own, key)
        ]
        if changed:
            runner.logger.warning(
                "The run continues with the checkpoint's optimizer settings, not the config's: "
                f"{', '.join(changed)}. To use the config's, start with load_from instead"
            )

    def after_train_epoch(self, runner: Runner) -> None:
        """Saves a checkpoint at the interval."""
        with self._removing_later():
            super().after_train_epoch(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint at the interval."""
        with self._removing_later():
            super().after_train_iter(runner, *args, **kwargs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Saves the best checkpoint if the metric has improved."""
        absent = [key for key in self._best_keys() if key not in metrics] if metrics else []
        if new := [key for key in absent if key not in self._reported]:
            self._reported.update(new)
            runner.logger.warning(
                f"save_best: the evaluator returns no {', '.join(new)}, so no best checkpoint is "
                f"kept for it; set default_hooks.checkpoint.save_best to one of: "
                f"{', '.join(metrics)}"
            )
        with self._removing_later():
            # mmengine skips a score of None.
            super().after_val_epoch(runner, {**metrics, **dict.fromkeys(absent)})

    def _save_checkpoint_with_step(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Names the file in the error if ``last_checkpoint`` cannot be written."""
        try:
            super()._save_checkpoint_with_step(runner, *args, **kwargs)
        except OSError as error:
            if error.filename is not None:
                raise
            path = str(Path(runner.work_dir, "last_checkpoint"))
            raise OSError(error.errno, error.strerror or str(error), path) from error

    def _best_keys(self) -> list[str]:
        """The metrics of ``save_best``, without "auto", which means the first one."""
        keys = getattr(self, "key_indicators", None) or []
        return [key for key in keys if key != "auto"]

    @contextmanager
    def _removing_later(self) -> Iterator[None]:
        """Defers the removal of old checkpoints, which mmengine does before it writes."""
        # There is none outside training.
        backend = getattr(self, "file_backend", None)
        if backend is None:
            yield
            return
        outdated: list[str] = []
        backend.remove = outdated.append
        try:
            yield
        finally:
            del backend.remove
        best = getattr(self, "best_ckpt_path_dict", {"": getattr(self, "best_ckpt_path", None)})
        for path in outdated:
            if path not in (self.last_ckpt, *best.values()):
                backend.remove(path)


# Keys of a parameter group that are not settings of the optimizer.
_BOOKKEEPING = {"params", "param_names", "param_name", "initial_lr", "lr_scale"}


def _setting(groups: list[dict], key: str) -> Any:
    """A setting of the first group; for the learning rate the highest initial one."""
    if key == "lr":
        return max(float(group.get("initial_lr", group["lr"])) for group in groups)
    return groups[0][key]
