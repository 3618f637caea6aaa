"""Faults of data, reported as one table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["DataError", "Fault", "compare_names", "format_table"]


class DataError(ValueError):
    """The data of a config are inconsistent; the message is a table of all faults."""


@dataclass(frozen=True)
class Fault:
    """A fault of the data.

    Attributes:
        where: The file or the part of the config.
        what: What was expected, what was found, and the remedy.
        scope: What the fault breaks: ``"all"``, only ``"scores"`` or only ``"masks"``.
        fatal: Whether the host cannot load the file.
    """

    where: str
    what: str
    scope: str = "all"
    fatal: bool = False


def format_table(faults: Iterable[Fault]) -> str:
    """Lists faults by file or part of the config, without duplicates."""
    by_where: dict[str, list[str]] = {}
    for fault in faults:
        entries = by_where.setdefault(fault.where, [])
        if fault.what not in entries:
            entries.append(fault.what)
    lines = []
    for where, entries in by_where.items():
        lines.append(where)
        lines += ["  - " + entry.replace("\n", "\n    ") for entry in entries]
    return "\n".join(lines)


def compare_names(first: Sequence[str], second: Sequence[str], titles: tuple[str, str]) -> str:
    """Two lists of class names side by side; lines that differ are marked."""
    rows = max(len(first), len(second))
    columns = [[*names, *["-"] * (rows - len(names))] for names in (first, second)]
    width = max(map(len, [titles[0], *columns[0]]))
    lines = [f"      {titles[0]:{width}}  {titles[1]}"]
    for label, (one, other) in enumerate(zip(*columns, strict=True)):
        mark = " " if one == other else "*"
        lines.append(f"{mark}{label:4d} {one:{width}}  {other}")
    return "\n".join(lines)
