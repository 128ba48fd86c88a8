"""What every Gaussian filter promises, whatever its lattice: run for each of them alike."""

from functools import partial

import pytest
import torch
from oracles import cloud, gaussian, inside_cells, relative_error

from lattice import PermutohedralLattice
from voxel import CoordinateRangeError, VoxelGrid

SMOOTH_FILTERS = {
    "permutohedral": partial(PermutohedralLattice, backend="reference"),
    "permutohedral-auto": PermutohedralLattice,
    "linear": partial(VoxelGrid, interpolation="linear", backend="reference"),
    "linear-auto": partial(VoxelGrid, interpolation="linear"),
}
FILTERS = SMOOTH_FILTERS | {
    "nearest": partial(VoxelGrid, interpolation="nearest", backend="reference"),
    "nearest-auto": partial(VoxelGrid, interpolation="nearest"),
}
NORMALIZATIONS = ["none", "before", "after", "symmetric"]

every_filter = pytest.mark.parametrize("make", FILTERS.values(), ids=FILTERS)
every_smooth_filter = pytest.mark.parametrize("make", SMOOTH_FILTERS.values(), ids=SMOOTH_FILTERS)
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def dense(operator, query=None, query_batch=None):
    """Return the operator as a matrix."""
    identity = torch.eye(operator.num_points, dtype=operator.features.dtype, device=operator.features.device)
    return operator.filter(identity, query=query, query_batch=query_batch)


def close(result, expected, tolerance=1e-12):
    # Worst seen in float64: 9e-15, of results up to 25; in float32: 9.5e-7.
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@every_filter
class TestOperator:
    @every_normalization
    def test_normalizations_equal_their_definition(self, device, make, normalization):
        operator = make(cloud(30, 3, device=device))
        values = cloud(30, 4, seed=1, device=device)
        kernel = dense(operator)
        degree = kernel.sum(1)
        expected = {
            "none": kernel @ values,
            "before": kernel @ (values / degree[:, None]),
            "after": (kernel @ values) / degree[:, None],
            "symmetric": (kernel @ (values / degree[:, None].sqrt())) / degree[:, None].sqrt(),
        }
        close(operator.degree(), degree)
        close(operator.filter(values, normalization=normalization), expected[normalization])

    @every_normalization
    def test_normalizations_at_a_query_equal_their_definition(self, device, make, normalization):
        features = cloud(30, 2, device=device)
        operator = make(features)
        values, query = cloud(30, 4, seed=1, device=device), features.flip(0) + 1e-4
        kernel = dense(operator, query)
        right, left = dense(operator).sum(1)[:, None], kernel.sum(1)[:, None]
        assert (left > 0).all()
        expected = {
            "none": kernel @ values,
            "before": kernel @ (values / right),
            "after": (kernel @ values) / left,
            "symmetric": (kernel @ (values / right.sqrt())) / left.sqrt(),
        }
        close(operator.filter(values, normalization=normalization, query=query), expected[normalization])

    def test_after_keeps_constants(self, device, make):
        operator = make(cloud(50, 3, spread=3.0, device=device))
        constant = torch.full((50, 2), 7.0, dtype=torch.float64, device=device)
        close(operator.filter(constant, normalization="after"), constant)

    def test_before_keeps_the_sum(self, device, make):
        operator = make(cloud(50, 1, device=device))
        values = cloud(50, 2, seed=1, device=device)
        # In one dimension the operator is symmetric, so that its columns sum to the degree.
        close(operator.filter(values, normalization="before").sum(0), values.sum(0))

    @every_normalization
    def test_backward_is_the_adjoint(self, device, make, normalization):
        # Sparse enough for gaps, which make the operator differ from its transpose.
        operator = make(cloud(40, 3, spread=2.0, device=device))
        x, y = (cloud(40, 3, seed=seed, device=device) for seed in (1, 2))
        x.requires_grad_()
        result = operator.filter(x, normalization=normalization)
        (adjoint,) = torch.autograd.grad(result, x, y)
        close((result * y).sum(), (x * adjoint).sum())

    def test_backward_is_the_transposed_matrix(self, device, make):
        operator = make(cloud(40, 3, spread=2.0, device=device))
        x = cloud(40, 40, seed=1, device=device).requires_grad_()
        (adjoint,) = torch.autograd.grad(operator.filter(x), x, torch.eye(40, device=device).double())
        close(adjoint, dense(operator).T)

    def test_linear_in_the_values_channel_by_channel(self, device, make):
        operator = make(cloud(30, 2, device=device))
        values = cloud(30, 300, seed=1, device=device)
        together = operator.filter(values)
        close(together[:, 7:8], operator.filter(values[:, 7:8]))
        first, second = values.split(150, 1)
        close(operator.filter(2 * first - second), 2 * together[:, :150] - together[:, 150:])

    def test_splat_blur_slice_is_the_filter(self, device, make):
        operator = make(cloud(30, 2, device=device))
        values, query = cloud(30, 2, seed=1, device=device), cloud(5, 2, seed=2, device=device)
        vertices = operator.blur(operator.splat(values))
        assert vertices.shape == (operator.num_vertices, 2)
        close(operator.constant * operator.slice(vertices), operator.filter(values))
        close(operator.constant * operator.slice(vertices, query), operator.filter(values, query=query))

    def test_splat_and_slice_are_adjoint(self, device, make):
        operator = make(cloud(30, 3, device=device))
        values, vertices = cloud(30, 2, seed=1, device=device), cloud(operator.num_vertices, 2, device=device)
        close((operator.splat(values) * vertices).sum(), (values * operator.slice(vertices)).sum())

    def test_permuted_points_permute_the_result(self, device, make):
        features, values = cloud(40, 3, device=device), cloud(40, 2, seed=1, device=device)
        order = torch.randperm(40, device=device)
        operator, permuted = make(features), make(features[order])
        assert operator.num_vertices == permuted.num_vertices
        close(permuted.filter(values[order]), operator.filter(values)[order])
        close(permuted.diagonal(), operator.diagonal()[order])

    def test_arguments_are_left_as_they_were(self, device, make):
        features, values, query = (cloud(20, 2, seed=seed, device=device) for seed in range(3))
        batch = torch.arange(20, device=device) % 2
        given = [features, values, query, batch]
        copies = [tensor.clone() for tensor in given]
        operator = make(features, batch=batch)
        operator.filter(values, normalization="symmetric", query=query, query_batch=batch)
        operator.diagonal()
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


