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
from collections.abc import Iterator, Sequence

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

    def step(self, offset: Sequence[int]) -> int:
        """Return how the key of a coordinate changes when `offset` is added to it."""
        step = sum(multiplier * x for multiplier, x in zip(self.multipliers, offset, strict=True))
        return (step + 2**63) % 2**64 - 2**63  # as int64 wraps around

    def __call__(self, coordinates: Tensor) -> Tensor:
        offset = self.step([-x for x in self.origin])
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

    def shifted_pairs(
        self, coordinates: Tensor, offsets: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each offset, find the pairs of a stored row and a given row with stored = given + offset.

        Args:
            coordinates: (M, D) int64, distinct, so large only that no sum with an offset wraps around.
            offsets: Lists of D integers.

        Yields:
            Stored rows and given rows, as two equally long int64 vectors that hold no row twice.
        """
        empty = torch.empty(0, dtype=torch.int64, device=coordinates.device)
        if len(self) == 0 or coordinates.shape[0] == 0:
            yield from ((empty, empty) for _ in offsets)
            return
        # The search is faster in order, and an offset moves all the keys alike.
        keys, given_rows = torch.sort(self._key(coordinates))
        for offset in offsets:
            wanted = keys + self._key.step(offset)
            place = torch.searchsorted(self._sorted_keys, wanted).clamp_(max=len(self) - 1)
            hit = torch.nonzero(self._sorted_keys.index_select(0, place) == wanted)[:, 0]
            stored, given = self._order[place[hit]], given_rows[hit]
            # Compared in full, as in `lookup`.
            found = self.coordinates.new_ones(hit.shape, dtype=torch.bool)
            for j, x in enumerate(offset):
                found &= self.coordinates[:, j][stored] == coordinates[:, j][given] + x
            yield stored[found], given[found]
