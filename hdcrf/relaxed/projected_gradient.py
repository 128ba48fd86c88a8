"""Two ways of minimising a relaxed energy over the simplex: projected gradient descent, and mean field.

Projected gradient descent, CRF-Grad, takes a step against the gradient and goes back to the simplex,

    q ← project(q - γ ∂E/∂q).

With q' the new point, the projection gives ⟨∂E/∂q_i, q'_i - q_i⟩ ≤ -|q'_i - q_i|² / γ_i, and E is quadratic,
so with the bound u of `RelaxedEnergy` from above

    E(q') - E(q) ≤ Σ_i (½ u_i - 1/γ_i) |q'_i - q_i|²,

and with γ_i ≤ 2 / u_i the energy never rises. "auto" takes γ_i = 1.9 / u_i, close to the longest, for each
point.

Mean field minimises E(q) + Σ_i Σ_λ q_i(λ) log q_i(λ) instead, by q ← softmax(-∂E/∂q).

Reference: Larsson et al. 2017, algorithm 1; the step's length is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hdcrf.layer_inputs import check_progress
from hdcrf.relaxed.energy import RelaxedEnergy
from hdcrf.relaxed.simplex_projection import check_leak, projected
from voxel.backend import uses_native
from voxel.checks import check_choice, check_count, check_flag, check_positive
from voxel.precision import full_precision

__all__ = [
    "LONGEST",
    "SAFE",
    "RelaxedResult",
    "check_step_size",
    "iterated",
    "parallel_mean_field",
    "projected_gradient",
]

LONGEST = 4.0
"""A step where next to nothing limits it, which goes from one label to another in one or a few."""

SAFE = 1.9
"""The length of a step, of 2 at most, in units of 1 / u."""


@dataclass(frozen=True)
class RelaxedResult:
    """What the minimisation of a relaxed energy found.

    Attributes:
        relaxed: q, (P, K), or as its caller reshaped it. On the simplex, unless there was a leak.
        iterations: How many iterations ran.
        energy: (iterations + 1,) float64: E(q) before and after each iteration; None unless asked for.
    """

    relaxed: Tensor
    iterations: int
    energy: Tensor | None = None


def check_step_size(step_size: object) -> float | str:
    """Return `step_size` if it is a positive number or "auto", else raise."""
    if isinstance(step_size, str):
        return check_choice("step_size", step_size, ("auto",))
    return check_positive("step_size", step_size)


@full_precision
def projected_gradient(
    energy: RelaxedEnergy,
    start: Tensor,
    *,
    iterations: int,
    step_size: float | str = "auto",
    leak: float = 0.0,
    track: bool = False,
    progress: Callable[[int], object] | None = None,
    backend: str = "auto",
) -> RelaxedResult:
    """Minimise a relaxed energy by projected gradient descent.

    Args:
        energy: E, over P points and K labels.
        start: q⁰, (P, K), on the simplex.
        iterations: T, 0 or more.
        step_size: γ, or "auto", with which the energy does not rise (without a leak): a step for each point.
        leak: Slope of the projection below zero, 0 to 1; above 0 the result leaves the simplex.
        track: Whether to compute the energy of each iteration.
        progress: Called with the number of iterations done, after each.
        backend: "auto", "reference" or "native", for the projection.

    Returns:
        q and the energies. Differentiable in `start` and in what the energy was made of, but for the
        automatic step, which counts as a constant.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one has the wrong value, or the numbers leave the range of their dtype.
    """
    energy.check("start", start)
    slope = check_leak(leak)
    size = check_step_size(step_size)
    native = uses_native(backend, start)
    step = energy.bounds[1].clamp(min=SAFE / LONGEST).reciprocal() * SAFE if isinstance(size, str) else size

    def update(q: Tensor, message: Tensor) -> Tensor:
        return projected(q - step * (energy.unary + message), slope, native)

    return iterated(energy, start, update, iterations, track, progress)


@full_precision
def parallel_mean_field(
    energy: RelaxedEnergy,
    start: Tensor,
    *,
    iterations: int,
    track: bool = False,
    progress: Callable[[int], object] | None = None,
) -> RelaxedResult:
    """Run mean field on a relaxed energy, all points at once; arguments as `projected_gradient`.

    Returns:
        The marginals and their expected energies E(q).
    """
    energy.check("start", start)

    def update(q: Tensor, message: Tensor) -> Tensor:
        return torch.softmax(-(energy.unary + message), 1)

    return iterated(energy, start, update, iterations, track, progress)


def iterated(
    energy: RelaxedEnergy,
    q: Tensor,
    update: Callable[[Tensor, Tensor], Tensor],
    iterations: int,
    track: bool,
    progress: Callable[[int], object] | None,
) -> RelaxedResult:
    """Return what `iterations` updates, of q and its message M q, make of a checked start."""
    check_count("iterations", iterations, 0)
    check_flag("track", track)
    check_progress(progress)
    energies = []
    for iteration in range(iterations):
        message = energy.message(q)
        if track:
            energies.append(energy.value(q.detach(), message.detach()).detach())
        q = update(q, message)
        if progress is not None:
            progress(iteration + 1)
    if not bool(torch.isfinite(q.detach()).all()):
        raise ValueError(
            f"the relaxed labels left the range of {q.dtype} within {iterations} iterations; lower the "
            "potentials, or the step size if there is one"
        )
    if not track:
        return RelaxedResult(q, iterations)
    with torch.no_grad():
        energies.append(energy.value(q).detach())
    return RelaxedResult(q, iterations, torch.stack(energies))