DIALS = [(order, halo) for order in (1, 2, 3) for halo in (0, 1, 2)]


@pytest.mark.parametrize("spread", [0.5, 2.5], ids=["dense", "sparse"])
@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
class TestDiagonal:
    @pytest.mark.parametrize(("order", "halo"), DIALS)
    @every_smooth_filter
    def test_equals_unit_vectors(self, device, make, order, halo, dimension, spread):
        operator = make(cloud(12, dimension, spread=spread, device=device), order=order, halo=halo)
        # Worst seen: 4.4e-16.
        close(operator.diagonal(), dense(operator).diagonal())

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_nearest_equals_unit_vectors(self, device, order, dimension, spread):
        features = cloud(12, dimension, spread=spread, device=device)
        operator = VoxelGrid(features, order=order, interpolation="nearest")
        close(operator.diagonal(), dense(operator).diagonal())


@every_filter
class TestBatch:
    SIZES = (7, 0, 20, 1)

    def build(self, device, make):
        """Return a filter over items of these sizes, in mixed order, and the item of each point."""
        batch = torch.repeat_interleave(torch.arange(len(self.SIZES)), torch.tensor(self.SIZES))
        batch = batch[torch.randperm(len(batch))].to(device)
        return make(cloud(len(batch), 2, device=device), batch=batch), batch

    @every_normalization
    def test_equals_its_items(self, device, make, normalization):
        operator, batch = self.build(device, make)
        values = cloud(28, 3, seed=9, device=device)
        result, diagonal = operator.filter(values, normalization=normalization), operator.diagonal()
        vertices = 0
        for item in range(4):
            mine = batch == item
            alone = make(operator.features[mine])
            vertices += alone.num_vertices
            close(result[mine], alone.filter(values[mine], normalization=normalization))
            close(diagonal[mine], alone.diagonal())
        assert operator.num_vertices == vertices

    @every_normalization
    def test_query_equals_its_items(self, device, make, normalization):
        operator, batch = self.build(device, make)
        values, query = cloud(28, 3, seed=9, device=device), cloud(10, 2, seed=8, spread=0.5, device=device)
        query_batch = torch.arange(10, device=device) % 5  # there is no item 4
        result = operator.filter(values, normalization=normalization, query=query, query_batch=query_batch)
        for item in range(4):
            mine, asked = batch == item, query_batch == item
            alone = make(operator.features[mine])
            close(result[asked], alone.filter(values[mine], normalization=normalization, query=query[asked]))
        assert torch.equal(result[query_batch == 4], torch.zeros(2, 3, dtype=torch.float64, device=device))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
    def test_any_integer_dtype(self, device, make, dtype):
        features, batch = cloud(20, 2, device=device), torch.arange(20, device=device) % 3
        expected = dense(make(features, batch=batch))
        assert torch.equal(dense(make(features, batch=batch.to(dtype))), expected)
        assert (expected[batch[:, None] != batch] == 0).all()

    def test_indices_need_not_be_consecutive(self, device, make):
        features, batch = cloud(20, 2, device=device), torch.arange(20, device=device) % 3
        spaced = batch * 1_000_000_000
        close(dense(make(features, batch=spaced)), dense(make(features, batch=batch)))


