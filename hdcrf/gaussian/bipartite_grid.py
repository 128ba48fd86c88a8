"""Pixels connected to every other neighbour, so that even and odd columns (or rows) are a bipartition.

A pixel (y, x) is connected to (y + dy, x + dx) for dy and dx both odd and within the window. Each pair of
pixels is kept once, at its upper pixel: dy > 0. What belongs to pairs is a tensor (B, E, H, W), one entry for
each of the E connections and each upper pixel; entries whose lower pixel lies outside the image are no pairs.

Sums over neighbours are loops over connections with shifted views: nothing is copied for each connection.

Reference: Vemulapalli et al., CVPR 2016, section 3.2 and figure 2.
"""

from __future__ import annotations

import math
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from voxel.checks import check_count

__all__ = [
    "PARTITIONS",
    "Pairs",
    "check_window",
    "connections",
    "connections_of",
    "half_pairs",
    "halves",
    "joined",
    "messages",
    "pairs",
    "similarity_of",
]

PARTITIONS = ("columns", "rows")

_WIDEST = 255

Index = tuple[EllipsisType, slice, slice]
Pairs = list[tuple[Index, Index]]
"""For each connection: where its upper pixels are, and where the lower ones."""


def check_window(window: object) -> int:
    """Return `window` if it is an odd integer from 3 to 255, else raise."""
    count = check_count("window", window, 3, _WIDEST)
    if count % 2 == 0:
        raise ValueError(f"`window` must be odd, so that it has a centre, got {count}; use {count + 1}")
    return count


