"""In place of `pydensecrf.eigen`: its vectors and matrices are plain NumPy arrays here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hdcrf.arrays import real_array

__all__ = ["MatrixXf", "VectorXf", "matrixXf", "vectorXf"]

MatrixXf = VectorXf = np.ndarray  # for `isinstance`


def vectorXf(arr: NDArray[Any]) -> NDArray[np.float32]:
    """Return a copy of a vector (n,), float32."""
    return _copy(arr, 1)


def matrixXf(arr: NDArray[Any]) -> NDArray[np.float32]:
    """Return a copy of a matrix (m, n), float32."""
    return _copy(arr, 2)


def _copy(arr: NDArray[Any], dimensions: int) -> NDArray[np.float32]:
    array = real_array("arr", arr)
    if array.ndim != dimensions:
        raise ValueError(f"`arr` must have {dimensions} dimensions, got shape {array.shape}")
    return np.array(array, dtype=np.float32)
