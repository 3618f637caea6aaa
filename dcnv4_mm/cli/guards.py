"""Hooks that training and testing add to every config."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.config import Config


def add_guards(cfg: "Config") -> None:
    """Adds the hooks that stop before work is lost, whatever the config's ``custom_hooks`` lists.

    A list in a config replaces the inherited one, and the guards in it. ``strict_load = False`` and
    ``check_data = False`` at the top level of the config turn them off.
    """
    guards = {
        "strict_load": ["dcnv4_mm.StrictLoadHook"],
        "check_data": ["dcnv4_mm.CheckDataHook"],
    }
    if cfg.get("default_scope") == "mmdet":
        guards["check_data"].append("mmdet.NumClassCheckHook")
    hooks = list(cfg.get("custom_hooks") or [])
    for switch, names in guards.items():
        for name in names:
            found = [hook for hook in hooks if hook_name(hook) == hook_name({"type": name})]
            if not cfg.get(switch, True):
                hooks = [hook for hook in hooks if hook not in found]
            elif not found:
                hooks.append({"type": name})
    cfg.custom_hooks = hooks


def hook_name(hook: dict) -> str:
    """Class name of a hook's config, without its scope."""
    kind = hook["type"]
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__
