"""The compiled kernels against the PyTorch reference that each stands for."""

import itertools
import math
import multiprocessing
import threading

import numpy as np
import pytest
import torch
from oracles import relative_error

import voxel.backend
from benchmarks.inputs import network_probabilities, photo
from hdcrf import Compatibility, DenseCRF, build_filter, gaussian_filter, refine
from hdcrf.fused import fused_mean_field
from hdcrf.mean_field import mean_field
from hdcrf.pairwise import SmoothnessKernel, pairwise_kernel
from lattice import PermutohedralLattice
from voxel import VoxelGrid

pytestmark = pytest.mark.skipif(bool(voxel.backend.why_not), reason=voxel.backend.why_not)

BOTH = ("reference", "native")


@pytest.fixture(params=[1, 3], ids=["one-thread", "three-threads"], autouse=True)
def threads(request):
    """Run each test on one thread, and on three, among which even the smallest work is split."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    voxel.backend.kernels().split_small_work(request.param > 1)
    yield request.param
    voxel.backend.kernels().split_small_work(False)
    torch.set_num_threads(before)


# Worst seen over all cases below: 2e-6 in float32, where sums run in another order, and 3e-13 in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def images(labels, height=23, width=37, batch=1, dtype=torch.float32):
    """Return the probabilities' logits and the guide of a part of a photo."""
    probabilities = torch.from_numpy(network_probabilities("astronaut", height, width, labels)).to(dtype)
    guide = torch.from_numpy(photo("astronaut", height, width).astype(np.float32)).to(dtype)
    logits = probabilities.clamp_min(1e-6).log().permute(2, 0, 1)[None]
    guide = guide.permute(2, 0, 1)[None]
    if batch == 1:
        return logits, guide
    return torch.cat([logits, logits.flip(3)]), torch.cat([guide, 255 - guide.flip(3)])


def both(function):
    return [function(backend) for backend in BOTH]


def assert_same_structure(reference, native):
    """The same vertices in another order, the same corners of each point, the same neighbours."""
    expected, result = reference.structure, native.structure
    number = reference.index.lookup(result.coordinates.to(expected.coordinates.dtype))
    assert sorted(number.tolist()) == list(range(reference.num_vertices))
    corners = number[result.cell_vertices.long()][result.cells.cell.long()]
    assert torch.equal(corners, expected.cell_vertices.long()[expected.cells.cell.long()])
    links = result.links.long()
    links = torch.where(links >= 0, number[links.clamp_min(0)], -1)
    assert torch.equal(links, expected.links.long()[:, number])


