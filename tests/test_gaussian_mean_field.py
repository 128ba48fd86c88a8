"""Gaussian mean field: the network's layers, what they converge to, and the losses that train it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from hdcrf.gaussian import (
    GaussianMeanFieldNetwork,
    NotPositiveDefiniteError,
    SimilarityTerms,
    energy,
    gaussian_mean_field,
    gaussian_mean_field_energy,
    margin_loss,
    pixel_similarity,
    similarity_loss,
    solve,
)
from tests.oracles import relative_error

PARTITIONS = ["columns", "rows"]


def pairs(window, height, width):
    """Return ((y, x), (y', x')) of every connected pair, upper pixel first, and the entry of each."""
    reach = window // 2
    odd = [step for step in range(-reach, reach + 1) if step % 2]
    offsets = [(dy, dx) for dy in odd if dy > 0 for dx in odd]
    return [
        (entry, (y, x), (y + dy, x + dx))
        for entry, (dy, dx) in enumerate(offsets)
        for y, x in itertools.product(range(height), range(width))
        if 0 <= y + dy < height and 0 <= x + dx < width
    ]


def factor_of(labels, seed=0):
    """Return a lower triangular R whose R Rᵀ has entries as large off the diagonal as on it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(labels, labels, generator=generator, dtype=torch.float64).tril() + 1.0 * (
        torch.arange(labels) == 0
    )


def problem(batch=2, labels=3, height=5, width=6, window=7, seed=0, strength=1.0, spread=0.5):
    """Return terms and a unary, in float64."""
    generator = torch.Generator().manual_seed(seed)
    features = spread * torch.randn(batch, 2, height, width, generator=generator, dtype=torch.float64)
    factor = factor_of(labels, seed).tril()
    unary = torch.randn(batch, labels, height, width, generator=generator, dtype=torch.float64)
    terms = SimilarityTerms(pixel_similarity(features, window), strength * factor @ factor.T)
    return terms, unary


def dense(similarity, compatibility, window):
    """Return I + L ⊗ C for one item (E, H, W), from its definition; the labels come before the pixels."""
    _, height, width = similarity.shape
    labels, pixels = len(compatibility), height * width
    matrix = torch.eye(labels * pixels, dtype=torch.float64).view(labels, pixels, labels, pixels)
    for entry, (y, x), (v, u) in pairs(window, height, width):
        weight = similarity[entry, y, x] * compatibility
        i, j = y * width + x, v * width + u
        matrix[:, i, :, i] += weight
        matrix[:, j, :, j] += weight
        matrix[:, i, :, j] -= weight
        matrix[:, j, :, i] -= weight
    return matrix.reshape(labels * pixels, -1)


def densely_solved(terms, unary, window):
    solutions = [
        torch.linalg.solve(dense(s, terms.compatibility, window), r.flatten()).view_as(r)
        for s, r in zip(terms.similarity, unary, strict=True)
    ]
    return torch.stack(solutions)


