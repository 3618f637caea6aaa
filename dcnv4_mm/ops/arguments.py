"""The numbers and pairs of numbers that operators and layers take."""

import math
import numbers
import operator
from collections.abc import Iterable
from typing import SupportsIndex

__all__ = ["read_float", "read_int", "read_pair"]


def read_float(name: str, argument: object) -> float:
    """Reads a finite number of Python or NumPy.

    Raises:
        TypeError: It is not a number. A tensor is not one, as its gradient would be lost.
        ValueError: It is not finite.
    """
    # A float goes through as it is: that of a compiled graph is a symbol. NumPy's becomes one, as
    # torch.compile takes numbers of NumPy for tensors.
    if type(argument) is not float:
        if not isinstance(argument, numbers.Real):
            raise TypeError(f"{name} must be a number, got {argument!r}")
        argument = float(argument)
    # Not math.isfinite, as that breaks the graph of torch.compile(dynamic=True).
    if not -math.inf < argument < math.inf:
        raise ValueError(f"{name} must be a finite number, got {argument}")
    return argument


def read_int(name: str, argument: SupportsIndex, *, minimum: int) -> int:
    """Reads an int of Python, NumPy or torch.

    Raises:
        TypeError: It is not an int; a float without a fraction is not one either.
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


def read_pair(
    name: str, argument: SupportsIndex | Iterable[SupportsIndex], *, minimum: int
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
                rows, columns = argument  # type: ignore[misc]
        rows, columns = _as_int(rows), _as_int(columns)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be an int or a pair (rows, columns), got {argument!r}"
        ) from None
    if rows < minimum or columns < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {argument!r}")
    return rows, columns


def _as_int(number: SupportsIndex) -> int:
    # An int goes through as it is: that of a compiled graph is a symbol.
    return number if isinstance(number, int) else operator.index(number)
