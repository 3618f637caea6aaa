"""A checkpoint hook that a fault at any moment leaves with a checkpoint to go on from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from dcnv4_mm.engine.mmengine_io import install
from dcnv4_mm.engine.saving import find_whole_checkpoint
from dcnv4_mm.registry import HOOKS

__all__ = ["SafeCheckpointHook"]


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, which removes old checkpoints only when the new one is there.

    A run that resumes from its latest checkpoint takes the latest that can be read, and logs which
    ones it skipped. Files are written whole or not at all, as by anything in this package.

    A ``save_best`` metric that the evaluator does not give is reported once, with the metrics that
    there are; training goes on without a best checkpoint of it.

    Args:
        *args: As of mmengine's hook.
        **kwargs: As of mmengine's hook.

    Raises:
        ValueError: When a run resumes: there are checkpoints, and none can be read.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type="dcnv4_mm.SafeCheckpointHook", interval=1))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reported: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        """Makes writes atomic, and chooses the checkpoint to resume from, for all processes."""
        install()
        # With a path, or none wanted, there is nothing to choose.
        if not runner._resume or runner._load_from is not None:
            return
        chosen: list[str | ValueError | None] = [None]
        if is_main_process():
            try:
                chosen = [find_whole_checkpoint(runner.work_dir, self.filename_tmpl.format("*"))]
            except ValueError as error:
                chosen = [error]
        broadcast_object_list(chosen)
        if isinstance(chosen[0], ValueError):
            raise chosen[0]
        runner._load_from = chosen[0]

    def after_train_epoch(self, runner: Runner) -> None:
        """Saves a checkpoint if it is time to."""
        with self._removing_later():
            super().after_train_epoch(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint if it is time to."""
        with self._removing_later():
            super().after_train_iter(runner, *args, **kwargs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Saves the best checkpoint if it is a better one."""
        absent = [key for key in self._best_keys() if key not in metrics] if metrics else []
        if new := [key for key in absent if key not in self._reported]:
            self._reported.update(new)
            runner.logger.warning(
                f"save_best: the evaluator gives no {', '.join(new)}, so no best checkpoint is "
                f"kept for it; set default_hooks.checkpoint.save_best to one of: "
                f"{', '.join(metrics)}"
            )
        with self._removing_later():
            # mmengine skips a score of None.
            super().after_val_epoch(runner, {**metrics, **dict.fromkeys(absent)})

    def _best_keys(self) -> list[str]:
        """The metrics that ``save_best`` names; "auto" stands for the first that there is."""
        keys = getattr(self, "key_indicators", None) or []
        return [key for key in keys if key != "auto"]

    @contextmanager
    def _removing_later(self) -> Iterator[None]:
        """Puts off what mmengine does first: removing the checkpoints that the new one replaces."""
        # Outside of training there is none.
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
