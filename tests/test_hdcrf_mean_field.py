"""Mean field and its kernels, against sums over all pairs."""

import itertools

import pytest
import torch

from hdcrf import Compatibility, DenseCRF, ExactGaussian, build_filter, mean_field, pairwise_kernel
from hdcrf.mean_field import softmax
from hdcrf.pairwise import SmoothnessKernel
from lattice import PermutohedralLattice

NORMALIZATIONS = ("none", "before", "after", "symmetric")


def normalized(matrix, normalization):
    degree = matrix.sum(1)
    left = {"after": 1 / degree, "symmetric": degree.rsqrt()}.get(normalization, torch.ones_like(degree))
    right = {"before": 1 / degree, "symmetric": degree.rsqrt()}.get(normalization, torch.ones_like(degree))
    return left[:, None] * matrix * right


def grid_positions(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x], 2).reshape(-1, 2).double()


def dense_matrix(kernel, points):
    return kernel.apply(torch.eye(points, dtype=torch.float64))


class TestKernels:
    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    @pytest.mark.parametrize("method", ["permutohedral", "voxel", "exact"])
    def test_lattice_kernel_is_the_normalised_filter(self, method, normalization):
        features = torch.rand(40, 3, dtype=torch.float64) * 3
        operator = build_filter(features, method=method)
        kernel = pairwise_kernel(operator, 2.5, normalization)
        identity = torch.eye(40, dtype=torch.float64)
        expected = 2.5 * operator.filter(identity, normalization=normalization)
        torch.testing.assert_close(dense_matrix(kernel, 40), expected)
        torch.testing.assert_close(kernel.diagonal(), expected.diagonal())
        some = slice(7, 23)
        with torch.no_grad():
            torch.testing.assert_close(kernel.receive(kernel.gather(identity), some), expected[some])

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    @pytest.mark.parametrize("sizes", [(5, 7), (1, 9), (8, 1), (1, 1), (9,), (3, 5, 4), (2, 3, 2, 5)])
    def test_smoothness_kernel_is_the_truncated_gaussian(self, sizes, normalization, backend):
        sigmas = torch.tensor([0.8, 0.5, 0.9, 0.7][: len(sizes)], dtype=torch.float64)
        kernel = SmoothnessKernel((1, *sizes), sigmas.unbind(), 1.5, normalization, backend=backend)
        position = torch.cartesian_prod(*[torch.arange(n).double() for n in sizes]).view(-1, len(sizes))
        offset = position[:, None] - position[None]
        matrix = torch.exp(-0.5 * (offset / sigmas).square().sum(2))
        matrix = matrix * (offset.abs() <= torch.ceil(3 * sigmas)).all(2)
        expected = 1.5 * normalized(matrix, normalization)
        torch.testing.assert_close(dense_matrix(kernel, len(position)), expected)
        torch.testing.assert_close(kernel.diagonal(), expected.diagonal())

    def test_smoothness_learns_a_sigma_for_each_axis(self):
        values = torch.rand(2 * 3 * 4 * 2, 3, dtype=torch.float64)
        sigmas = torch.tensor([0.8, 0.5, 0.9], dtype=torch.float64, requires_grad=True)

        def apply(sigmas, values):
            return SmoothnessKernel((2, 3, 4, 2), sigmas.unbind(), 1.5, "symmetric").apply(values)

        assert torch.autograd.gradcheck(apply, (sigmas, values.requires_grad_()))

    def test_wrong_smoothness_kernels(self):
        one = torch.tensor(1.0)
        with pytest.raises(ValueError, match=r"`shape` must be \(B, \*S\)"):
            SmoothnessKernel((3,), one, 1.0, "none")
        with pytest.raises(ValueError, match=r"`sigma` must be one number, or 2 for the axes \(4, 5\)"):
            SmoothnessKernel((1, 4, 5), [one], 1.0, "none")
        with pytest.raises(ValueError, match="`sigma` must be one number"):
            SmoothnessKernel((1, 4, 5), torch.ones(2), 1.0, "none")
        with pytest.raises(ValueError, match="`sigma` must be a finite number greater than 0"):
            SmoothnessKernel((1, 4, 5), 0 * one, 1.0, "none")
        with pytest.raises(ValueError, match="`normalization` must be one of"):
            SmoothnessKernel((1, 4, 5), one, 1.0, "foo")

    def test_smoothness_reaches_three_sigma_at_least(self):
        position = grid_positions(1, 41)
        for sigma in (0.4, 1.0, 2.5, 5.0):
            kernel = SmoothnessKernel((1, 1, 41), torch.tensor(sigma).double(), 1.0, "none")
            matrix = dense_matrix(kernel, 41)
            reach = (position[:, None, 1] - position[None, :, 1]).abs()
            assert bool((matrix[reach <= 3 * sigma] > 0).all())

    def test_smoothness_by_strips_and_images(self, backend):
        values = torch.rand(2 * 6 * 5, 3, dtype=torch.float64)
        sigma = torch.tensor(0.7, dtype=torch.float64)
        kernel = SmoothnessKernel((2, 6, 5), sigma, 1.0, "symmetric", backend=backend)
        whole = kernel.apply(values)
        for start, stop in ((0, 5), (5, 20), (20, 30), (30, 60), (45, 50)):
            with torch.no_grad():
                part = kernel.receive(kernel.gather(values), slice(start, stop))
            torch.testing.assert_close(part, whole[start:stop])
        if backend == "reference":
            with pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
                kernel.receive(values, slice(0, 5))
        one = SmoothnessKernel((1, 6, 5), torch.tensor(0.7, dtype=torch.float64), 1.0, "symmetric")
        torch.testing.assert_close(one.apply(values[30:]), whole[30:])


