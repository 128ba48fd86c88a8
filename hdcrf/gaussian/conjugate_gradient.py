"""Many symmetric positive definite systems at once, by conjugate gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hdcrf.layer_inputs import levels_to_user
from voxel.checks import (
    check_choice,
    check_count,
    check_finite,
    check_floating,
    check_positive,
    check_same_kind,
)

__all__ = [
    "ConvergenceError",
    "NotPositiveDefiniteError",
    "Product",
    "Solution",
    "check_solver_options",
    "checked_diagonal",
    "checked_systems",
    "conjugate_gradient",
]

Product = Callable[[Tensor], Tensor]
"""A linear operator: maps (*systems, n) to (*systems, n), each system by its own symmetric matrix."""

_FAILURES = ("raise", "warn")


class NotPositiveDefiniteError(ValueError):
    """A system's matrix is not positive definite, so that its energy has no least value."""


class ConvergenceError(RuntimeError):
    """A system's residual did not fall below the tolerance within the iterations allowed."""


@dataclass(frozen=True)
class Solution:
    """What a solver found, and how far it is from solving each system."""

    x: Tensor  # (*systems, n)
    iterations: Tensor  # (*systems,) int64: those in which the system was still being solved
    residual: Tensor  # (*systems,) ‖b - A x‖ / ‖b‖, computed anew from x; 0 for b = 0
    converged: Tensor  # (*systems,) bool: whether the solver's own residual fell below the tolerance


def check_solver_options(
    dtype: torch.dtype,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
) -> float:
    """Return the relative residual to stop at, by default 1e-6 in float32 and 1e-10 in float64, or raise."""
    if max_iterations is not None:
        check_count("max_iterations", max_iterations, 1)
    check_choice("on_failure", on_failure, _FAILURES)
    if tolerance is None:
        return 1e-6 if dtype == torch.float32 else 1e-10
    return check_positive("tolerance", tolerance)


def checked_systems(
    product: Product,
    right_hand_side: object,
    start: object,
    tolerance: float | None,
    max_iterations: int | None,
    on_failure: str,
) -> tuple[Product, Tensor, float, int]:
    """Return a solver's product, right-hand side, tolerance and most iterations, or raise."""
    b = check_floating("right_hand_side", right_hand_side).detach()
    if b.dim() == 0 or b.shape[-1] == 0:
        raise ValueError(
            f"`right_hand_side` must have shape (*systems, n) with n of at least 1, got {tuple(b.shape)}"
        )
    check_finite("right_hand_side", b)
    if not callable(product):
        raise TypeError(f"`product` must be a function of a tensor, got {type(product).__name__}")
    limit = check_solver_options(b.dtype, tolerance, max_iterations, on_failure)
    most = max(100, 10 * b.shape[-1]) if max_iterations is None else max_iterations
    if start is not None:
        start = check_floating("start", start)
        check_same_kind("start", start, "right_hand_side", b)
        if start.shape != b.shape:
            raise ValueError(
                f"`start` must have shape {tuple(b.shape)}, as `right_hand_side`, got {tuple(start.shape)}"
            )
        check_finite("start", start)

    def checked_product(vectors: Tensor) -> Tensor:
        result = product(vectors)
        if not isinstance(result, Tensor) or result.shape != b.shape or result.dtype != b.dtype:
            what = f"{tuple(result.shape)} of {result.dtype}" if isinstance(result, Tensor) else repr(result)
            raise ValueError(
                f"`product` must return a tensor of the shape {tuple(b.shape)} and dtype {b.dtype} of its "
                f"argument, got {what}"
            )
        return result

    return checked_product, b, limit, most


def conjugate_gradient(
    product: Product,
    right_hand_side: Tensor,
    *,
    diagonal: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
    remedy: str = "add to its diagonal",
) -> Solution:
    """Solve A x = b for symmetric positive definite A, many systems at a time.

    Each system has step lengths of its own, and rests once it has converged. Nothing is recorded for
    gradients: `hdcrf.gaussian.solve` has them in closed form.

    Args:
        product: Maps x (*systems, n) to A x of the same shape; a system is a vector along the last dimension.
        right_hand_side: b, (*systems, n) float32 or float64.
        diagonal: (*systems, n), or what broadcasts to it, the diagonal of A: precondition by it (Jacobi).
            None does not precondition.
        start: x to start from, (*systems, n); None starts from zero.
        tolerance: A system has converged when ‖b - A x‖ ≤ tolerance · ‖b‖; None takes 1e-6 in float32 and
            1e-10 in float64.
        max_iterations: None takes 10 n, at least 100.
        on_failure: "raise", or "warn" to return the iterate of least residual with a warning.
        remedy: What makes the matrix positive definite, or easier to solve, for the messages.

    Returns:
        The solution, with iterations, residual and convergence for each system.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        NotPositiveDefiniteError: If a direction p with pᵀ A p ≤ 0 is met.
        ConvergenceError: If `max_iterations` did not suffice.

    Deterministic. Cost: one product and about ten passes over (*systems, n) an iteration.

    Reference: Shewchuk 1994, algorithms B2 and B3; Chandra 2018, algorithm 2.
    """
    product, b, limit, most = checked_systems(
        product, right_hand_side, start, tolerance, max_iterations, on_failure
    )
    with torch.no_grad():
        inverse_diagonal = None if diagonal is None else _reciprocal(checked_diagonal(diagonal, b), remedy)
        size = magnitude(b, (-1,))
        start = None if start is None else start / size
        found = _solve(product, b / size, inverse_diagonal, start, limit, most, on_failure, remedy)
        return Solution(found.x * size, found.iterations, found.residual, found.converged)


