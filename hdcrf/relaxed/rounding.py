"""From relaxed labels to labels whose energy is no higher, many points at a time.

The proof of proposition 2.1 says how: E is linear in each q_i by itself. With the other points fixed, one of
the K labels is therefore no worse than the shares q_i: the label of the smallest ∂E/∂q_i(λ). The proof goes
from point to point. We move a whole set of points at once, to the label that is best for each while the
others stay; with δ what that changes, the energy changes by exactly

    ⟨∂E/∂q, δ⟩ + ½ ⟨δ, M δ⟩.

If that is no rise the set is done, at the price of one message. If it is, the set is cut in half, every other
point, and each half is tried by itself; a single point never fails.

Reference: Larsson et al. 2017, proposition 2.1 and its proof.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hdcrf.relaxed.energy import RelaxedEnergy
from voxel.precision import full_precision

__all__ = ["round_labels"]


@torch.no_grad()
@full_precision
def round_labels(energy: RelaxedEnergy, q: Tensor) -> Tensor:
    """Round relaxed labels to a labelling whose energy is no higher.

    Args:
        energy: E, over P points and K labels.
        q: (P, K), on the simplex.

    Returns:
        (P,) int64 labels x with E(x) ≤ E(q), up to rounding errors. A point that already has one label whole
        keeps it. Items of a batch are rounded as if each were alone.

    Raises:
        TypeError: If q has another dtype than the energy.
        ValueError: If q has another shape, or is not on the simplex.

    Deterministic. Cost: a few messages as a rule; two for each point with more than one label at worst.

    Reference: Larsson et al. 2017, proposition 2.1.
    """
    energy.check("q", q)
    if len(q) == 0:
        return q.new_zeros(0, dtype=torch.int64)
    _check_simplex(q)
    labels = q.argmax(1)
    shared = torch.nonzero(q.amax(1) < 1)[:, 0]
    if not len(shared):
        return labels
    item = (
        torch.zeros_like(labels)
        if energy.batch is None
        else torch.unique(energy.batch, return_inverse=True)[1]
    )
    items = int(item.max()) + 1
    q = q.clone()
    gradient = energy.gradient(q)
    sets = [shared]
    while sets:
        points = sets.pop()
        of = item[points]
        best = gradient[points].argmin(1)
        change = torch.zeros_like(q)
        change[points] = torch.nn.functional.one_hot(best, q.shape[1]).to(q) - q[points]
        message = energy.message(change)
        # Points that are not moved change by nothing: only the moved ones count, each item for itself.
        slope = (gradient[points].double() + 0.5 * message[points].double()) * change[points].double()
        rise = slope.new_zeros(items).index_add_(0, of, slope.sum(1))
        moved = (rise <= 0) | (torch.bincount(of, minlength=items) == 1)
        done = moved[of]
        labels[points[done]] = best[done]
        q += change * moved[item, None]
        gradient += message * moved[item, None]
        if not bool(done.all()):
            sets += _halves(points[~done], of[~done])
    return labels


def _halves(points: Tensor, item: Tensor) -> list[Tensor]:
    """Return every other point of each item, and the rest."""
    order = torch.argsort(item, stable=True)
    counts = torch.bincount(item)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.empty_like(item)
    rank[order] = torch.arange(len(item), device=item.device) - starts[item[order]]
    halves = [points[rank % 2 == 0], points[rank % 2 == 1]]
    return [half for half in halves if len(half)]


def _check_simplex(q: Tensor) -> None:
    limit = 1e-5  # sums of thousands of labels in float32 are this far from one, and leaks much farther
    if float(q.min()) < -limit or float((q.sum(1) - 1).abs().max()) > limit:
        raise ValueError(
            "`q` must hold rows on the simplex, 0 or more and summing to 1, "
            f"got entries from {float(q.min()):.3g} and sums from {float(q.sum(1).min()):.3g} to "
            f"{float(q.sum(1).max()):.3g}; relax without a leak, or use project_simplex"
        )
