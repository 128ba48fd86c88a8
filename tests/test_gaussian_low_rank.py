"""Dense terms of low rank against the matrix written out, entry by entry, and solved directly."""

import itertools
import math

import pytest
import torch

from hdcrf.gaussian import (
    ConvergenceError,
    LowRankTerms,
    NotPositiveDefiniteError,
    PottsMatrix,
    energy,
    solve,
)
from tests.oracles import solved

HEIGHT, WIDTH = 3, 4
PIXELS = HEIGHT * WIDTH
# Worst seen over these cases: 1.5e-11 in float64, 7e-7 in float32.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def matrix(embeddings, labels):
    """Return A (B, n, n) in float64, from inner products of embeddings one by one."""
    batch = embeddings.shape[0]
    shared = embeddings.dim() == 4
    result = torch.zeros(batch, labels * PIXELS, labels * PIXELS, dtype=torch.float64)
    e = embeddings.detach().double().flatten(-2)
    for b, k, p, m, q in itertools.product(
        range(batch), range(labels), range(PIXELS), range(labels), range(PIXELS)
    ):
        if shared:
            value = 0.0 if k == m else float(e[b, :, p] @ e[b, :, q])
        else:
            value = float(e[b, :, k, p] @ e[b, :, m, q])
        result[b, k * PIXELS + p, m * PIXELS + q] = value
    return result


def exact(system, unary):
    return solved(system, unary.detach().double().flatten(1)).view(unary.shape)


def distance(x, reference):
    return float((x.double() - reference).norm() / reference.norm())


def drawn(dimensions, labels, shared, dtype=torch.float64, batch=2, scale=0.5):
    shape = (batch, dimensions, *(() if shared else (labels,)), HEIGHT, WIDTH)
    return scale * torch.randn(shape, dtype=dtype), torch.randn(batch, labels, HEIGHT, WIDTH, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("dimensions", "labels"), [(1, 1), (3, 2), (3, 4), (20, 3), (60, 2)])
def test_equals_the_dense_solution(dimensions, labels, shared, method, dtype):
    embeddings, unary = drawn(dimensions, labels, shared, dtype)
    terms = LowRankTerms(embeddings)
    solution = solve(terms, unary, regularization=0.7, guarantee=True, method=method)
    a = matrix(embeddings, labels)
    added = torch.zeros(2, 1, 1, dtype=torch.float64)
    if shared and labels > 1:  # what makes both (L - 1) Ψ and -Ψ positive semidefinite
        psi = embeddings.double().flatten(2)
        added = torch.linalg.eigvalsh(psi.mT @ psi)[:, -1:, None]
    system = a + (0.7 + added) * torch.eye(a.shape[1], dtype=torch.float64)
    assert distance(solution.x, exact(system, unary)) < TOLERANCE[dtype]
    assert solution.converged.all()
    assert solution.iterations.shape == solution.residual.shape == (2,)
    assert (solution.iterations > 0).all() == (method == "conjugate_gradient")


@pytest.mark.parametrize("shared", [False, True])
def test_the_matrix_is_its_products(shared):
    embeddings, _ = drawn(3, 3, shared)
    terms = LowRankTerms(embeddings)
    whole = PottsMatrix(terms, 3) if shared else terms
    reference = matrix(embeddings, 3)
    torch.testing.assert_close(whole.dense(), reference)
    vectors = torch.randn(2, 4, whole.size, dtype=torch.float64)
    torch.testing.assert_close(whole.product(vectors), vectors @ reference)
    if not shared:
        torch.testing.assert_close(terms.diagonal(), reference.diagonal(dim1=1, dim2=2))
        torch.testing.assert_close(terms.prepared()(vectors), vectors @ reference)
        for sign in (1, -1):
            bounded = reference * sign + torch.diag_embed(terms.bound().expand(-1, terms.size))
            assert torch.linalg.eigvalsh(bounded).min() > -1e-12
    kept = reference + torch.diag_embed(whole.margin().expand(-1, whole.size))
    assert torch.linalg.eigvalsh(kept).min() > -1e-12


def test_potts_equals_the_general_terms_written_out():
    embeddings, unary = drawn(3, 4, True)
    potts = solve(LowRankTerms(embeddings), unary, regularization=30.0)
    a = matrix(embeddings, 4) + 30 * torch.eye(4 * PIXELS, dtype=torch.float64)
    assert distance(potts.x, exact(a, unary)) < 1e-9


