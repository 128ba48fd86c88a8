"""Kernel offsets, kernel maps and pairs within a radius, against brute force."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxel import CoordinateIndex, kernel_map, kernel_offsets, neighbours, pairs_within


@st.composite
def voxels(draw):
    """Draw distinct (V, 1 + D) coordinates, D = 1 … 6, in up to three batches."""
    dimension = draw(st.integers(1, 6))
    row = st.tuples(st.integers(0, 2), *[st.integers(-3, 3)] * dimension)
    rows = draw(st.lists(row, min_size=1, max_size=30, unique=True))
    return torch.tensor(rows, dtype=torch.int32)


def brute_pairs(coordinates, radius):
    rows = coordinates.tolist()
    found = set()
    for i, j in itertools.product(range(len(rows)), repeat=2):
        squared = sum((x - y) ** 2 for x, y in zip(rows[i][1:], rows[j][1:], strict=True))
        if rows[i][0] == rows[j][0] and squared <= radius**2 + 1e-9:
            found.add((i, j, squared))
    return found


def found_pairs(coordinates, radius):
    first, second, squared = (part.tolist() for part in pairs_within(coordinates, radius))
    assert first == sorted(first)
    pairs = list(zip(first, second, squared, strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_cube_offsets(dimension, size):
    reach = range(-(size // 2), size // 2 + 1)
    expected = list(itertools.product(reach, repeat=dimension))
    assert [tuple(row) for row in kernel_offsets(size, dimension, "cube").tolist()] == expected


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_cross_offsets_are_those_of_the_cube_along_one_axis(dimension, size):
    cube = {tuple(row) for row in kernel_offsets(size, dimension, "cube").tolist()}
    cross = [tuple(row) for row in kernel_offsets(size, dimension, "cross").tolist()]
    assert len(cross) == len(set(cross)) == dimension * (size - 1) + 1
    assert set(cross) == {row for row in cube if sum(x != 0 for x in row) <= 1}


@pytest.mark.parametrize("shape", ["cube", "cross"])
def test_dilation_spaces_the_offsets(shape):
    assert torch.equal(kernel_offsets(3, 3, shape, 4), 4 * kernel_offsets(3, 3, shape))


def test_dilation_does_not_wrap_around():
    assert kernel_offsets(5, 1, "cube", 2**31 - 1).flatten().tolist() == [
        step * (2**31 - 1) for step in range(-2, 3)
    ]
    for dilation in (2**31, 2**63, 2**64 + 1):
        with pytest.raises(ValueError, match="`dilation` must be at most 2147483647, got"):
            kernel_offsets(3, 2, "cross", dilation)


@given(coordinates=voxels())
def test_kernel_map_equals_brute_force(coordinates):
    offsets = kernel_offsets(3, coordinates.shape[1] - 1, "cross", 2)
    rows = {tuple(row): i for i, row in enumerate(coordinates.tolist())}
    maps = kernel_map(CoordinateIndex(coordinates), offsets)
    assert len(maps) == len(offsets)
    for offset, (source, target) in zip(offsets.tolist(), maps, strict=True):
        expected = set()
        for row, i in rows.items():
            j = rows.get((row[0], *[x + o for x, o in zip(row[1:], offset, strict=True)]))
            if j is not None:
                expected.add((j, i))
        assert len(source) == len(target) == len(expected)
        assert set(zip(source.tolist(), target.tolist(), strict=True)) == expected


@pytest.mark.parametrize("dimension", [1, 2, 4])
@pytest.mark.parametrize("size", [2, 4])
def test_offsets_of_even_kernels_start_at_zero(dimension, size):
    cube = [tuple(row) for row in kernel_offsets(size, dimension, "cube").tolist()]
    assert cube == list(itertools.product(range(size), repeat=dimension))
    cross = {tuple(row) for row in kernel_offsets(size, dimension, "cross").tolist()}
    assert cross == {row for row in cube if sum(x != 0 for x in row) <= 1}
    assert len(cross) == dimension * (size - 1) + 1


@given(coordinates=voxels(), others=st.data(), stride=st.integers(1, 3), size=st.integers(1, 3))
def test_strided_kernel_map_equals_brute_force(coordinates, others, stride, size):
    dimension = coordinates.shape[1] - 1
    row = st.tuples(st.integers(0, 2), *[st.integers(-2, 2)] * dimension)
    outputs = others.draw(st.lists(row, max_size=20, unique=True))
    offsets = kernel_offsets(size, dimension, "cross")
    rows = {tuple(row): i for i, row in enumerate(coordinates.tolist())}
    given_outputs = torch.tensor(outputs, dtype=torch.int32).reshape(-1, 1 + dimension)
    maps = kernel_map(CoordinateIndex(coordinates), offsets, coordinates=given_outputs, stride=stride)
    for offset, (source, target) in zip(offsets.tolist(), maps, strict=True):
        expected = set()
        for i, (batch, *output) in enumerate(outputs):
            j = rows.get((batch, *[stride * x + o for x, o in zip(output, offset, strict=True)]))
            if j is not None:
                expected.add((j, i))
        assert len(source) == len(target) == len(expected)
        assert set(zip(source.tolist(), target.tolist(), strict=True)) == expected


def test_kernel_map_of_lopsided_offsets():
    # No offset but zero is there with its negative.
    coordinates = torch.tensor([[0, 0], [0, 1], [0, 3]])
    maps = kernel_map(CoordinateIndex(coordinates), torch.tensor([[1], [0], [-3]]))
    pairs = [set(zip(source.tolist(), target.tolist(), strict=True)) for source, target in maps]
    assert pairs == [{(1, 0)}, {(0, 0), (1, 1), (2, 2)}, {(0, 2)}]


def test_kernel_map_by_hashes():
    # Extents that multiply to more than 2⁶³, so that keys are hashes.
    coordinates = torch.randint(-(2**31), 2**31 - 2, (50, 6))
    coordinates = torch.cat([coordinates, coordinates + torch.tensor([0, 1, 1, 1, 1, 1])])
    (source, target), (back, forth) = kernel_map(
        CoordinateIndex(coordinates.int()), torch.tensor([[1] * 5, [-1] * 5])
    )
    assert (target.sort()[0].tolist(), (source - target).tolist()) == (list(range(50)), [50] * 50)
    assert (torch.equal(back, target), torch.equal(forth, source)) == (True, True)


def test_kernel_map_does_not_wrap_around_int32():
    ends = torch.tensor([[0, -(2**31)], [0, 2**31 - 1]], dtype=torch.int32)
    maps = kernel_map(CoordinateIndex(ends), kernel_offsets(3, 1, "cube"))
    assert [len(source) for source, _target in maps] == [0, 2, 0]


@given(coordinates=voxels(), radius=st.sampled_from([0.0, 0.9, 1.0, 2.0**0.5, 2.5, 3.0, 20.0]))
def test_pairs_equal_brute_force(coordinates, radius):
    assert found_pairs(coordinates, radius) == brute_pairs(coordinates, radius)


def test_pairs_across_blocks(device, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 7)
    coordinates = torch.randint(0, 5, (60, 4), dtype=torch.int32).unique(dim=0)
    coordinates = coordinates[torch.randperm(len(coordinates))]
    assert found_pairs(coordinates.to(device), 2.0) == brute_pairs(coordinates, 2.0)


def test_pairs_in_high_dimension():
    coordinates = torch.randint(-1, 2, (80, 13), dtype=torch.int32).unique(dim=0)
    assert found_pairs(coordinates, 2.5) == brute_pairs(coordinates, 2.5)


def test_pairs_at_the_ends_of_int32():
    ends = torch.tensor([[0, -(2**31)], [0, 2**31 - 1]], dtype=torch.int32)
    assert found_pairs(ends, 3.0) == {(0, 0, 0), (1, 1, 0)}


def test_no_pairs_among_no_voxels():
    assert found_pairs(torch.empty(0, 3, dtype=torch.int32), 2.0) == set()
