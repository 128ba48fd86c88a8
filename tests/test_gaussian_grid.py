"""Terms between neighbours of a grid, and between resolutions, against matrices written out by loops."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import relative_error

import voxel.backend
from hdcrf.gaussian import GridTerms, MultiResolutionTerms, NotPositiveDefiniteError, energy, solve
from tests.oracles import solved

NEIGHBOURS = {
    4: [(0, 1), (1, 0)],
    8: [(0, 1), (1, 0), (1, 1), (1, -1)],
    12: [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0)],
}
SHAPES = [(3, 4), (4, 3), (1, 5), (5, 1), (1, 1), (2, 2)]
# Worst seen over all cases of this file: 1.2e-6 in float32 and 9e-11 in float64 (CG stops at 1e-6 and 1e-10).
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
DTYPES = [torch.float32, torch.float64]


def weights_of(batch, connectivity, labels, height, width, dtype=torch.float64, seed=0):
    """Return random weights: for each pair of labels, or shared if `labels` is None."""
    pair = () if labels is None else (labels, labels)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, connectivity // 2, *pair, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def unary_of(batch, labels, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, labels, height, width), generator=generator, dtype=torch.float64).to(dtype)


def potts_weights(weights, labels):
    """Write (B, E, H, W) that labels share as (B, E, L, L, H, W)."""
    different = 1 - torch.eye(labels, dtype=weights.dtype)
    return weights[:, :, None, None] * different[:, :, None, None]


def written_out(weights, connectivity):
    """Return the (B, L·P, L·P) matrix of (B, E, L, L, H, W) weights, by loops."""
    batch, _, labels, _, height, width = weights.shape
    size = labels * height * width
    matrix = torch.zeros((batch, size, size), dtype=weights.dtype)

    def index(label, y, x):
        return (label * height + y) * width + x

    for e, (dy, dx) in enumerate(NEIGHBOURS[connectivity]):
        for m, n, y, x in itertools.product(range(labels), range(labels), range(height), range(width)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                here, there = index(m, y, x), index(n, y + dy, x + dx)
                matrix[:, here, there] = weights[:, e, m, n, y, x]
                matrix[:, there, here] = weights[:, e, m, n, y, x]
    return matrix


def scales_written_out(weights, connectivities, links):
    """Return the matrix of several resolutions, for weights and links of each pair of labels, by loops."""
    batch, labels = weights[0].shape[0], weights[0].shape[2]
    grids = [tuple(weight.shape[-2:]) for weight in weights]
    pixels = [height * width for height, width in grids]
    total = sum(pixels)
    matrix = torch.zeros((batch, labels * total, labels * total), dtype=weights[0].dtype)

    def index(scale, label, pixel):
        return label * total + sum(pixels[:scale]) + pixel

    for scale, (weight, connectivity) in enumerate(zip(weights, connectivities, strict=True)):
        own = written_out(weight, connectivity).reshape(batch, labels, pixels[scale], labels, pixels[scale])
        for m, n in itertools.product(range(labels), range(labels)):
            start, other = index(scale, m, 0), index(scale, n, 0)
            matrix[:, start : start + pixels[scale], other : other + pixels[scale]] = own[:, m, :, n]
    for scale, link in enumerate(links):
        (fine_height, fine_width), (height, width) = grids[scale : scale + 2]
        for m, n, y, x in itertools.product(
            range(labels), range(labels), range(fine_height), range(fine_width)
        ):
            fine = index(scale, m, y * fine_width + x)
            coarse = index(scale + 1, n, (y * height // fine_height) * width + x * width // fine_width)
            matrix[:, fine, coarse] = link[:, m, n, y, x]
            matrix[:, coarse, fine] = link[:, m, n, y, x]
    return matrix


def shifted(matrix, shift):
    return matrix + shift * torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def safe_shift(matrix):
    """Return a λ by which the matrix is well conditioned: above its largest eigenvalue."""
    return 1.0 + 1.5 * float(torch.linalg.eigvalsh(matrix).abs().max())


def direct(matrix, flat):
    """Solve densely in float64 for (B, ...) right-hand sides."""
    return solved(matrix.double(), flat.double().flatten(1)).reshape(flat.shape)


@pytest.fixture(params=["compiled", "plain"])
def products(request, monkeypatch):
    """Run with the compiled kernel, where there is one, and without."""
    if request.param == "plain":
        monkeypatch.setattr("hdcrf.gaussian.grid_terms.uses_native", lambda backend, tensor: False)
    elif voxel.backend.why_not:
        pytest.skip(voxel.backend.why_not)


@pytest.mark.usefixtures("products")
class TestMatrix:
    @pytest.mark.parametrize("connectivity", [4, 8, 12])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("labels", [1, 3, 5, None])
    def test_is_the_one_written_out(self, connectivity, shape, labels):
        weights = weights_of(2, connectivity, labels, *shape)
        expected = written_out(weights if labels else weights[:, :, None, None], connectivity)
        terms = GridTerms(weights, connectivity=connectivity)
        assert terms.size == expected.shape[1]
        assert torch.allclose(terms.dense(), expected, rtol=0, atol=1e-14)
        assert torch.equal(terms.diagonal(), expected.diagonal(dim1=1, dim2=2))
        assert torch.allclose(terms.margin(), expected.abs().sum(2))
        assert torch.allclose(terms.bound(), expected.abs().sum(2))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_products_agree_with_and_without_gradients(self, dtype):
        weights = weights_of(2, 12, 5, 6, 21, dtype)
        vectors = unary_of(2, 3, 1, 5 * 6 * 21, dtype).flatten(2)
        result = GridTerms(weights, connectivity=12).prepared()(vectors)
        expected = GridTerms(weights.clone().requires_grad_(), connectivity=12).product(vectors)
        assert expected.requires_grad
        assert not result.requires_grad
        # Seen: 2e-7 in float32, 2e-16 in float64.
        assert relative_error(result, expected.detach()) < {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]

    def test_vectors_may_lie_in_memory_in_any_way(self):
        terms = GridTerms(weights_of(1, 8, 2, 4, 5).mT.contiguous().mT, connectivity=8)
        vectors = torch.randn((40, 3, 1), dtype=torch.float64).permute(2, 1, 0)
        assert torch.allclose(terms.prepared()(vectors), vectors @ terms.dense())


@pytest.mark.skipif(bool(voxel.backend.why_not), reason=voxel.backend.why_not)
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 3), (3, 2), (40, 9), (9, 40)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_kernel_gives_the_same_on_any_number_of_threads(shape, count):
    """A thread writes its own rows alone, and reads what its neighbours' entries add to them."""
    weights = weights_of(3, 12, 5, *shape)
    vectors = unary_of(3, 2 * 5, *shape).reshape(3, 2, -1)
    product = GridTerms(weights, connectivity=12).prepared()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = product(vectors)
        torch.set_num_threads(count)
        voxel.backend.kernels().split_small_work(True)
        assert torch.allclose(product(vectors), expected, rtol=0, atol=1e-13)
        assert torch.equal(product(vectors), product(vectors))
    finally:
        voxel.backend.kernels().split_small_work(False)
        torch.set_num_threads(before)


