"""The simplex of the permutohedral lattice around a point, and the point's barycentric weights.

Let e be an elevated point: d + 1 coordinates that sum to zero. Rounding each coordinate to the nearest
multiple of d + 1, and mending those whose rounding was the worst until they sum to zero, gives the
closest remainder-0 vertex (d+1)·b. The ranks of the differences Δ = e - (d+1)·b, largest first, say
which of the (d+1)! simplices around that vertex holds the point. Its corner with remainder k is

    v_k = (d+1)·b + k·1 - (d+1)·[rank > d - k],        k = 0 … d,

and the weight of that corner is (Δ_(d-k) - Δ_(d-k+1)) / (d+1), with Δ_(r) the difference of rank r; the
weight of v_0 makes them sum to one.

Reference: Adams, Baek, Davis 2010, sections 3.1 and 3.2 and appendix A (after Conway and Sloane,
Sphere Packings, Lattices and Groups, chapter 20).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["barycentric_weights", "corner_coordinates", "enclosing_simplex"]

# Half-way through the computation, ranks lie from -d to 2d: far within a byte up to here.
_LARGEST_BYTE_SIZE = 41


def enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """Find the simplex around each point.

    Args:
        elevated: (d+1, N) points of H_d.

    Returns:
        base: (d+1, N) int32, the multiples b; each column sums to zero.
        rank: (d+1, N) int8 (int16 in more than 40 dimensions), each column a permutation of 0 … d.
    """
    size = elevated.shape[0]
    base = torch.round(elevated * (1 / size))
    difference = torch.sub(elevated, base, alpha=size)
    base = base.to(torch.int32)
    excess = base.sum(0, dtype=torch.int32)

    integer = torch.int8 if size <= _LARGEST_BYTE_SIZE else torch.int16
    # Each one behind all that follow it, to begin with; then every pair is put in its order.
    first_ranks = torch.arange(size - 1, -1, -1, dtype=integer, device=elevated.device)
    rank = first_ranks[:, None].repeat(1, elevated.shape[1])
    for i in range(size - 1):
        for j in range(i + 1, size):
            first_is_larger = (difference[i] >= difference[j]).view(torch.int8)
            rank[j] += first_is_larger
            rank[i] -= first_is_larger

    # Where the b sum to s ≠ 0, the s coordinates that were rounded up the most go down by one (up, for
    # s < 0), and by that move to the other end of the ranking.
    rank += excess.to(integer)
    below, above = rank < 0, rank >= size
    base += below.to(torch.int32) - above.to(torch.int32)
    rank += size * (below.to(integer) - above.to(integer))
    return base, rank


def barycentric_weights(elevated: Tensor, base: Tensor, rank: Tensor) -> Tensor:
    """Return the (N, d+1) weights of the corners with remainder 0 … d; they sum to one.

    Differentiable in `elevated`, piecewise linearly: `base` and `rank` are constant within a simplex.
    """
    size = elevated.shape[0]
    difference = elevated - size * base.to(elevated.dtype)
    by_rank = torch.zeros_like(difference).scatter(0, rank.to(torch.int64), difference)
    steps = (by_rank[:-1] - by_rank[1:]) / size  # (d, N); row r separates the ranks r and r + 1
    rest = 1 - (by_rank[:1] - by_rank[-1:]) / size
    return torch.cat([rest, steps.flip(0)]).T.contiguous()


def corner_coordinates(base: Tensor, rank: Tensor) -> Tensor:
    """Return the corners of simplices, without their last coordinate, which the others imply.

    Args:
        base: (M, d) int32, the first d multiples b of each simplex.
        rank: (M, d) integers, the first d ranks of each simplex.

    Returns:
        (d+1, M, d) int32; corner k has the remainder k.
    """
    size = base.shape[1] + 1
    remainder = torch.arange(size, dtype=torch.int32, device=base.device)[:, None]
    # Computed as (d, d+1, M), so that the long dimension is the one that runs fastest.
    wraps = rank.T[:, None, :] > (size - 1 - remainder)
    return (size * (base.T[:, None, :] - wraps.to(torch.int32)) + remainder).permute(1, 2, 0)
