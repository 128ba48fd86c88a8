"""Validation of arguments, done once at the Python door and worded alike everywhere.

Every message says which argument, what was expected, what came, and what to do.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "INTEGER_DTYPES",
    "MOST_RINGS",
    "CoordinateRangeError",
    "check_batch_index",
    "check_choice",
    "check_count",
    "check_finite",
    "check_flag",
    "check_floating",
    "check_held",
    "check_matrix",
    "check_number",
    "check_positive",
    "check_same_kind",
    "check_tensor",
]

INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATING_DTYPES = (torch.float32, torch.float64)

MOST_RINGS = 8
"""The largest halo. In five dimensions a ring multiplies the vertices by 3; the fourth brings little."""


class CoordinateRangeError(ValueError):
    """A feature lies so far out that its lattice coordinate cannot be represented.

    Attributes:
        point: Index of the first such point.
        axis: Feature dimension (column of the features) with the largest magnitude at that point.
    """

    def __init__(self, message: str, point: int, axis: int) -> None:
        super().__init__(message)
        self.point = point
        self.axis = axis


def check_tensor(name: str, value: object) -> Tensor:
    """Return `value` if it is a dense tensor, else raise TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor"
        )
    if value.layout != torch.strided:
        raise TypeError(f"`{name}` must be a dense tensor, got {value.layout}; convert it with .to_dense()")
    return value


def check_floating(name: str, value: object) -> Tensor:
    """Return `value` if it is a float32 or float64 tensor, else raise TypeError."""
    tensor = check_tensor(name, value)
    if tensor.dtype not in _FLOATING_DTYPES:
        raise TypeError(
            f"`{name}` must be float32 or float64, got {tensor.dtype}; convert it with .float() or .double()"
        )
    return tensor


def check_matrix(name: str, value: object, shape: str, rows: int | None = None) -> Tensor:
    """Return `value` if it is a floating matrix, with `rows` rows where that is given.

    Args:
        name: The argument's name, for the message.
        value: What the caller passed.
        shape: The expected shape in words, for example "(N, d)".
        rows: The expected number of rows; None accepts any.
    """
    tensor = check_floating(name, value)
    if tensor.dim() != 2 or (rows is not None and tensor.shape[0] != rows):
        expected = shape if rows is None else f"{shape} with {rows} rows"
        raise ValueError(f"`{name}` must have shape {expected}, got {tuple(tensor.shape)}")
    return tensor


def check_same_kind(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raise unless `tensor` has the dtype and the device of `reference`."""
    if tensor.dtype != reference.dtype:
        raise TypeError(
            f"`{name}` must have the dtype of `{reference_name}`, {reference.dtype}, got {tensor.dtype}; "
            f"convert one of them, nothing is converted silently"
        )
    if tensor.device != reference.device:
        raise ValueError(
            f"`{name}` must be on the device of `{reference_name}`, {reference.device}, got {tensor.device}; "
            f"move one of them with .to(...)"
        )


def check_held(name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` is one of those that have a shape but no entries."""
    if tensor.device.type == "meta":
        raise ValueError(f"`{name}` must hold numbers, got a tensor on the meta device; move it to another")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError naming the first NaN or infinite entry of `tensor`, or that it has none to see."""
    check_held(name, tensor)
    # The sum of finite numbers is finite unless it overflows: only then look at each entry.
    if bool(torch.isfinite(tensor.detach().sum())):
        return
    bad = torch.nonzero(~torch.isfinite(tensor.detach()))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise ValueError(
            f"`{name}` must be finite, got {tensor[place].item()} at index {place} "
            f"({len(bad)} such entries); replace or mask them first"
        )


def check_number(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number, else raise."""
    number = _as_float(name, value)
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {value}")
    return number


def check_positive(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number above zero, else raise."""
    number = _as_float(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"`{name}` must be a finite number greater than 0, got {value}")
    return number


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError as error:  # an integer, perhaps too long to be shown
        raise ValueError(f"`{name}` must lie within ±{sys.float_info.max:.3g}, got one beyond") from error


def check_flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {value!r}")
    return bool(value)


def check_count(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` if it is an integer from `minimum` to `maximum`, else raise."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {_shown(int(value))}")
    if maximum is not None and int(value) > maximum:
        raise ValueError(f"`{name}` must be at most {maximum}, got {_shown(int(value))}")
    return int(value)


def _shown(value: int) -> str:
    # Python refuses to print what is thousands of digits long.
    return str(value) if abs(value) < 10**20 else f"one of {value.bit_length()} bits"


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`, else raise ValueError listing them."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}")
    return value


def check_batch_index(name: str, value: object, rows: int, like: Tensor) -> Tensor:
    """Return `value` if it is a vector of `rows` non-negative integers on the device of `like`."""
    tensor = check_tensor(name, value)
    if tensor.dtype not in INTEGER_DTYPES:
        raise TypeError(f"`{name}` must hold integers, got {tensor.dtype}; convert it with .long()")
    if tensor.shape != (rows,):
        raise ValueError(
            f"`{name}` must have shape ({rows},), one index per point, got {tuple(tensor.shape)}"
        )
    if tensor.device != like.device:
        raise ValueError(f"`{name}` must be on {like.device}, as the features are, got {tensor.device}")
    if rows and int(tensor.min()) < 0:
        raise ValueError(f"`{name}` must be 0 or greater, got {int(tensor.min())}")
    if rows and int(tensor.max()) >= 2**31:
        raise ValueError(f"`{name}` must fit into int32, got {int(tensor.max())}; number the batches from 0")
    return tensor