@pytest.mark.usefixtures("products")
class TestSolution:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("connectivity", [4, 8, 12])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_general(self, connectivity, shape, dtype):
        weights, unary = weights_of(2, connectivity, 3, *shape, dtype), unary_of(2, 3, *shape, dtype)
        matrix = written_out(weights.double(), connectivity)
        shift = safe_shift(matrix)
        result = solve(GridTerms(weights, connectivity=connectivity), unary, regularization=shift)
        assert bool(result.converged.all())
        assert result.x.dtype == dtype
        assert relative_error(result.x.double(), direct(shifted(matrix, shift), unary)) < TOLERANCE[dtype]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("connectivity", [4, 8, 12])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("labels", [1, 2, 5])
    def test_potts(self, connectivity, shape, dtype, labels):
        weights, unary = weights_of(2, connectivity, None, *shape, dtype), unary_of(2, labels, *shape, dtype)
        matrix = written_out(potts_weights(weights.double(), labels), connectivity)
        shift = safe_shift(matrix)
        result = solve(GridTerms(weights, connectivity=connectivity), unary, regularization=shift)
        assert relative_error(result.x.double(), direct(shifted(matrix, shift), unary)) < TOLERANCE[dtype]
        # What is left of the whole system, not of its parts: seen up to 2e-7 in float32, 3e-10 in float64.
        assert result.residual.max() < {torch.float32: 2e-6, torch.float64: 1e-9}[dtype]

    @pytest.mark.parametrize("labels", [1, 4])
    def test_potts_is_the_general_system_with_its_weights(self, labels):
        weights, unary = weights_of(2, 8, None, 3, 5), unary_of(2, labels, 3, 5)
        whole = GridTerms(potts_weights(weights, labels), connectivity=8)
        shared = GridTerms(weights, connectivity=8)
        for options in ({"regularization": 30.0}, {"guarantee": True}):
            found, expected = (solve(terms, unary, **options) for terms in (shared, whole))
            assert relative_error(found.x, expected.x) < 1e-8
            energies = [energy(terms, unary, expected.x, **options) for terms in (shared, whole)]
            assert torch.allclose(*energies, rtol=1e-12)

    def test_batch_equals_its_items(self):
        weights, unary = weights_of(3, 4, 2, 4, 5), unary_of(3, 2, 4, 5)
        together = solve(GridTerms(weights), unary, regularization=20.0)
        for item in range(3):
            alone = solve(GridTerms(weights[item : item + 1]), unary[item : item + 1], regularization=20.0)
            assert torch.allclose(together.x[item], alone.x[0], rtol=0, atol=1e-12)
            assert together.iterations[item] == alone.iterations[0]

    def test_no_scores_have_a_lower_energy(self):
        terms, unary = GridTerms(weights_of(2, 12, 3, 4, 5), connectivity=12), unary_of(2, 3, 4, 5)
        x = solve(terms, unary, guarantee=True).x
        least = energy(terms, unary, x, guarantee=True)
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            moved = x + 1e-3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            assert bool((energy(terms, unary, moved, guarantee=True) > least).all())


