"""Rules that rename the keys of state dicts, in both directions, and reports of a conversion."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

__all__ = ["ConversionReport", "KeyRule", "convert"]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class KeyRule:
    """A pattern of keys in the released spelling and in ours.

    Attributes:
        released: Template of the released keys. ``{x}`` matches any str without dots, ``{rest}``
            any str.
        ours: Template of our keys, with the same placeholders.

    Example:
        >>> rule = KeyRule("levels.{i}.norm.0.{p}", "levels.{i}.norm.{p}")
        >>> rule.apply("levels.3.norm.0.bias")
        'levels.3.norm.bias'
        >>> rule.inverse().apply("levels.3.norm.bias")
        'levels.3.norm.0.bias'
    """

    released: str
    ours: str

    def apply(self, name: str) -> str | None:
        """Our spelling of a released key, or ``None`` if the rule does not match it."""
        match = _pattern(self.released).fullmatch(name)
        return match and self.ours.format(**match.groupdict())

    def inverse(self) -> "KeyRule":
        """The rule for the opposite direction."""
        return KeyRule(released=self.ours, ours=self.released)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{rest\}", "(?P<rest>.+)")
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", pattern))


def convert(
    weights: Mapping[str, _Value], rules: Sequence[KeyRule], *, prefix: str = ""
) -> dict[str, _Value]:
    """Renames the entries of a state dict; order and values stay.

    Args:
        weights: State dict.
        rules: The first rule that matches a key renames it. Keys that no rule matches are kept, so
            keys that are converted already are kept too.
        prefix: Only keys with this prefix are considered; the rules match the rest of the key.

    Returns:
        A new dictionary.

    Raises:
        ValueError: Two entries would get the same key.
    """
    converted: dict[str, _Value] = {}
    for name, value in weights.items():
        renamed = _rename(name, rules, prefix)
        if renamed in converted:
            raise ValueError(f"the state dict holds {renamed!r} twice, in two spellings")
        converted[renamed] = value
    return converted


def _rename(name: str, rules: Sequence[KeyRule], prefix: str) -> str:
    if not name.startswith(prefix):
        return name
    tail = name[len(prefix) :]
    candidates = (rule.apply(tail) for rule in rules)
    return prefix + next((renamed for renamed in candidates if renamed), tail)


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """The result of matching a checkpoint with a model.

    Attributes:
        entry: The entry of the file that was used, as ``model_ema``; empty for the file itself.
        loaded: Keys of the model that are filled from the file.
        renamed: Keys in the file that the model spells differently, with the model's spelling.
        dropped: Keys in the file that are left out, with the reason.
        kept: Keys of the model that keep their value, with the reason.
        missing: Keys of the model that the file does not have.
        unexpected: Keys of the file that the model does not have.
        mismatched: Keys whose tensors differ in shape or dtype, with a description of both.
    """

    entry: str
    loaded: Collection[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    missing: Collection[str] = ()
    unexpected: Collection[str] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the checkpoint fits the model."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        source = f"the entry {self.entry!r}" if self.entry else "the file itself"
        verb = "loaded" if self.fits else "would fit"
        lines = [f"{len(self.loaded)} tensors {verb}, from {source}; {len(self.renamed)} renamed"]
        if self.renamed:
            released, ours = next(iter(self.renamed.items()))
            lines[0] += f", as {released} -> {ours}"
        lines += _by_reason("left out", self.dropped)
        lines += _by_reason("unchanged in the model", self.kept)
        for label, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                lines.append(f"{label} {len(names)}: {_some(names)}")
        if self.mismatched:
            texts = [f"{name} ({difference})" for name, difference in self.mismatched.items()]
            lines.append(f"of another shape or type {len(texts)}: {_some(texts)}")
        return "\n".join(lines)


def _by_reason(label: str, names: Mapping[str, str]) -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for name, reason in names.items():
        groups.setdefault(reason, []).append(name)
    for reason, group in groups.items():
        yield f"{label} {len(group)} ({reason}): {_some(group, 2)}"


def _some(names: Collection[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(list(names)[:count]) + more
