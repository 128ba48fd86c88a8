"""What errors mean to the user: wrong input, or too little memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hdcrf.files import InputError

__all__ = ["as_input_error", "is_out_of_memory"]


@contextmanager
def as_input_error(prefix: str = "") -> Iterator[None]:
    """Report what the model refuses as the user's input."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(prefix + str(error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)