@given(
    connectivity=st.sampled_from([4, 8, 12]),
    labels=st.one_of(st.none(), st.integers(1, 6)),
    height=st.integers(1, 6),
    width=st.integers(1, 20),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_guarantee_makes_any_terms_solvable(connectivity, labels, height, width, scale, seed):
    weights = scale * weights_of(2, connectivity, labels, height, width, seed=seed)
    unary = unary_of(2, labels or 3, height, width)
    terms = GridTerms(weights, connectivity=connectivity)
    result = solve(terms, unary, guarantee=True)
    whole = written_out(weights if labels else potts_weights(weights, 3), connectivity)
    matrix = shifted(whole, 1.0) + torch.diag_embed(whole.abs().sum(2))
    # The matrix's condition is at most 1 + 2 Σ|A| / λ, up to some 1e5 here, by which 1e-10 may grow.
    assert torch.allclose(result.x, direct(matrix, unary), rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [3, None])
def test_large_terms_need_the_guarantee(labels):
    terms = GridTerms(100 * weights_of(1, 8, labels, 4, 5), connectivity=8)
    unary = unary_of(1, 3, 4, 5)
    with pytest.raises(NotPositiveDefiniteError, match="guarantee"):
        solve(terms, unary)
    assert bool(solve(terms, unary, guarantee=True).converged.all())


class TestGradients:
    @pytest.mark.parametrize("guarantee", [False, True])
    @pytest.mark.parametrize("labels", [2, None])
    @pytest.mark.parametrize(("connectivity", "batch", "width"), [(4, 2, 2), (12, 1, 3)])
    def test_gradcheck(self, labels, guarantee, connectivity, batch, width):
        weights = weights_of(batch, connectivity, labels, 3, width).requires_grad_()
        unary = unary_of(batch, 2, 3, width).requires_grad_()
        shift = torch.tensor(15.0, dtype=torch.float64, requires_grad=True)

        def scores(weights, unary, shift):
            terms = GridTerms(weights, connectivity=connectivity)
            options = {"regularization": shift, "guarantee": guarantee, "tolerance": 1e-13}
            return solve(terms, unary, **options).x

        assert torch.autograd.gradcheck(scores, (weights, unary, shift))

    @pytest.mark.parametrize("shape", [(4, 5), (1, 6), (6, 1)])
    @pytest.mark.parametrize("labels", [3, None])
    def test_are_those_of_the_dense_solution(self, labels, shape):
        inputs = [weights_of(2, 8, labels, *shape), unary_of(2, 3, *shape), torch.tensor(30.0).double()]
        ours, dense = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
        out = unary_of(2, 3, *shape).flip(0)
        found = solve(GridTerms(ours[0], connectivity=8), ours[1], regularization=ours[2], tolerance=1e-13).x
        (found * out).sum().backward()
        whole = dense[0] if labels else potts_weights(dense[0], 3)
        matrix = written_out(whole, 8) + dense[2] * torch.eye(3 * shape[0] * shape[1], dtype=torch.float64)
        (direct(matrix, dense[1]) * out).sum().backward()
        for own, other in zip(ours, dense, strict=True):
            assert relative_error(own.grad, other.grad) < 1e-8

    def test_of_the_energy(self):
        weights, unary = weights_of(1, 8, 2, 3, 3).requires_grad_(), unary_of(1, 2, 3, 3).requires_grad_()
        scores = unary_of(1, 2, 3, 3).flip(2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda w, b, x: energy(GridTerms(w, connectivity=8), b, x, guarantee=True),
            (weights, unary, scores),
        )

    def test_entries_outside_the_grid_have_none(self):
        weights = weights_of(1, 4, 2, 3, 3).requires_grad_()
        solve(GridTerms(weights), unary_of(1, 2, 3, 3), regularization=20.0).x.sum().backward()
        assert not weights.grad[:, 0, ..., -1].any()
        assert not weights.grad[:, 1, ..., -1, :].any()
        assert weights.grad[:, 0, ..., :-1].all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("weights", "connectivity", "error", "words"),
        [
            ([[1.0]], 4, TypeError, "`weights` must be a torch.Tensor, got list"),
            (torch.ones(1, 2, 3, 3, 4, 4, dtype=torch.int64), 4, TypeError, "`weights` must be float32"),
            (torch.ones(1, 2, 3, 4, 4), 4, ValueError, r"`weights` must have shape \(B, 2, L, L, H, W\)"),
            (torch.ones(1, 2, 3, 2, 4, 4), 4, ValueError, "`weights` must have shape"),
            (torch.ones(1, 2, 4, 4), 8, ValueError, r"\(B, 4, H, W\).*connectivity of 8.*\(1, 2, 4, 4\)"),
            (torch.ones(1, 2, 0, 0, 4, 4), 4, ValueError, "no size of 0"),
            (torch.ones(1, 2, 0, 4), 4, ValueError, "no size of 0"),
            (torch.full((1, 2, 4, 4), torch.nan), 4, ValueError, "`weights` must be finite, got nan"),
            (torch.ones(1, 2, 4, 4), 5, ValueError, "`connectivity` must be 4, 8 or 12, got 5"),
            (torch.ones(1, 2, 4, 4), 4.0, TypeError, "`connectivity` must be an integer"),
        ],
    )
    def test_weights(self, weights, connectivity, error, words):
        with pytest.raises(error, match=words):
            GridTerms(weights, connectivity=connectivity)

    @pytest.mark.parametrize(
        ("unary", "error", "words"),
        [
            (None, TypeError, "`unary` must be a torch.Tensor"),
            (torch.ones(1, 2, 4, 5), ValueError, r"`unary` must have shape \(B, L, H, W\) = \(1, 2, 4, 4\)"),
            (torch.ones(2, 2, 4, 4), ValueError, "`unary` must have shape"),
            (torch.ones(1, 3, 4, 4), ValueError, "`unary` must have shape"),
            (torch.ones(1, 2, 4, 4).double(), TypeError, "`unary` must have the dtype"),
            (torch.full((1, 2, 4, 4), torch.inf), ValueError, "`unary` must be finite"),
        ],
    )
    def test_unary(self, unary, error, words):
        with pytest.raises(error, match=words):
            solve(GridTerms(torch.ones(1, 2, 2, 2, 4, 4)), unary)

    def test_no_labels(self):
        with pytest.raises(ValueError, match="at least one label"):
            solve(GridTerms(torch.ones(1, 2, 4, 4)), torch.ones(1, 0, 4, 4))

    @pytest.mark.parametrize("shift", [0, -1.0, torch.nan, torch.tensor(0.0), torch.tensor([1.0, 2.0])])
    def test_regularization(self, shift):
        with pytest.raises(ValueError, match="`regularization` must be"):
            solve(GridTerms(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4), regularization=shift)

    def test_there_is_no_direct_solution(self):
        with pytest.raises(ValueError, match="no solution for GridTerms"):
            solve(GridTerms(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4), method="direct")