@every_smooth_filter
def test_halo_does_not_cross_batches(device, make):
    features = cloud(10, 2, device=device)
    batch = torch.arange(10, device=device) % 2
    operator = make(features, batch=batch, order=2, halo=2)
    items = [make(features[batch == item], order=2, halo=2) for item in (0, 1)]
    assert operator.num_vertices == sum(item.num_vertices for item in items)
    close(operator.diagonal()[batch == 1], items[1].diagonal())
    close(dense(operator)[batch == 1][:, batch == 1], dense(items[1]))


@every_filter
class TestQuery:
    @every_normalization
    def test_at_the_points_equals_no_query(self, device, make, normalization):
        features, values = cloud(30, 3, device=device), cloud(30, 2, seed=1, device=device)
        operator = make(features)
        result = operator.filter(values, normalization=normalization, query=features)
        close(result, operator.filter(values, normalization=normalization))

    @every_normalization
    def test_far_away_is_zero(self, device, make, normalization):
        features = cloud(30, 3, device=device).requires_grad_()
        operator, values = make(features), cloud(30, 2, seed=1, device=device).requires_grad_()
        query = torch.cat([features.detach()[:4], features.detach()[:4] + 1000]).requires_grad_()
        result = operator.filter(values, normalization=normalization, query=query)
        assert (result[:4] != 0).all()
        assert torch.equal(result[4:], torch.zeros_like(result[4:]))
        gradients = torch.autograd.grad(result.sum(), [values, features, query], allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)

    def test_no_queries(self, device, make):
        operator = make(cloud(30, 3, device=device))
        query = torch.empty(0, 3, dtype=torch.float64, device=device)
        assert operator.filter(cloud(30, 2, device=device), query=query).shape == (0, 2)


@every_filter
class TestOddShapes:
    @every_normalization
    def test_no_points(self, device, make, normalization):
        operator = make(cloud(0, 3, device=device))
        values = cloud(0, 2, device=device)
        assert operator.num_vertices == 0
        assert operator.diagonal().shape == (0,)
        assert operator.filter(values, normalization=normalization).shape == (0, 2)
        result = operator.filter(values, normalization=normalization, query=cloud(4, 3, device=device))
        assert torch.equal(result, torch.zeros(4, 2, dtype=torch.float64, device=device))

    @pytest.mark.parametrize("normalization", ["before", "after", "symmetric"])
    def test_one_point_gets_itself_back(self, device, make, normalization):
        operator = make(cloud(1, 2, device=device))
        values = cloud(1, 3, seed=1, device=device)
        close(operator.filter(values, normalization=normalization), values)
        close(operator.filter(values), operator.diagonal()[:, None] * values)

    @pytest.mark.parametrize("dimension", [1, 2])
    def test_equal_points_add_up(self, device, make, dimension):
        features = cloud(1, dimension, device=device)
        one, five = make(features), make(features.expand(5, dimension))
        values = cloud(5, 2, seed=1, device=device)
        close(five.filter(values), (one.diagonal() * values.sum(0)).expand(5, 2))

    @pytest.mark.parametrize("channels", [0, 1, 65])
    def test_channels(self, device, make, channels):
        operator = make(cloud(20, 2, device=device))
        values = cloud(20, channels, seed=1, device=device)
        result = operator.filter(values, normalization="symmetric")
        assert result.shape == (20, channels)
        for c in range(channels):
            close(result[:, c : c + 1], operator.filter(values[:, c : c + 1], normalization="symmetric"))

    def test_non_contiguous(self, device, make):
        features = cloud(2, 40, device=device).T[::2]
        values = cloud(3, 40, seed=1, device=device).T[::2]
        query = cloud(2, 7, seed=2, device=device).T
        assert not features.is_contiguous()
        assert not values.is_contiguous()
        result = make(features).filter(values, normalization="symmetric", query=query)
        expected = make(features.contiguous()).filter(
            values.contiguous(), normalization="symmetric", query=query.contiguous()
        )
        assert torch.equal(result, expected)

    def test_points_on_cell_borders(self, device, make):
        features = torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=torch.float64)] * 2).to(device)
        for scale in (0.0, 1.0, 0.5, make(features).structure.cell_vertices.shape[1] ** 0.5):
            operator = make(features * scale)
            assert dense(operator).isfinite().all()
            close(operator.diagonal(), dense(operator).diagonal())
            close(operator.structure.cells.weights.sum(1), torch.ones(25, dtype=torch.float64, device=device))


