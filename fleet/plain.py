"""Python's own types for what an author wrote with others that are equal, such as numpy's."""

from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np

from fleet.errors import TaskError
from fleet.finding import said


def make_plain(part: object, **kinds: Callable[[Any], Any]) -> None:
    """Make each field of a frozen ``part`` what its kind makes of it: they are hashed, and sent as JSON.

    Raises:
        TaskError: One of them is not of its kind.
    """
    for name, kind in kinds.items():
        value = getattr(part, name)
        try:
            object.__setattr__(part, name, kind(value))
        except (TypeError, ValueError, OverflowError) as error:
            where = type(part).__name__.lower().removeprefix("privacy")
            raise TaskError(f"{where}: {name} is {value!r:.80}, which is not of its type: {said(error)}") from error


def text(value: Any) -> str:
    """Text, and no number that would pass for one."""
    if not isinstance(value, str):
        raise TypeError("it must be text")
    return str(value)


def names(values: Any) -> tuple[str, ...]:
    """Several names, in an order that is the same in every process."""
    if isinstance(values, str | set | frozenset):
        raise TypeError("it must be several names in order")
    return tuple(text(value) for value in values)


def number(value: Any) -> float:
    """A number, and no text that would pass for one."""
    if isinstance(value, str):
        raise TypeError("it must be a number")
    return float(value)


def dtype_name(value: Any) -> str:
    """The name of a dtype, however numpy lets it be written."""
    return str(np.dtype(value).name)


def sizes(values: Any) -> tuple[int, ...]:
    """Whole numbers, in order."""
    return tuple(index(value) for value in values)
