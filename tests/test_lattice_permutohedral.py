"""The permutohedral filter against a dictionary; what all filters share is in the filter contract."""

import math

import pytest
import torch
from oracles import DictionaryFilter, cloud

from lattice import PermutohedralLattice
from lattice.elevation import calibration

every_dial = pytest.mark.parametrize(("order", "halo"), [(o, h) for o in (1, 2, 3) for h in (0, 1, 2)])
every_dimension = pytest.mark.parametrize("dimension", [1, 2, 3, 5, 7])

# Halos in seven dimensions are large for a dictionary.
POINTS = {1: 12, 2: 12, 3: 10, 5: 5, 7: 1}


def both(dimension, order, halo, device):
    features = cloud(POINTS[dimension], dimension, spread=1.5)
    oracle = DictionaryFilter("simplex", features, order, halo)
    lattice = PermutohedralLattice(features.to(device), order=order, halo=halo)
    coordinates = lattice.index.coordinates.cpu()
    vertices = [(*row, -sum(row)) for row in coordinates.tolist()]
    assert len(set(vertices)) == lattice.num_vertices
    return oracle, lattice, vertices


def ordered(dictionary, vertices):
    assert dictionary.keys() == set(vertices)
    return torch.stack([dictionary[vertex] for vertex in vertices])


def close(result, expected):
    # Worst seen, relative to the largest entry: 4e-15.
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-12, atol=1e-13 * float(expected.abs().max()))


@every_dimension
@every_dial
def test_equals_the_dictionary(device, dimension, order, halo):
    oracle, lattice, vertices = both(dimension, order, halo, device)
    values = cloud(POINTS[dimension], 2, seed=1)
    features = lattice.features.cpu()
    query = torch.cat([features[:2] + 0.2, features[:1] + 100])

    splatted = oracle.splat(values)
    close(lattice.splat(values.to(device)), ordered(splatted, vertices))
    blurred = oracle.blur(splatted)
    expected = ordered(blurred, vertices)
    close(lattice.blur(ordered(splatted, vertices).to(device)), expected)
    close(lattice.slice(expected.to(device)), oracle.slice(blurred))
    close(lattice.slice(expected.to(device), query.to(device)), oracle.slice(blurred, query))
    close(lattice.filter(values.to(device)), oracle.constant * oracle.slice(blurred))
    close(
        lattice.filter(values.to(device), query=query.to(device)),
        oracle.constant * oracle.slice(blurred, query),
    )


@pytest.mark.parametrize("dimension", [9, 12, 20])
def test_equals_the_dictionary_in_high_dimension(device, dimension):
    features, values = cloud(15, dimension, spread=0.3), cloud(15, 2, seed=1)
    lattice = PermutohedralLattice(features.to(device), order=2)
    close(lattice.filter(values.to(device)), DictionaryFilter("simplex", features, order=2).filter(values))


