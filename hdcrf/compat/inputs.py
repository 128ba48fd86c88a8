"""What the modules in place of pydensecrf's check of their arguments."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hdcrf.arrays import real_array
from voxel.checks import check_positive

__all__ = ["deviations", "divide", "matrix", "member"]

_Member = TypeVar("_Member", bound=enum.IntEnum)


def deviations(name: str, given: Any, count: int, what: str) -> list[float]:
    """Return `count` standard deviations; one number stands for all.

    Args:
        name: Of the argument.
        given: A number, or a sequence of `count`.
        count: How many there are.
        what: What there is one for each of, for the message.
    """
    if isinstance(given, Real):
        return [check_positive(name, given)] * count
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"`{name}` must be a number or {count} of them, got {type(given).__name__}")
    listed = list(given)
    if len(listed) != count:
        raise ValueError(f"`{name}` must have one number for each of the {count} {what}, got {len(listed)}")
    return [check_positive(f"{name}[{index}]", value) for index, value in enumerate(listed)]


def divide(features: NDArray[np.float32], sigmas: Sequence[float]) -> None:
    """Divide features (d, …) by their standard deviations, in place; too small a one makes them infinite."""
    with np.errstate(all="ignore"):
        features /= np.array(sigmas, dtype=np.float32).reshape(-1, *[1] * (features.ndim - 1))


def matrix(name: str, value: ArrayLike) -> NDArray[np.float32]:
    """Return a matrix as contiguous float32."""
    array = real_array(name, value)
    if array.ndim != 2:
        raise ValueError(
            f"`{name}` must be a matrix, got shape {array.shape}; reshape it, the places in the last axis"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def member(name: str, value: int, kind: type[_Member]) -> _Member:
    """Return the member of an enumeration that a number stands for."""
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(each.name for each in kind)
        raise ValueError(f"`{name}` must be one of {names}, got {value!r}") from error
