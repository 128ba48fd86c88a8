"""The separable blur ¼ ½ ¼, and the halo."""

import pytest
import torch
from oracles import blur_matrix, grown, simplex_axes

from voxel import CoordinateIndex
from voxel.blur import AxisBlur, axis_links, grow

STEPS = {"grid": (0, 1), "permutohedral": (2, -1), "diagonal": (-1, 1)}


def with_gaps(device):
    """Return about half of the points of a 7 × 7 square, in no order."""
    square = torch.cartesian_prod(torch.arange(-3, 4), torch.arange(-3, 4))
    return (
        square[torch.randperm(49, generator=torch.Generator().manual_seed(0))[:28]].to(torch.int32).to(device)
    )


def blur(coordinates, step, order):
    step = torch.tensor(step, device=coordinates.device)
    return AxisBlur.of(axis_links(CoordinateIndex(coordinates), step), order, torch.float64)


def dense(axis_blur):
    size = len(axis_blur.taps)
    return axis_blur.matrix().product(torch.eye(size, dtype=torch.float64, device=axis_blur.taps.device))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_oracle_multiplied_order_times(device, step, order):
    coordinates = with_gaps(device)
    expected = torch.linalg.matrix_power(blur_matrix(coordinates, step), order)
    # Every entry is a multiple of 4⁻⁵: exact.
    assert torch.equal(dense(blur(coordinates, step, order)).cpu(), expected)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_table_holds_the_matrix_entries(order):
    coordinates = with_gaps("cpu")
    axis_blur = blur(coordinates, (0, 1), order)
    assert axis_blur.taps.shape == axis_blur.neighbours.shape == (28, 2 * order + 1)
    expected = torch.linalg.matrix_power(blur_matrix(coordinates, (0, 1)), order)
    for vertex in range(28):
        for column, neighbour in enumerate(axis_blur.neighbours[vertex].tolist()):
            entry = 0.0 if neighbour < 0 else float(expected[vertex, neighbour])
            assert float(axis_blur.taps[vertex, column]) == entry


@pytest.mark.parametrize("order", [1, 2, 3])
def test_symmetric(order):
    matrix = dense(blur(with_gaps("cpu"), (2, -1), order))
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_interior_is_a_binomial_kernel_and_keeps_constants(order):
    line = torch.arange(-10, 11, dtype=torch.int32)[:, None]
    matrix = dense(blur(line, (1,), order))
    binomial = torch.tensor([1.0], dtype=torch.float64)
    for _ in range(2 * order):
        binomial = (
            torch.nn.functional.pad(binomial, (1, 0)) / 2 + torch.nn.functional.pad(binomial, (0, 1)) / 2
        )
    assert torch.equal(matrix[10, 10 - order : 11 + order], binomial)
    assert torch.equal(matrix[order:-order].sum(1), torch.ones(21 - 2 * order, dtype=torch.float64))
    assert (matrix[:order].sum(1) < 1).all()


def test_mass_never_crosses_a_gap():
    line = torch.tensor([[0], [1], [3], [4]], dtype=torch.int32)
    matrix = dense(blur(line, (1,), 3))
    assert torch.equal(matrix[:2, 2:], torch.zeros(2, 2, dtype=torch.float64))


def test_single_vertex_keeps_half_of_itself_a_round():
    assert dense(blur(torch.tensor([[7, -7]], dtype=torch.int32), (1, 0), 3)).item() == 0.5**3


def test_no_vertices():
    assert dense(blur(torch.empty(0, 2, dtype=torch.int32), (1, 0), 2)).shape == (0, 0)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("rings", [0, 1, 2, 3])
def test_grow_equals_the_oracle(device, dimension, rings):
    coordinates = torch.randint(-6, 6, (5, dimension), dtype=torch.int32).unique(dim=0).to(device)
    axes = simplex_axes(dimension - 1) if dimension > 1 else [(1,)]
    result = grow(coordinates, torch.tensor(axes, device=device), rings)
    rows = [tuple(row) for row in result.tolist()]
    assert len(rows) == len(set(rows))
    assert set(rows) == grown({tuple(row) for row in coordinates.tolist()}, axes, rings)
    assert result.dtype == torch.int64


def test_grow_nothing():
    assert grow(torch.empty(0, 2, dtype=torch.int32), torch.eye(2, dtype=torch.int64), 2).shape == (0, 2)