# Sizes that divide and that do not, a coarse grid larger than the fine one, and a single scale.
PYRAMIDS = [
    [(4, 6), (2, 3)],
    [(5, 4), (3, 2), (1, 1)],
    [(2, 2), (3, 5)],
    [(1, 7), (1, 3)],
    [(3, 3)],
]


def pyramid(sizes, labels, dtype=torch.float64, batch=2):
    """Return the weights, connectivities, links and unary terms of several resolutions."""
    connectivities = [(4, 8, 12)[scale % 3] for scale in range(len(sizes))]
    weights = [
        weights_of(batch, connectivity, labels, *size, dtype, seed=scale)
        for scale, (size, connectivity) in enumerate(zip(sizes, connectivities, strict=True))
    ]
    links = [
        weights_of(batch, 2, labels, *size, dtype, seed=10 + scale)[:, 0]
        for scale, size in enumerate(sizes[:-1])
    ]
    unary = [unary_of(batch, labels or 3, *size, dtype) for size in sizes]
    return weights, connectivities, links, unary


def terms_of(weights, connectivities, links):
    grids = [GridTerms(w, connectivity=c) for w, c in zip(weights, connectivities, strict=True)]
    return MultiResolutionTerms(grids, links)


def joined(parts):
    return torch.cat([part.flatten(2) for part in parts], 2)


