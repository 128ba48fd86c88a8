"""Integer coordinates of any dimension: unique rows, and look-up of one row among many.

A coordinate x of D integers becomes one 64-bit key that is linear in x,

    key(x) = Σ_j m_j (x_j - o_j)   (mod 2⁶⁴).

If the extents of the coordinates multiply to less than 2⁶³, the m_j are the strides of a mixed radix
and the key is exact. Otherwise, which happens in high dimensions only, the m_j are random odd numbers:
the key is then a hash, equal keys are compared coordinate by coordinate, and a collision draws new
multipliers. So there is no limit on D, and nothing ever wraps around unseen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["CoordinateIndex", "unique_rows"]

_EXACT_LIMIT = 2**63 - 1
_HASH_ATTEMPTS = 16


class _LinearKey:
    """The linear key of a set of coordinates; `attempt` chooses the multipliers of a hash."""

    def __init__(self, coordinates: Tensor, attempt: int) -> None:
        # In Python's integers: over the whole range of int64, an extent is more than int64 holds.
        self.origin: list[int] = coordinates.amin(0).tolist()
        highest: list[int] = coordinates.amax(0).tolist()
        extents = [high - low + 1 for low, high in zip(self.origin, highest, strict=True)]
        self.exact = math.prod(extents) <= _EXACT_LIMIT
        if self.exact:
            self.multipliers = [math.prod(extents[j + 1 :]) for j in range(len(extents))]
        else:
            generator = torch.Generator().manual_seed(attempt)
            bounds = torch.iinfo(torch.int64)
            draws = torch.randint(bounds.min, bounds.max, (len(extents),), generator=generator)
            self.multipliers = (draws | 1).tolist()

    def __call__(self, coordinates: Tensor) -> Tensor:
        pairs = zip(self.multipliers, self.origin, strict=True)
        offset = -sum(multiplier * origin for multiplier, origin in pairs)
        offset = (offset + 2**63) % 2**64 - 2**63  # as int64 wraps around
        key = torch.full(coordinates.shape[:1], offset, dtype=torch.int64, device=coordinates.device)
        for j, multiplier in enumerate(self.multipliers):
            key.add_(coordinates[:, j], alpha=multiplier)
        return key


def unique_rows(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of a matrix of integers, and where each row went.

    Args:
        coordinates: (N, D) integers.

    Returns:
        The (V, D) distinct rows, ordered by their key, and the (N,) int64 index of each input row in them.
    """
    if coordinates.shape[0] == 0 or coordinates.shape[1] == 0:
        count = min(1, coordinates.shape[0])
        inverse = torch.zeros(coordinates.shape[0], dtype=torch.int64, device=coordinates.device)
        return coordinates[:count], inverse
    for attempt in range(_HASH_ATTEMPTS):
        key = _LinearKey(coordinates, attempt)
        distinct, inverse = torch.unique(key(coordinates), return_inverse=True)
        rows = torch.arange(coordinates.shape[0], device=coordinates.device)
        # Rows that share a key are equal, so whichever of them ends up as the representative will do.
        representative = torch.empty_like(distinct).scatter_(0, inverse, rows)
        unique = torch.stack([column[representative] for column in coordinates.unbind(1)]).T
        if key.exact or bool((unique.index_select(0, inverse) == coordinates).all()):
            return unique, inverse
    raise RuntimeError(f"{_HASH_ATTEMPTS} independent 64-bit hashes of the coordinates collided")


class CoordinateIndex:
    """Finds coordinates among V distinct ones.

    Args:
        coordinates: (V, D) integers, no row twice.

    Raises:
        ValueError: If a row occurs twice.
    """

    def __init__(self, coordinates: Tensor) -> None:
        self.coordinates = coordinates
        if coordinates.shape[0] == 0:
            return
        for attempt in range(_HASH_ATTEMPTS):
            self._key = _LinearKey(coordinates, attempt)
            self._sorted_keys, self._order = torch.sort(self._key(coordinates), stable=True)
            same = torch.nonzero(self._sorted_keys[1:] == self._sorted_keys[:-1])
            if len(same) == 0:
                return
            first, second = (self._order[same[0] + i] for i in range(2))
            if bool((coordinates[first] == coordinates[second]).all()):
                raise ValueError(
                    f"coordinates must be distinct, but rows {int(first)} and {int(second)} are both "
                    f"{coordinates[first][0].tolist()}; merge them first, for example with unique_rows"
                )
        raise RuntimeError(f"{_HASH_ATTEMPTS} independent 64-bit hashes of the coordinates collided")

    def __len__(self) -> int:
        return self.coordinates.shape[0]

    def lookup(self, coordinates: Tensor) -> Tensor:
        """Return the (M,) int64 rows at which (M, D) `coordinates` are stored, -1 where they are not."""
        if len(self) == 0 or coordinates.shape[0] == 0:
            return torch.full(coordinates.shape[:1], -1, dtype=torch.int64, device=coordinates.device)
        place = torch.searchsorted(self._sorted_keys, self._key(coordinates)).clamp_(max=len(self) - 1)
        row = self._order[place]
        # Compared in full: a query outside the stored extents may share the key of a stored row.
        found = torch.ones_like(row, dtype=torch.bool)
        for j in range(coordinates.shape[1]):
            found &= self.coordinates[:, j][row] == coordinates[:, j]
        return row.masked_fill_(~found, -1)
