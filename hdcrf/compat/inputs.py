"""What the modules in place of pydensecrf's check of their arguments."""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hdcrf.arrays import plain_value, real_array
from hdcrf.layer_inputs import levels_to_user
from voxel.checks import check_count, check_positive

__all__ = ["check_finite", "count", "deviations", "divide", "matrix", "member", "places"]

_Member = TypeVar("_Member", bound=enum.IntEnum)


def count(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return an integer from `minimum` to `maximum`; a fraction is cut off, as pydensecrf does."""
    number = plain_value(name, value)
    if isinstance(number, Real) and not isinstance(number, Integral) and math.isfinite(number):
        number = int(float(number))
    return check_count(name, number, minimum, maximum)


def deviations(
    name: str, given: Any, number: int, what: str, *, more: bool = False, fewer: bool = False
) -> list[float]:
    """Return `number` standard deviations; one number stands for all, and infinity leaves its axis out.

    Args:
        name: Of the argument.
        given: A number, or a sequence of `number`.
        number: How many there are.
        what: What there is one for each of, for the message.
        more: Whether pydensecrf ignores further ones, so that they are no error but a warning.
        fewer: Whether it takes 1 for missing ones, so that these are.
    """
    given = plain_value(name, given)
    if isinstance(given, Real):
        return [_deviation(name, given)] * number
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"`{name}` must be a number or {number} of them, got {type(given).__name__}")
    listed = list(given)
    found = f"`{name}` must have one number for each of the {number} {what}, got {len(listed)}"
    if len(listed) > number and more:
        warnings.warn(f"{found}; as in pydensecrf, the rest is ignored", stacklevel=levels_to_user())
    elif len(listed) < number and fewer:
        warnings.warn(
            f"{found}; as in pydensecrf, 1 stands for each that is missing", stacklevel=levels_to_user()
        )
    elif len(listed) != number:
        raise ValueError(found)
    known = [_deviation(f"{name}[{index}]", value) for index, value in enumerate(listed[:number])]
    return known + [1.0] * (number - len(known))


def _deviation(name: str, value: Any) -> float:
    return math.inf if isinstance(value, Real) and value == math.inf else check_positive(name, value)


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError naming the first entry that is NaN or infinite."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
    raise ValueError(f"`{name}` must be finite, got {array[place]} at index {place}; look at its source")


def divide(features: NDArray[np.float32], sigmas: Sequence[float]) -> None:
    """Divide features (d, …) by their standard deviations, in place; too small a one makes them infinite."""
    with np.errstate(all="ignore"):
        divisors = np.array(sigmas, dtype=np.float32)
        divisors[divisors == 0] = np.finfo(np.float32).smallest_subnormal  # rounded to 0: no 0 / 0
        features /= divisors.reshape(-1, *[1] * (features.ndim - 1))


def places(sigmas: Sequence[float], lengths: Sequence[int]) -> NDArray[np.float32]:
    """Return the index along each axis of a grid over its standard deviation, (d, *lengths)."""
    features = np.indices(lengths, dtype=np.float32)
    divide(features, sigmas)
    return features


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