def whole_weights(weights, links, labels):
    """Return weights and links as those of each pair of labels."""
    if labels:
        return weights, links
    return [potts_weights(w, 3) for w in weights], [potts_weights(link[:, None], 3)[:, 0] for link in links]


@pytest.mark.parametrize("sizes", PYRAMIDS)
@pytest.mark.parametrize("labels", [3, None])
class TestResolutions:
    def test_matrix_is_the_one_written_out(self, sizes, labels):
        weights, connectivities, links, _ = pyramid(sizes, labels)
        terms = terms_of(weights, connectivities, links)
        if labels is None:
            weights, links = [w[:, :, None, None] for w in weights], [link[:, None, None] for link in links]
        expected = scales_written_out(weights, connectivities, links)
        assert torch.allclose(terms.dense(), expected, rtol=0, atol=1e-14)
        identity = torch.eye(terms.size, dtype=torch.float64).expand(2, -1, -1)
        assert torch.allclose(terms.prepared()(identity), expected, rtol=0, atol=1e-14)
        assert torch.equal(terms.diagonal(), expected.diagonal(dim1=1, dim2=2))
        assert torch.allclose(terms.margin(), expected.abs().sum(2))
        assert torch.allclose(terms.bound(), expected.abs().sum(2))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_solution(self, sizes, labels, dtype):
        weights, connectivities, links, unary = pyramid(sizes, labels, dtype)
        whole = whole_weights([w.double() for w in weights], [link.double() for link in links], labels)
        matrix = scales_written_out(whole[0], connectivities, whole[1])
        shift = safe_shift(matrix)
        result = solve(terms_of(weights, connectivities, links), unary, regularization=shift)
        assert [part.shape for part in result.x] == [part.shape for part in unary]
        expected = direct(shifted(matrix, shift), joined(unary))
        assert relative_error(joined(result.x).double(), expected) < TOLERANCE[dtype]

    def test_gradients_are_those_of_the_dense_solution(self, sizes, labels):
        weights, connectivities, links, unary = pyramid(sizes, labels)
        shift = torch.tensor(40.0, dtype=torch.float64)
        count = len(sizes)
        ours, dense = (
            [tensor.clone().requires_grad_() for tensor in (*weights, *unary, shift, *links)] for _ in "ab"
        )
        out = joined(unary).flip(0)

        def split(tensors):
            return tensors[:count], tensors[count : 2 * count], tensors[2 * count], tensors[2 * count + 1 :]

        own_weights, own_unary, own_shift, own_links = split(ours)
        terms = terms_of(own_weights, connectivities, own_links)
        found = solve(terms, own_unary, regularization=own_shift, tolerance=1e-13).x
        (joined(found) * out).sum().backward()
        other_weights, other_unary, other_shift, other_links = split(dense)
        whole = whole_weights(other_weights, other_links, labels)
        matrix = scales_written_out(whole[0], connectivities, whole[1])
        matrix = matrix + other_shift * torch.eye(matrix.shape[1], dtype=torch.float64)
        (direct(matrix, joined(other_unary)) * out).sum().backward()
        for own, other in zip(ours, dense, strict=True):
            if other.grad is None or not other.grad.any():  # one pixel has no neighbours
                assert not own.grad.any()
            else:
                assert relative_error(own.grad, other.grad) < 1e-8

    def test_guarantee_and_energy(self, sizes, labels):
        weights, connectivities, links, unary = pyramid(sizes, labels)
        terms = terms_of([100 * w for w in weights], connectivities, [100 * link for link in links])
        result = solve(terms, unary, guarantee=True)
        whole = whole_weights([100 * w for w in weights], [100 * link for link in links], labels)
        matrix = scales_written_out(whole[0], connectivities, whole[1])
        matrix = shifted(matrix, 1.0) + torch.diag_embed(matrix.abs().sum(2))
        x, b = joined(result.x).flatten(1), joined(unary).flatten(1)
        assert relative_error(x, direct(matrix, b)) < 1e-6
        expected = 0.5 * torch.einsum("bi,bij,bj->b", x, matrix, x) - (b * x).sum(1)
        assert torch.allclose(energy(terms, unary, result.x, guarantee=True), expected)
        if len(sizes) > 1:
            with pytest.raises(NotPositiveDefiniteError):
                solve(terms, unary)


