"""What is wrong with data: collected, and reported as one table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["DataError", "Fault", "compare_names", "format_table"]


class DataError(ValueError):
    """The data of a config do not fit together; the message is a table of all faults."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with the data.

    Attributes:
        where: The file, or the part of the config.
        what: What was expected, what came, and what to do.
        scope: ``"all"``, or what alone the fault breaks: ``"scores"`` or ``"masks"``.
        fatal: Whether the host cannot even load the file.
    """

    where: str
    what: str
    scope: str = "all"
    fatal: bool = False


def format_table(faults: Iterable[Fault]) -> str:
    """Lists faults below the places where they are, each once."""
    places: dict[str, list[str]] = {}
    for fault in faults:
        entries = places.setdefault(fault.where, [])
        if fault.what not in entries:
            entries.append(fault.what)
    lines = []
    for where, entries in places.items():
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
