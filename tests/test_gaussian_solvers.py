"""Conjugate gradient, and Jacobi, Gauss-Seidel and GMRES, against torch.linalg.solve."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import relative_error

from hdcrf.gaussian import (
    ConvergenceError,
    GridTerms,
    NotPositiveDefiniteError,
    conjugate_gradient,
    gauss_seidel,
    gmres,
    jacobi,
    solve,
)

# PyTorch says so of every sparse tensor by rows.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")

DTYPES = [torch.float32, torch.float64]
# Worst seen: 1.1e-6 in float32 and 1.1e-10 in float64, where solvers stop at 1e-6 and 1e-10.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def definite(*systems, size, seed=0, dtype=torch.float64):
    """Return random symmetric positive definite matrices of condition up to some 100."""
    root = random(*systems, size, size, seed=seed)
    return (root @ root.mT / size + 0.05 * torch.eye(size, dtype=torch.float64)).to(dtype)


def dominant(*systems, size, seed=0, dtype=torch.float64):
    """Return random symmetric matrices that are strictly diagonally dominant, for which all converge."""
    matrix = random(*systems, size, size, seed=seed)
    matrix = matrix + matrix.mT
    return (matrix + torch.diag_embed(1.2 * matrix.abs().sum(-1))).to(dtype)


def product_with(matrix):
    """Return v ↦ A v for (*systems, n) vectors, with a matrix for each system or one for all."""
    return lambda vectors: (matrix @ vectors[..., None])[..., 0]


def run(solver, matrix, b, **options):
    """Solve by any of the solvers, named as the tests do."""
    if solver == "conjugate_gradient":
        return conjugate_gradient(product_with(matrix), b, **options)
    if solver == "preconditioned":
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        return conjugate_gradient(product_with(matrix), b, diagonal=diagonal, **options)
    if solver == "jacobi":
        return jacobi(product_with(matrix), matrix.diagonal(dim1=-2, dim2=-1), b, **options)
    if solver == "gauss_seidel":
        return gauss_seidel(matrix, b, **options)
    if solver == "sparse gauss_seidel":
        return gauss_seidel(matrix.to_sparse_csr(), b, **options)
    return gmres(product_with(matrix), b, restart={"gmres": 50, "restarted gmres": 4}[solver], **options)


SOLVERS = [
    "conjugate_gradient",
    "preconditioned",
    "jacobi",
    "gauss_seidel",
    "sparse gauss_seidel",
    "gmres",
    "restarted gmres",
]


@pytest.mark.parametrize("solver", SOLVERS)
class TestEverySolver:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(17,), (3, 17), (2, 3, 17), (4, 1)])
    def test_solves(self, solver, dtype, shape):
        matrix, b = dominant(size=shape[-1], dtype=dtype), random(*shape, seed=1, dtype=dtype)
        result = run(solver, matrix, b)
        expected = torch.linalg.solve(matrix.double(), b.double()[..., None])[..., 0]
        assert relative_error(result.x.double(), expected) < TOLERANCE[dtype]
        assert result.x.dtype == dtype
        assert result.iterations.shape == result.residual.shape == result.converged.shape == shape[:-1]
        assert result.iterations.dtype == torch.int64
        assert bool(result.converged.all())
        left = (b - product_with(matrix)(result.x)).norm(dim=-1) / b.norm(dim=-1)
        # The residual is that of x, not the one carried along: they differ by rounding.
        assert torch.allclose(result.residual, left, rtol=1e-3, atol=10 * torch.finfo(dtype).eps)

    def test_each_system_rests_when_it_has_converged(self, solver):
        matrix = dominant(size=12)
        easy = torch.linalg.eigh(matrix).eigenvectors[:, 0]  # which Krylov methods solve at once
        b = torch.stack([random(12, seed=1), torch.zeros(12, dtype=torch.float64), easy])
        together = run(solver, matrix, b)
        for system in range(3):
            alone = run(solver, matrix, b[system])
            assert together.iterations[system] == alone.iterations
            assert torch.allclose(together.x[system], alone.x, rtol=0, atol=1e-14)
        assert together.iterations[1] == 0
        assert not together.x[1].any()
        assert together.residual[1] == 0
        assert together.iterations[0] > together.iterations[1]

    def test_start(self, solver):
        matrix, b = dominant(size=12), random(2, 12, seed=1)
        exact = torch.linalg.solve(matrix, b[..., None])[..., 0]
        kept = exact.clone()
        result = run(solver, matrix, b, start=exact)
        assert not result.iterations.any()
        assert torch.equal(result.x, exact)
        near = run(solver, matrix, b, start=exact + 1e-6 * random(2, 12, seed=2))
        assert bool((near.iterations < run(solver, matrix, b).iterations).all())
        assert relative_error(near.x, exact) < 2e-9
        assert torch.equal(exact, kept)

    def test_tolerance_says_when_to_stop(self, solver):
        matrix, b = dominant(size=12), random(2, 12, seed=1)
        counts = []
        for tolerance in (1e-2, 1e-5, 1e-8):
            result = run(solver, matrix, b, tolerance=tolerance)
            assert bool((result.residual <= 1.001 * tolerance).all())
            counts.append(int(result.iterations.sum()))
        assert counts[0] < counts[1] < counts[2]

    def test_too_few_iterations(self, solver):
        matrix, b = dominant(size=12), random(2, 12, seed=1)
        with pytest.raises(ConvergenceError, match="`max_iterations`"):
            run(solver, matrix, b, max_iterations=2)
        b[1] = 0
        with pytest.warns(UserWarning, match="iterate of least residual is returned"):
            result = run(solver, matrix, b, max_iterations=2, on_failure="warn")
        assert result.converged.tolist() == [False, True]
        assert result.iterations.tolist() == [2, 0]
        assert 0 < result.residual[0] < 1
        assert bool(result.x.isfinite().all())

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"tolerance": 0}, ValueError, "`tolerance`"),
            ({"tolerance": "small"}, TypeError, "`tolerance`"),
            ({"max_iterations": 0}, ValueError, "`max_iterations`"),
            ({"max_iterations": 1.5}, TypeError, "`max_iterations`"),
            ({"on_failure": "ignore"}, ValueError, "`on_failure`"),
            ({"start": torch.zeros(5).double()}, ValueError, r"`start` must have shape \(2, 5\)"),
            ({"start": torch.zeros(2, 5)}, TypeError, "`start` must have the dtype"),
            ({"start": torch.full((2, 5), torch.nan).double()}, ValueError, "`start` must be finite"),
        ],
    )
    def test_bad_options(self, solver, options, error, words):
        with pytest.raises(error, match=words):
            run(solver, dominant(size=5), random(2, 5), **options)

    @pytest.mark.parametrize(
        ("b", "error", "words"),
        [
            (None, TypeError, "`right_hand_side` must be a torch.Tensor"),
            (torch.ones(5, dtype=torch.int64), TypeError, "`right_hand_side` must be float32"),
            (torch.tensor(1.0).double(), ValueError, "`right_hand_side` must have shape"),
            (torch.zeros(3, 0).double(), ValueError, "`right_hand_side` must have shape"),
            (torch.full((5,), torch.inf).double(), ValueError, "`right_hand_side` must be finite"),
        ],
    )
    def test_bad_right_hand_side(self, solver, b, error, words):
        with pytest.raises(error, match=words):
            run(solver, dominant(size=5), b)


@pytest.mark.parametrize(
    "solve_with",
    [
        conjugate_gradient,
        gmres,
        lambda product, b: jacobi(product, torch.ones_like(b), b),
        lambda product, b: conjugate_gradient(product, b, diagonal=torch.ones_like(b)),
        lambda product, b: conjugate_gradient(product, b, start=b),
    ],
)
def test_product_of_nan_is_an_error(solve_with):
    def product(vectors):
        return 2 * vectors * torch.tensor([1.0, torch.nan])[:, None]

    with pytest.raises((ConvergenceError, NotPositiveDefiniteError), match="system 1"):
        solve_with(product, random(2, 5))


@pytest.mark.parametrize("solve_with", [conjugate_gradient, gmres])
@pytest.mark.parametrize("product", [lambda v: v[..., :2], lambda v: v.float(), lambda v: None])
def test_product_of_another_shape_or_dtype(solve_with, product):
    with pytest.raises(ValueError, match="`product` must return a tensor of the shape"):
        solve_with(product, random(2, 5))
    with pytest.raises(TypeError, match="`product` must be a function"):
        solve_with(torch.eye(5), random(2, 5))


class TestConjugateGradient:
    @given(st.integers(1, 12), st.integers(0, 1000))
    def test_takes_no_more_iterations_than_unknowns(self, size, seed):
        matrix, b = definite(size=size, seed=seed), random(size, seed=seed + 1)
        result = conjugate_gradient(product_with(matrix), b, tolerance=1e-8)
        # In exact arithmetic; rounding may add one or two at such a tolerance.
        assert int(result.iterations) <= size + 2
        assert relative_error(result.x, torch.linalg.solve(matrix, b)) < 1e-5

    def test_a_matrix_for_each_system(self):
        matrix, b = definite(2, 3, size=10), random(2, 3, 10, seed=1)
        result = conjugate_gradient(product_with(matrix), b)
        assert relative_error(result.x, torch.linalg.solve(matrix, b)) < 1e-8

    def test_distinct_eigenvalues_are_the_iterations(self):
        """Systems whose matrices have 1, 2 and 5 distinct eigenvalues take as many iterations."""
        rotation = torch.linalg.qr(random(20, 20)).Q
        values = torch.stack([torch.arange(20).remainder(k) + 1.0 for k in (1, 2, 5)]).double()
        matrix = rotation @ torch.diag_embed(values) @ rotation.T
        result = conjugate_gradient(product_with(matrix), random(3, 20, seed=1))
        assert result.iterations.tolist() == [1, 2, 5]

    def test_diagonal_helps_where_the_matrix_is_badly_scaled(self):
        scale = torch.logspace(-1, 1, 40, dtype=torch.float64)
        matrix, b = scale[:, None] * definite(size=40) * scale, random(40, seed=1) * scale
        plain = conjugate_gradient(product_with(matrix), b)
        helped = conjugate_gradient(product_with(matrix), b, diagonal=matrix.diagonal())
        assert 2 * int(helped.iterations) < int(plain.iterations)
        assert bool(helped.converged)

    @pytest.mark.parametrize("bad", [0.0, -1.0])
    def test_diagonal_must_be_positive(self, bad):
        diagonal = torch.ones(5, dtype=torch.float64)
        diagonal[3] = bad
        with pytest.raises(NotPositiveDefiniteError, match="its diagonal has the entry"):
            conjugate_gradient(lambda v: v, random(5), diagonal=diagonal)

    @pytest.mark.parametrize(
        ("diagonal", "error"),
        [
            ([1.0], TypeError),
            (torch.ones(5), TypeError),
            (torch.ones(4).double(), ValueError),
            (torch.ones(2, 5).double(), ValueError),
            (torch.full((5,), torch.nan).double(), ValueError),
        ],
    )
    def test_bad_diagonal(self, diagonal, error):
        for call in (
            lambda: conjugate_gradient(lambda v: v, random(5), diagonal=diagonal),
            lambda: jacobi(lambda v: v, diagonal, random(5)),
        ):
            with pytest.raises(error, match="`diagonal`"):
                call()

    def test_indefinite_matrix_is_named(self):
        matrix = torch.stack([definite(size=8), definite(size=8) - 1.5 * torch.eye(8)])
        with pytest.raises(NotPositiveDefiniteError, match=r"system 1 is not positive definite.*add to"):
            conjugate_gradient(product_with(matrix), random(2, 8, seed=1))

    def test_asymmetric_matrix_is_named(self):
        matrix = torch.stack([definite(size=8), definite(size=8) + 0.5 * random(8, 8).triu(1)])
        with pytest.raises(NotPositiveDefiniteError, match=r"system 1 is not symmetric"):
            conjugate_gradient(product_with(matrix), random(2, 8, seed=1), max_iterations=20)

    def test_warning_leaves_the_other_systems_solved(self):
        good = definite(3, size=8)
        matrix = torch.stack([good[0], -good[1], good[1] - 1.5 * torch.eye(8), good[2], torch.nan * good[0]])
        b = random(5, 8, seed=1)
        with pytest.warns(UserWarning, match="system 1 is not positive definite.* least residual"):
            result = conjugate_gradient(product_with(matrix), b, on_failure="warn")
        assert result.converged.tolist() == [True, False, False, True, False]
        expected = torch.linalg.solve(good[[0, 2]], b[[0, 3]])
        assert relative_error(result.x[[0, 3]], expected) < 1e-8
        assert bool(result.x.isfinite().all())
        assert not result.x[1].any()  # no step was taken: the best iterate is the first
        assert bool((result.residual[:4] <= 1 + 1e-12).all())

    def test_warning_returns_the_best_iterate(self):
        """CG's residuals may rise on the way: what is returned is the least one seen."""
        scale = torch.logspace(-2, 2, 30, dtype=torch.float64)
        matrix, b = scale[:, None] * definite(size=30) * scale, random(30, seed=1)
        residuals = []
        for count in range(1, 12):
            with pytest.warns(UserWarning, match="least residual"):
                result = conjugate_gradient(product_with(matrix), b, max_iterations=count, on_failure="warn")
            residuals.append(float(result.residual))
        assert residuals == sorted(residuals, reverse=True)
        assert residuals[0] <= 1

    def test_what_comes_in_is_left_alone(self):
        matrix, b = definite(size=8), random(2, 8, seed=1).requires_grad_()
        start = random(2, 8, seed=2)
        kept = b.detach().clone(), start.clone()
        result = conjugate_gradient(product_with(matrix), b, start=start)
        assert torch.equal(b, kept[0])
        assert torch.equal(start, kept[1])
        assert not result.x.requires_grad

    def test_preconditioned_solution_of_terms(self):
        weights, unary = random(1, 2, 3, 3, 6, 7), random(1, 3, 6, 7, seed=1)
        weights[..., :3] *= 100  # the guarantee's diagonal differs from pixel to pixel
        plain, helped = (
            solve(GridTerms(weights), unary, guarantee=True, precondition=choice) for choice in (False, True)
        )
        assert helped.iterations < plain.iterations
        assert relative_error(helped.x, plain.x) < 1e-6