class TestSimilarity:
    @pytest.mark.parametrize(("window", "neighbours"), [(3, 4), (5, 4), (7, 16), (9, 16), (23, 144)])
    def test_every_other_neighbour_along_rows_and_columns(self, window, neighbours):
        size = window + 2
        s = pixel_similarity(torch.zeros(1, 1, size, size), window)
        matrix = SimilarityTerms(s, torch.eye(1)).dense()[0].view(size, size, size, size)
        centre = size // 2
        found = {
            (y - centre, x - centre)
            for y, x in itertools.product(range(size), range(size))
            if matrix[centre, centre, y, x] < 0
        }
        assert len(found) == neighbours == matrix[centre, centre, centre, centre]
        odd = [step for step in range(-(window // 2), window // 2 + 1) if step % 2]
        assert found == set(itertools.product(odd, odd))

    @pytest.mark.parametrize("size", [(5, 6), (4, 3), (1, 6), (6, 1), (1, 1), (2, 2)])
    @pytest.mark.parametrize("window", [3, 7])
    def test_equals_its_definition(self, size, window):
        z = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = torch.zeros(2, 2 if window == 3 else 8, *size, dtype=torch.float64)
        for entry, (y, x), (v, u) in pairs(window, *size):
            expected[:, entry, y, x] = torch.exp(-(z[:, :, y, x] - z[:, :, v, u]).square().sum(1))
        torch.testing.assert_close(pixel_similarity(z, window), expected, atol=1e-15, rtol=1e-13)

    def test_features_far_from_zero(self):
        """Distances are of differences: an offset common to all pixels costs no digits."""
        z = torch.randint(0, 2, (1, 2, 6, 6)) / 4.0
        assert torch.equal(pixel_similarity(z + 2.0**20, 7), pixel_similarity(z, 7))

    def test_gradcheck(self):
        z = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
        assert gradcheck(lambda z: pixel_similarity(z, 7), (z,))


class TestTerms:
    def test_matrix(self):
        terms, _ = problem()
        matrix = terms.dense()
        for item, s in enumerate(terms.similarity):
            expected = dense(s, terms.compatibility, 7)
            torch.testing.assert_close(matrix[item] + torch.eye(terms.size), expected)
        torch.testing.assert_close(terms.diagonal(), matrix.diagonal(dim1=1, dim2=2))
        torch.testing.assert_close(terms.prepared()(torch.eye(terms.size).expand_as(matrix).double()), matrix)
        eigenvalues = torch.linalg.eigvalsh(matrix)
        assert (eigenvalues[:, 0] > -1e-12).all()
        assert (eigenvalues[:, -1:] <= terms.bound()).all()

    def test_energy_over_pairs(self):
        terms, unary = problem()
        scores = torch.randn_like(unary)
        expected = (scores - unary).flatten(1).square().sum(1)
        for entry, (y, x), (v, u) in pairs(7, 5, 6):
            difference = scores[:, :, y, x] - scores[:, :, v, u]
            quadratic = ((difference @ terms.compatibility) * difference).sum(1)
            expected += terms.similarity[:, entry, y, x] * quadratic
        found = gaussian_mean_field_energy(terms, unary, scores)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        constant = unary.flatten(1).square().sum(1)
        torch.testing.assert_close(2 * energy(terms, unary, scores) + constant, expected)

    def test_what_lies_outside_is_not_read(self):
        terms, unary = problem()
        s = torch.full_like(terms.similarity, 7.0)
        for entry, (y, x), _ in pairs(7, 5, 6):
            s[:, entry, y, x] = terms.similarity[:, entry, y, x]
        assert not torch.equal(s, terms.similarity)
        others = SimilarityTerms(s.requires_grad_(), terms.compatibility)
        scores = gaussian_mean_field(others, unary)
        assert torch.equal(scores, gaussian_mean_field(terms, unary))
        scores.square().sum().backward()
        assert (s.grad[s == 7] == 0).all()

    def test_gradients_twice(self):
        """The terms can be made once and trained through many times."""
        terms, unary = problem()
        s = terms.similarity.clone().requires_grad_()
        terms = SimilarityTerms(s, terms.compatibility)
        gradients = []
        for _ in range(2):
            s.grad = None
            solve(terms, unary).x.square().sum().backward()
            gaussian_mean_field_energy(terms, unary, unary).sum().backward()
            gradients.append(s.grad)
        assert torch.equal(*gradients)
        assert gradients[0].any()


class TestConvergence:
    @given(
        st.integers(0, 10**6),
        st.integers(1, 4),
        st.integers(1, 6),
        st.integers(1, 6),
        st.floats(-2, 3),
        st.sampled_from(PARTITIONS),
    )
    def test_no_layer_raises_the_energy(self, seed, labels, height, width, exponent, partition):
        """Also where nothing is diagonally dominant: pairwise terms up to 1000 times the unary."""
        terms, unary = problem(1, labels, height, width, seed=seed, strength=10**exponent)
        scores = 10 * torch.randn_like(unary)
        least = gaussian_mean_field_energy(terms, unary, solve(terms, unary, method="auto").x)
        first = before = gaussian_mean_field_energy(terms, unary, scores)
        for _ in range(4):
            scores = gaussian_mean_field(terms, unary, layers=1, partition=partition, start=scores)
            after = gaussian_mean_field_energy(terms, unary, scores)
            assert after <= before + 1e-12 * first
            # In the norm of the system, the distance to the solution is the energy above the least.
            assert after - least >= -1e-9 * first
            before = after

    @pytest.mark.parametrize("partition", PARTITIONS)
    def test_halves_in_turn(self, partition):
        """One layer is the update of each pixel by itself, the even half first."""
        terms, unary = problem(1)
        _, labels, height, width = unary.shape
        matrix = dense(terms.similarity[0], terms.compatibility, 7).view(labels, 30, labels, 30)
        x, b = unary[0].flatten(1).clone(), unary[0].flatten(1)
        columns = partition == "columns"
        order = sorted(range(height * width), key=lambda i: (i % width if columns else i // width) % 2)
        for i in order:
            others = torch.einsum("kljm,jm->kl", matrix, x)[:, i] - matrix[:, i, :, i] @ x[:, i]
            x[:, i] = torch.linalg.solve(matrix[:, i, :, i], b[:, i] - others)
        layer = gaussian_mean_field(terms, unary, layers=1, partition=partition)
        torch.testing.assert_close(layer[0].flatten(1), x)

    @pytest.mark.parametrize("partition", PARTITIONS)
    # Measured: 3e-14 and 5e-7, and to the solution by conjugate gradient 7e-11 and 8e-7.
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
    def test_many_layers_solve_the_system(self, partition, dtype, tolerance, device):
        terms, unary = problem()
        expected = densely_solved(terms, unary, 7)
        similarity, compatibility = (
            value.to(device, dtype) for value in (terms.similarity, terms.compatibility)
        )
        terms, unary = SimilarityTerms(similarity, compatibility), unary.to(device, dtype)
        scores = gaussian_mean_field(terms, unary, layers=600, partition=partition)
        assert relative_error(scores.cpu().double(), expected) <= tolerance
        assert relative_error(solve(terms, unary).x, scores) <= tolerance

    def test_layers_follow_one_another(self):
        terms, unary = problem()
        scores = gaussian_mean_field(terms, unary, layers=2)
        torch.testing.assert_close(
            gaussian_mean_field(terms, unary, layers=3, start=scores),
            gaussian_mean_field(terms, unary, layers=5),
        )
        assert gaussian_mean_field(terms, unary, layers=0) is unary

    @pytest.mark.parametrize("window", [3, 7])
    def test_rows_are_columns_of_the_transpose(self, window):
        z, unary = torch.randn(1, 2, 6, 5, dtype=torch.float64), torch.randn(1, 3, 6, 5, dtype=torch.float64)
        c = factor_of(3) @ factor_of(3).T
        rows = gaussian_mean_field(SimilarityTerms(pixel_similarity(z, window), c), unary, partition="rows")
        turned = SimilarityTerms(pixel_similarity(z.mT.contiguous(), window), c)
        torch.testing.assert_close(gaussian_mean_field(turned, unary.mT).mT, rows)

    def test_two_graphs_that_do_not_meet(self):
        """Pixels with y + x even see no others, and for them columns and rows are the same halves."""
        terms, unary = problem()
        even = (torch.arange(5)[:, None] + torch.arange(6)) % 2 == 0
        changed = torch.where(even, unary, torch.randn_like(unary))
        one, other = gaussian_mean_field(terms, unary), gaussian_mean_field(terms, changed)
        assert torch.equal(one[..., even], other[..., even])
        assert not torch.isclose(one[..., ~even], other[..., ~even]).any()
        rows = gaussian_mean_field(terms, unary, partition="rows")
        torch.testing.assert_close(rows[..., even], one[..., even])
        assert not torch.isclose(rows[..., ~even], one[..., ~even]).any()

    def test_a_constant_stays(self):
        terms, unary = problem()
        constant = unary[:, :, :1, :1].expand_as(unary)
        torch.testing.assert_close(gaussian_mean_field(terms, constant), constant)

    def test_without_similarity_or_compatibility_the_unary_stays(self):
        terms, unary = problem()
        nothing = torch.zeros_like(terms.similarity), torch.zeros_like(terms.compatibility)
        for s, c in [(nothing[0], terms.compatibility), (terms.similarity, nothing[1])]:
            torch.testing.assert_close(gaussian_mean_field(SimilarityTerms(s, c), unary), unary)


def updates(matrix, blocks, together):
    """Return the matrix that errors are multiplied by when each block is set to its best given the others.

    Args:
        matrix: (n, n) symmetric positive definite.
        blocks: Lists of indices.
        together: Groups of blocks, updated at once from what was before; one group after another.
    """
    n = len(matrix)
    result = torch.eye(n, dtype=matrix.dtype)
    for group in together:
        step = torch.eye(n, dtype=matrix.dtype)
        for block in (blocks[i] for i in group):
            step[block] -= torch.linalg.solve(matrix[block][:, block], matrix[block])
        result = step @ result
    return result


def radius(matrix):
    return float(torch.linalg.eigvals(matrix).abs().max())


def difference_energy(nodes, size, weights):
    """Return I + the blocks of Σ_ij (y_i - y_j)ᵀ W_ij (y_i - y_j), node by node."""
    matrix = torch.eye(nodes * size, dtype=torch.float64)
    for (i, j), weight in weights.items():
        a, b = (slice(k * size, (k + 1) * size) for k in (i, j))
        matrix[a, a] += weight
        matrix[b, b] += weight
        matrix[a, b] -= weight
        matrix[b, a] -= weight
    return matrix


class TestParallelUpdates:
    """What can be updated at once; `hdcrf.gaussian.mean_field_network` says why."""

    @pytest.mark.parametrize("partition", PARTITIONS)
    def test_all_numbers_at_once_diverge_where_halves_converge(self, partition):
        """With C of ones, the numbers of a pixel pull as hard on each other as on themselves."""
        s = pixel_similarity(torch.zeros(1, 1, 6, 6, dtype=torch.float64), 7)
        compatibility = torch.ones(3, 3, dtype=torch.float64)
        matrix = dense(s[0], compatibility, 7)
        n = len(matrix)
        assert (matrix.abs().sum(1) > 2 * matrix.diagonal()).all()  # nowhere diagonally dominant
        numbers = [[i] for i in range(n)]
        assert radius(updates(matrix, numbers, [range(n)])) > 3
        assert radius(updates(matrix, numbers, [[i] for i in range(n)])) < 1  # one after another

        unary = torch.randn(1, 3, 6, 6, dtype=torch.float64)
        terms = SimilarityTerms(s, compatibility)
        expected = torch.linalg.solve(matrix, unary.flatten()).view_as(unary)
        x = unary.flatten()
        for _ in range(50):
            x = (unary.flatten() - matrix @ x) / matrix.diagonal() + x
        assert relative_error(x, expected.flatten()) > 1e6
        scores = gaussian_mean_field(terms, unary, layers=2000, partition=partition)
        assert relative_error(scores, expected) < 1e-9

    @given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4), st.floats(-2, 2))
    def test_all_pixels_at_once_converge_for_any_such_energy(self, seed, nodes, size, exponent):
        """On complete graphs, which are not bipartite, with a W_ij of its own for each pair."""
        torch.manual_seed(seed)
        weights = {}
        for pair in itertools.combinations(range(nodes), 2):
            root = 10 ** (exponent / 2) * torch.randn(size, size, dtype=torch.float64)
            weights[pair] = root @ root.T
        matrix = difference_energy(nodes, size, weights)
        blocks = torch.arange(nodes * size).view(nodes, size).tolist()
        assert radius(updates(matrix, blocks, [range(nodes)])) < 1

    @pytest.mark.parametrize("strength", [0.1, 10.0])
    def test_a_layer_is_worth_two_updates_of_all_pixels(self, strength):
        terms, _ = problem(1, strength=strength)
        matrix = dense(terms.similarity[0], terms.compatibility, 7)
        blocks = torch.arange(90).view(3, 30).T.tolist()
        parallel = radius(updates(matrix, blocks, [range(30)]))
        columns = torch.arange(30) % 6 % 2
        layer = updates(matrix, blocks, [(columns == half).nonzero()[:, 0].tolist() for half in (0, 1)])
        assert 0.1 < parallel < 1
        assert radius(layer) == pytest.approx(parallel**2, rel=1e-6)

    def test_other_energies_can_diverge(self):
        """Not of differences, on a graph that is no bipartition: attraction to the opposite, all to all."""
        matrix = torch.full((3, 3), 0.9, dtype=torch.float64).fill_diagonal_(1.0)
        assert torch.linalg.eigvalsh(matrix)[0] > 0
        blocks = [[0], [1], [2]]
        assert radius(updates(matrix, blocks, [range(3)])) == pytest.approx(1.8)
        assert radius(updates(matrix, blocks, [[0], [1], [2]])) < 1


def symmetric(matrix):
    return (matrix + matrix.mT) / 2


FACTORS = {
    "random": factor_of(3),
    "identity": torch.eye(3, dtype=torch.float64),
    "two equal": torch.diag(torch.tensor([0.7, 0.7, 2.0], dtype=torch.float64)),
    "zero": torch.zeros(3, 3, dtype=torch.float64),
}


class TestGradients:
    @pytest.mark.parametrize("partition", PARTITIONS)
    @pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
    def test_of_the_layers(self, factor, partition):
        terms, unary = problem(1, 3, 3, 4)
        start = torch.randn_like(unary)

        def scores(unary, start, similarity, factor):
            lower = factor.tril()
            given = SimilarityTerms(similarity, lower @ lower.mT)
            return gaussian_mean_field(given, unary, layers=2, partition=partition, start=start)

        inputs = (unary, start, terms.similarity + 0.1, factor)
        assert gradcheck(scores, [value.clone().requires_grad_() for value in inputs])

    def test_of_the_compatibility_itself(self):
        terms, unary = problem(1, 3, 3, 4)
        for c in (terms.compatibility, torch.eye(3, dtype=torch.float64)):
            assert gradcheck(
                lambda c: gaussian_mean_field(
                    SimilarityTerms(terms.similarity, symmetric(c)), unary, layers=3
                ),
                (c.clone().requires_grad_(),),
            )

    @pytest.mark.parametrize("factor", ["random", "identity"])
    def test_of_the_network(self, factor):
        network = GaussianMeanFieldNetwork(3, 2, num_filters=2, window=7, layers=2).double()
        unary = torch.randn(1, 3, 3, 4, dtype=torch.float64)
        features = torch.randn(1, 2, 3, 4, dtype=torch.float64)

        def scores(unary, features, filters, factor):
            parameters = {"filters": filters, "factor": factor}
            return torch.func.functional_call(network, parameters, (unary, features))

        inputs = (unary, features, network.filters.detach(), FACTORS[factor])
        assert gradcheck(scores, [value.clone().requires_grad_() for value in inputs])

    def test_of_the_energy_and_the_solution(self):
        terms, unary = problem(1, 2, 3, 3, window=3)
        scores = torch.randn_like(unary)

        def both(unary, scores, similarity, c):
            given = SimilarityTerms(similarity, symmetric(c))
            solution = solve(given, unary, tolerance=1e-14).x
            return gaussian_mean_field_energy(given, unary, scores), solution

        inputs = (unary, scores, terms.similarity + 0.1, terms.compatibility)
        assert gradcheck(both, [value.clone().requires_grad_() for value in inputs])

    @pytest.mark.parametrize("factor", ["random", "identity"])
    @pytest.mark.parametrize("partition", PARTITIONS)
    def test_of_many_layers_are_those_of_the_solution(self, factor, partition):
        terms, unary = problem(1, 3, 4, 4)
        weights = torch.randn_like(unary)

        def gradients(scores_of):
            inputs = [value.clone().requires_grad_() for value in (unary, terms.similarity, FACTORS[factor])]
            (scores_of(*inputs) * weights).sum().backward()
            return [value.grad for value in inputs]

        def layers(unary, similarity, factor):
            given = SimilarityTerms(similarity, factor @ factor.mT)
            return gaussian_mean_field(given, unary, layers=600, partition=partition)

        def densely(unary, similarity, factor):
            matrix = dense(similarity[0], factor @ factor.mT, 7)
            return torch.linalg.solve(matrix, unary.flatten()).view_as(unary)

        for found, expected in zip(gradients(layers), gradients(densely), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


class TestNetwork:
    def test_is_its_parts(self, device):
        network = GaussianMeanFieldNetwork(4, 3, num_filters=2, window=7, layers=3).to(device)
        with torch.no_grad():
            network.factor += torch.randn(4, 4, device=device)  # above the diagonal too
        unary, z = torch.rand(2, 4, 6, 5, device=device), torch.randn(2, 3, 6, 5, device=device)
        filtered = torch.einsum("mc,bchw->bmhw", network.filters, z)
        lower = network.factor.tril()
        terms = SimilarityTerms(pixel_similarity(filtered, 7), lower @ lower.T)
        expected = gaussian_mean_field(terms, unary, layers=3)
        torch.testing.assert_close(network(unary, z), expected)
        torch.testing.assert_close(network.similarity(z), terms.similarity)
        torch.testing.assert_close(solve(network.terms(z), unary).x, solve(terms, unary).x)

    def test_defaults_are_the_papers(self):
        network = GaussianMeanFieldNetwork(5, 3)
        assert (network.window, network.layers, network.filters.shape) == (23, 5, (5, 3))
        assert torch.allclose(network.compatibility(), torch.eye(5) / 144)

    def test_similarity_at_the_start(self):
        """Features of variance 1 start neither all alike nor all different."""
        similarity = GaussianMeanFieldNetwork(10, 30, window=3).similarity(torch.randn(1, 30, 40, 40))
        assert 0.25 < similarity[..., :39, 1:39].median().item() < 0.5

    def test_zero_layers_return_the_unary(self):
        unary = torch.rand(1, 2, 4, 4)
        assert torch.equal(GaussianMeanFieldNetwork(2, 1, layers=0)(unary, torch.rand(1, 1, 4, 4)), unary)

    def test_batch_equals_items(self):
        network = GaussianMeanFieldNetwork(3, 2, window=7)
        unary, z = torch.rand(3, 3, 5, 6), torch.randn(3, 2, 5, 6)
        items = [network(unary[i : i + 1], z[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(network(unary, z), torch.cat(items))

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5)])
    def test_small_images_and_one_label(self, size):
        network = GaussianMeanFieldNetwork(1, 2).double()
        unary, z = torch.randn(1, 1, *size).double(), torch.randn(1, 2, *size).double()
        scores = network(unary, z)
        assert scores.shape == unary.shape
        if 1 in size:  # no pixel has a neighbour in another row and column
            torch.testing.assert_close(scores, unary)
        else:
            expected = solve(network.terms(z), unary, tolerance=1e-13).x
            before, after = (gaussian_mean_field_energy(network.terms(z), unary, s) for s in (unary, scores))
            least = gaussian_mean_field_energy(network.terms(z), unary, expected)
            assert least * (1 - 1e-12) <= after < before

    def test_views(self):
        network = GaussianMeanFieldNetwork(3, 2, window=7)
        unary, z = torch.rand(1, 6, 5, 3).permute(0, 3, 1, 2), torch.randn(1, 2, 12, 5)[:, :, ::2]
        torch.testing.assert_close(network(unary, z), network(unary.contiguous(), z.contiguous()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        network = GaussianMeanFieldNetwork(3, 2, window=7)
        unary, z = torch.rand(1, 3, 5, 6).to(dtype), torch.randn(1, 2, 5, 6).to(dtype)
        expected = network(unary.float(), z.float())
        assert torch.equal(network(unary, z), expected.to(dtype))
        assert network.similarity(z).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network(unary.float(), z.float()), expected)

    def test_float64_with_parameters_of_float32(self):
        network = GaussianMeanFieldNetwork(3, 2, window=7)
        unary, z = torch.rand(1, 3, 5, 6).double(), torch.randn(1, 2, 5, 6).double()
        scores = network(unary, z)
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores, network.double()(unary, z), rtol=1e-6, atol=1e-6)

    def test_state(self):
        network, other = (GaussianMeanFieldNetwork(3, 2, window=7) for _ in range(2))
        unary, z = torch.rand(1, 3, 5, 6), torch.randn(1, 2, 5, 6)
        assert not torch.equal(network(unary, z), other(unary, z))
        other.load_state_dict(network.state_dict())
        assert torch.equal(network(unary, z), other(unary, z))
        assert repr(network) == (
            "GaussianMeanFieldNetwork(3, 2, num_filters=3, window=7, layers=5, partition='columns')"
        )

    def test_same_bits_each_time(self):
        network = GaussianMeanFieldNetwork(3, 2, window=7)
        unary, z = torch.rand(2, 3, 9, 8), torch.randn(2, 2, 9, 8)

        def trained():
            network.zero_grad()
            network(unary, z).square().sum().backward()
            return network.filters.grad.clone(), network.factor.grad.clone()

        assert all(torch.equal(*both) for both in zip(trained(), trained(), strict=True))

    def test_training(self):
        """Features tell two regions apart; the unary is noise around them."""
        truth = (torch.arange(12) >= 6).long().expand(1, 12, 12)
        z = torch.cat([truth[:, None].float(), torch.randn(1, 2, 12, 12)], 1)  # two channels are noise
        unary = (torch.nn.functional.one_hot(truth, 2).movedim(3, 1) + torch.randn(1, 2, 12, 12)).softmax(1)
        network = GaussianMeanFieldNetwork(2, 3, window=7)
        assert (unary.argmax(1) == truth).float().mean() < 0.85

        pretraining = torch.optim.Adam([network.filters], 0.1)
        for _ in range(60):
            pretraining.zero_grad()
            similarity_loss(network.similarity(z), truth).backward()
            pretraining.step()
        similarity = network.similarity(z).detach()
        like, unlike = [], []
        for entry, (y, x), (v, u) in pairs(7, 12, 12):
            same = truth[0, y, x] == truth[0, v, u]
            (like if same else unlike).append(float(similarity[0, entry, y, x]))
        assert sum(like) / len(like) > 0.8
        assert sum(unlike) / len(unlike) < 0.05

        training = torch.optim.Adam(network.parameters(), 0.05)
        losses = []
        for _ in range(60):
            training.zero_grad()
            loss = margin_loss(network(unary, z), truth, margin=0.2)
            loss.backward()
            losses.append(loss.item())
            training.step()
        # Measured: from 0.118 to 0.033, and 0.95.
        assert losses[-1] < 0.5 * losses[0]
        assert (network(unary, z).argmax(1) == truth).float().mean() > 0.92


class TestMarginLoss:
    def test_equals_its_definition(self):
        y = torch.randn(2, 4, 3, 5, dtype=torch.float64)
        labels = torch.randint(-1, 4, (2, 3, 5))
        terms = []
        for b, h, w in itertools.product(range(2), range(3), range(5)):
            label = int(labels[b, h, w])
            if label >= 0:
                others = [float(y[b, k, h, w]) for k in range(4) if k != label]
                terms.append(-min(0.0, float(y[b, label, h, w]) - max(others) - 0.3))
        assert 0 < len(terms) < labels.numel()
        expected = sum(terms) / len(terms)
        assert margin_loss(y, labels, margin=0.3).item() == pytest.approx(expected, rel=1e-12)
        assert margin_loss(
            y, torch.where(labels < 0, 255, labels).to(torch.uint8), margin=0.3, ignore_index=255
        ).item() == pytest.approx(expected, rel=1e-12)

    def test_zero_beyond_the_margin(self):
        y = torch.tensor([[1.0, 0.5, -3.0]])
        assert margin_loss(y, torch.tensor([0])) == 0
        assert margin_loss(y, torch.tensor([1])) == 1.0
        assert margin_loss(y, torch.tensor([0]), margin=2) == 1.5

    def test_gradcheck(self):
        y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        labels = torch.randint(-1, 3, (2, 4))
        assert gradcheck(lambda y: margin_loss(y, labels), (y,))

    def test_nothing_labelled(self):
        y = torch.randn(2, 3, 4, requires_grad=True)
        loss = margin_loss(y, torch.full((2, 4), -1))
        loss.backward()
        assert loss == 0
        assert (y.grad == 0).all()

    def test_half_precision(self):
        y, labels = torch.randn(2, 3, 4).half(), torch.randint(0, 3, (2, 4))
        assert torch.equal(margin_loss(y, labels), margin_loss(y.float(), labels))

    @pytest.mark.parametrize(
        ("scores", "labels", "options", "error", "message"),
        [
            (torch.rand(1, 1, 4), torch.zeros(1, 4).long(), {}, ValueError, "with K of at least 2, got"),
            (torch.rand(4), torch.zeros(4).long(), {}, ValueError, r"`scores` must have shape \(B, K, \*S\)"),
            (torch.ones(1, 2, 4).long(), torch.zeros(1, 4).long(), {}, TypeError, "`scores` must be float32"),
            (torch.rand(1, 2, 4), torch.zeros(1, 3).long(), {}, ValueError, r"shape \(1, 4\), a label for"),
            (torch.rand(1, 2, 4), torch.zeros(1, 4), {}, TypeError, "`labels` must hold integers, got"),
            (torch.rand(1, 2, 4), [0] * 4, {}, TypeError, r"`labels` must be a torch\.Tensor, got list"),
            (torch.rand(1, 2, 4), torch.full((1, 4), 2), {}, ValueError, r"from 0 to 1, or -1 .* \(0, 0\)"),
            (torch.rand(1, 2, 4), torch.full((1, 4), -2), {}, ValueError, "or -1 to be left out, got -2"),
            (torch.full((1, 2, 4), torch.nan), torch.zeros(1, 4).long(), {}, ValueError, "must be finite"),
            (
                torch.rand(1, 2, 4),
                torch.zeros(1, 4).long(),
                {"margin": math.inf},
                ValueError,
                "`margin` must",
            ),
            (torch.rand(1, 2, 4), torch.zeros(1, 4).long(), {"ignore_index": 0.5}, TypeError, "an integer"),
        ],
    )
    def test_wrong_input(self, scores, labels, options, error, message):
        with pytest.raises(error, match=message):
            margin_loss(scores, labels, **options)


class TestSimilarityLoss:
    @pytest.mark.parametrize("window", [3, 7])
    def test_equals_its_definition(self, window):
        s = pixel_similarity(torch.randn(2, 2, 5, 6, dtype=torch.float64), window)
        labels = torch.randint(-1, 3, (2, 5, 6))
        terms = []
        for b in range(2):
            for entry, (y, x), (v, u) in pairs(window, 5, 6):
                one, other, value = int(labels[b, y, x]), int(labels[b, v, u]), float(s[b, entry, y, x])
                if -1 not in (one, other):
                    terms.append(-value if one == other else max(0.0, value - 0.1))
        found = similarity_loss(s, labels, threshold=0.1).item()
        assert found == pytest.approx(sum(terms) / len(terms), rel=1e-12)

    def test_pushes_like_up_and_unlike_down_to_the_threshold(self):
        s = torch.full((1, 2, 2, 2), 0.5, requires_grad=True)
        similarity_loss(s, torch.tensor([[[0, 1], [1, 0]]])).backward()
        # (0, 0) with (1, 1), at (1, 1), and (0, 1) with (1, 0), at (1, -1).
        assert s.grad[0, 1, 0, 0] == s.grad[0, 0, 0, 1] == -0.5
        assert s.grad.count_nonzero() == 2
        s.grad = None
        similarity_loss(s, torch.tensor([[[0, 1], [2, 3]]])).backward()
        assert s.grad[0, 1, 0, 0] == s.grad[0, 0, 0, 1] == 0.5
        s.grad = None
        loss = similarity_loss(s, torch.tensor([[[0, 1], [2, 3]]]), threshold=0.6)
        loss.backward()
        assert loss == 0
        assert (s.grad == 0).all()

    @pytest.mark.parametrize("labels", [torch.full((1, 2, 2), -1), torch.tensor([[[0, 0], [-1, -1]]])])
    def test_no_pair_labelled(self, labels):
        s = torch.rand(1, 2, 2, 2, requires_grad=True)
        loss = similarity_loss(s, labels)
        loss.backward()
        assert loss == 0
        assert (s.grad == 0).all()

    @pytest.mark.parametrize(
        ("similarity", "labels", "error", "message"),
        [
            (torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4).long(), ValueError, "2, 8, 18, .* got 3"),
            (torch.rand(2, 4, 4), torch.zeros(1, 4, 4).long(), ValueError, r"shape \(B, E, H, W\)"),
            (torch.rand(1, 2, 4, 4), torch.zeros(1, 4, 3).long(), ValueError, r"must have shape \(1, 4, 4\)"),
            (torch.rand(1, 2, 4, 4), torch.full((1, 4, 4), -2), ValueError, "must be 0 or greater, or -1"),
            (torch.rand(1, 2, 4, 4) * torch.nan, torch.zeros(1, 4, 4).long(), ValueError, "must be finite"),
        ],
    )
    def test_wrong_input(self, similarity, labels, error, message):
        with pytest.raises(error, match=message):
            similarity_loss(similarity, labels)


class TestWrongInput:
    @pytest.mark.parametrize(
        ("compatibility", "error", "message"),
        [
            (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ValueError, "must be symmetric, got entries .* by 0.5"),
            (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), NotPositiveDefiniteError, "got an eigenvalue of -1;"),
            (torch.eye(2) * torch.nan, ValueError, "`compatibility` must be finite"),
            (torch.eye(2).double(), TypeError, "`compatibility` must have the dtype of `similarity`"),
            (torch.ones(2, 3), ValueError, r"must have shape \(K, K\) with K of at least 1, got \(2, 3\)"),
            (torch.ones(0, 0), ValueError, r"with K of at least 1, got \(0, 0\)"),
            ([[1.0]], TypeError, r"`compatibility` must be a torch\.Tensor, got list"),
        ],
    )
    def test_compatibility(self, compatibility, error, message):
        with pytest.raises(error, match=message):
            SimilarityTerms(torch.rand(1, 2, 4, 4), compatibility)

    def test_rounding_is_no_indefiniteness(self):
        """R Rᵀ of rank one, in float32, has eigenvalues a little below zero."""
        for seed in range(20):
            column = factor_of(8, seed)[:, :1].float()
            unary = torch.rand(1, 8, 4, 4)
            terms = SimilarityTerms(torch.ones(1, 2, 4, 4), column @ column.T)
            assert gaussian_mean_field(terms, unary).isfinite().all()

    @pytest.mark.parametrize(
        ("similarity", "error", "message"),
        [
            (torch.rand(1, 4, 4, 4), ValueError, "as many channels as a window has connections"),
            (torch.rand(1, 2, 4), ValueError, r"`similarity` must have shape \(B, E, H, W\)"),
            (torch.rand(0, 2, 4, 4), ValueError, "with no size of 0"),
            (torch.full((1, 2, 4, 4), -0.5), ValueError, "`similarity` must be 0 or greater, got -0.5"),
            (torch.full((1, 2, 4, 4), torch.inf), ValueError, "`similarity` must be finite"),
            (torch.ones(1, 2, 4, 4).long(), TypeError, "`similarity` must be float32 or float64"),
        ],
    )
    def test_similarity(self, similarity, error, message):
        with pytest.raises(error, match=message):
            SimilarityTerms(similarity, torch.eye(2))

    @pytest.mark.parametrize(
        ("window", "error", "message"),
        [
            (8, ValueError, "`window` must be odd, so that it has a centre, got 8; use 9"),
            (1, ValueError, "`window` must be at least 3, got 1"),
            (257, ValueError, "`window` must be at most 255"),
            (7.0, TypeError, "`window` must be an integer"),
        ],
    )
    def test_window(self, window, error, message):
        with pytest.raises(error, match=message):
            pixel_similarity(torch.rand(1, 1, 4, 4), window)
        with pytest.raises(error, match=message):
            GaussianMeanFieldNetwork(2, 3, window=window)

    @pytest.mark.parametrize(
        ("features", "error", "message"),
        [
            (torch.rand(1, 4, 4), ValueError, r"`features` must have shape \(B, M, H, W\)"),
            (torch.rand(1, 0, 4, 4), ValueError, "with no size of 0"),
            (torch.rand(1, 1, 4, 4) * torch.nan, ValueError, "`features` must be finite"),
            (torch.rand(1, 1, 4, 4).half(), TypeError, "`features` must be float32 or float64"),
        ],
    )
    def test_features(self, features, error, message):
        with pytest.raises(error, match=message):
            pixel_similarity(features, 7)

    @pytest.mark.parametrize(
        ("unary", "options", "error", "message"),
        [
            (
                torch.rand(1, 3, 4, 4),
                {},
                ValueError,
                r"`unary` must have shape \(B, L, H, W\) = \(1, 2, 4, 4\)",
            ),
            (torch.rand(1, 2, 4, 4).double(), {}, TypeError, "`unary` must have the dtype of"),
            (torch.rand(1, 2, 4, 4) * torch.nan, {}, ValueError, "`unary` must be finite"),
            (torch.rand(1, 2, 4, 4), {"layers": -1}, ValueError, "`layers` must be at least 0, got -1"),
            (torch.rand(1, 2, 4, 4), {"layers": 2.0}, TypeError, "`layers` must be an integer"),
            (torch.rand(1, 2, 4, 4), {"partition": "both"}, ValueError, "one of 'columns', 'rows', got"),
            (torch.rand(1, 2, 4, 4), {"start": torch.rand(1, 2, 4)}, ValueError, "`start` must have shape"),
        ],
    )
    def test_mean_field(self, unary, options, error, message):
        terms = SimilarityTerms(torch.rand(1, 2, 4, 4), torch.eye(2))
        with pytest.raises(error, match=message):
            gaussian_mean_field(terms, unary, **options)

    def test_terms_of_another_kind(self):
        unary = torch.rand(1, 2, 4, 4)
        with pytest.raises(TypeError, match="`terms` must be SimilarityTerms, got Tensor"):
            gaussian_mean_field(unary, unary)
        with pytest.raises(TypeError, match="`terms` must be SimilarityTerms, got NoneType"):
            gaussian_mean_field_energy(None, unary, unary)

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            ((0, 3), {}, ValueError, "`num_labels` must be at least 1, got 0"),
            ((2, 0), {}, ValueError, "`feature_channels` must be at least 1, got 0"),
            ((2, 3), {"num_filters": 0}, ValueError, "`num_filters` must be at least 1, got 0"),
            ((2, 3), {"layers": -1}, ValueError, "`layers` must be at least 0, got -1"),
            ((2, 3), {"partition": 2}, ValueError, "`partition` must be one of"),
        ],
    )
    def test_options_of_the_network(self, arguments, options, error, message):
        with pytest.raises(error, match=message):
            GaussianMeanFieldNetwork(*arguments, **options)

    @pytest.mark.parametrize(
        ("unary", "features", "error", "message"),
        [
            (torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), ValueError, "with K = 2 and no size of 0, got"),
            (torch.rand(0, 2, 4, 4), torch.rand(0, 3, 4, 4), ValueError, "with K = 2 and no size of 0, got"),
            (torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4), ValueError, "with C = 3 and no size of 0, got"),
            (
                torch.rand(1, 2, 4, 4),
                torch.rand(1, 3, 4, 5),
                ValueError,
                r"= \(1, 3, 4, 4\) to match `unary`",
            ),
            (
                torch.rand(2, 2, 4, 4),
                torch.rand(1, 3, 4, 4),
                ValueError,
                r"= \(2, 3, 4, 4\) to match `unary`",
            ),
            (torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4).double(), TypeError, "must have the dtype of"),
            (
                torch.rand(1, 2, 4, 4),
                torch.full((1, 3, 4, 4), torch.nan),
                ValueError,
                "`features` must be fin",
            ),
            (
                torch.full((1, 2, 4, 4), torch.nan),
                torch.rand(1, 3, 4, 4),
                ValueError,
                "`unary` must be finite",
            ),
            (torch.ones(1, 2, 4, 4).long(), torch.rand(1, 3, 4, 4), TypeError, "`unary` must be float32"),
        ],
    )
    def test_inputs_of_the_network(self, unary, features, error, message):
        with pytest.raises(error, match=message):
            GaussianMeanFieldNetwork(2, 3, window=7)(unary, features)