def checked_diagonal(diagonal: object, b: Tensor) -> Tensor:
    """Return the diagonal of the matrices of a solver's systems, without gradients, or raise."""
    tensor = check_floating("diagonal", diagonal)
    check_same_kind("diagonal", tensor, "right_hand_side", b)
    if tensor.dim() > b.dim() or any(
        own not in (1, full) for own, full in zip(tensor.shape[::-1], b.shape[::-1], strict=False)
    ):
        raise ValueError(
            f"`diagonal` must have shape {tuple(b.shape)}, as `right_hand_side`, or one that broadcasts to "
            f"it, got {tuple(tensor.shape)}"
        )
    check_finite("diagonal", tensor)
    return tensor.detach()


def magnitude(vectors: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the power of two below the largest entry along some dimensions, kept as 1; 1 where all are 0.

    Divided by it, entries of any size have squares that neither overflow nor vanish, and no bit changes.
    """
    largest = vectors.abs().amax(dims, keepdim=True)
    _, exponent = torch.frexp(largest)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent - 1), 1)


def _reciprocal(diagonal: Tensor, remedy: str) -> Tensor:
    if bool((diagonal <= 0).any()):
        raise NotPositiveDefiniteError(
            "the matrix is not positive definite: its diagonal has the entry "
            f"{diagonal.min().item():.4g}, which must be above 0; {remedy}"
        )
    return diagonal.reciprocal()


def _solve(
    product: Product,
    b: Tensor,
    inverse_diagonal: Tensor | None,
    start: Tensor | None,
    tolerance: float,
    most: int,
    on_failure: str,
    remedy: str,
) -> Solution:
    scale = _norm(b)
    goal = tolerance * scale
    x = torch.zeros_like(b) if start is None else start.detach().clone()
    r = b.clone() if start is None else b - product(x)
    z, rz, norm = _preconditioned(r, inverse_diagonal)
    p = z.clone()
    active = ~(norm <= goal)  # or NaN
    iterations = torch.zeros(b.shape[:-1], dtype=torch.int64, device=b.device)
    best, best_norm = (x.clone(), norm) if on_failure == "warn" else (x, norm)
    indefinite = torch.zeros_like(active)
    for _ in range(most):
        if not bool(active.any()):
            break
        q = product(p)
        curvature = _dot(p, q)
        flat = active & ~(curvature > 0)  # or NaN
        if bool(flat.any()):
            indefinite |= flat
            if on_failure == "raise":
                break
            active &= ~flat
        # A system at rest keeps its x and its r: its step is 0.
        alpha = torch.where(active, rz / curvature, 0)[..., None]
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, q, value=-1)
        iterations += active
        before = rz
        z, rz, norm = _preconditioned(r, inverse_diagonal)
        if on_failure == "warn":
            better = norm < best_norm
            best = torch.where(better[..., None], x, best)
            best_norm = torch.where(better, norm, best_norm)
        active &= ~(norm <= goal)
        beta = torch.where(active, rz / before, 0)[..., None]
        torch.addcmul(z, beta, p, out=p)
    converged = ~(active | indefinite)
    if not bool(converged.all()):
        failure = _failure(product, p, norm / scale, indefinite, active, tolerance, remedy)
        if on_failure == "raise":
            raise failure
        warnings.warn(f"{failure}; the iterate of least residual is returned", stacklevel=levels_to_user())
        x = torch.where(converged[..., None], x, best)
    residual = _norm(b - product(x)) / torch.where(scale > 0, scale, 1)
    return Solution(x, iterations, residual, converged)


def _preconditioned(r: Tensor, inverse_diagonal: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the preconditioned residual z, rᵀz and ‖r‖."""
    norm = _norm(r)
    if inverse_diagonal is None:
        return r, norm * norm, norm
    z = r * inverse_diagonal
    return z, _dot(r, z), norm


def _failure(
    product: Product,
    p: Tensor,
    relative: Tensor,
    indefinite: Tensor,
    active: Tensor,
    tolerance: float,
    remedy: str,
) -> Exception:
    """Return what went wrong first, with its likely cause."""
    # Where one is indefinite, others may only have been left unfinished.
    system = int((indefinite if bool(indefinite.any()) else active).flatten().nonzero()[0])
    asymmetry = _asymmetry(product, p, system)
    if asymmetry > 1e3 * torch.finfo(p.dtype).eps:
        return NotPositiveDefiniteError(
            f"the matrix of system {system} is not symmetric: uᵀAv and vᵀAu differ by {asymmetry:.2g} of "
            "their size; make the pairwise terms symmetric"
        )
    if bool(indefinite.flatten()[system]):
        return NotPositiveDefiniteError(
            f"the matrix of system {system} is not positive definite: a direction p has pᵀAp ≤ 0; {remedy}"
        )
    return ConvergenceError(
        f"system {system} has a relative residual of {float(relative.flatten()[system]):.2g} after "
        f"`max_iterations`, where {tolerance:.2g} was asked for; increase either, or compute in float64; "
        f"to make the system easier, {remedy}"
    )


def _asymmetry(product: Product, like: Tensor, system: int) -> float:
    """Return |uᵀAv - vᵀAu| relative to ‖u‖ ‖Av‖ for two vectors, in one system."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device) for _ in range(2))
    au, av = product(u), product(v)
    difference = (_dot(u, av) - _dot(v, au)).abs() / (_norm(u) * _norm(av)).clamp(min=1e-30)
    return float(difference.flatten()[system])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    products: Tensor = torch.linalg.vecdot(left, right)
    return products


def _norm(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms
