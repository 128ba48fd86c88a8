"""Validation of NumPy arrays, before they become tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from voxel.checks import check_held

__all__ = ["check_float32_range", "even_array", "plain_value", "real_array"]

_LARGEST = float(np.finfo(np.float32).max)


def real_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return `value` as an array of real numbers that float32 can hold, else raise.

    Args:
        name: The argument's name, for the message.
        value: An array, or nested lists of numbers.

    Raises:
        TypeError: If it is a tensor, a masked array, or holds anything but real numbers.
        ValueError: If its rows differ in length, or a number is beyond float32.
    """
    if isinstance(value, Tensor):
        raise TypeError(
            f"`{name}` must be a NumPy array, got a tensor; use .numpy(), or DenseCRF for tensors"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"`{name}` must be an array without a mask, got a masked one; say with .filled(...) what "
            "stands in the masked places"
        )
    array = even_array(name, value)
    if array.dtype.kind not in "iufb":
        raise TypeError(f"`{name}` must be an array of real numbers, got dtype {array.dtype}")
    check_float32_range(name, array)
    return array


def even_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return `value` as an array; raise ValueError if it is lists that differ in length."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"`{name}` must have rows of one length; NumPy says: {error}") from error


def check_float32_range(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError naming the first finite number of `array` that float32 cannot hold."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4:
        return
    beyond = np.isfinite(array) & (np.abs(array) > _LARGEST)
    if beyond.any():
        place = tuple(int(index) for index in np.argwhere(beyond)[0])
        raise ValueError(
            f"`{name}` must lie within ±{_LARGEST:.3g}, as float32 does, got {array[place]} at index "
            f"{place}; scale it down"
        )


def plain_value(name: str, value: Any) -> Any:
    """Return what an array or tensor without dimensions holds, and anything else as it is."""
    if isinstance(value, np.ma.MaskedArray) or not isinstance(value, np.ndarray | Tensor) or value.ndim:
        return value
    if isinstance(value, Tensor):
        check_held(name, value)
    return value.item()