@pytest.mark.parametrize("dimension", [9, 12, 20])
@pytest.mark.parametrize(
    "make", [FILTERS["permutohedral"], FILTERS["nearest"]], ids=["permutohedral", "nearest"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_high_dimension(device, make, dimension, dtype):
    features = cloud(40, dimension, spread=0.1, dtype=dtype, device=device)
    batch = torch.arange(40, device=device) % 2
    operator = make(features, batch=batch)
    values = cloud(40, 3, seed=1, dtype=dtype, device=device)
    kernel = dense(operator)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    close(operator.filter(values, normalization="after"), kernel @ values / kernel.sum(1, True), tolerance)
    close(operator.diagonal(), kernel.diagonal(), tolerance)
    assert (kernel[batch[:, None] != batch] == 0).all()


@every_smooth_filter
class TestGradients:
    @every_normalization
    @pytest.mark.parametrize(("dimension", "order", "halo"), [(1, 1, 0), (2, 2, 1), (3, 1, 0)])
    def test_filter(self, device, make, normalization, dimension, order, halo):
        features = inside_cells(make, 6, dimension, order=order, halo=halo, device=device)
        values = cloud(6, 2, seed=1, device=device)

        def run(features, values):
            operator = make(features, order=order, halo=halo)
            return operator.filter(values, normalization=normalization)

        assert torch.autograd.gradcheck(run, (features.requires_grad_(), values.requires_grad_()))

    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_after_a_use_without_gradient(self, device, make, backend):
        features = cloud(20, 2, device=device).requires_grad_()
        fresh, used = (make(features, backend=backend) for _ in range(2))
        values = cloud(20, 2, seed=1, device=device)
        with torch.no_grad():
            used.filter(values)
        expected, found = (
            torch.autograd.grad(operator.filter(values).square().sum(), features)[0]
            for operator in (fresh, used)
        )
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)

    @every_normalization
    def test_filter_at_a_query_with_batch(self, device, make, normalization):
        features = inside_cells(make, 10, 2, device=device)
        batch = torch.arange(10, device=device) % 2
        query = features[:6] + 1e-5  # far closer than the border of the cell
        values = cloud(10, 2, seed=1, device=device)

        def run(features, values, query):
            operator = make(features, batch=batch)
            return operator.filter(values, normalization=normalization, query=query, query_batch=batch[:6])

        inputs = [tensor.requires_grad_() for tensor in (features, values, query)]
        assert torch.autograd.gradcheck(run, inputs)

    def test_slice_at_a_query(self, device, make):
        features = inside_cells(make, 10, 3, device=device)
        operator, query = make(features), features[:5] + 1e-5
        vertices = cloud(operator.num_vertices, 2, device=device)
        inputs = (vertices.requires_grad_(), query.requires_grad_())
        assert torch.autograd.gradcheck(operator.slice, inputs)

    @pytest.mark.parametrize(("dimension", "order", "halo"), [(1, 2, 0), (2, 1, 0), (3, 2, 1)])
    def test_diagonal(self, device, make, dimension, order, halo):
        features = inside_cells(make, 6, dimension, order=order, halo=halo, device=device)

        def run(features):
            return make(features, order=order, halo=halo).diagonal()

        assert torch.autograd.gradcheck(run, features.requires_grad_())

    def test_bandwidths_are_learned_through_the_features(self, device, make):
        raw = inside_cells(make, 8, 2, device=device)
        values = cloud(8, 2, seed=1, device=device)
        sigma = torch.ones(2, dtype=torch.float64, device=device, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda sigma: make(raw / sigma).filter(values, normalization="symmetric"), sigma
        )


@every_filter
class TestNumerics:
    @every_normalization
    def test_float32_is_close_to_float64(self, device, make, normalization):
        features = inside_cells(make, 100, 3, device=device)  # no point changes its cell in float32
        values = cloud(100, 4, seed=1, device=device)
        expected = make(features).filter(values, normalization=normalization)
        result = make(features.float()).filter(values.float(), normalization=normalization)
        assert result.dtype == torch.float32
        # Worst seen: 2.2e-7.
        assert relative_error(result.double(), expected) < 1e-6

    @pytest.mark.default_algorithms
    def test_same_bits_twice(self, device, make):
        def run():
            features = cloud(3000, 3, dtype=torch.float32, device=device).requires_grad_()
            values = cloud(3000, 4, seed=1, dtype=torch.float32, device=device).requires_grad_()
            operator = make(features)
            result, diagonal = operator.filter(values, normalization="symmetric"), operator.diagonal()
            total = result.square().sum() + diagonal.sum()
            # Nearest interpolation has no gradient in the features.
            gradients = torch.autograd.grad(total, [values, features], allow_unused=True)
            return [result, diagonal, *(gradient for gradient in gradients if gradient is not None)]

        first, second = run(), run()
        assert len(first) == len(second) >= 3
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def calibration_ratio(operator):
    """Return the mean ratio of the filter of ones to the exact sum, over the middle of a uniform cloud.

    In the middle: towards its border, the mass that the blur takes out of the occupied lattice is lost.
    """
    middle = operator.features.abs().amax(1) <= 1
    exact = gaussian(operator.features[middle], operator.features).sum(1)
    return float((operator.degree()[middle] / exact).mean())


def box(points, dimension, side, device):
    generator = torch.Generator().manual_seed(0)
    return (side * (torch.rand(points, dimension, generator=generator, dtype=torch.float64) - 0.5)).to(device)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("dimension", "side"), [(1, 8), (2, 8), (3, 6)])
