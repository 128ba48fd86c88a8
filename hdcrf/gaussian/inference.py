"""Inference in a Gaussian CRF: the scores of least energy, from unary and pairwise terms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import (
    ConvergenceError,
    Solution,
    check_solver_options,
    conjugate_gradient,
    magnitude,
)
from hdcrf.gaussian.linear_system import implicit_solution
from hdcrf.gaussian.pairwise_terms import PairwiseTerms, Solver, SymmetricMatrix
from hdcrf.gaussian.potts import PottsMatrix
from hdcrf.layer_inputs import levels_to_user
from voxel.checks import (
    check_choice,
    check_flag,
    check_floating,
    check_held,
    check_positive,
)
from voxel.precision import full_precision

__all__ = ["METHODS", "checked_weight", "energy", "solve"]

METHODS = ("auto", "conjugate_gradient", "direct")

_DRIFT = 100
"""How many times the tolerance a residual may be when computed anew: up to 4.4 times were seen in float32."""

_REMEDY = "increase `regularization`, or let `guarantee=True` add what is needed"


@full_precision
def solve(
    terms: PairwiseTerms,
    unary: Any,
    *,
    regularization: float | Tensor = 1.0,
    guarantee: bool = False,
    method: str = "auto",
    precondition: bool = False,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Return the scores x that minimise the energy ½ xᵀ(A + λI)x - bᵀx, that is (A + λI) x = b.

    Where labels share the terms Ψ, A is that of a Potts model, and the solution comes from L + 1 systems over
    pixels in place of one over pixels and labels: for the mean over labels, and for what each label has
    beyond it,

        (λI + (L - 1) Ψ) x̄ = b̄,      (λI - Ψ) (x_k - x̄) = b_k - b̄.

    These are eqs. 2.17 and 2.18 of Chandra 2018, taken apart so that neither waits for the other.

    Args:
        terms: The pairwise terms, A or Ψ.
        unary: b, in the shape that the terms say, of their dtype and device.
        regularization: λ > 0, a number or a tensor of one element, which can be learned.
        guarantee: Add a diagonal that follows from the terms, so that the system is positive definite
            whatever they are.
        method: "conjugate_gradient"; "direct", where the terms have a direct solution; or "auto", the
            direct one where it is expected to be faster.
        precondition: Divide by the diagonal (Jacobi) in conjugate gradient.
        tolerance: Of the relative residual, in conjugate gradient; None takes 1e-6 in float32 and 1e-10 in
            float64.
        max_iterations: Of conjugate gradient; None takes 10 times the unknowns of a system, at least 100.
        on_failure: "raise", or "warn" to return the best iterate with a warning.

    Returns:
        A `Solution`: x in the unary's shape, and for each item of the batch (B,) the iterations (of a Potts
        model the most of its systems, 0 if direct), the relative residual, and whether it converged.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        NotPositiveDefiniteError: If A + λI is not positive definite.
        ConvergenceError: If `max_iterations` did not suffice.

    Differentiable, once, in the unary, in what the terms are made of, and in `regularization`: by one more
    solve, in closed form. Deterministic.

    Reference: Chandra 2018, eqs. 2.2, 3.2 and 4.1; Chandra and Kokkinos, ECCV 2016.
    """
    _check_terms(terms)
    check_flag("guarantee", guarantee)
    check_flag("precondition", precondition)
    check_choice("method", method, METHODS)
    check_solver_options(terms.like.dtype, tolerance, max_iterations, on_failure)
    options = {"tolerance": tolerance, "max_iterations": max_iterations, "on_failure": on_failure}
    flat = _checked_unary(terms, unary)
    matrix = _matrix(terms, flat)
    weight = checked_weight("regularization", regularization, terms.like)
    diagonal = weight + matrix.margin() if guarantee else weight  # (1, 1), (B, 1) or (B, n)
    b = flat.flatten(1)[:, None]  # (B, 1, n)
    direct = method == "direct" or (method == "auto" and terms.prefers_direct())
    shift = diagonal.detach()
    if isinstance(matrix, PottsMatrix):
        shift = shift[:, : terms.num_pixels]  # the same for all labels
        solver = _potts_solver(terms, flat.shape[1], shift, direct, precondition, options)
    elif direct:
        (solver,) = _direct_solvers(terms, shift, [1.0])
    else:
        solver = _iterative_solver(terms, shift, 1.0, precondition, options)
    solver = _verified(solver, terms.like.dtype, options)
    with torch.no_grad():
        found = solver(b.detach())

    def residual(x: Tensor) -> Tensor:
        return b - diagonal[:, None] * x - matrix.product(x)

    x = implicit_solution(residual, found.x, lambda right: solver(right).x)
    return Solution(
        terms.unflatten(x.reshape(flat.shape)),
        found.iterations[:, 0],
        found.residual[:, 0],
        found.converged[:, 0],
    )


@full_precision
def energy(
    terms: PairwiseTerms,
    unary: Any,
    scores: Any,
    *,
    regularization: float | Tensor = 1.0,
    guarantee: bool = False,
) -> Tensor:
    """Return the energy ½ xᵀ(A + λI)x - bᵀx of scores x, (B,), which `solve` makes least.

    Args:
        terms: The pairwise terms, A, or Ψ of a Potts model.
        unary: b, as for `solve`.
        scores: x, in the same shape.
        regularization: λ > 0.
        guarantee: As for `solve`.

    Differentiable in all of them.

    Reference: Chandra 2018, eq. 2.1.
    """
    _check_terms(terms)
    flat, x = _checked_unary(terms, unary), _checked_unary(terms, scores, "scores")
    matrix = _matrix(terms, flat)
    shift = checked_weight("regularization", regularization, terms.like)
    diagonal = shift + matrix.margin() if check_flag("guarantee", guarantee) else shift
    b, x = flat.flatten(1)[:, None], x.flatten(1)[:, None]
    product = diagonal[:, None] * x + matrix.product(x)
    return (0.5 * (x * product).sum(2) - (b * x).sum(2))[:, 0]