# Of many axes, the taps multiply to less than the smallest number in float32, and c is beyond the largest.
@pytest.mark.parametrize(
    ("dimension", "order"),
    [(60, 1), (101, 1), (102, 1), (125, 1), pytest.param(300, 1, marks=pytest.mark.slow), (60, 2), (30, 3)],
)
def test_many_dimensions_in_float32(device, backend, dimension, order):
    points = 12 if dimension < 200 else 4
    groups, noise = cloud(points // 2, dimension, spread=3.0), cloud(points, dimension, seed=1, spread=0.3)
    features = (groups.repeat(2, 1) + noise).to(device)
    values = torch.rand(points, 2, dtype=torch.float64, device=device).requires_grad_()
    exact, lattice = (
        PermutohedralLattice(part, order=order, backend=backend) for part in (features, features.float())
    )
    single = values.detach().float().requires_grad_()

    def alike(result, expected):  # worst seen: 2e-6
        torch.testing.assert_close(result.double(), expected, rtol=2e-5, atol=2e-6)

    for normalization in ("none", "before", "after", "symmetric"):
        expected = exact.filter(values, normalization=normalization)
        result = lattice.filter(single, normalization=normalization)
        alike(result, expected)
        (wanted,) = torch.autograd.grad(expected, values, values.detach())
        alike(torch.autograd.grad(result, single, single.detach())[0], wanted)
    alike(lattice.filter(single, query=features.float()), exact.filter(values, query=features))
    alike(lattice.symmetric_product(single.detach()), exact.symmetric_product(values.detach()))
    if dimension <= 125:
        alike(lattice.diagonal(), exact.diagonal())


def test_more_dimensions_than_the_constant_allows(device):
    lattice = PermutohedralLattice(cloud(5, 950, device=device).float())
    assert (lattice.filter(torch.ones(5, 1, device=device)) > 0.1).all()
    with pytest.raises(ValueError, match=r"constant .* is too large for a number; use fewer dimensions"):
        PermutohedralLattice(cloud(5, 1000, device=device).float())


def test_rounds_that_lose_everything_in_the_gaps(device, backend):
    features = cloud(12, 20, spread=3.0, device=device)
    lattice = PermutohedralLattice(features.float(), order=16, backend=backend)
    with pytest.raises(
        ValueError, match=r"`order` 16 have sums below the range of torch\.float32; use float64"
    ):
        lattice.filter(torch.ones(12, 1, device=device), normalization="symmetric")
    PermutohedralLattice(features, order=16, backend=backend).degree()


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_splat_keeps_the_sum(device, dimension):
    lattice = PermutohedralLattice(cloud(50, dimension, device=device))
    values = cloud(50, 3, seed=1, device=device)
    torch.testing.assert_close(lattice.splat(values).sum(0), values.sum(0))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_constant_is_the_mass_of_the_gaussian_over_a_vertex(dimension, order):
    # Of the lattice scaled by d + 1, a vertex has the volume (d+1)^{d-1/2} on the plane.
    scale = (dimension + 1) * math.sqrt(order / 2 + 1 / 6)
    volume = (dimension + 1) ** (dimension - 0.5) / scale**dimension
    assert calibration(dimension, order) * volume == pytest.approx((2 * math.pi) ** (dimension / 2))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_point_amid_stored_vertices_keeps_its_mass_and_spreads_to_variance_one(device, dimension, order):
    points = 100 * torch.rand(50, dimension, dtype=torch.float64)
    halo = order * (dimension + 1)  # as far as the blur reaches
    variances = []
    for point in points.to(device).split(1):
        lattice = PermutohedralLattice(point, order=order, halo=halo)
        vertices = lattice.blur(lattice.splat(torch.ones_like(point[:, :1])))[:, 0]
        assert float(vertices.sum()) == pytest.approx(1, abs=1e-14)
        coordinates = lattice.index.coordinates.double()
        coordinates = torch.cat([coordinates, -coordinates.sum(1, keepdim=True)], 1) / (dimension + 1)
        mean = vertices @ coordinates
        variances.append(float(vertices @ (coordinates - mean).square().sum(1)) / dimension)
    # Slicing adds another 1/12. Measured, over what is expected: 0.9975 … 1.0065.
    expected = order / 2 + 1 / 6
    assert sum(variances) / 50 + 1 / 12 == pytest.approx(expected, rel=0.02)


# In 2, 3 and 5 dimensions here, many simplices share a vertex; in 9, none of them do, and they are many.
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("dimension", "points", "spread"), [(2, 400, 1.0), (3, 1000, 0.5), (5, 2000, 0.2), (9, 800, 0.3)]
)
def test_diagonal_of_many_points_equals_unit_vectors(device, dimension, points, spread, order):
    lattice = PermutohedralLattice(cloud(points, dimension, spread=spread, device=device), order=order)
    some = torch.arange(0, points, points // 20, device=device)
    units = torch.zeros(points, len(some), dtype=torch.float64, device=device)
    units[some, torch.arange(len(some), device=device)] = 1
    close(lattice.diagonal()[some], lattice.filter(units)[some].diagonal().cpu())


def test_wide_features_need_the_hashed_index(device):
    """Twelve dimensions as wide as int32: the coordinates fit into no single 64-bit key."""
    features = cloud(30, 12, spread=1e6, device=device)
    twice = torch.cat([features, features])
    lattice = PermutohedralLattice(twice)
    assert lattice.num_vertices == 30 * 13
    kernel = lattice.filter(torch.eye(60, dtype=torch.float64, device=device))
    single = lattice.diagonal()
    expected = torch.diag(single) + torch.diag(single[:30], 30) + torch.diag(single[:30], -30)
    torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=0)


def test_repr():
    shown = repr(PermutohedralLattice(torch.zeros(5, 2), order=2))
    assert shown == "PermutohedralLattice(5 points, 3 vertices, d=2, order=2, halo=0)"