@pytest.mark.parametrize("labels", [1, 2, 3, 5, 15, 16, 21, 40])
def test_softmax_equals_torch(labels):
    logits = 30 * torch.randn(50, labels)
    logits[0], logits[1] = 0, torch.linspace(-80, 80, labels)
    torch.testing.assert_close(softmax(logits), torch.softmax(logits, 1))


@pytest.mark.parametrize("labels", [2, 3])
def test_softmax_gradient(labels):
    assert torch.autograd.gradcheck(softmax, torch.randn(4, labels, dtype=torch.float64, requires_grad=True))


class TestMeanField:
    @pytest.mark.parametrize("exclude_self", [True, False])
    @pytest.mark.parametrize("kind", ["potts", "diagonal", "full", "matrix"])
    def test_equals_the_dense_update(self, kind, exclude_self):
        features = torch.rand(30, 2, dtype=torch.float64) * 3
        logits = torch.randn(30, 3, dtype=torch.float64)
        mu = torch.rand(3, 3, dtype=torch.float64) if kind == "matrix" else kind
        compatibility = Compatibility(3, mu).double()
        matrix = 1.7 * normalized(ExactGaussian(features).filter(torch.eye(30).double()), "symmetric")
        if exclude_self:
            matrix = matrix - torch.diag(matrix.diagonal())
        expected = torch.softmax(logits, 1)
        for _ in range(4):
            expected = torch.softmax(logits - matrix @ expected @ compatibility.matrix().double().T, 1)
        kernel = pairwise_kernel(ExactGaussian(features), 1.7, "symmetric")
        result = mean_field(logits, [kernel], compatibility, iterations=4, exclude_self=exclude_self)
        torch.testing.assert_close(result.marginals, expected)
        torch.testing.assert_close(torch.softmax(result.logits, 1), expected)
        assert result.iterations == 4

    def test_energy_is_the_mean_over_all_labellings(self):
        points, labels = 5, 3
        features = torch.rand(points, 2, dtype=torch.float64)
        logits = torch.randn(points, labels, dtype=torch.float64)
        mu = torch.rand(labels, labels, dtype=torch.float64)
        mu = mu + mu.T
        kernel = pairwise_kernel(ExactGaussian(features), 0.9, "symmetric")
        result = mean_field(logits, [kernel], Compatibility(labels, mu), iterations=3, track=True)
        matrix = dense_matrix(kernel, points)
        unary = -torch.log_softmax(logits, 1)
        energy = kl = 0.0
        for labelling in itertools.product(range(labels), repeat=points):
            probability = torch.stack([result.marginals[i, a] for i, a in enumerate(labelling)]).prod()
            cost = sum(unary[i, a] for i, a in enumerate(labelling))
            for i, j in itertools.combinations(range(points), 2):
                cost = cost + mu[labelling[i], labelling[j]] * matrix[i, j]
            energy = energy + probability * cost
            kl = kl + probability * (cost + probability.log())
        torch.testing.assert_close(result.energy[-1], energy)
        torch.testing.assert_close(result.kl[-1], kl)
        assert result.energy.shape == result.kl.shape == (4,)

    def test_strips_change_nothing(self, monkeypatch):
        logits, guide = torch.randn(2, 3, 11, 7), torch.rand(2, 3, 11, 7) * 255
        crf = DenseCRF(3, learn=(), tolerance=1e-9)
        with torch.no_grad():
            whole = crf.infer(logits, guide, track=True)
            module = __import__("hdcrf.mean_field", fromlist=["mean_field"])
            monkeypatch.setattr(module, "_STRIP_ELEMENTS", 60)
            assert len(module._strips(logits.permute(0, 2, 3, 1).reshape(-1, 3), crf._kernels(guide))) == 12
            strips = crf.infer(logits, guide, track=True)
        # Measured: 1.2e-7; the convolution may block its sums another way.
        torch.testing.assert_close(strips.marginals, whole.marginals, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(strips.logits, whole.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(strips.kl, whole.kl, rtol=1e-6, atol=1e-6)

    def test_kl_descends_on_a_photo(self):
        from benchmarks.inputs import network_probabilities, photo

        guide = torch.from_numpy(photo("astronaut", 60, 80)).permute(2, 0, 1)[None]
        probabilities = torch.from_numpy(network_probabilities("astronaut", 60, 80, 4))
        with torch.no_grad():
            result = DenseCRF(4, iterations=8).infer(
                probabilities.log().permute(2, 0, 1)[None], guide, track=True
            )
        assert bool((result.kl.diff() <= 1e-6 * result.kl[0].abs()).all())
        assert result.kl[-1] < result.kl[0]
        assert result.energy[-1] < result.energy[0]

    def test_tolerance_stops_early(self):
        kernel = pairwise_kernel(PermutohedralLattice(torch.rand(40, 2)), 0.1, "symmetric")
        seen = []
        result = mean_field(
            torch.randn(40, 2),
            [kernel],
            Compatibility(2),
            iterations=50,
            tolerance=1e-4,
            progress=seen.append,
        )
        assert 1 < result.iterations < 20
        assert seen == list(range(1, result.iterations + 1))
        full = mean_field(torch.zeros(40, 2), [kernel], Compatibility(2), iterations=5)
        assert full.iterations == 5

    def test_no_iterations_and_no_kernels(self):
        logits = torch.randn(10, 3)
        for iterations in (0, 2):
            result = mean_field(logits, [], Compatibility(3), iterations=iterations)
            torch.testing.assert_close(result.marginals, torch.softmax(logits, 1))