@every_filter
def test_calibrated(device, make, dimension, side, order):
    ratio = calibration_ratio(make(box(6000, dimension, side, device), order=order))
    # Measured: 0.9999 … 1.0050 (permutohedral), 0.9998 … 1.0143 (linear), 0.9799 … 0.9999 (nearest).
    assert ratio == pytest.approx(1, abs=0.03)


@every_smooth_filter
def test_calibrated_in_five_dimensions(device, make):
    ratio = calibration_ratio(make(box(6000, 5, 5, device), halo=1))
    # Measured: 1.0151 (permutohedral), 1.0000 (linear).
    assert ratio == pytest.approx(1, abs=0.05)


@every_smooth_filter
@pytest.mark.parametrize("dimension", [2, 3])
@every_normalization
def test_order_and_halo_are_the_accuracy_dial(device, make, dimension, normalization):
    features, values = cloud(300, dimension, device=device), cloud(300, 4, seed=1, device=device).abs()
    kernel = gaussian(features)
    root = kernel.sum(1, keepdim=True).sqrt()
    expected = {
        "none": kernel @ values,
        "before": kernel @ (values / root**2),
        "after": kernel @ values / root**2,
        "symmetric": kernel @ (values / root) / root,
    }[normalization]
    errors = [
        relative_error(
            make(features, order=order, halo=halo).filter(values, normalization=normalization), expected
        )
        for order, halo in [(1, 0), (2, 2), (3, 3)]
    ]
    # Measured without normalisation: 0.025 > 0.015 > 0.010 (permutohedral) and 0.033 > 0.021 > 0.016 (linear)
    # for d = 2, 0.039 > 0.021 > 0.016 and 0.044 > 0.029 > 0.022 for d = 3. With the others, less.
    assert 0.05 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


