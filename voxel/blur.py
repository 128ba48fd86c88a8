"""The separable blur: the three taps ¼ ½ ¼ along each axis of a sparse lattice.

Along axis a with step δ_a, one round of the blur is the symmetric matrix B_a (V × V)

    (B_a x)[v] = ½ x[v] + ¼ x[v + δ_a] + ¼ x[v - δ_a].

A vertex that is not stored reads as zero and is never created. `order` n means B_aⁿ for one axis after
the other; with every vertex stored, that is a binomial kernel of 2n + 1 taps and variance n / 2.
Blurring one axis n times before going to the next, rather than all axes n times in turn, loses no
accuracy, makes a single product of each axis, and lets the diagonal be computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxel.coordinate_index import CoordinateIndex, unique_rows
from voxel.sparse_matrix import SparseMatrix

__all__ = ["MOST_ROUNDS", "AxisBlur", "axis_links", "grow"]

MOST_ROUNDS = 16
"""More rounds bring no accuracy that shows beside the gaps, and building takes time quadratic in them."""


@dataclass(frozen=True)
class AxisBlur:
    """B_aⁿ for one axis, as a table of 2n + 1 taps for each vertex.

    Attributes:
        neighbours: (V, 2n + 1) int64; column n + s holds the vertex s steps along the axis, -1 if the way
            there is interrupted.
        taps: (V, 2n + 1); column n + s holds the entry B_aⁿ[v, v + s δ_a], 0 where there is no neighbour.
    """

    neighbours: Tensor
    taps: Tensor

    @staticmethod
    def of(links: Tensor, order: int, dtype: torch.dtype) -> AxisBlur:
        """Build the blur of `order` rounds along the axis whose `links` (V, 2) these are."""
        backward, forward = links.to(torch.int64).unbind(1)
        neighbours = torch.arange(len(links), device=links.device)[:, None]
        for _ in range(order):
            before, after = _follow(neighbours[:, :1], backward), _follow(neighbours[:, -1:], forward)
            neighbours = torch.cat([before, neighbours, after], 1)

        taps = torch.ones((len(links), 1), dtype=dtype, device=links.device)
        for _ in range(order):
            # B^{m+1}[v, v+s] = ½ B^m[v, v+s] + ¼ B^m[v+1, v+s] + ¼ B^m[v-1, v+s]
            centre = torch.nn.functional.pad(taps, (1, 1))
            ahead = torch.nn.functional.pad(_rows_or_zero(taps, forward), (2, 0))
            behind = torch.nn.functional.pad(_rows_or_zero(taps, backward), (0, 2))
            taps = 0.5 * centre + 0.25 * (ahead + behind)
        return AxisBlur(neighbours, taps)

    def matrix(self, *, native: bool = False) -> SparseMatrix:
        """Return B_aⁿ as a sparse matrix."""
        return SparseMatrix.symmetric(self.neighbours, self.taps, native=native)


def axis_links(index: CoordinateIndex, step: Tensor) -> Tensor:
    """Return the vertices one `step` (D,) behind and one ahead of each, -1 for none: (V, 2) int32."""
    # In 64 bits, so that no neighbour wraps around the range of the coordinates.
    forward = index.lookup(index.coordinates.to(torch.int64) + step)
    links = torch.full((len(index), 2), -1, dtype=torch.int32, device=step.device)
    links[:, 1] = forward
    found = torch.nonzero(forward >= 0)[:, 0]
    links[forward[found], 0] = found.to(torch.int32)
    return links


def _follow(vertices: Tensor, neighbour: Tensor) -> Tensor:
    """Step from each vertex to its neighbour; from nowhere (-1) one gets nowhere."""
    return torch.where(vertices >= 0, neighbour[vertices.clamp_min(0)], -1)


def _rows_or_zero(table: Tensor, rows: Tensor) -> Tensor:
    """Return `table[rows]`, with zeros where the row is -1."""
    return table[rows.clamp_min(0)] * (rows >= 0)[:, None]


def grow(coordinates: Tensor, axes: Tensor, rings: int) -> Tensor:
    """Add `rings` rings of neighbours to a set of vertices.

    Args:
        coordinates: (V, D) distinct integer coordinates.
        axes: (A, D) integer steps; the neighbours of v are v ± δ_a.
        rings: How many times to add the neighbours.

    Returns:
        The (V', D) distinct int64 coordinates of the grown set.
    """
    frontier = coordinates = coordinates.to(torch.int64)
    for _ in range(rings):
        steps = torch.cat([axes, -axes])
        around = (frontier[:, None] + steps).reshape(-1, coordinates.shape[1])
        around, _inverse = unique_rows(around)
        frontier = around[CoordinateIndex(coordinates).lookup(around) < 0]
        coordinates = torch.cat([coordinates, frontier])
    return coordinates
