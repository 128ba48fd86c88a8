"""Which stored coordinates lie near which: kernel offsets, kernel maps, and pairs within a radius."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from voxel.checks import check_choice, check_count
from voxel.coordinate_index import CoordinateIndex

__all__ = ["kernel_map", "kernel_offsets", "mutual_pairs", "pairs_within"]

_BLOCK_ROWS = 2048
_LARGEST_DILATION = 2**31 - 1  # with more, an offset might not fit into int64


def kernel_offsets(kernel_size: int, dimension: int, shape: str, dilation: int = 1) -> Tensor:
    """Return the (O, D) integer offsets of a kernel.

    Along an axis they are -(k - 1) / 2 … (k - 1) / 2 for an odd kernel size k, which is centred on its voxel,
    and 0 … k - 1 for an even one.

    Args:
        kernel_size: k, the extent along each axis.
        dimension: D.
        shape: "cube", all k^D offsets, or "cross", those along one axis: D (k - 1) + 1.
        dilation: Spacing of the offsets, below 2³¹.

    Raises:
        TypeError: If an extent is not an integer.
        ValueError: If an extent is less than 1, the dilation too large, or the shape none of these.
    """
    check_count("dimension", dimension, 1)
    check_count("dilation", dilation, 1, _LARGEST_DILATION)
    check_choice("shape", shape, ("cube", "cross"))
    size = check_count("kernel_size", kernel_size, 1)
    lowest = -(size // 2) if size % 2 else 0
    reach = range(lowest, lowest + size)
    if shape == "cube":
        offsets = torch.tensor(list(itertools.product(reach, repeat=dimension)), dtype=torch.int64)
    else:
        eye = torch.eye(dimension, dtype=torch.int64)
        arms = [step * eye for step in reach if step != 0]
        offsets = torch.cat([torch.zeros(1, dimension, dtype=torch.int64), *arms])
    return offsets.reshape(-1, dimension) * dilation


def kernel_map(
    index: CoordinateIndex, offsets: Tensor, *, coordinates: Tensor | None = None, stride: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """For each offset, list the pairs of rows (input, output) with x_input = stride · x_output + offset.

    Args:
        index: V input coordinates, batch first.
        offsets: (O, D) without the batch column.
        coordinates: (V', 1 + D) distinct output coordinates, batch first; None: those of the index.
        stride: What the output coordinates, but not their batch, are multiplied by.

    Returns:
        O pairs of equally long int64 vectors; no row of the input or of the output occurs twice in one pair.
    """
    steps = [(0, *offset) for offset in offsets.tolist()]
    if coordinates is None and stride == 1:
        return mutual_pairs(index, steps)
    # In 64 bits, so that no neighbour wraps around the range of the coordinates.
    outputs = (index.coordinates if coordinates is None else coordinates).to(torch.int64)
    scale = [1] + [stride] * (outputs.shape[1] - 1)
    outputs = outputs * torch.tensor(scale, device=outputs.device)
    return list(index.shifted_pairs(outputs, steps))


def mutual_pairs(index: CoordinateIndex, steps: Sequence[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    """For each step, list the pairs of rows (first, second) of an index with x_first = x_second + step.

    Args:
        index: V coordinates.
        steps: O tuples of as many integers as a coordinate has, the batch column included.

    Returns:
        O pairs of equally long int64 vectors, as `kernel_map`; those of a step and of its negative are the
        same vectors, the other way round.
    """
    negative = {step: tuple(-x for x in step) for step in steps}
    searched = list(dict.fromkeys(min(step, negative[step]) for step in steps))
    # In 64 bits, so that no neighbour wraps around the range of the coordinates.
    found = index.shifted_pairs(index.coordinates.to(torch.int64), searched)
    pairs = dict(zip(searched, found, strict=True))
    return [pairs[step] if step in pairs else pairs[negative[step]][::-1] for step in steps]


def pairs_within(coordinates: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find all pairs of rows with the same first column, and the others within a Euclidean radius.

    Sorted lexicographically, the coordinates form a tree with one level a column. A block of rows walks
    down it together, keeping of each level only the branches whose distance so far is within the radius;
    so the work goes with the pairs that there are, not with the (2r + 1)^D offsets that there could be.

    Args:
        coordinates: (V, 1 + D) distinct integers, batch first.
        radius: Largest distance; 0 pairs each row with itself alone.

    Returns:
        first: (E,) int64 rows, ascending.
        second: (E,) int64 rows.
        squared_distance: (E,) int64.
    """
    order = _lexicographic_order(coordinates)
    ranked = coordinates[order].to(torch.int64)
    levels = _tree(ranked)
    limit = int(radius * radius + 1e-9)
    blocks = []
    for start in range(0, len(ranked), _BLOCK_ROWS):
        rows = ranked[start : start + _BLOCK_ROWS]
        blocks.append(_walk(rows, start, levels, limit))
    empty = order.new_empty(0)
    first, second, distance = (
        (torch.cat([block[i] for block in blocks]) if blocks else empty) for i in range(3)
    )
    first, second = order[first], order[second]
    by_first = torch.argsort(first, stable=True)
    return first[by_first], second[by_first], distance[by_first]


def _lexicographic_order(coordinates: Tensor) -> Tensor:
    order = torch.arange(coordinates.shape[0], device=coordinates.device)
    for column in reversed(range(coordinates.shape[1])):
        order = order[torch.argsort(coordinates[order, column], stable=True)]
    return order


def _tree(ranked: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each column, the values of the nodes at that level, and where each parent's children start."""
    levels = []
    rows = ranked.shape[0]
    parent_starts = torch.zeros(1, dtype=torch.int64, device=ranked.device)  # the root
    differs = torch.zeros(rows, dtype=torch.bool, device=ranked.device)
    differs[:1] = True
    for column in range(ranked.shape[1]):
        differs[1:] |= ranked[1:, column] != ranked[:-1, column]
        starts = torch.nonzero(differs)[:, 0]
        child_starts = torch.searchsorted(starts, parent_starts)
        child_starts = torch.nn.functional.pad(child_starts, (0, 1), value=len(starts))
        levels.append((ranked[starts, column], child_starts))
        parent_starts = starts
    return levels


def _walk(
    rows: Tensor, first_row: int, levels: list[tuple[Tensor, Tensor]], limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    row = torch.arange(len(rows), device=rows.device)
    node = torch.zeros_like(row)
    distance = torch.zeros_like(row)
    for column, (values, child_starts) in enumerate(levels):
        start, count = child_starts[node], child_starts[node + 1] - child_starts[node]
        parent = torch.repeat_interleave(count)
        before = torch.cumsum(count, 0) - count
        node = start[parent] + torch.arange(len(parent), device=rows.device) - before[parent]
        row = row[parent]
        # Cut off beyond the radius, where the square might overflow.
        step = (values[node] - rows[row, column]).abs().clamp(max=math.isqrt(limit) + 1)
        # Batches never mix: in the first column only equality will do.
        distance = distance[parent] + (step * step if column else (step != 0) * (limit + 1))
        near = distance <= limit
        row, node, distance = row[near], node[near], distance[near]
    return row + first_row, node, distance
