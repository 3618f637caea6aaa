"""The numbers and pairs of numbers that operators and layers take."""

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

__all__ = ["read_bool", "read_channels", "read_float", "read_int", "read_odd", "read_pair"]


def read_bool(name: str, argument: object) -> bool:
    """Reads True or False.

    Raises:
        TypeError: It is anything else. A non-empty str such as "False" would count as true.
    """
    if argument is not True and argument is not False:
        raise TypeError(f"{name} must be True or False, got {argument!r}")
    return argument


def read_float(name: str, argument: object) -> float:
    """Reads a finite number of Python or NumPy.

    Raises:
        TypeError: It is not a number. A tensor is not one, as its gradient would be lost.
        ValueError: It is not finite.
    """
    # A float goes through as it is: that of a compiled graph is a symbol. NumPy's becomes one, as
    # torch.compile takes numbers of NumPy for tensors.
    if type(argument) is not float:
        if isinstance(argument, bool) or not isinstance(argument, numbers.Real):
            raise TypeError(f"{name} must be a number, got {argument!r}")
        argument = float(argument)
    # Not math.isfinite, as that breaks the graph of torch.compile(dynamic=True).
    if not -math.inf < argument < math.inf:
        raise ValueError(f"{name} must be a finite number, got {argument}")
    return argument


def read_int(name: str, argument: SupportsIndex, *, minimum: int) -> int:
    """Reads an int of Python, NumPy or torch.

    Raises:
        TypeError: It is not an int; neither are a float without a fraction and a bool.
        ValueError: It is less than ``minimum``.
    """
    if type(argument) is int and argument >= minimum:
        return argument
    try:
        number = _as_int(argument)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {argument!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {argument!r}")
    return number


def read_odd(name: str, argument: SupportsIndex) -> int:
    """Reads an odd int from 1 on, such as the size of a kernel with a middle.

    Raises:
        TypeError: It is not an int.
        ValueError: It is even, or less than 1.
    """
    number = read_int(name, argument, minimum=1)
    if number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}")
    return number


def read_channels(channels: SupportsIndex, groups: SupportsIndex) -> tuple[int, int]:
    """Reads a number of channels and one of groups, which divides it.

    Raises:
        TypeError: One is not an int.
        ValueError: One is less than 1, or the channels cannot be divided.
    """
    channels = read_int("channels", channels, minimum=1)
    groups = read_int("groups", groups, minimum=1)
    if channels % groups:
        raise ValueError(
            f"channels must be a multiple of groups, got {channels} channels, {groups} groups"
        )
    return channels, groups


def read_pair(
    name: str, argument: SupportsIndex | Sequence[SupportsIndex], *, minimum: int
) -> tuple[int, int]:
    """Reads an int, which stands for both, or a pair of ints, (rows, columns).

    Raises:
        TypeError: It is neither.
        ValueError: A number is less than ``minimum``.
    """
    # What is usual costs nearly nothing.
    if type(argument) is int and argument >= minimum:
        return argument, argument
    try:
        # The usual kinds of a pair first: torch 2.10 cannot trace a failed conversion of one.
        if isinstance(argument, (tuple, list)):
            rows, columns = argument
        else:
            try:
                rows = columns = _as_int(argument)  # type: ignore[arg-type]
            except TypeError:
                rows, columns = _entries(argument)
        rows, columns = _as_int(rows), _as_int(columns)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be an int or a pair (rows, columns), got {argument!r}"
        ) from None
    if rows < minimum or columns < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {argument!r}")
    return rows, columns


def _as_int(number: SupportsIndex) -> int:
    # A bool is most likely meant for another argument.
    if isinstance(number, bool):
        raise TypeError
    # An int goes through as it is: that of a compiled graph is a symbol.
    return number if isinstance(number, int) else operator.index(number)


def _entries(argument: Any) -> Any:
    """The entries of an array or a tensor; those of a set have no order, those of bytes are codes.

    Raises:
        TypeError: It is neither.
    """
    if not hasattr(argument, "__array__"):
        raise TypeError
    return argument
