"""Building mmengine's runner from a config."""

from typing import TYPE_CHECKING

from dcnv4_mm.cli.configs import stop

if TYPE_CHECKING:
    from mmengine.config import Config


def build_runner(cfg: "Config"):
    """Builds mmengine's runner, or the config's ``runner_type``."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    if cfg.get("default_scope") == "mmdet":
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)


def stop_if_unloadable(runner, config: str) -> None:
    """Makes a checkpoint that cannot be loaded end the program with one message."""
    load_or_resume = runner.load_or_resume

    def load_or_stop() -> None:
        try:
            load_or_resume()
        except (ValueError, OSError) as error:
            # The error of an unreadable file does not name the config.
            stop(str(error) if config in str(error) else f"{error} (for {config})")

    runner.load_or_resume = load_or_stop
