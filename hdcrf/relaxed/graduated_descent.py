"""Lower energies: projected gradient steps on an energy that is convex at first.

A relaxed energy has many minima where projected gradient steps end, some of them poor. Graduated descent adds
a term that is zero at every labelling,

    ½ d Σ_i l_i (|q_i|² - 1),    d from 1 down to 1/T over the T iterations,

with l the bound of `RelaxedEnergy` from below, so that the energy is convex at d = 1: there is one minimum,
which is followed while d falls. Steps have far to go, so each starts from a point extrapolated from the last
two, y = q + 0.9 (q - q'), whose message follows from theirs.

Reference: Blake and Zisserman, Visual Reconstruction, 1987 (graduated non-convexity), applied to the
relaxation of Larsson et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hdcrf.relaxed.energy import RelaxedEnergy
from hdcrf.relaxed.projected_gradient import LONGEST, SAFE, RelaxedResult, iterated
from hdcrf.relaxed.simplex_projection import projected
from voxel.backend import uses_native
from voxel.precision import full_precision

__all__ = ["graduated_descent"]

_EXTRAPOLATION = 0.9  # on Potts models of ten photos, 20 iterations with it end as low as 50 without


@full_precision
def graduated_descent(
    energy: RelaxedEnergy,
    start: Tensor,
    *,
    iterations: int = 50,
    track: bool = False,
    progress: Callable[[int], object] | None = None,
    backend: str = "auto",
) -> RelaxedResult:
    """Minimise a relaxed energy by graduated descent: lower energies than `projected_gradient`, later.

    It pays from some 20 iterations on; the more there are, the slower is the way from the convex energy.

    Args:
        energy: E, over P points and K labels.
        start: q⁰, (P, K).
        iterations: 0 or more.
        track: Whether to compute the energy E of each iteration, which may rise on the way.
        progress: Called with the number of iterations done, after each.
        backend: "auto", "reference" or "native", for the projection.

    Returns:
        q on the simplex, and the energies. Differentiable in `start` and in what the energy was made of, but
        for the steps' lengths, which count as constants.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one has the wrong value, or the numbers leave the range of their dtype.
    """
    energy.check("start", start)
    lower, upper = energy.bounds
    native = uses_native(backend, start)
    last: tuple[Tensor, Tensor] | None = None
    done = 0

    def update(q: Tensor, message: Tensor) -> Tensor:
        nonlocal last, done
        convex = 1 - done / iterations
        y, message_of_y = q, message
        if last is not None:
            y = torch.lerp(last[0], q, 1 + _EXTRAPOLATION)
            message_of_y = torch.lerp(last[1], message, 1 + _EXTRAPOLATION)
        last, done = (q, message), done + 1
        gradient = energy.unary + message_of_y + convex * lower * y
        step = SAFE / (upper + convex * lower).clamp(min=SAFE / LONGEST)
        return projected(y - step * gradient, 0.0, native)

    return iterated(energy, start, update, iterations, track, progress)