class TestLattice:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("dimension", "points", "order", "halo", "batched"),
        [
            (1, 500, 1, 0, False),
            (2, 500, 3, 2, True),
            (3, 1000, 2, 1, False),
            (5, 3000, 1, 0, True),
            (5, 300, 2, 1, False),
            (7, 1000, 1, 0, False),
            (12, 300, 1, 0, True),
            (20, 100, 1, 0, False),
            (20, 20, 1, 1, False),
        ],
    )
    def test_build(self, dimension, points, order, halo, batched, dtype):
        features = torch.randn(points, dimension, dtype=dtype) * 2
        batch = torch.randint(0, 3, (points,)) if batched else None
        reference, native = both(
            lambda backend: PermutohedralLattice(
                features, batch=batch, order=order, halo=halo, backend=backend
            )
        )
        assert_same_structure(reference, native)
        expected, result = reference.structure, native.structure
        # Coordinates up to 40 in steps of 2⁻²⁴ of that.
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(
            result.cells.weights, expected.cells.weights, rtol=tolerance, atol=tolerance
        )
        torch.testing.assert_close(
            native.diagonal(), reference.diagonal(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("make", [PermutohedralLattice, VoxelGrid])
    @pytest.mark.parametrize(
        ("dimension", "order", "channels"), [(1, 1, 1), (2, 3, 2), (3, 1, 21), (3, 2, 1), (5, 1, 0)]
    )
    def test_symmetric_product(self, make, dimension, order, channels, dtype):
        features = torch.randn(500, dimension, dtype=dtype) * 2
        values = torch.randn(500, channels, dtype=dtype)
        operator = make(features, order=order, backend="native")
        expected = make(features, order=order, backend="reference").symmetric_product(values)
        for grad in (False, True):  # one kernel, or two that can be differentiated
            with torch.set_grad_enabled(grad):
                result = operator.symmetric_product(values)
            assert (result - expected).norm() <= TOLERANCE[dtype] * expected.norm()

    def test_keys_that_are_hashes(self):
        # So wide that no 64 bits hold the coordinates.
        features = torch.randn(2000, 9, dtype=torch.float64) * 1e4
        reference, native = both(lambda backend: PermutohedralLattice(features, backend=backend))
        assert native.num_vertices == reference.num_vertices == 20_000
        values = torch.randn(2000, 2, dtype=torch.float64)
        torch.testing.assert_close(native.filter(values), reference.filter(values))

    @pytest.mark.parametrize("halo", [0, 1])
    @pytest.mark.parametrize("batched", [False, True])
    def test_hashes_of_vertices_that_points_share(self, halo, batched):
        # Two points so far out that no 64 bits hold the coordinates, and a cloud between them.
        features = torch.cat(
            [torch.randn(300, 8, dtype=torch.float64), torch.tensor([[1e6], [-1e6]]).expand(2, 8)]
        )
        batch = torch.randint(0, 2, (302,)) if batched else None
        reference, native = both(
            lambda backend: PermutohedralLattice(features, batch=batch, halo=halo, backend=backend)
        )
        assert_same_structure(reference, native)

    def test_more_dimensions_than_a_byte_counts(self):
        features = torch.randn(3, 300, dtype=torch.float64) * 0.1
        assert_same_structure(*both(lambda backend: PermutohedralLattice(features, backend=backend)))

    @pytest.mark.parametrize("dimension", [3, 5, 6, 7])
    def test_vertices_are_numbered_alike_on_any_number_of_threads(self, dimension, threads):
        features = torch.randn(700, dimension) * 1.5
        result = PermutohedralLattice(features, backend="native").structure
        for other_threads in (1, 2, 5, 8):
            torch.set_num_threads(other_threads)
            other = PermutohedralLattice(features, backend="native").structure
            assert torch.equal(other.coordinates, result.coordinates)
            assert torch.equal(other.links, result.links)
            assert torch.equal(
                other.cell_vertices[other.cells.cell.long()], result.cell_vertices[result.cells.cell.long()]
            )

    @pytest.mark.parametrize("points", [1, 7, 8, 61])
    @pytest.mark.parametrize("layout", ["columns", "rows", "strided", "repeated"])
    def test_extents(self, points, layout):
        features = torch.randn(points, 5)
        if layout == "columns":
            features = features.T.contiguous().T
        elif layout == "strided":
            features = torch.randn(2 * points, 10)[::2, ::2]
        elif layout == "repeated":
            features = features[:1].expand(points, 5)
        low, high = torch.empty(5), torch.empty(5)
        voxel.backend.kernels().extents(features, low, high, torch.get_num_threads())
        assert torch.equal(low, features.amin(0))
        assert torch.equal(high, features.amax(0))

    @pytest.mark.parametrize("collisions", [1, 15, 16])
    def test_keys_that_collide_are_drawn_again(self, monkeypatch, collisions):
        kernels, seeds = voxel.backend.kernels(), []

        class Colliding:
            def permutohedral(self, *arguments):
                seeds.append(arguments[4])
                return None if len(seeds) <= collisions else kernels.permutohedral(*arguments)

        monkeypatch.setattr("lattice.permutohedral.kernels", Colliding)
        if collisions == 16:
            with pytest.raises(RuntimeError, match="16 independent 64-bit hashes"):
                PermutohedralLattice(torch.randn(5, 2), backend="native")
            return
        assert PermutohedralLattice(torch.zeros(1, 2), backend="native").num_vertices == 3
        assert len(set(seeds)) == len(seeds) == collisions + 1

    @pytest.mark.parametrize("layout", ["columns", "rows", "every second row"])
    def test_layout_of_the_features(self, layout):
        features = torch.randn(100, 4, dtype=torch.float64)
        expected = build_filter(features, backend="reference").degree()
        if layout == "columns":
            features = features.T.contiguous().T
        elif layout == "every second row":
            features = features.repeat_interleave(2, 0)[::2]
        torch.testing.assert_close(build_filter(features, backend="native").degree(), expected)

    @pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0, 30.0])
    def test_points_on_the_border_of_simplices(self, sigma):
        # Multiples of one number: many coordinates are equal, or half-way, but for rounding.
        image = torch.from_numpy(photo("coffee", 40, 56).astype(np.float32) // 8).flatten(0, 1)
        rows, columns = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
        features = torch.cat([torch.stack([rows, columns], 2).flatten(0, 1) / sigma, image / sigma], 1)
        for part in (features[:, :2].contiguous(), features):
            assert_same_structure(*both(lambda backend, part=part: build_filter(part, backend=backend)))

    @pytest.mark.parametrize(
        "points",
        [
            [[27, 94, 156, 18], [98, 24, 185, 56]],
            [[142, 214, 58, 61, 124], [215, 149, 146, 135, 217]],
            [[213, 165, 87, 160, 89, 133], [186, 70, 69, 105, 97, 103]],
        ],
    )
    def test_products_are_rounded_before_they_are_added(self, points):
        # Of 400,000 drawn at random, these lie in another simplex if a multiplication and a sum are fused.
        features = torch.tensor(points, dtype=torch.float32)
        assert_same_structure(*both(lambda backend: PermutohedralLattice(features, backend=backend)))

    def test_no_points_and_one_point(self):
        for points in (0, 1):
            lattice = PermutohedralLattice(torch.zeros(points, 3), backend="native")
            assert lattice.filter(torch.ones(points, 2)).shape == (points, 2)
            assert lattice.num_vertices == 4 * points
            assert lattice.filter(torch.ones(points, 0)).shape == (points, 0)


class TestFilter:
    @pytest.mark.parametrize("channels", [1, 2, 5, 8, 21, 32, 70])
    @pytest.mark.parametrize("kind", [PermutohedralLattice, VoxelGrid])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_values_and_gradients(self, kind, channels, dtype):
        features = torch.randn(300, 3, dtype=dtype) * 1.5
        values, gradient = (torch.randn(300, channels, dtype=dtype) for _ in range(2))

        def run(backend):
            inputs = [features.clone().requires_grad_(), values.clone().requires_grad_()]
            operator = kind(inputs[0], order=2, halo=1, backend=backend)
            result = operator.filter(inputs[1], normalization="symmetric")
            return result.detach(), *torch.autograd.grad(result, inputs, gradient)

        for expected, result in zip(*both(run), strict=True):
            assert relative_error(result, expected) < TOLERANCE[dtype]

    def test_gradients_by_differences(self):
        features = (torch.rand(8, 2, dtype=torch.float64) * 2).requires_grad_()
        values = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)

        def run(features, values):
            return gaussian_filter(features, values, normalization="after", backend="native")

        assert torch.autograd.gradcheck(run, (features, values))

    def test_values_of_any_layout(self):
        features = torch.randn(50, 3)
        operator = build_filter(features, backend="native")
        values = torch.randn(4, 50)
        torch.testing.assert_close(operator.filter(values.T), operator.filter(values.T.contiguous()))
        expected = build_filter(features, backend="reference").filter(values.T)
        torch.testing.assert_close(operator.filter(values.T), expected, rtol=1e-4, atol=1e-4)
        # Between other numbers, none of which may be read.
        around = torch.full((50, 9), torch.nan)
        around[:, 2:6] = values.T
        torch.testing.assert_close(operator.filter(around[:, 2:6]), operator.filter(values.T))