@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients(shared, method):
    embeddings, unary = drawn(2, 2, shared, batch=1)
    regularization = torch.tensor(0.8, dtype=torch.float64)
    for tensor in (embeddings, unary, regularization):
        tensor.requires_grad_()

    def scores(embeddings, unary, regularization):
        return solve(
            LowRankTerms(embeddings),
            unary,
            regularization=regularization,
            guarantee=True,
            method=method,
            precondition=True,
            tolerance=1e-14,
        ).x

    torch.autograd.gradcheck(scores, (embeddings, unary, regularization))


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_equal_those_through_a_dense_solution(shared):
    embeddings, unary = drawn(3, 3, shared)
    embeddings.requires_grad_()
    unary.requires_grad_()
    weights = torch.randn_like(unary)
    terms = LowRankTerms(embeddings)
    whole = PottsMatrix(terms, 3) if shared else terms
    found = torch.autograd.grad(
        (solve(terms, unary, regularization=20.0, method="conjugate_gradient").x * weights).sum(),
        (embeddings, unary),
    )
    e = embeddings.flatten(2)
    a = e.mT @ e
    if shared:
        a = torch.kron((1 - torch.eye(3, dtype=torch.float64))[None], a)
    torch.testing.assert_close(a, whole.dense())
    system = a + 20 * torch.eye(3 * PIXELS, dtype=torch.float64)
    x = torch.linalg.solve(system, unary.flatten(1)[..., None])[..., 0].view(unary.shape)
    wanted = torch.autograd.grad((x * weights).sum(), (embeddings, unary))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_a_second_derivative_is_refused():
    embeddings, unary = drawn(2, 2, False)
    for leaf in (embeddings.requires_grad_(), unary.requires_grad_()):
        x = solve(LowRankTerms(embeddings), unary).x
        (first,) = torch.autograd.grad(x.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(first.square().sum(), leaf)


def test_terms_that_change_in_place_are_solved_as_they_are():
    embeddings, unary = drawn(3, 2, False)
    terms = LowRankTerms(embeddings)
    solve(terms, unary)
    embeddings.mul_(2)
    torch.testing.assert_close(solve(terms, unary).x, solve(LowRankTerms(embeddings), unary).x)


@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_unary_terms_of_any_size(method, size):
    """Their squares are beyond float32."""
    embeddings, unary = drawn(3, 2, False, torch.float32)
    terms = LowRankTerms(embeddings)
    wanted = solve(terms, unary, method=method).x
    torch.testing.assert_close(solve(terms, size * unary, method=method).x / size, wanted)
    unary.requires_grad_()
    gradients = [
        torch.autograd.grad((factor * solve(terms, unary, method=method).x).sum(), unary)[0] / factor
        for factor in (1.0, size)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
def test_a_solution_that_is_none_is_refused(method):
    embeddings, unary = drawn(8, 2, False, torch.float32, scale=1e4)
    options = {"regularization": 1e-3, "method": method, "max_iterations": 200}
    with pytest.raises((ConvergenceError, NotPositiveDefiniteError)):
        solve(LowRankTerms(embeddings), unary, **options)
    exact = solve(LowRankTerms(embeddings.double()), unary.double(), regularization=1e6, method=method)
    assert exact.converged.all()


@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
def test_shared_terms_close_to_singular_keep_to_the_tolerance(method):
    embeddings, unary = drawn(8, 5, True)
    psi = embeddings.flatten(2)
    largest = float(torch.linalg.eigvalsh(psi @ psi.mT).max())
    found = solve(
        LowRankTerms(embeddings), unary, regularization=1.0001 * largest, method=method, tolerance=1e-6
    )
    assert found.converged.all()
    assert found.residual.max() < 1e-5  # the two steps alone leave 2e-5 by conjugate gradient


@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
def test_gradients_that_overflowed_stay_so(method):
    embeddings, unary = drawn(3, 2, False)
    unary.requires_grad_()
    x = solve(LowRankTerms(embeddings), unary, method=method).x
    weights = torch.ones_like(x)
    weights[0, 0, 0, 0] = math.inf
    (gradient,) = torch.autograd.grad((x * weights).sum(), unary)
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


def test_the_solution_has_the_least_energy():
    embeddings, unary = drawn(3, 2, False)
    terms = LowRankTerms(embeddings)
    x = solve(terms, unary).x
    least = energy(terms, unary, x)
    a = matrix(embeddings, 2) + torch.eye(2 * PIXELS, dtype=torch.float64)
    flat, b = x.flatten(1), unary.flatten(1)
    written = 0.5 * torch.einsum("bi,bij,bj->b", flat, a, flat) - (b * flat).sum(1)
    torch.testing.assert_close(least, written)
    for _ in range(5):
        assert (energy(terms, unary, x + 0.1 * torch.randn_like(x)) > least).all()


def test_a_batch_equals_its_items():
    embeddings, unary = drawn(3, 3, True, batch=3)
    together = solve(LowRankTerms(embeddings), unary, guarantee=True, method="conjugate_gradient")
    for item in range(3):
        part = slice(item, item + 1)
        alone = solve(
            LowRankTerms(embeddings[part]), unary[part], guarantee=True, method="conjugate_gradient"
        )
        torch.testing.assert_close(together.x[part], alone.x, rtol=1e-9, atol=1e-9)
        assert together.iterations[item] == alone.iterations[0]


@pytest.mark.parametrize("method", ["conjugate_gradient", "direct"])
def test_shared_terms_that_are_too_strong_are_refused(method):
    embeddings, unary = drawn(3, 3, True)
    psi = embeddings.flatten(2)
    largest = float(torch.linalg.eigvalsh(psi @ psi.mT).max())
    enough = solve(LowRankTerms(embeddings), unary, regularization=1.01 * largest, method=method)
    assert enough.converged.all()
    with pytest.raises(NotPositiveDefiniteError, match=r"not positive definite.*`regularization`"):
        solve(LowRankTerms(embeddings), unary, regularization=0.9 * largest, method=method)


def test_auto_takes_the_direct_solution_for_few_dimensions():
    embeddings, unary = drawn(3, 2, False)
    assert (solve(LowRankTerms(embeddings), unary).iterations == 0).all()
    many = torch.randn(1, 300, 1, 20, 20)
    assert not LowRankTerms(many).prefers_direct()


def test_zero_unary_terms_give_zero_scores():
    embeddings, unary = drawn(3, 2, False)
    for method in ("direct", "conjugate_gradient"):
        solution = solve(LowRankTerms(embeddings), torch.zeros_like(unary), method=method)
        assert not solution.x.any()
        assert not solution.residual.any()


E32 = torch.zeros(1, 2, 3, 4, 5)
U32 = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LowRankTerms([1.0]), TypeError, "`embeddings` must be a torch.Tensor"),
        (lambda: LowRankTerms(E32.int()), TypeError, "`embeddings` must be float32 or float64"),
        (lambda: LowRankTerms(E32[0, 0]), ValueError, r"`embeddings` must have shape \(B, D, L, H, W\)"),
        (lambda: LowRankTerms(E32[:, :, :0]), ValueError, "no size of 0"),
        (lambda: LowRankTerms(E32 + math.nan), ValueError, "`embeddings` must be finite"),
        (lambda: solve(LowRankTerms(E32), U32[:, :2]), ValueError, r"\(B, L, H, W\) = \(1, 3, 4, 5\)"),
        (lambda: solve(LowRankTerms(E32[:, :, 0]), U32[:, :0]), ValueError, "at least one label"),
        (lambda: solve(LowRankTerms(E32), U32.double()), TypeError, "must have the dtype of"),
        (lambda: solve(LowRankTerms(E32), U32 / 0), ValueError, "`unary` must be finite"),
        (lambda: solve(LowRankTerms(E32), None), TypeError, "`unary` must be a torch.Tensor"),
        (lambda: solve(E32, U32), TypeError, "`terms` must be pairwise terms"),
        (lambda: solve(LowRankTerms(E32), U32, regularization=0), ValueError, "`regularization`"),
        (lambda: solve(LowRankTerms(E32), U32, regularization=-1.0), ValueError, "`regularization`"),
        (lambda: solve(LowRankTerms(E32), U32, regularization=math.nan), ValueError, "`regularization`"),
        (lambda: solve(LowRankTerms(E32), U32, regularization="1"), TypeError, "`regularization`"),
        (
            lambda: solve(LowRankTerms(E32), U32, regularization=torch.ones(2)),
            ValueError,
            "`regularization` must be one number",
        ),
        (
            lambda: solve(LowRankTerms(E32), U32, regularization=torch.zeros(1)),
            ValueError,
            "`regularization` must be a finite number greater than 0",
        ),
        (lambda: solve(LowRankTerms(E32), U32, method="lu"), ValueError, "`method` must be one of"),
        (lambda: solve(LowRankTerms(E32), U32, guarantee=1), TypeError, "`guarantee` must be True or False"),
        (lambda: solve(LowRankTerms(E32), U32, tolerance=0.0), ValueError, "`tolerance`"),
        (lambda: solve(LowRankTerms(E32), U32, max_iterations=0), ValueError, "`max_iterations`"),
        (lambda: solve(LowRankTerms(E32), U32, on_failure="hide"), ValueError, "`on_failure`"),
        (lambda: energy(LowRankTerms(E32), U32, U32[..., :4]), ValueError, "`scores` must have shape"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
