"""Unique rows and look-up of integer coordinates, in any dimension and range."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxel import CoordinateIndex, coordinate_index, unique_rows

WIDE = 2**31 - 1


@st.composite
def coordinate_sets(draw):
    """Draw rows of D = 1 … 20 integers: a few close values, so that rows repeat, or all of int32."""
    dimension = draw(st.integers(1, 20))
    reach = draw(st.sampled_from([1, 3, WIDE]))
    row = st.lists(st.integers(-reach - 1, reach), min_size=dimension, max_size=dimension)
    rows = draw(st.lists(row, min_size=1, max_size=12))
    repeats = draw(st.lists(st.sampled_from(rows), max_size=4))
    return torch.tensor(rows + repeats, dtype=torch.int32)


def wide_rows(count, dimension=12, seed=0):
    """Return rows whose extents multiply to more than 2⁶³, so that their keys are hashes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-WIDE - 1, WIDE, (count, dimension), generator=generator).to(torch.int32)


@pytest.fixture
def first_hash_collides(monkeypatch):
    """Give all rows the same key at the first attempt; return the list of attempts made."""
    attempts = []

    class Colliding(coordinate_index._LinearKey):
        def __init__(self, coordinates, attempt):
            super().__init__(coordinates, attempt)
            attempts.append(attempt)
            if attempt == 0:
                self.multipliers = [0] * len(self.multipliers)

    monkeypatch.setattr(coordinate_index, "_LinearKey", Colliding)
    return attempts


class TestUniqueRows:
    @given(coordinates=coordinate_sets())
    def test_equals_a_set(self, coordinates):
        distinct, inverse = unique_rows(coordinates)
        rows = [tuple(row) for row in distinct.tolist()]
        assert len(rows) == len(set(rows))
        assert set(rows) == {tuple(row) for row in coordinates.tolist()}
        assert torch.equal(distinct[inverse], coordinates)

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_without_columns(self, count):
        distinct, inverse = unique_rows(torch.empty(count, 0, dtype=torch.int32))
        assert distinct.shape == (min(1, count), 0)
        assert torch.equal(inverse, torch.zeros(count, dtype=torch.int64))

    def test_empty(self):
        distinct, inverse = unique_rows(torch.empty(0, 3, dtype=torch.int32))
        assert distinct.shape == (0, 3)
        assert inverse.shape == (0,)

    def test_wide_range(self, device):
        rows = wide_rows(1000).to(device)
        distinct, inverse = unique_rows(rows.repeat(3, 1))
        assert len(distinct) == 1000
        assert torch.equal(distinct[inverse], rows.repeat(3, 1))

    def test_int64_range(self):
        # The extents themselves overflow int64 here.
        coordinates = torch.tensor([[-(2**63), 0], [0, 0], [2**63 - 1, 5]])
        distinct, inverse = unique_rows(coordinates)
        assert len(distinct) == 3
        assert torch.equal(distinct[inverse], coordinates)

    def test_collision_is_resolved(self, first_hash_collides):
        rows = wide_rows(50)
        distinct, inverse = unique_rows(rows)
        assert first_hash_collides == [0, 1]
        assert len(distinct) == 50
        assert torch.equal(distinct[inverse], rows)


class TestCoordinateIndex:
    @given(coordinates=coordinate_sets(), data=st.data())
    def test_equals_a_dictionary(self, coordinates, data):
        stored = [list(row) for row in {tuple(row): None for row in coordinates.tolist()}]
        index = CoordinateIndex(torch.tensor(stored, dtype=torch.int32))
        near = st.sampled_from(stored).map(lambda row: [row[0] ^ 1, *row[1:]])
        anywhere = st.lists(st.integers(-WIDE - 1, WIDE), min_size=len(stored[0]), max_size=len(stored[0]))
        queries = data.draw(st.lists(st.sampled_from(stored) | near | anywhere, min_size=1, max_size=10))
        dictionary = {tuple(row): i for i, row in enumerate(stored)}
        expected = [dictionary.get(tuple(query), -1) for query in queries]
        assert index.lookup(torch.tensor(queries, dtype=torch.int32)).tolist() == expected

    def test_wide_range(self, device):
        stored, absent = wide_rows(1000).to(device), wide_rows(1000, seed=1).to(device)
        index = CoordinateIndex(stored)
        assert len(index) == 1000
        assert torch.equal(index.lookup(stored), torch.arange(1000, device=device))
        assert (index.lookup(absent) == -1).all()

    def test_row_with_the_key_of_another_is_absent(self):
        # Extents 3 and 5: the key of (x, y) is 5x + y, so (0, 5) has that of (1, 0).
        index = CoordinateIndex(torch.cartesian_prod(torch.arange(3), torch.arange(5)))
        assert index.lookup(torch.tensor([[1, 0], [0, 5], [1, -1], [2, 5], [-1, 4]])).tolist() == [
            5, -1, -1, -1, -1,
        ]  # fmt: skip

    def test_collision_is_resolved(self, first_hash_collides):
        rows = wide_rows(50)
        index = CoordinateIndex(rows)
        assert first_hash_collides == [0, 1]
        assert torch.equal(index.lookup(rows), torch.arange(50))

    def test_endless_collisions_are_an_error(self, monkeypatch):
        monkeypatch.setattr(
            coordinate_index._LinearKey,
            "__call__",
            lambda _self, rows: torch.zeros(len(rows), dtype=torch.int64),
        )
        with pytest.raises(RuntimeError, match="collided"):
            CoordinateIndex(wide_rows(3))
        with pytest.raises(RuntimeError, match="collided"):
            unique_rows(wide_rows(3))

    @pytest.mark.parametrize("rows", [[[1, -2], [0, 0], [1, -2]], [[5] * 20, [-WIDE] * 20, [5] * 20]])
    def test_duplicates_are_named(self, rows):
        with pytest.raises(ValueError, match="rows 0 and 2"):
            CoordinateIndex(torch.tensor(rows))

    def test_duplicate_among_collisions_is_named(self, first_hash_collides):
        with pytest.raises(ValueError, match="rows 1 and 50"):
            CoordinateIndex(torch.cat([wide_rows(50), wide_rows(50)[1:2]]))

    def test_empty(self):
        empty = torch.empty(0, 3, dtype=torch.int32)
        assert len(CoordinateIndex(empty)) == 0
        assert CoordinateIndex(empty).lookup(torch.zeros(2, 3, dtype=torch.int32)).tolist() == [-1, -1]
        assert CoordinateIndex(torch.zeros(1, 3, dtype=torch.int32)).lookup(empty).shape == (0,)
