"""The d-cube grid against dense and dictionary oracles; what all filters share is in the filter contract."""

import math
from functools import reduce

import pytest
import torch
from oracles import DictionaryFilter, cloud

from voxel import VoxelGrid


def full_grid(cells, dimension, order, device):
    """Return one point in each of cells^d voxels, so that every voxel corner of a box is occupied."""
    places = torch.cartesian_prod(*[torch.arange(cells)] * dimension).reshape(-1, dimension)
    inside = torch.rand(places.shape, dtype=torch.float64)
    return ((places + inside) / math.sqrt(order / 2 + 1 / 3)).to(device)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("dimension", "cells"), [(1, 9), (2, 5), (3, 3)])
def test_linear_equals_the_dense_tensor_product(device, dimension, cells, order):
    features = full_grid(cells, dimension, order, device)
    grid = VoxelGrid(features, order=order, interpolation="linear")
    corners = cells + 1
    assert grid.num_vertices == corners**dimension

    scaled = features.cpu() * math.sqrt(order / 2 + 1 / 3)
    hats = (1 - (scaled[:, :, None] - torch.arange(corners)).abs()).clamp_min(0)  # (N, d, corners)
    splat = hats[:, 0]
    for axis in range(1, dimension):
        splat = (splat[:, :, None] * hats[:, axis, None, :]).flatten(1)
    ones = torch.ones(corners - 1, dtype=torch.float64)
    line = torch.diag(ones / 4, 1) + torch.diag(ones / 4, -1) + torch.eye(corners, dtype=torch.float64) / 2
    blur = reduce(torch.kron, [torch.linalg.matrix_power(line, order)] * dimension)
    expected = (2 * math.pi * (order / 2 + 1 / 3)) ** (dimension / 2) * splat @ blur @ splat.T

    values = cloud(len(features), 3, seed=1)
    # Worst seen: 2.2e-15.
    torch.testing.assert_close(
        grid.filter(values.to(device)).cpu(), expected @ values, rtol=1e-13, atol=1e-12
    )


@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_linear_equals_the_dictionary(device, dimension, order, halo):
    features, values = cloud(8, dimension, spread=2.0), cloud(8, 2, seed=1)
    query = torch.cat([features[:3] + 0.3, features[:1] + 50])
    oracle = DictionaryFilter("cube", features, order, halo)
    grid = VoxelGrid(features.to(device), order=order, halo=halo, interpolation="linear")
    assert {tuple(row) for row in grid.index.coordinates.tolist()} == oracle.vertices
    assert grid.num_vertices == len(oracle.vertices)
    result = grid.filter(values.to(device)).cpu()
    torch.testing.assert_close(result, oracle.filter(values), rtol=1e-13, atol=1e-12)
    queried = grid.filter(values.to(device), query=query.to(device)).cpu()
    torch.testing.assert_close(queried, oracle.filter(values, query), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dimension", [1, 2, 3, 6, 9])
def test_nearest_equals_the_explicit_sum(device, dimension, order):
    features, values = cloud(60, dimension), cloud(60, 3, seed=1)
    query = torch.cat([features[:5], features[:1] + 50])
    edge = 1 / (2 * order)
    variance = 1 - edge**2 / 6

    def kernel(rows):
        voxels, others = torch.floor(rows / edge), torch.floor(features / edge)
        squared = (edge * (voxels[:, None] - others)).square().sum(2)
        return torch.exp(-squared / (2 * variance)) * (squared <= 9 + 1e-9) * variance ** (-dimension / 2)

    grid = VoxelGrid(features.to(device), order=order, interpolation="nearest")
    result = grid.filter(values.to(device)).cpu()
    torch.testing.assert_close(result, kernel(features) @ values, rtol=1e-12, atol=1e-12)
    queried = grid.filter(values.to(device), query=query.to(device)).cpu()
    torch.testing.assert_close(queried, kernel(query) @ values, rtol=1e-12, atol=1e-12)
    assert torch.equal(queried[5], torch.zeros(3, dtype=torch.float64))


def test_nearest_is_constant_within_a_voxel(device):
    features = (torch.tensor([[0.1, 0.1], [0.7, 0.2], [-0.3, 1.2]], dtype=torch.float64)).to(device)
    values = cloud(3, 2, device=device)
    moved = VoxelGrid(features + 0.05, interpolation="nearest")
    assert torch.equal(VoxelGrid(features, interpolation="nearest").filter(values), moved.filter(values))


@pytest.mark.parametrize(("dimension", "linear"), [(1, True), (6, True), (7, False), (9, False), (12, False)])
def test_interpolation_is_chosen_by_dimension(device, dimension, linear):
    features, values = cloud(20, dimension, spread=0.2, device=device), cloud(20, 2, seed=1, device=device)
    chosen = VoxelGrid(features)
    assert chosen.linear == linear
    named = VoxelGrid(features, interpolation="linear" if linear else "nearest")
    assert torch.equal(chosen.filter(values), named.filter(values))
    assert (chosen.degree() >= chosen.diagonal()).all()


@pytest.mark.parametrize(
    ("dimension", "options", "message"),
    [
        (7, {"interpolation": "linear"}, "`interpolation` must be 'nearest' for d = 7"),
        (2, {"interpolation": "cubic"}, "`interpolation` must be one of 'linear', 'nearest', got 'cubic'"),
        (2, {"interpolation": "nearest", "halo": 1}, "`halo` must be 0 with nearest interpolation"),
        (7, {"halo": 2}, "`halo` must be 0 with nearest interpolation"),
    ],
)
def test_errors(dimension, options, message):
    with pytest.raises(ValueError, match=message):
        VoxelGrid(cloud(5, dimension), **options)


def test_repr():
    assert repr(VoxelGrid(torch.zeros(5, 2))) == "VoxelGrid(5 points, 4 vertices, d=2, order=1, halo=0)"
