"""Memory for large arrays."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["new_large"]

_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_madvise = _find_madvise()


def new_large(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor that is not filled, like `like` unless a dtype is given, in large pages if it is large.

    Linux hands memory over in pages of 4 KiB, cleared one by one as they are first written to, which for
    a large array takes longer than to compute what is written. Pages of 2 MiB, where the system has them
    for those who ask, take a fifth of the time. Where it does not, this is `new_empty`.
    """
    tensor = like.new_empty(shape, dtype=dtype)
    size = math.prod(shape) * tensor.element_size()
    if _madvise is not None and size >= 2 * _PAGE and tensor.device.type == "cpu" and type(tensor) is Tensor:
        first = -(-tensor.data_ptr() // _PAGE) * _PAGE
        last = (tensor.data_ptr() + size) // _PAGE * _PAGE
        _madvise(first, last - first, _MADV_HUGEPAGE)  # advice, which may fail
    return tensor