@pytest.mark.parametrize("labels", [2, None])
def test_resolutions_gradcheck(labels):
    sizes = [(2, 2), (2, 1)]
    weights, connectivities, links, _ = pyramid(sizes, labels, batch=1)
    unary = [unary_of(1, 2, *size) for size in sizes]
    inputs = [tensor.requires_grad_() for tensor in (*weights, *links, *unary)]

    def scores(fine, coarse, link, *unary):
        terms = terms_of([fine, coarse], connectivities, [link])
        return solve(terms, unary, guarantee=True, regularization=2.0, tolerance=1e-13).x

    assert torch.autograd.gradcheck(scores, inputs)


class TestBadResolutions:
    fine, coarse = (torch.ones(1, 2, 2, 2, *size) for size in ((4, 4), (2, 2)))
    link = torch.ones(1, 2, 2, 4, 4)

    @pytest.mark.parametrize(
        ("grids", "links", "error", "words"),
        [
            ([], [], ValueError, "`grids` must have at least one"),
            (GridTerms(fine), [], TypeError, "`grids` must be a list of GridTerms, got GridTerms"),
            ([fine], [], TypeError, r"`grids\[0\]` must be GridTerms, got Tensor"),
            ([GridTerms(fine), GridTerms(coarse)], [], ValueError, "`links` must have .* 1 in all, got 0"),
            ([GridTerms(fine), GridTerms(coarse)], link, TypeError, "`links` must be a list"),
            (
                [GridTerms(fine), GridTerms(coarse)],
                [torch.ones(1, 2, 2, 2, 2)],
                ValueError,
                r"`links\[0\]` must have shape \(1, 2, 2, 4, 4\).*got \(1, 2, 2, 2, 2\)",
            ),
            ([GridTerms(fine), GridTerms(coarse)], [torch.ones(1, 4, 4)], ValueError, "must have shape"),
            ([GridTerms(fine), GridTerms(coarse)], [link.double()], TypeError, r"`links\[0\]` must have the"),
            ([GridTerms(fine), GridTerms(coarse)], [link * torch.nan], ValueError, "must be finite, got nan"),
            (
                [GridTerms(fine), GridTerms(coarse.expand(2, *coarse.shape[1:]))],
                [link],
                ValueError,
                "same batch_size, got 1 in .* 2 in",
            ),
            (
                [GridTerms(fine), GridTerms(coarse[:, :, 0, 0])],
                [link],
                ValueError,
                "same num_labels, got 2 in .* None in",
            ),
            (
                [GridTerms(fine), GridTerms(coarse.double())],
                [link],
                TypeError,
                r"`grids\[1\]` must have the dtype",
            ),
        ],
    )
    def test_terms(self, grids, links, error, words):
        with pytest.raises(error, match=words):
            MultiResolutionTerms(grids, links)

    @pytest.mark.parametrize(
        ("unary", "error", "words"),
        [
            (torch.ones(1, 2, 4, 4), TypeError, "`unary` must be a list"),
            ([torch.ones(1, 2, 4, 4)], ValueError, "`unary` must have .* 2 in all, got 1"),
            ([torch.ones(1, 2, 4, 4)] * 2, ValueError, r"`unary\[1\]` must have shape"),
            ([torch.ones(1, 3, 4, 4), torch.ones(1, 3, 2, 2)], ValueError, r"`unary\[0\]` must have shape"),
        ],
    )
    def test_unary(self, unary, error, words):
        terms = MultiResolutionTerms([GridTerms(self.fine), GridTerms(self.coarse)], [self.link])
        with pytest.raises(error, match=words):
            solve(terms, unary)

    def test_labels_differ_between_resolutions(self):
        grids = [GridTerms(self.fine[:, :, 0, 0]), GridTerms(self.coarse[:, :, 0, 0])]
        terms = MultiResolutionTerms(grids, [self.link[:, 0, 0]])
        with pytest.raises(ValueError, match=r"`unary\[1\]` must have shape"):
            solve(terms, [torch.ones(1, 3, 4, 4), torch.ones(1, 2, 2, 2)])