def _verified(solver: Solver, dtype: torch.dtype, options: dict[str, Any]) -> Solver:
    """Return a solver that fails, as `on_failure` says, where the residual of what it found is too large.

    A residual computed anew is somewhat larger than the one that conjugate gradient goes by, and a direct
    solution has none of its own: near a singular matrix, either can be far off without a word.
    """
    limit = _DRIFT * check_solver_options(dtype, options["tolerance"])

    def verified(b: Tensor) -> Solution:
        size = magnitude(b, (1, 2))
        found = solver(b / size)
        good = found.residual <= limit
        if not bool((good | ~found.converged).all()):
            item = int((~good & found.converged)[:, 0].nonzero()[0])
            message = (
                f"item {item} has a relative residual of {float(found.residual[item]):.2g}, as its matrix is "
                f"close to a singular one; compute in float64, or {_REMEDY}"
            )
            if options["on_failure"] == "raise":
                raise ConvergenceError(message)
            warnings.warn(message, stacklevel=levels_to_user())
        return Solution(found.x * size, found.iterations, found.residual, found.converged & good)

    return verified


def _direct_solvers(terms: PairwiseTerms, shift: Tensor, factors: Sequence[float]) -> list[Solver]:
    solvers = terms.direct_solvers(shift, factors)
    if solvers is None:
        raise ValueError(
            f"`method='direct'` has no solution for {type(terms).__name__}; use 'conjugate_gradient'"
        )
    return solvers


def _iterative_solver(
    terms: PairwiseTerms, shift: Tensor, factor: float, precondition: bool, options: dict[str, Any]
) -> Solver:
    """Return a solver of (shift + factor · M) x = b for b (B, R, n), by conjugate gradient."""
    multiply = terms.prepared()
    entries = (shift + factor * terms.diagonal().detach())[:, None] if precondition else None

    def product(x: Tensor) -> Tensor:
        products = multiply(x)
        return torch.addcmul(products if factor == 1 else products.mul_(factor), shift[:, None], x)

    def solver(b: Tensor) -> Solution:
        return conjugate_gradient(product, b, diagonal=entries, remedy=_REMEDY, **options)

    return solver


def _potts_solver(
    terms: PairwiseTerms,
    labels: int,
    shift: Tensor,
    direct: bool,
    precondition: bool,
    options: dict[str, Any],
) -> Solver:
    """Return a solver of the Potts system for b (B, 1, L·P), by L + 1 systems over pixels.

    A acts on scores that are the same for all labels as (L - 1) Ψ, and on those that sum to zero over labels
    as -Ψ. So the mean over labels and what each has beyond it are solved for by themselves.
    """
    factors = [labels - 1.0, -1.0] if labels > 1 else [0.0, 0.0]
    if direct:
        of_mean, of_rest = _direct_solvers(terms, shift, factors)
    else:
        of_mean, of_rest = (
            _iterative_solver(terms, shift, factor, precondition, options) for factor in factors
        )

    def solver(b: Tensor) -> Solution:
        parts = b.reshape(-1, labels, terms.num_pixels)
        mean = parts.mean(1, keepdim=True)
        rest = parts - mean
        common, own = of_mean(mean), of_rest(rest)
        # Rounding must not leave a mean to what has none: A may be much larger there.
        x = common.x + own.x - own.x.mean(1, keepdim=True)
        # The residuals of the two are orthogonal, and the mean counts for each label.
        sizes = torch.linalg.vector_norm(torch.cat([mean * labels**0.5, rest], 1), dim=2)
        whole = torch.linalg.vector_norm(sizes, dim=1, keepdim=True)
        left = torch.linalg.vector_norm(
            torch.cat([common.residual, own.residual], 1) * sizes, dim=1, keepdim=True
        )
        return Solution(
            x.reshape(b.shape),
            common.iterations.maximum(own.iterations.amax(1, keepdim=True)),
            left / torch.where(whole > 0, whole, 1),
            common.converged & own.converged.all(1, keepdim=True),
        )

    return solver


def _check_terms(terms: object) -> None:
    if not isinstance(terms, PairwiseTerms):
        raise TypeError(f"`terms` must be pairwise terms such as LowRankTerms, got {type(terms).__name__}")


def _matrix(terms: PairwiseTerms, flat: Tensor) -> SymmetricMatrix:
    return PottsMatrix(terms, flat.shape[1]) if terms.num_labels is None else terms


def _checked_unary(terms: PairwiseTerms, unary: Any, name: str = "unary") -> Tensor:
    flat = terms.flatten(unary, name)
    if flat.shape[1] == 0:
        raise ValueError(f"`{name}` must have at least one label, got shape {tuple(flat.shape)}")
    return flat


def checked_weight(name: str, value: object, like: Tensor) -> Tensor:
    """Return a positive number, or a tensor that holds one, as a (1, 1) tensor of the kind of `like`."""
    if not isinstance(value, Tensor):
        value = like.new_full((1, 1), check_positive(name, value))
    tensor = check_floating(name, value)
    if tensor.numel() != 1:
        raise ValueError(f"`{name}` must be one number, got shape {tuple(tensor.shape)}")
    check_held(name, tensor)
    tensor = tensor.reshape(1, 1).to(like)
    check_positive(name, float(tensor.detach()))
    return tensor