@pytest.mark.parametrize("dimension", [2, 3])
def test_order_is_the_accuracy_dial_of_nearest(device, dimension):
    features, values = cloud(300, dimension, device=device), cloud(300, 4, seed=1, device=device).abs()
    expected = gaussian(features) @ values
    errors = [
        relative_error(VoxelGrid(features, order=order, interpolation="nearest").filter(values), expected)
        for order in (1, 2, 4)
    ]
    # Measured: 0.073 > 0.033 > 0.018 for d = 2, 0.092 > 0.045 > 0.023 for d = 3.
    assert 0.1 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


FEATURES = cloud(10, 2)
VALUES = cloud(10, 3, seed=1)
BATCH = torch.arange(10) % 2


def with_entry(tensor, row, column, entry):
    changed = tensor.clone()
    changed[row, column] = entry
    return changed


@every_filter
class TestErrors:
    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"features": FEATURES.tolist()}, TypeError, "`features` must be a torch.Tensor, got list"),
            (
                {"features": FEATURES.long()},
                TypeError,
                "`features` must be float32 or float64, got torch.int64",
            ),
            (
                {"features": FEATURES.half()},
                TypeError,
                "`features` must be float32 or float64, got torch.float16",
            ),
            ({"features": FEATURES[:, 0]}, ValueError, r"`features` must have shape \(N, d\), got \(10,\)"),
            (
                {"features": FEATURES[None]},
                ValueError,
                r"`features` must have shape \(N, d\), got \(1, 10, 2\)",
            ),
            ({"features": torch.tensor(1.0)}, ValueError, r"`features` must have shape \(N, d\), got \(\)"),
            ({"features": FEATURES[:, :0]}, ValueError, "d of at least 1"),
            (
                {"features": with_entry(FEATURES, 3, 1, torch.nan)},
                ValueError,
                r"finite, got nan at index \(3, 1\)",
            ),
            (
                {"features": with_entry(FEATURES, 0, 0, -torch.inf)},
                ValueError,
                r"finite, got -inf at index \(0, 0\)",
            ),
            ({"batch": BATCH.tolist()}, TypeError, "`batch` must be a torch.Tensor"),
            ({"batch": BATCH.double()}, TypeError, "`batch` must hold integers, got torch.float64"),
            ({"batch": BATCH.bool()}, TypeError, "`batch` must hold integers, got torch.bool"),
            ({"batch": BATCH[:9]}, ValueError, r"`batch` must have shape \(10,\), .* got \(9,\)"),
            ({"batch": BATCH[:, None]}, ValueError, r"`batch` must have shape \(10,\), .* got \(10, 1\)"),
            ({"batch": BATCH - 1}, ValueError, "`batch` must be 0 or greater, got -1"),
            ({"batch": BATCH.to("meta")}, ValueError, "`batch` must be on cpu"),
            ({"batch": BATCH * 2**32}, ValueError, "`batch`"),
            ({"order": 0}, ValueError, "`order` must be at least 1, got 0"),
            ({"order": True}, TypeError, "`order` must be an integer, got bool"),
            ({"order": 1.0}, TypeError, "`order` must be an integer, got float"),
            ({"halo": -1}, ValueError, "`halo` must be at least 0, got -1"),
            ({"halo": False}, TypeError, "`halo` must be an integer, got bool"),
        ],
    )
    def test_constructor(self, make, changed, error, message):
        with pytest.raises(error, match=message):
            make(**{"features": FEATURES, **changed})

    def test_a_long_vector_of_features_is_an_error_and_not_a_huge_dimension(self, make):
        with pytest.raises(ValueError, match=r"`features` must have shape \(N, d\), got \(10000000,\)"):
            make(torch.zeros(1).expand(10_000_000))

    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"values": VALUES.tolist()}, TypeError, "`values` must be a torch.Tensor"),
            ({"values": VALUES.long()}, TypeError, "`values` must be float32 or float64"),
            ({"values": VALUES.bfloat16()}, TypeError, "`values` must be float32 or float64"),
            ({"values": VALUES.float()}, TypeError, "`values` must have the dtype of `features`"),
            ({"values": VALUES.to("meta")}, ValueError, "`values` must be on the device of `features`"),
            (
                {"values": VALUES[:, 0]},
                ValueError,
                r"`values` must have shape \(N, C\) with 10 rows, got \(10,\)",
            ),
            (
                {"values": VALUES[:9]},
                ValueError,
                r"`values` must have shape \(N, C\) with 10 rows, got \(9, 3\)",
            ),
            (
                {"normalization": "both"},
                ValueError,
                "`normalization` must be one of 'none', 'before', 'after', 'sym",
            ),
            ({"normalization": None}, ValueError, "`normalization` must be one of"),
            ({"query": FEATURES.float()}, TypeError, "`query` must have the dtype of `features`"),
            ({"query": FEATURES.to("meta")}, ValueError, "`query` must be on the device of `features`"),
            (
                {"query": FEATURES[:, :1]},
                ValueError,
                r"`query` must have shape \(M, d\) with d = 2, got \(10, 1\)",
            ),
            ({"query": FEATURES[0]}, ValueError, r"`query` must have shape \(M, 2\), got \(2,\)"),
            ({"query": with_entry(FEATURES, 3, 1, torch.nan)}, ValueError, r"`query` must be finite"),
            ({"query": FEATURES, "query_batch": BATCH}, ValueError, "batch absent, query_batch present"),
            ({"query_batch": BATCH}, ValueError, "`query_batch` was given without `query`"),
        ],
    )
    def test_filter(self, make, changed, error, message):
        operator = make(FEATURES)
        with pytest.raises(error, match=message):
            operator.filter(**{"values": VALUES, **changed})

    @pytest.mark.parametrize(
        ("query_batch", "error", "message"),
        [
            (None, ValueError, "batch present, query_batch absent"),
            (BATCH[:3], ValueError, r"`query_batch` must have shape \(10,\)"),
            (BATCH.double(), TypeError, "`query_batch` must hold integers"),
            (BATCH - 1, ValueError, "`query_batch` must be 0 or greater"),
            (BATCH * 2**32, ValueError, "`query_batch`"),
        ],
    )
    def test_query_batch(self, make, query_batch, error, message):
        operator = make(FEATURES, batch=BATCH)
        with pytest.raises(error, match=message):
            operator.filter(VALUES, query=FEATURES, query_batch=query_batch)

    def test_splat_blur_slice(self, make):
        operator = make(FEATURES)
        vertices = torch.zeros(operator.num_vertices, 2, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"`values` must have shape \(N, C\) with 10 rows"):
            operator.splat(VALUES[:9])
        with pytest.raises(TypeError, match="`values` must have the dtype of `features`"):
            operator.splat(VALUES.float())
        for method in (operator.blur, operator.slice):
            with pytest.raises(ValueError, match=r"`vertex_values` must have shape \(V, C\)"):
                method(vertices[1:])
            with pytest.raises(TypeError, match="`vertex_values` must have the dtype"):
                method(vertices.float())
        with pytest.raises(ValueError, match=r"`query` must have shape"):
            operator.slice(vertices, FEATURES[:, :1])
        with pytest.raises(ValueError, match="`query_batch` was given without `query`"):
            operator.slice(vertices, query_batch=BATCH)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_features_out_of_range(self, make, dtype):
        features = with_entry(with_entry(FEATURES, 6, 1, -1e12), 8, 0, 1e12).to(dtype)
        with pytest.raises(
            CoordinateRangeError, match=r"`features\[6, 1\]` is -1e\+12 .* larger sigma"
        ) as caught:
            make(features)
        assert (caught.value.point, caught.value.axis) == (6, 1)
        assert isinstance(caught.value, ValueError)
        assert ("float64" in str(caught.value).split("hold")[1]) == (dtype == torch.float32)

    def test_the_first_point_out_of_range_is_named(self, make):
        with pytest.raises(CoordinateRangeError) as caught:
            make(with_entry(with_entry(FEATURES, 2, 1, 1e12), 5, 0, 1e14))
        assert (caught.value.point, caught.value.axis) == (2, 1)

    def test_query_out_of_range(self, make):
        with pytest.raises(CoordinateRangeError, match=r"`query\[4, 0\]`"):
            make(FEATURES).filter(VALUES, query=with_entry(FEATURES, 4, 0, 1e12))

    def test_large_features_within_range(self, make):
        # float64 allows coordinates up to 2³⁰, and no lattice here has more than 2 of them in a σ.
        limit = 2.0**29
        kernel = dense(make(torch.tensor([[limit], [-limit], [limit - 1], [0.0]], dtype=torch.float64)))
        expected = torch.zeros(4, 4, dtype=torch.float64)
        expected[[0, 0, 1, 2, 2, 3], [0, 2, 1, 0, 2, 3]] = 1.0
        assert torch.equal(kernel > 0, expected > 0)
