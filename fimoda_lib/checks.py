"""Arguments that cannot be right are refused here, each in one sentence: what was got, what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
from torch import Tensor

LARGEST = 2**31 - 1  # of whole numbers that count something: beyond it nothing would ever end


def shown(value: Any) -> str:
    """A value in an error message: on one line, and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}…"


def reason(error: Exception) -> str:
    """An exception of another library as a short clause: its type and the first line of what it says."""
    first_line = (str(error).strip().splitlines() or [""])[0].rstrip(".").replace(". ", ", ")
    first_line = first_line if len(first_line) <= 120 else first_line[:120] + "…"
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def plain(value: Any) -> Any:
    """A Python number for a number of NumPy, PyTorch or xarray; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_whole(value: Any) -> bool:
    """Whether this is a whole number; True and False are none."""
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def whole(name: str, value: Any, *, at_least: int = 1, at_most: int = LARGEST, or_: str = "") -> int:
    """The value as an int; `or_` ends the sentence with what else is possible."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number of at least {at_least}{or_}.")
    if value > at_most:
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number of at most {at_most}{or_}.")
    return value


def number(name: str, value: Any, expected: str = "a positive number", *, zero: bool = False) -> float:
    """The value as an int or float: finite, and positive (or `zero`)."""
    value = plain(value)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (0 <= value if zero else 0 < value) or not value < 1e300:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}.")
    return value if value < 2**53 else float(value)


def share(name: str, value: Any, expected: str = "a number between 0 and 1") -> float:
    """The value as a float: between 0 and 1, and neither."""
    value = number(name, value, expected)
    if value >= 1:
        raise ValueError(f"{name}: got {value}, expected {expected}.")
    return value


def some(name: str, chosen: Sized, or_: str = "") -> None:
    """Raises ValueError if no instances are given; `or_` ends the sentence with what else is possible."""
    if not len(chosen):
        raise ValueError(f"{name}: no instances given; expected at least one{or_}.")


def choice(name: str, value: Any, choices: Iterable[Any], expected: str = "") -> None:
    """Raises ValueError unless the value is one of the choices, which are strings, numbers or None."""
    choices = list(choices)
    if not any(type(value) is type(one) and value == one for one in choices):
        expected = expected or f"one of {', '.join(map(str, choices))}"
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}.")


def elements(name: str, values: Any, expected: str) -> list[Any]:
    """The elements of a list, array or anything else that is one thing after the other, as Python numbers."""
    if isinstance(values, Tensor):
        found: Any = values.detach().cpu().tolist()
    elif isinstance(values, np.ndarray) or hasattr(values, "to_numpy"):
        found = np.asarray(values).tolist()
    elif isinstance(values, Iterable) and not isinstance(values, str | bytes | dict):
        found = [plain(value) for value in values]
    else:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{name}: got {shown(values)}, expected {expected}.")
    return found


def known(name: str, table: Mapping, what: str) -> str:
    """The name; raises ValueError, with the names that there are, unless the table has it."""
    if name not in table:
        raise ValueError(f"There is no {what} {name!r}; choose one of {', '.join(table)}.")
    return name