def connections(window: int) -> list[tuple[int, int]]:
    """Return the offsets (dy, dx), dy > 0, to the connected pixels within window x window.

    2 n² of them for n odd numbers from 1 to window // 2; a pixel has twice as many neighbours, one half
    above it: 16 for a window of 7, 144 for 23. A window of 4 n + 1 is the same as one of 4 n - 1.
    """
    farthest = (check_window(window) // 2 - 1) // 2 * 2 + 1
    return [(dy, dx) for dy in range(1, farthest + 1, 2) for dx in range(-farthest, farthest + 1, 2)]


def connections_of(similarity: Tensor) -> list[tuple[int, int]]:
    """Return the connections that a (B, E, H, W) tensor has entries for, by their number E, or raise."""
    count = similarity.shape[1]
    odd = math.isqrt(count // 2)
    if odd == 0 or count != 2 * odd**2:
        raise ValueError(
            "`similarity` must have as many channels as a window has connections, 2, 8, 18, 32, 50, 72, ..., "
            f"got {count}; `pixel_similarity` makes it"
        )
    return connections(4 * odd - 1)


def _overlap(first: int, second: int, shift: int) -> tuple[slice, slice]:
    """Return the indices a < first, and b = a + shift < second, for which both exist."""
    start = max(0, -shift)
    stop = max(start, min(first, second - shift))
    return slice(start, stop), slice(start + shift, stop + shift)


def pairs(offsets: list[tuple[int, int]], height: int, width: int) -> Pairs:
    """Return where the upper and the lower pixels of each connection are in the image."""
    places: Pairs = []
    for dy, dx in offsets:
        upper, lower = _overlap(height, height, dy), _overlap(width, width, dx)
        places.append(((..., upper[0], lower[0]), (..., upper[1], lower[1])))
    return places


def half_pairs(
    offsets: list[tuple[int, int]], height: int, width: int, partition: str
) -> tuple[Pairs, Pairs]:
    """Return `pairs` whose upper pixel is in the even half, and those whose upper pixel is in the odd half.

    The upper pixels are indexed within their half, and the lower ones within the other. Entry a of half p is
    column (or row) 2 a + p. A step of an odd d leads from there to entry a + (d + p - q) / 2 of half q.
    """
    across = partition == "columns"
    size = width if across else height
    lengths = (size + 1) // 2, size // 2
    found: tuple[Pairs, Pairs] = ([], [])
    for half, places in enumerate(found):
        other = 1 - half
        for dy, dx in offsets:
            step = ((dx if across else dy) + half - other) // 2
            split = _overlap(lengths[half], lengths[other], step)
            rows, columns = (
                (_overlap(height, height, dy), split) if across else (split, _overlap(width, width, dx))
            )
            places.append(((..., rows[0], columns[0]), (..., rows[1], columns[1])))
    return found


def _half(half: int, partition: str) -> Index:
    every, whole = slice(half, None, 2), slice(None)
    return (..., whole, every) if partition == "columns" else (..., every, whole)


def halves(values: Tensor, partition: str) -> tuple[Tensor, Tensor]:
    """Return the even and the odd columns (or rows) of (..., H, W)."""
    return values[_half(0, partition)].contiguous(), values[_half(1, partition)].contiguous()


def joined(parts: tuple[Tensor, Tensor], partition: str) -> Tensor:
    """Return the image (..., H, W) of its even and odd halves."""
    even, odd = parts
    axis = -1 if partition == "columns" else -2
    shape = list(even.shape)
    shape[axis] += odd.shape[axis]
    image = even.new_empty(shape)
    image[_half(0, partition)] = even
    image[_half(1, partition)] = odd
    return image


def _sum(own: Tensor, other: Tensor, values: Tensor, places: tuple[Pairs, Pairs]) -> Tensor:
    result = values.new_zeros((*values.shape[:2], *own.shape[2:]))
    own_places, other_places = places
    for connection, (upper, lower) in enumerate(own_places):
        result[upper].addcmul_(own[:, connection, None][upper], values[lower])
    for connection, (upper, lower) in enumerate(other_places):
        result[lower].addcmul_(other[:, connection, None][upper], values[upper])
    return result


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, values: Tensor, places: tuple[Pairs, Pairs]) -> Tensor:
        ctx.save_for_backward(own, other, values)
        ctx.places = places
        return _sum(own, other, values, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        own, other, values = ctx.saved_tensors
        own_places, other_places = ctx.places
        to_own = to_other = to_values = None
        if ctx.needs_input_grad[0]:
            to_own = torch.zeros_like(own)
            for connection, (upper, lower) in enumerate(own_places):
                to_own[:, connection][upper] = (gradient[upper] * values[lower]).sum(1)
        if ctx.needs_input_grad[1]:
            to_other = torch.zeros_like(other)
            for connection, (upper, lower) in enumerate(other_places):
                to_other[:, connection][upper] = (gradient[lower] * values[upper]).sum(1)
        if ctx.needs_input_grad[2]:
            to_values = _sum(other, own, gradient, (other_places, own_places))
        return to_own, to_other, to_values, None


def messages(own: Tensor, other: Tensor, values: Tensor, places: tuple[Pairs, Pairs]) -> Tensor:
    """Return Σ_j s_ij v_j for the pixels i of one half, from the values v_j of the other.

    Args:
        own: (B, E, h, w), s of pairs whose upper pixel is in the half that receives.
        other: (B, E, h', w'), s of pairs whose upper pixel is in the half that sends.
        values: (B, C, h', w') v of the half that sends.
        places: `half_pairs` for `own`, and for `other`.

    Returns:
        (B, C, h, w), differentiable once.

    Cost: 2 E multiplications a value, over views of the arguments; the gradients of s and v as many each.
    """
    result: Tensor = _Messages.apply(own, other, values, places)  # type: ignore[no-untyped-call]
    return result


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, places: Pairs) -> Tensor:
        result = features.new_zeros((features.shape[0], len(places), *features.shape[2:]))
        for connection, (upper, lower) in enumerate(places):
            squared = (features[upper] - features[lower]).square_().sum(1)
            result[:, connection][upper] = squared.neg_().exp_()
        ctx.save_for_backward(features, result)
        ctx.places = places
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, similarity = ctx.saved_tensors
        weights = 2 * gradient * similarity
        result = torch.zeros_like(features)
        for connection, (upper, lower) in enumerate(ctx.places):
            pull = (features[lower] - features[upper]).mul_(weights[:, connection, None][upper])
            result[upper] += pull
            result[lower] -= pull
        return result, None


def similarity_of(features: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """Return exp(-‖z_i - z_j‖²), (B, E, H, W), for (B, M, H, W) features z; 0 where there is no pair."""
    places = pairs(offsets, features.shape[2], features.shape[3])
    result: Tensor = _Similarity.apply(features, places)  # type: ignore[no-untyped-call]
    return result