class TestMeanField:
    @pytest.mark.parametrize(
        ("labels", "compatibility", "normalization", "exclude_self"),
        [
            *itertools.product((1, 2, 3, 8, 21, 33), ("potts", "diagonal", "full"), ("symmetric",), (True,)),
            *itertools.product((2, 5), ("potts", "full"), ("none", "before", "after"), (False, True)),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_inference_and_training(self, labels, compatibility, normalization, exclude_self, dtype):
        logits, guide = images(labels, batch=2, dtype=dtype)
        weight = 0.02 if normalization == "none" else 3.0
        gradient = torch.randn_like(logits)
        if compatibility != "potts":
            matrix = 1 - torch.eye(labels) + 0.3 * torch.rand(labels, labels)
            compatibility = matrix if compatibility == "full" else matrix.diagonal() + 1

        def crf(backend, output):
            return DenseCRF(
                labels,
                iterations=3,
                appearance_weight=weight,
                smoothness_weight=weight,
                compatibility=compatibility,
                normalization=normalization,
                exclude_self=exclude_self,
                output=output,
                backend=backend,
                learn=("weights", "compatibility") if isinstance(compatibility, torch.Tensor) else "weights",
            ).to(dtype)

        def inference(backend):
            with torch.no_grad():
                return crf(backend, "marginals")(logits, guide)

        expected, result = both(inference)
        # Absolute, of probabilities: where weights are strong, rounding of the messages shows in small ones.
        torch.testing.assert_close(result, expected, rtol=0, atol=2 * TOLERANCE[dtype])
        assert relative_error(result, expected) < TOLERANCE[dtype]

        def training(backend, output):
            module = crf(backend, output)
            inputs = logits.clone().requires_grad_()
            parts = [inputs, *(part for part in module.parameters() if part.requires_grad)]
            refined = module(inputs, guide)
            return refined.detach(), *torch.autograd.grad(refined, parts, gradient)

        for output in ("marginals", "logits"):
            for expected, result in zip(*(training(backend, output) for backend in BOTH), strict=True):
                # Worst seen: 2e-4 in float32, of a compatibility, where gradients cancel; 1e-12 in float64.
                error = (result - expected).norm() / expected.norm().clamp_min(1e-3)
                assert error < (1e-3 if dtype == torch.float32 else 1e-10)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5), (64, 65)])
    @pytest.mark.parametrize("kernels", ["both", "appearance", "smoothness"])
    @pytest.mark.parametrize("labels", [2, 4, 21])
    def test_shapes_and_kernels(self, shape, kernels, labels):
        logits, guide = torch.randn(2, labels, *shape), torch.rand(2, 3, *shape) * 255

        def run(backend):
            crf = DenseCRF(
                labels,
                appearance_weight=0 if kernels == "smoothness" else 2,
                smoothness_weight=0 if kernels == "appearance" else 2,
                backend=backend,
                learn=(),
            )
            with torch.no_grad():
                return crf.infer(logits, guide)

        expected, result = both(run)
        torch.testing.assert_close(result.marginals, expected.marginals, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.softmax(result.logits, 1), result.marginals, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("labels", [1, 2, 3])
    def test_training_on_a_single_pixel(self, labels):
        logits, guide = torch.randn(1, labels, 1, 1), torch.full((1, 3, 1, 1), 100.0)

        def run(backend):
            crf = DenseCRF(labels, exclude_self=False, backend=backend)
            inputs = logits.clone().requires_grad_()
            return torch.autograd.grad(crf(inputs, guide).square().sum(), inputs)[0]

        expected, result = both(run)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)

    def test_kernels_of_other_points_or_another_dtype_are_refused(self):
        crf = DenseCRF(3, backend="native")
        kernels = crf._kernels(torch.rand(1, 3, 4, 5) * 255)
        for rows in (10, 40):
            for some in (kernels, kernels[:1], kernels[1:]):
                with pytest.raises(ValueError, match=r"`logits` must have shape \(P, K\) with 20"):
                    mean_field(torch.rand(rows, 3), some, crf.compatibility, iterations=1)
                with pytest.raises(ValueError, match=r"`values` must have shape \(P, K\) with 20"):
                    some[0].apply(torch.rand(rows, 3))
        with pytest.raises(TypeError, match="`logits` must have the dtype of `kernels`"):
            mean_field(torch.rand(20, 3).double(), kernels, crf.compatibility, iterations=1)

    @pytest.mark.parametrize("labels", [2, 5])
    def test_tolerance(self, labels):
        logits, guide = images(labels)

        def run(backend):
            crf = DenseCRF(labels, iterations=200, tolerance=1e-3, backend=backend, learn=())
            with torch.no_grad():
                return crf.infer(logits, guide)

        expected, result = both(run)
        assert result.iterations == expected.iterations < 200
        torch.testing.assert_close(result.marginals, expected.marginals, rtol=0, atol=1e-4)

    def test_gradients_by_differences(self):
        logits = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        guide = (torch.rand(1, 1, 4, 5, dtype=torch.float64) * 255).requires_grad_()
        crf = DenseCRF(
            3,
            iterations=3,
            appearance_sigma_xy=3.0,
            appearance_sigma_rgb=100.0,
            compatibility="full",
            learn=("weights", "compatibility"),
            backend="native",
        ).double()
        assert torch.autograd.gradcheck(crf, (logits, guide), atol=1e-6)
        names, parameters = zip(*crf.named_parameters(), strict=True)

        def refined(logits, *parameters):
            return torch.func.functional_call(
                crf, dict(zip(names, parameters, strict=True)), (logits, guide.detach())
            )

        assert torch.autograd.gradcheck(refined, (logits, *parameters), atol=1e-6)

    @pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
    def test_gradients_of_bandwidths_and_guide(self, normalization):
        logits, guide = images(4, batch=2, dtype=torch.float64)

        def run(backend):
            crf = DenseCRF(
                4,
                iterations=2,
                appearance_weight=0.02 if normalization == "none" else 3,
                smoothness_weight=0.02 if normalization == "none" else 3,
                normalization=normalization,
                learn=("weights", "bandwidths"),
                backend=backend,
            ).double()
            inputs = guide.clone().requires_grad_()
            parts = [inputs, *(part for part in crf.parameters() if part.requires_grad)]
            return torch.autograd.grad(crf(logits, inputs).square().sum(), parts)

        for expected, result in zip(*both(run), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("labels", [2, 3])
    def test_overflow_is_an_error(self, labels):
        logits, guide = images(labels)
        crf = DenseCRF(
            labels, appearance_weight=1e38, normalization="none", exclude_self=False, backend="native"
        )
        with pytest.raises(ValueError, match=r"left the range of torch\.float32"), torch.no_grad():
            crf(logits, guide)
        with pytest.raises(ValueError, match=r"left the range of torch\.float32"):
            crf(logits.requires_grad_(), guide)

    @pytest.mark.default_algorithms
    @pytest.mark.parametrize("labels", [2, 21])
    def test_the_same_bits_from_run_to_run(self, labels):
        logits, guide = images(labels, 60, 90)
        runs = []
        for _ in range(4):
            crf = DenseCRF(labels, backend="native")
            inputs = logits.clone().requires_grad_()
            refined = crf(inputs, guide)
            refined.square().sum().backward()
            with torch.no_grad():
                runs.append((crf(logits, guide), refined.detach(), inputs.grad))
        for run in runs[1:]:
            assert all(map(torch.equal, run, runs[0]))


@pytest.mark.parametrize("labels", [1, 2, 3, 7, 8, 9, 16, 21, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_argmax_takes_the_first(labels, dtype):
    values = (torch.rand(500, labels, dtype=dtype) * 6).round()
    result = torch.empty(500, dtype=torch.int64)
    voxel.backend.kernels().argmax(values, result, 2)
    np.testing.assert_array_equal(result.numpy(), values.numpy().argmax(1))


@pytest.mark.parametrize("sigma", [0.2, 0.6, 0.9, 1.3, 2.5, 30.0])  # windows of 3 pixels to all
@pytest.mark.parametrize("channels", [1, 3, 8, 13, 24, 40])
def test_smoothing_and_its_adjoint(channels, sigma):
    for sizes in ((19, 11), (3, 1), (1, 40), (17,), (4, 9, 6), (3, 2, 5, 4)):
        values, other = torch.randn(2, 2 * math.prod(sizes), channels, dtype=torch.float64)
        deviations = [torch.tensor(sigma * (1 + axis), dtype=torch.float64) for axis in range(len(sizes))]
        reference, native = both(
            lambda backend, sizes=sizes, deviations=deviations: SmoothnessKernel(
                (2, *sizes), deviations, 1.0, "before", backend=backend
            )
        )
        torch.testing.assert_close(native.apply(values), reference.apply(values))
        inputs = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(native.apply(inputs), inputs, other)
        torch.testing.assert_close((gradient * values).sum(), (native.apply(values) * other).sum())
        expected = values.clone().requires_grad_()
        (expected,) = torch.autograd.grad(reference.apply(expected), expected, other)
        torch.testing.assert_close(gradient, expected)


class TestOperations:
    """What `torch.library` asks of an operation: schema, fake, autograd, and tracing."""

    def lattice(self, differentiable):
        features = torch.randn(20, 2, dtype=torch.float64, requires_grad=differentiable)
        return build_filter(features, backend="native")

    @pytest.mark.parametrize("adjoint", [False, True])
    def test_fused_filter(self, adjoint):
        operator = self.lattice(True)
        parts = operator.structure
        values, gradient = torch.randn(2, 20, 3, dtype=torch.float64)
        left = torch.rand(20, dtype=torch.float64)
        weights = parts.cells.weights.detach().requires_grad_()
        arguments = [weights, parts.cells.cell, parts.cell_vertices, parts.links, left, None]
        settings = (1, 2.0, adjoint)
        torch.library.opcheck(
            torch.ops.voxel.fused_filter.default, (values.requires_grad_(), *arguments, *settings)
        )
        values = values.detach()
        arguments[0] = arguments[0].detach()
        torch.library.opcheck(
            torch.ops.voxel.fused_filter_weights_gradient.default,
            (values, gradient, *arguments, *settings),
        )

    def test_sparse_product(self):
        matrix = self.lattice(True).interpolation
        values = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
        parts = (
            matrix.weights.detach().requires_grad_(),
            matrix.row_pointers,
            matrix.columns,
            matrix.transposed_weights,
            matrix.transposed_row_pointers,
            matrix.transposed_columns,
        )
        torch.library.opcheck(torch.ops.voxel.sparse_product.default, (values, *parts, True, True))

    def test_smooth(self):
        pixels = torch.randn(1, 4, 5, 3, dtype=torch.float64, requires_grad=True)
        taps, rows = torch.rand(3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
        torch.library.opcheck(torch.ops.hdcrf.smooth.default, (pixels, taps, taps, rows, None, None, None))

    @pytest.mark.parametrize("labels", [2, 3])
    def test_mean_field(self, labels):
        logits = torch.randn(20, labels, dtype=torch.float64, requires_grad=True)
        parts = self.lattice(False).structure
        weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        compatibility = None if labels == 2 else torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
        own = torch.rand(20, dtype=torch.float64, requires_grad=True)
        lattice = (parts.cells.weights, parts.cells.cell, parts.cell_vertices, parts.links, None, None)
        taps = torch.rand(3, dtype=torch.float64)
        smoothing = (taps, taps[:1], None, None, None, None)
        torch.library.opcheck(
            torch.ops.hdcrf.mean_field.default,
            (logits, weight, weight, compatibility, own, *lattice, *smoothing, 1, 1.5, [1, 4, 5], 2),
        )


class TestCompile:
    @pytest.fixture(autouse=True)
    def _anew(self):
        torch.compiler.reset()  # or else PyTorch counts how often it has compiled the same forward pass

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"compatibility": "full", "learn": ("weights", "bandwidths", "compatibility")},
            {"output": "logits", "method": "voxel", "tolerance": 1e-4},
            {"backend": "reference", "appearance_weight": 0.0, "learn": ()},
        ],
    )
    def test_whole_graph(self, options):
        crf = DenseCRF(3, iterations=2, **options)
        logits = torch.randn(2, 3, 12, 14, requires_grad=True)
        guide = (torch.rand(2, 3, 12, 14) * 255).requires_grad_()
        gradient = torch.randn_like(logits)
        parts = [logits, guide, *(part for part in crf.parameters() if part.requires_grad)]
        results = []
        for function in (crf, torch.compile(crf, fullgraph=True)):
            refined = function(logits, guide)
            found = torch.autograd.grad(refined, parts, gradient, allow_unused=True)
            zeros = (torch.zeros_like(part) for part in parts)
            results.append(
                (refined, *(z if part is None else part for part, z in zip(found, zeros, strict=True)))
            )
        for expected, result in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    def test_within_a_network(self):
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.unary, self.crf = torch.nn.Conv2d(3, 4, 3, padding=1), DenseCRF(4, output="logits")

            def forward(self, image):
                return self.crf(self.unary(image / 255), image)

        network = Network()
        # The layer is one operation to any compiler; what it makes of a convolution is its own affair.
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        image = torch.rand(1, 3, 20, 24) * 255
        torch.testing.assert_close(compiled(image), network(image), rtol=1e-4, atol=1e-4)
        compiled(image).square().mean().backward()
        assert all(torch.isfinite(part.grad).all() for part in network.parameters() if part.requires_grad)

    def test_operation(self):
        crf = DenseCRF(3, iterations=2)
        logits = torch.randn(1, 3, 6, 7, requires_grad=True)
        guides, parameters = [torch.rand(1, 3, 6, 7) * 255], list(crf.parameters())
        arguments = (logits, guides, parameters, crf._description(["guide"]))
        torch.library.opcheck(torch.ops.hdcrf.crf.default, arguments)

    def test_wrong_input_is_explained(self):
        crf = torch.compile(DenseCRF(3), fullgraph=True)
        with pytest.raises(ValueError, match="`logits` must be finite"):
            crf(torch.full((1, 3, 4, 4), torch.nan), torch.rand(1, 3, 4, 4) * 255)


class TestBackend:
    def test_reference_calls_no_kernel(self, monkeypatch):
        class Forbidden:
            def __getattr__(self, name):
                raise AssertionError(f"the kernel {name} was called")

        monkeypatch.setattr(voxel.backend, "_native", Forbidden())
        logits, guide = images(3)
        with pytest.raises(AssertionError, match="the kernel extents was called"):
            DenseCRF(3)(logits, guide)
        crf = DenseCRF(3, backend="reference")
        crf(logits.requires_grad_(), guide).sum().backward()
        with torch.no_grad():
            crf(logits, guide)
        refine(photo("astronaut", 20, 20), labels=np.zeros((20, 20), int), num_labels=2, backend="reference")

    def test_native_has_no_exact_method(self):
        with pytest.raises(ValueError, match="no kernel for method='exact'"):
            build_filter(torch.rand(5, 2), method="exact", backend="native")

    def test_second_derivatives_need_the_reference(self):
        logits, guide = images(3)

        def penalty(backend):
            inputs = logits.clone().requires_grad_()
            [gradient] = torch.autograd.grad(
                DenseCRF(3, backend=backend)(inputs, guide).square().sum(), inputs, create_graph=True
            )
            return torch.autograd.grad(gradient.square().sum(), inputs)[0]

        assert penalty("reference").abs().sum() > 0
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            penalty("native")

    def test_native_without_kernels_is_refused(self, monkeypatch):
        monkeypatch.setattr(voxel.backend, "_native", None)
        monkeypatch.setattr(voxel.backend, "why_not", "they were not built")
        with pytest.raises(ValueError, match=r"`backend='native'` needs the compiled kernels.*not built"):
            build_filter(torch.randn(5, 2), backend="native")
        assert not build_filter(torch.randn(5, 2)).native

    def test_native_on_another_device_is_refused(self):
        with pytest.raises(ValueError, match="runs on the CPU, got meta"):
            voxel.backend.uses_native("native", torch.empty(1, device="meta"))
        assert not voxel.backend.uses_native("auto", torch.empty(1, device="meta"))

    def test_unknown_backend(self):
        with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'reference', 'native'"):
            DenseCRF(2, backend="cuda")

    @pytest.mark.parametrize("capability", ["DEFAULT", "NO AVX"])
    def test_a_processor_without_the_instructions(self, monkeypatch, capability):
        monkeypatch.setattr(voxel.backend.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        assert voxel.backend._load() == (None, "the processor has no AVX2 and FMA")

    def test_a_build_without_kernels(self, monkeypatch):
        def missing(name):
            raise ImportError(f"No module named {name!r}")

        monkeypatch.setattr(voxel.backend.importlib, "import_module", missing)
        module, why_not = voxel.backend._load()
        assert module is None
        assert why_not.startswith("they were not built when hdcrf was installed")


def refined_sum():
    logits, guide = images(5)
    with torch.no_grad():
        return DenseCRF(5, backend="native")(logits, guide)


def equal_in_a_fork(work, expected):
    """Run `work` in a forked process and return whether its result has the expected bits."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    # Compared by NumPy: PyTorch's own threads do not survive a fork.
    process = context.Process(
        target=lambda: queue.put(bool(np.array_equal(work().numpy(), expected.numpy())))
    )
    process.start()
    equal = queue.get(timeout=60)
    process.join(timeout=60)
    return equal and process.exitcode == 0


@pytest.mark.default_algorithms
class TestThreads:
    def test_several_python_threads_at_once(self):
        expected = refined_sum()
        results = [None] * 6

        def work(place):
            for _ in range(5):
                results[place] = refined_sum()

        threads = [threading.Thread(target=work, args=(place,)) for place in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A new thread may have another number of threads to compute with, and so another order of sums.
        for result in results:
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_after_a_fork(self):
        torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
        assert equal_in_a_fork(refined_sum, refined_sum())

    def test_kernels_start_threads_after_a_fork(self):
        # The kernels alone, which start their threads for each call, with as many as they are told.
        operator = build_filter(torch.rand(30_000, 2) * 20, backend="native")
        values = torch.rand(30_000, 4)
        parts = operator.structure

        def run():
            result = torch.empty_like(values)
            voxel.backend.kernels().filter(
                values,
                None,
                None,
                parts.cells.cell,
                parts.cell_vertices,
                parts.cells.weights,
                parts.links,
                1,
                1.0,
                False,
                result,
                4,
            )
            return result

        torch.rand(1000, 1000).sum()  # so that PyTorch's pool is there, and does not survive
        assert equal_in_a_fork(run, run())

    def test_other_python_threads_go_on(self):
        operator = build_filter(torch.rand(200_000, 3) * 5, backend="native")
        values = torch.rand(200_000, 40)
        ticks, done = [], threading.Event()

        def tick():
            while not done.wait(0.001):
                ticks.append(None)

        thread = threading.Thread(target=tick)
        thread.start()
        before = len(ticks)
        with torch.no_grad():
            operator.filter(values)  # some 100 ms within the kernel
        during = len(ticks) - before
        done.set()
        thread.join()
        assert during >= 3


class TestSeveralKernels:
    SHAPE = (1, 17, 70)  # rows longer than a strip of the kernel

    def kernels(self, backend, dtype, lattices, smoothings):
        torch.manual_seed(0)
        points = math.prod(self.SHAPE)
        normalizations = itertools.cycle(("symmetric", "before", "after", "none"))
        kernels = [
            pairwise_kernel(
                build_filter(torch.rand(points, d, dtype=dtype) * 4, backend=backend, order=d % 2 + 1),
                3.0 if normalization != "none" else 0.03,
                normalization,
            )
            for d, normalization in zip(range(1, lattices + 1), normalizations, strict=False)
        ]
        for sigma in range(1, smoothings + 1):
            bandwidth = torch.tensor(float(sigma), dtype=dtype)
            kernels.append(SmoothnessKernel(self.SHAPE, bandwidth, 2.0, "symmetric", backend=backend))
        return kernels

    def compare(self, labels, lattices, smoothings, dtype, natively, compatibility="potts"):
        torch.manual_seed(1)
        logits = torch.randn(math.prod(self.SHAPE), labels, dtype=dtype)
        costs = compatibility if compatibility == "potts" else torch.rand(labels, labels, dtype=dtype)
        compatibility = Compatibility(labels, costs.diagonal() if compatibility == "diagonal" else costs)

        def inference(backend):
            kernels = self.kernels(backend, dtype, lattices, smoothings)
            if backend == "native":
                assert (fused_mean_field(logits, kernels, compatibility, None) is not None) == natively
            return mean_field(logits, kernels, compatibility, iterations=3).marginals

        with torch.no_grad():
            expected, result = both(inference)
        torch.testing.assert_close(result, expected, rtol=0, atol=2 * TOLERANCE[dtype])

    @pytest.mark.parametrize("labels", [1, 2, 3, 8, 21, 40])
    @pytest.mark.parametrize(("lattices", "smoothings"), [(2, 0), (2, 1), (4, 1)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_lattices(self, labels, lattices, smoothings, dtype):
        self.compare(labels, lattices, smoothings, dtype, natively=True)

    @pytest.mark.parametrize("labels", [2, 3, 21])
    @pytest.mark.parametrize("compatibility", ["diagonal", "full"])
    def test_compatibilities(self, labels, compatibility):
        self.compare(labels, 2, 1, torch.float64, natively=True, compatibility=compatibility)

    @pytest.mark.parametrize("labels", [2, 5])
    def test_two_smoothness_kernels_take_the_reference_loop(self, labels):
        self.compare(labels, 1, 2, torch.float32, natively=False)

    def test_training_of_two_lattices_takes_the_reference_loop(self):
        def gradient(backend):
            logits = torch.linspace(-1, 1, 3 * math.prod(self.SHAPE)).view(-1, 3).requires_grad_()
            kernels = self.kernels(backend, torch.float32, 2, 0)
            marginals = mean_field(logits, kernels, Compatibility(3), iterations=2).marginals
            return torch.autograd.grad(marginals[:, 0].sum(), logits)[0]

        expected, result = both(gradient)
        assert relative_error(result, expected) < TOLERANCE[torch.float32]