class TestClassicSolvers:
    def test_gauss_seidel_is_sequential(self):
        """One sweep, unknown by unknown, each from the newest values."""
        matrix, b = dominant(size=6), random(6, seed=1)
        x = random(6, seed=2)
        with pytest.warns(UserWarning, match="least residual"):
            swept = gauss_seidel(matrix, b, start=x, max_iterations=1, on_failure="warn").x
        for i in range(6):
            others = sum(matrix[i, j] * x[j] for j in range(6) if j != i)
            x[i] = (b[i] - others) / matrix[i, i]
        assert torch.allclose(swept, x, rtol=0, atol=1e-13)

    def test_jacobi_is_parallel(self):
        matrix, b, x = dominant(size=6), random(6, seed=1), random(6, seed=2)
        expected = torch.stack(
            [(b[i] - sum(matrix[i, j] * x[j] for j in range(6) if j != i)) / matrix[i, i] for i in range(6)]
        )
        with pytest.warns(UserWarning, match="least residual"):
            found = jacobi(
                product_with(matrix), matrix.diagonal(), b, start=x, max_iterations=1, on_failure="warn"
            ).x
        assert torch.allclose(found, expected, rtol=0, atol=1e-13)

    def test_gauss_seidel_of_a_sparse_grid(self):
        terms = GridTerms(random(1, 6, 3, 3, 5, 6), connectivity=12)
        matrix = terms.dense()[0] + torch.diag(1 + terms.margin()[0])
        b = random(2, 90, seed=1)
        dense, sparse = gauss_seidel(matrix, b), gauss_seidel(matrix.to_sparse_csr(), b)
        assert torch.equal(dense.iterations, sparse.iterations)
        assert torch.allclose(dense.x, sparse.x, rtol=0, atol=1e-13)
        assert relative_error(sparse.x, torch.linalg.solve(matrix, b.T).T) < 1e-8

    @pytest.mark.parametrize("solver", ["jacobi", "gauss_seidel", "sparse gauss_seidel"])
    def test_divergence_is_an_error(self, solver):
        matrix = random(20, 20)
        matrix = matrix + matrix.T + 0.1 * torch.eye(20)
        b = random(2, 20, seed=1)
        with pytest.raises(ConvergenceError, match=r"system 0 diverge.*conjugate_gradient"):
            run(solver, matrix, b)
        b[1] = 0
        with pytest.warns(UserWarning, match="diverge"):
            result = run(solver, matrix, b, on_failure="warn")
        assert result.converged.tolist() == [False, True]
        assert bool(result.x.isfinite().all())
        assert result.residual[0] <= 1  # the best iterate is no worse than the start

    def test_gauss_seidel_converges_where_jacobi_does_not(self):
        """For a positive definite matrix that is not diagonally dominant: 0.6 off the diagonal."""
        matrix = torch.full((3, 3), 0.6, dtype=torch.float64) + 0.4 * torch.eye(3)
        b = random(3, seed=1)
        assert bool(gauss_seidel(matrix, b).converged)
        with pytest.raises(ConvergenceError, match="diverge"):
            run("jacobi", matrix, b)

    @pytest.mark.parametrize("size", [1, 5, 30])
    def test_gmres_needs_no_symmetry(self, size):
        matrix, b = random(2, size, size), random(2, size, seed=1)
        result = gmres(product_with(matrix), b)
        assert relative_error(result.x, torch.linalg.solve(matrix, b)) < 1e-8
        assert bool((result.iterations <= size).all())

    def test_gmres_has_the_least_residual(self):
        """Over x in the space of b, A b, …: by least squares in an orthonormal basis of it."""
        matrix, b = random(12, 12), random(12, seed=1)
        for count in range(1, 8):
            with pytest.warns(UserWarning, match="least residual"):
                result = gmres(product_with(matrix), b, max_iterations=count, on_failure="warn")
            powers = [b]
            for _ in range(count - 1):
                powers.append(matrix @ powers[-1])
            basis = torch.linalg.qr(torch.stack(powers, 1)).Q
            least = torch.linalg.lstsq(matrix @ basis, b[:, None]).solution
            residual = (b - matrix @ (basis @ least)[:, 0]).norm() / b.norm()
            assert torch.allclose(result.residual, residual, rtol=1e-8)

    def test_gmres_that_makes_no_progress_is_an_error(self):
        """A cyclic shift brings nothing nearer to its first unit vector before the last iteration."""
        first = torch.eye(10, dtype=torch.float64)[0]
        shift = lambda v: v.roll(1, -1)  # noqa: E731
        assert int(gmres(shift, first).iterations) == 10
        with pytest.raises(ConvergenceError, match="system 0 make no progress"):
            gmres(shift, first, restart=5)
        with pytest.raises(ConvergenceError, match="make no progress"):
            gmres(torch.zeros_like, first)  # a singular matrix

    def test_gmres_restart(self):
        with pytest.raises(ValueError, match="`restart` must be at least 1"):
            gmres(lambda v: v, random(5), restart=0)

    @pytest.mark.parametrize(
        ("matrix", "error", "words"),
        [
            (None, TypeError, "`matrix` must be a tensor, dense or sparse by rows"),
            (torch.eye(5).to_sparse_coo(), TypeError, "torch.sparse_coo"),
            (torch.eye(5, dtype=torch.int64), TypeError, "`matrix` must be float32"),
            (torch.eye(5), TypeError, "`right_hand_side` must have the dtype of `matrix`"),
            (torch.ones(5, 4).double(), ValueError, r"`matrix` must have shape \(n, n\)"),
            (torch.eye(4).double(), ValueError, r"`right_hand_side` must have shape \(\*systems, 4\)"),
            (torch.full((5, 5), torch.nan).double(), ValueError, "`matrix` must be finite"),
            (torch.ones(5, 5).double().tril(-1), ValueError, "no zero on its diagonal"),
        ],
    )
    def test_bad_matrix(self, matrix, error, words):
        with pytest.raises(error, match=words):
            gauss_seidel(matrix, random(5))

    def test_zero_on_the_diagonal(self):
        with pytest.raises(ValueError, match="`diagonal` must have no zero"):
            jacobi(lambda v: v, torch.tensor([1.0, 0.0]).double(), random(2))
        matrix = torch.tensor([[1.0, 2.0], [2.0, 0.0]]).double().to_sparse_csr()
        with pytest.raises(ValueError, match="no zero on its diagonal"):
            gauss_seidel(matrix, random(2))
