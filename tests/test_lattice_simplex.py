"""The permutohedral lattice's geometry: elevation, enclosing simplex, barycentric weights, corners."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import cloud, simplex_corners

from lattice import barycentric_weights, corner_coordinates, elevate, enclosing_simplex
from lattice.elevation import elevation_matrix, lattice_scale


@st.composite
def clouds(draw):
    """Draw points with d = 1 … 12, near the origin or far from it, some of them on simplex borders."""
    dimension = draw(st.integers(1, 12))
    spread = draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    points = cloud(20, dimension, seed=draw(st.integers(0, 1000)), spread=spread)
    points[:5] = points[:5].round()
    points[5:8, 1:] = 0
    return points


def geometry(features, order=1):
    """Return the elevated points (N, d+1), their weights, and their corners (N, d+1, d+1)."""
    elevated = elevate(features, order)
    base, rank = enclosing_simplex(elevated)
    weights = barycentric_weights(elevated, base, rank)
    corners = corner_coordinates(base[:-1].T, rank[:-1].T).transpose(0, 1)
    corners = torch.cat([corners, -corners.sum(2, keepdim=True)], 2)
    return elevated.T, weights, corners, base, rank


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 20])
def test_elevation_is_a_similarity_onto_the_plane(device, dimension):
    matrix = elevation_matrix(dimension)
    identity = torch.eye(dimension, dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-15)
    torch.testing.assert_close(matrix.sum(0), torch.zeros(dimension, dtype=torch.float64), rtol=0, atol=1e-14)
    features = cloud(10, dimension, device=device)
    elevated = elevate(features, 2).T
    expected = torch.cdist(features, features) * lattice_scale(dimension, 2)
    torch.testing.assert_close(torch.cdist(elevated, elevated), expected)


def test_scale_of_order_one_is_that_of_adams():
    for dimension in (1, 2, 5):
        assert lattice_scale(dimension, 1) == pytest.approx((dimension + 1) * math.sqrt(2 / 3), rel=1e-15)


@given(features=clouds())
def test_base_and_rank_are_well_formed(features):
    dimension = features.shape[1]
    *_rest, base, rank = geometry(features)
    assert base.dtype == torch.int32
    assert (base.sum(0) == 0).all()
    expected = torch.arange(dimension + 1, dtype=rank.dtype)[:, None].expand_as(rank)
    assert torch.equal(rank.sort(0).values, expected)


@given(features=clouds())
def test_weights_are_barycentric(features):
    elevated, weights, corners, _base, _rank = geometry(features)
    # Rounding could make them negative, but has not been seen to; of the point, it changed 7e-13.
    assert weights.min() >= -1e-12
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-12)
    rebuilt = (weights[:, :, None] * corners).sum(1)
    torch.testing.assert_close(rebuilt, elevated, rtol=1e-12, atol=1e-10)


@given(features=clouds())
def test_corners_are_lattice_vertices_of_each_remainder(features):
    dimension = features.shape[1]
    _elevated, _weights, corners, _base, _rank = geometry(features)
    remainder = torch.arange(dimension + 1, dtype=torch.int32)[None, :, None]
    assert torch.equal(corners.remainder(dimension + 1), remainder.expand_as(corners))
    # Corners of a simplex differ by at most one lattice step in each coordinate.
    assert ((corners.amax(1) - corners.amin(1)) == dimension).all()


@given(features=clouds(), order=st.integers(1, 3))
def test_corners_and_weights_equal_the_oracle(features, order):
    _elevated, weights, corners, _base, _rank = geometry(features, order)
    for point, feature in enumerate(features.tolist()):
        expected = simplex_corners(feature, order)
        found = dict(zip(map(tuple, corners[point].tolist()), weights[point].tolist(), strict=True))
        # A corner of no weight may be that of a neighbouring simplex.
        for corner in expected.keys() | found.keys():
            assert expected.get(corner, 0.0) == pytest.approx(found.get(corner, 0.0), abs=1e-11)


@pytest.mark.parametrize("dimension", [1, 2, 5, 9])
@pytest.mark.parametrize("spread", [1.0, 1000.0])
def test_float32(device, dimension, spread):
    features = cloud(2000, dimension, spread=spread, dtype=torch.float32, device=device)
    elevated, weights, corners, base, _rank = geometry(features)
    resolution = float(elevated.abs().max()) * 2.0**-23
    assert (base.sum(0) == 0).all()
    assert weights.min() > -dimension * resolution
    rebuilt = (weights[:, :, None].double() * corners).sum(1)
    assert (rebuilt - elevated.double()).abs().max() < 10 * dimension * resolution


def test_no_points():
    _elevated, weights, corners, _base, _rank = geometry(torch.empty(0, 3))
    assert weights.shape == (0, 4)
    assert corners.shape == (0, 4, 4)


def test_weights_are_differentiable():
    elevated = elevate(cloud(5, 3))
    base, rank = enclosing_simplex(elevated)
    assert barycentric_weights(elevated, base, rank).min() > 1e-4
    assert torch.autograd.gradcheck(lambda e: barycentric_weights(e, base, rank), elevated.requires_grad_())
