"""The search for parameters by gradient descent through the CRF.

Weights and bandwidths are positive, and matter by their ratios, so that it is their logarithms that descend.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.files import InputError
from hdcrf.folders.pairs import Pair
from hdcrf.tuning.budget import Budget, Found
from hdcrf.tuning.examples import Example
from hdcrf.tuning.objective import DEFAULTS, RANGES, Objective, Parameters, refusals, rounded, within

__all__ = ["descend"]

_RATE = 0.2
_BATCH = 2
_SIDE = 512  # of a crop: what is kept for the gradient grows with pixels, labels and iterations


def descend(
    objective: Objective,
    pairs: Sequence[Pair],
    start: Parameters,
    budget: Budget,
    *,
    seed: int,
    progress: Callable[[int, float], object] | None = None,
) -> Found:
    """Descend from given parameters; the best of all epochs by the mean IoU are returned.

    Args:
        objective: The examples, and what refines them.
        pairs: Which examples to train on.
        start: Where to begin.
        budget: How long; a trial is an epoch, and the first is the start.
        seed: Of the order of the examples, and of what is cropped out of large ones.
        progress: Called with the number of epochs and the best score, after each.

    Raises:
        InputError: If a step has left the finite numbers, an example can no longer be read, or the model
            refuses it.
    """
    began = time.monotonic()
    random = np.random.default_rng(seed)
    bounds = {name: [math.log(bound) for bound in RANGES[name]] for name in RANGES}
    logarithms = {
        name: torch.tensor(math.log(value), device=objective.device, requires_grad=True)
        for name, value in within(start).items()
    }
    optimizer = torch.optim.Adam(logarithms.values(), lr=_RATE)
    best, best_score, number, epoch = start, objective.total(pairs, start).mean_iou, 1, 1
    while not budget.is_used(epoch, began):
        order = random.permutation(len(pairs))
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            optimizer.zero_grad()
            for index in batch:
                loss = _loss(objective, objective.examples[pairs[index]], _parameters(logarithms), random)
                if loss is not None:
                    (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            _check_finite(logarithms, epoch)
            with torch.no_grad():
                for name, value in logarithms.items():
                    value.clamp_(*bounds[name])
            if budget.is_used(0, began):
                break
        parameters = rounded({name: float(value.detach().exp()) for name, value in logarithms.items()})
        reached = objective.total(pairs, parameters).mean_iou
        epoch += 1
        if reached > best_score:
            best, best_score, number = parameters, reached, epoch
        if progress is not None:
            progress(epoch, best_score)
    return Found(best, best_score, number, epoch)


def _check_finite(logarithms: dict[str, Tensor], epoch: int) -> None:
    """Raise if a step went by a gradient that is infinite or none."""
    for name, value in logarithms.items():
        if not bool(torch.isfinite(value.detach())):
            raise InputError(
                f"epoch {epoch + 1} has no finite gradient for `{name}`; search with --method optuna, which "
                "needs none"
            )


def _parameters(logarithms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a layer: its weights, and the logarithms of its bandwidths."""
    return {
        (name if name.endswith("weight") else f"log_{name}"): value.exp()
        if name.endswith("weight")
        else value
        for name, value in logarithms.items()
    }


def _loss(
    objective: Objective, example: Example, parameters: dict[str, Tensor], random: np.random.Generator
) -> Tensor | None:
    """Return one minus the mean soft IoU of an example, or of a crop of it; None if none of it is labelled.

    The soft IoU of a label takes marginals for pixels: Σ q t / Σ (q + t - q t) with marginals q and the truth
    t, 0 or 1. The mean is over the labels in the truth.
    """
    logits, guide = objective.inputs(example)
    height, width = example.truth.shape
    rows = min(height, max(_SIDE, _SIDE**2 // width))
    columns = min(width, _SIDE**2 // rows)
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    window = (..., slice(top, top + rows), slice(left, left + columns))
    truth = objective.targets(example)[window]
    known = truth >= 0
    if not bool(known.any()):
        return None
    labels = logits.shape[1]
    with refusals(example):
        crf = objective.layer(labels, DEFAULTS, learn=("weights", "bandwidths"))
        marginals = torch.func.functional_call(crf, parameters, (logits[window], guide[window]))[0]
    given = marginals[:, known]
    true = functional.one_hot(truth[known], labels).T.to(given)
    present = true.sum(1) > 0  # before dividing: the gradient of 0/0 is NaN, also of what is not used
    given, true = given[present], true[present]
    both = (given * true).sum(1)
    overlap: Tensor = (both / (given.sum(1) + true.sum(1) - both)).mean()
    return 1 - overlap
