"""The exact diagonal of the permutohedral filter: what each point gets back of its own value.

The entry K_ii = c Σ_{p,q} w_ip w_iq B[v_p, v_q] needs the blur between the corners of one simplex. The
blur goes along each axis once, axis 0 first, so a way from v_q to v_p is a step count s_a for each axis,
with |s_a| ≤ n. Corner k lies at the step counts δ_k[a] = -[rank_a > d - k] from corner 0, and one step
along every axis, (1, …, 1), comes back to where it began; so the ways from v_q to v_p are

    s = δ_p - δ_q + t·(1, …, 1)   for every integer t,

and B[v_p, v_q] is the sum over t of the product of the taps on that way, which is zero if it leaves the
stored vertices. The entries of δ_p - δ_q are 0 and 1 for p < q, and 0 and -1 for p > q, where a -1 is a 0
one turn t lower. So every way from v_q is t + [a ∈ A] for some set A of axes. In few dimensions, where
many simplices share a vertex, the ways of all 2^{d+1} sets are followed from each vertex; in many, only
those that occur, from the corners of each simplex.

(This is the self term that Krähenbühl and Koltun's code leaves in. Subtracting the input instead of it is
wrong under every normalisation.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxel.blur import AxisBlur

__all__ = ["corner_kernel", "corner_sets", "follows_all_sets"]

_CHUNK_WAYS = 1 << 16


def corner_kernel(
    cell_vertices: Tensor,  # (M, P) the vertex at each corner of each simplex
    rank: Tensor,  # (M, P) the rank of each coordinate, which tells the simplex's shape
    blurs: Sequence[AxisBlur],  # one for each of the P axes
    order: int,
) -> Tensor:
    """Return B[v_p, v_q] for all corners p, q of each simplex: (M, P, P)."""
    cell_vertices = cell_vertices.to(torch.int64)
    cells, corners = cell_vertices.shape
    tables = [_padded(blur) for blur in blurs]
    if follows_all_sets(rank, blurs[0].taps.shape[0]):
        return _kernel_by_sets(cell_vertices, rank, _ways_of_all_sets(tables, order))
    kernel = blurs[0].taps.new_empty((cells, corners, corners))
    step = max(1, _CHUNK_WAYS // corners**2)
    for start in range(0, cells, step):
        chunk = slice(start, start + step)
        kernel[chunk] = _kernel_by_ways(cell_vertices[chunk], rank[chunk], tables, order)
    return kernel


def follows_all_sets(rank: Tensor, vertices: int, margin: int = 1) -> bool:
    """Return whether all sets have fewer ways from each vertex than `margin` times those between corners."""
    cells, corners = rank.shape
    return vertices > 0 and 2**corners * vertices <= margin * cells * corners**2


def _padded(blur: AxisBlur) -> tuple[Tensor, Tensor]:
    """Flatten a blur's table, with "nowhere" as vertex 0, and one more step at both ends that leads there.

    Row 1 + v, column n + 1 + s, belongs to s steps from v, for |s| ≤ n + 1. Going s steps from u takes the
    blur's entry B[u + s, u], which equals B[u, u + s], the one in the table: B is symmetric.
    """
    pad = torch.nn.functional.pad
    neighbours = pad(blur.neighbours + 1, (1, 1, 1, 0)).to(torch.int32)
    return neighbours.reshape(-1), pad(blur.taps, (1, 1, 1, 0)).reshape(-1)


def _ways_of_all_sets(tables: Sequence[tuple[Tensor, Tensor]], order: int) -> Tensor:
    """Return Σ_t B[v + t·1 + 1_A, v] for every vertex v and every set A of axes: (V, 2^{d+1}).

    Bit d - a of the column says whether axis a is in A. The empty set has one term more than the others:
    the full set, one turn lower, is the same step.
    """
    width = 2 * order + 3
    taps_of_first = tables[0][1]
    vertices = taps_of_first.numel() // width
    total = taps_of_first.new_zeros((vertices - 1, 2 ** len(tables)))
    for turn in range(-order, order):
        step = torch.tensor([turn, turn + 1], dtype=torch.int32, device=total.device) + (order + 1)
        vertex = torch.arange(1, vertices, dtype=torch.int32, device=total.device)[:, None]
        weight = torch.ones_like(vertex, dtype=total.dtype)
        for neighbours, taps in tables:
            place = (vertex[:, :, None] * width + step).flatten()
            weight = (weight[:, :, None] * taps.index_select(0, place).view(*weight.shape, 2)).flatten(1)
            vertex = neighbours.index_select(0, place).view(weight.shape)
        total += weight
        if turn == order - 1:
            total[:, 0] += weight[:, -1]
    return total


def _kernel_by_sets(cell_vertices: Tensor, rank: Tensor, ways: Tensor) -> Tensor:
    """Look B[v_p, v_q] up among the ways of all sets."""
    sets = corner_sets(rank)
    place = cell_vertices[:, None, :] * 2 ** rank.shape[1] + sets
    return ways.reshape(-1).index_select(0, place.reshape(-1)).view(sets.shape)


def corner_sets(rank: Tensor) -> Tensor:
    """Return the set of axes that lead from corner q to corner p by one step along each: (M, P, P) int32.

    Bit d - a of an entry says whether axis a is in the set. The way from a corner to itself is the empty set;
    every other set is that of one pair of corners at most.
    """
    corners = rank.shape[1]
    everything = 2**corners - 1
    axis_bit = 1 << torch.arange(corners - 1, -1, -1, dtype=torch.int32, device=rank.device)
    remainder = torch.arange(corners, device=rank.device)[:, None]
    # (M, P): the set of axes along which corner k lies one step behind corner 0; larger k, larger set.
    behind = ((rank[:, None, :] > (corners - 1 - remainder)) * axis_bit).sum(2, dtype=torch.int32)
    target, source = behind[:, :, None], behind[:, None, :]
    return torch.where(remainder <= remainder.T, source & ~target, everything ^ (target & ~source))


def _kernel_by_ways(
    cell_vertices: Tensor, rank: Tensor, tables: Sequence[tuple[Tensor, Tensor]], order: int
) -> Tensor:
    """Follow the ways between the corners of each simplex."""
    corners = cell_vertices.shape[1]
    remainder = torch.arange(corners, device=rank.device)[:, None]
    offset = -(rank[:, None, :] > (corners - 1 - remainder)).to(torch.int32)  # (m, P, A) δ_k
    # With the pairs p < q taken one turn lower, the same 2 · order turns hold every way, but for one more
    # between a corner and itself.
    lower = (remainder < remainder.T).to(torch.int32)
    centre = order + 1
    steps = [offset[:, :, None, a] - offset[:, None, :, a] + (centre - lower) for a in range(corners)]
    start = (cell_vertices[:, None, :] + 1).to(torch.int32).expand(-1, corners, -1)

    kernel = tables[0][1].new_zeros(start.shape)
    for turn in range(1 - order, order + 1):
        kernel += _follow(start, [step + turn for step in steps], tables, order)
    once_around = [torch.full_like(start[:, 0], centre - order)] * corners
    kernel.diagonal(dim1=1, dim2=2).add_(_follow(start[:, 0], once_around, tables, order))
    return kernel


def _follow(
    vertex: Tensor, steps: Sequence[Tensor], tables: Sequence[tuple[Tensor, Tensor]], order: int
) -> Tensor:
    """Return the product of the taps on the way from each vertex by the given steps along each axis."""
    width = 2 * order + 3
    weight = torch.ones_like(vertex, dtype=tables[0][1].dtype)
    for (neighbours, taps), step in zip(tables, steps, strict=True):
        place = torch.add(step.clamp(0, width - 1), vertex, alpha=width).reshape(-1)
        weight = weight * taps.index_select(0, place).view(vertex.shape)
        vertex = neighbours.index_select(0, place).view(vertex.shape)
    return weight
