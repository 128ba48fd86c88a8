"""The operations on windows by the compiled kernels: what `by_tiles` of each computes, in one pass.

Kernels take three axes, and no stride along the last of them: each row of the grid is cut into as many rows
as the stride, of the pixels with the same remainder, so that what a tap meets along a row lies side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from hdcrf.pac.window import Window
from voxel.backend import kernels, plain
from voxel.memory import new_large

__all__ = ["difference_sums", "distances", "products"]


def products(
    given: Sequence[Tensor | None],
    shapes: Sequence[tuple[int, ...]],
    wanted: Sequence[bool],
    window: Window,
    groups: int,
) -> list[Tensor]:
    """Return the derivatives of F that are wanted.

    Args:
        given: x, K, W and g, or None.
        shapes: Of all four.
        wanted: The derivatives with respect to which of them.
        window: Of them.
        groups: As in `torch.nn.Conv2d`.
    """
    x, k, w, g = (None if argument is None else plain(argument) for argument in given)
    like: Any = g if x is None else x
    of = [
        new_large(like, shape) if want else None
        for shape, want in zip((_cut_shape(shapes[0], window), *shapes[1:]), wanted, strict=True)
    ]
    if x is not None:
        x = _cut(x, window)
    if w is not None and w.numel() == 0:
        w = None
    kernels().window_products(x, k, w, g, *of, _numbers(window), groups, torch.get_num_threads())
    if of[0] is not None:
        of[0] = _joined(of[0], window)
    return [result for result in of if result is not None]


def distances(features: Tensor, centres: Tensor, window: Window, absolute: bool, exponential: bool) -> Tensor:
    """Return what `feature_differences.distances` does, (B, T, *O)."""
    result = new_large(features, (len(features), window.taps, *window.outputs))
    f, threads = _cut(plain(features), window), torch.get_num_threads()
    scale = (-1.0 if absolute else -0.5) if exponential else 0.0
    kernels().window_distances(f, plain(centres), absolute, scale, result, _numbers(window), threads)
    return result


def difference_sums(
    features: Tensor, centres: Tensor, factors: Tensor, window: Window, absolute: bool
) -> list[Tensor]:
    """Return the two parts of Q(f, c; a) of `feature_differences`, (B, d, *S) and (B, d, *O)."""
    f, c, a = _cut(plain(features), window), plain(centres), plain(factors)
    of_features, of_centres = new_large(f, f.shape), new_large(c, c.shape)
    threads = torch.get_num_threads()
    kernels().window_difference_sums(f, c, a, absolute, of_features, of_centres, _numbers(window), threads)
    return [_joined(of_features, window), of_centres]


def _numbers(window: Window) -> Tensor:
    """Return `Window.numbers` with axes of one pixel in front, so that there are three."""
    alone = (1, 1, 1, 0, 1, 1)
    parts = zip(alone, astuple(window), strict=True)
    return torch.tensor([n for one, part in parts for n in (one,) * (3 - window.axes) + part])


def _cut(grid: Tensor, window: Window) -> Tensor:
    """Return (…, S) as (…, s, ⌈S / s⌉), with zeros beyond the end, for the stride s along the last axis."""
    if window.stride[-1] == 1:
        return grid
    cut = new_large(grid, _cut_shape(grid.shape, window))
    kernels().cut_rows(grid, window.sizes[-1], window.stride[-1], cut, torch.get_num_threads())
    return cut


def _cut_shape(shape: Sequence[int], window: Window) -> Sequence[int]:
    """Return the shape of what `_cut` makes of a grid of this shape."""
    stride, size = window.stride[-1], window.sizes[-1]
    return shape if stride == 1 else (*shape[:-1], stride, -(-size // stride))


def _joined(cut: Tensor, window: Window) -> Tensor:
    """Do the opposite of `_cut`."""
    if window.stride[-1] == 1:
        return cut
    grid = new_large(cut, (*cut.shape[:-2], window.sizes[-1]))
    kernels().join_rows(cut, window.sizes[-1], window.stride[-1], grid, torch.get_num_threads())
    return grid
