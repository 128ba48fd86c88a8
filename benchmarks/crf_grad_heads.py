"""Do learned pairwise potentials pay? Mean IoU of the network of `learned_heads.py` with CRF-Grad on it.

    python benchmarks/crf_grad_heads.py --images DIR --labels DIR --void 11 --networks DIR --jobs 2
    python benchmarks/crf_grad_heads.py --images DIR --labels DIR --void 11 --quick

The four rows of table 1 of Larsson et al. 2017: spatial potentials alone, and spatial and bilateral ones
("full"); of Gaussian shape, with the parameters that are best on a third of the fit frames, or learned.
Learned spatial potentials start at nothing, bilateral ones at the best Gaussians.

Frames, split, networks and losses are those of `learned_heads.py`; with the same `--networks` folder the
networks are the very same. Heads are trained on logits of networks that have not seen the frame and do not
change, and after that jointly with the network. `--out-dir` takes pictures of what the first seed learned,
and of how energy and mean IoU of the full learned model go with the number of steps.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hdcrf
from hdcrf.pictures import convergence_plot, filter_plot, tap_plot

try:
    from benchmarks import unary_network
    from benchmarks.head_tables import (
        Outcome,
        Row,
        ScaledHead,
        arguments_of,
        choose_parameters,
        count,
        groups_of,
        mean_iou,
        run,
        score,
        timed,
        trained_further,
    )
    from benchmarks.street_frames import Frames, windows
    from benchmarks.unary_network import NetworkBudget, report, train_on_unseen, trained_networks
except ModuleNotFoundError:  # run as a script
    import unary_network
    from head_tables import (
        Outcome,
        Row,
        ScaledHead,
        arguments_of,
        choose_parameters,
        count,
        groups_of,
        mean_iou,
        run,
        score,
        timed,
        trained_further,
    )
    from street_frames import Frames, windows
    from unary_network import NetworkBudget, report, train_on_unseen, trained_networks


@dataclass(frozen=True)
class HeadBudget:
    """How long to train heads, and the grids to search."""

    head_steps: int = 48
    joint_steps: int = 24
    frames: int = 4  # of a step
    window: int = 9
    spatial_weights: Sequence[float] = (1.0, 2.0, 4.0)
    spatial_sigmas: Sequence[float] = (1.0, 3.0)
    bilateral_weights: Sequence[float] = (2.0, 4.0, 8.0)
    sigmas_xy: Sequence[float] = (0.05, 0.1)  # of the image's diagonal
    sigmas_rgb: Sequence[float] = (8.0, 16.0)
    most_steps: int = 12  # of the curves


QUICK = HeadBudget(
    head_steps=3,
    joint_steps=2,
    frames=2,
    window=3,
    spatial_weights=(2.0,),
    spatial_sigmas=(1.0, 3.0),
    bilateral_weights=(4.0,),
    sigmas_xy=(0.1,),
    sigmas_rgb=(16.0,),
    most_steps=2,
)

RATES = {
    "log_scale": 0.03,
    "crf.unary_weight": 0.01,
    "crf.spatial_filters": 3e-4,
    "crf.bilateral_taps": 1e-3,
}

MODELS = ("spatial, Gaussian", "spatial, learned", "full, Gaussian", "full, learned")
COMPARISONS = (
    *((model, "unary") for model in MODELS),
    ("spatial, learned", "spatial, Gaussian"),
    ("full, learned", "full, Gaussian"),
    *((f"{model}, jointly", "unary, trained as long") for model in MODELS),
)


def fixed_head(num_labels: int, **parameters: Any) -> ScaledHead:
    return ScaledHead(hdcrf.CRFGrad(num_labels, output="logits", learn=(), **parameters)).eval()


def learned_head(num_labels: int, **parameters: Any) -> ScaledHead:
    return ScaledHead(hdcrf.CRFGrad(num_labels, output="logits", **parameters))


def measure(frames: Frames, arguments: argparse.Namespace, seed: int) -> Outcome:
    """Train everything for one seed, and score it on the frames after the fit ones."""
    budget = QUICK if arguments.quick else HeadBudget()
    network_budget = unary_network.QUICK if arguments.quick else NetworkBudget()
    name = f"seed {seed}"
    networks = trained_networks(frames, network_budget, seed, name, arguments.networks)
    check = windows(frames.fit, len(frames), 1)
    joint_steps = (budget.joint_steps, budget.frames)
    longer = copy.deepcopy(networks.network)
    logits = networks.checked(networks.network, frames)
    rows = {
        "unary": Row(score(None, frames, logits, check), count(networks.network), networks.seconds),
        "unary, trained as long": trained_further(
            networks, longer, None, frames, *joint_steps, f"{name}, network further"
        ),
    }
    outcome = Outcome({"CRF-Grad": rows})
    diagonal = float(torch.tensor(frames.images.shape[-2:]).float().norm())
    make_fixed = partial(fixed_head, frames.num_labels)
    spatial, spatial_seconds = timed(
        choose_parameters,
        frames,
        logits,
        make_fixed,
        {"spatial_weight": budget.spatial_weights, "spatial_sigma": budget.spatial_sigmas},
        {"window": budget.window, "neighbourhood": None},
    )
    full, full_seconds = timed(
        choose_parameters,
        frames,
        logits,
        make_fixed,
        {
            "bilateral_weight": budget.bilateral_weights,
            "sigma_xy": [share * diagonal for share in budget.sigmas_xy],
            "sigma_rgb": budget.sigmas_rgb,
        },
        {**spatial, "neighbourhood": 1},
    )
    outcome.remarks += [
        f"{name}, {model}: {found}" for model, found in (("spatial", spatial), ("full", full))
    ]
    start = {"spatial_weight": 0.0}
    heads = {
        "spatial, Gaussian": (make_fixed(**spatial), spatial_seconds),
        "spatial, learned": (learned_head(frames.num_labels, **spatial | start), 0.0),
        "full, Gaussian": (make_fixed(**full), full_seconds),
        "full, learned": (learned_head(frames.num_labels, **full | start), 0.0),
    }
    for model, (head, chosen_seconds) in heads.items():
        seconds = chosen_seconds
        if "learned" in model:
            _, seconds = timed(
                train_on_unseen,
                head,
                frames,
                logits,
                budget.head_steps,
                budget.frames,
                f"{name}, {model}",
                groups_of(head, RATES),
            )
        rows[model] = Row(score(head, frames, logits, check), count(head), seconds)
        joint, joint_head = copy.deepcopy((networks.network, head))
        rows[f"{model}, jointly"] = trained_further(
            networks,
            joint,
            joint_head,
            frames,
            *joint_steps,
            f"{name}, {model}, jointly",
            groups_of(joint_head, RATES, 0.3),
        )
    head, _ = heads["full, learned"]
    outcome.remarks.append(f"{name}, full, learned: unary weight {head.crf.unary_weight.item():.3g}")
    scores = scores_by_steps(head, frames, logits, budget)
    steps = ", ".join(f"{value:.1f}" for value in scores)
    outcome.remarks.append(f"{name}, full, learned, mean IoU by steps: {steps}")
    if arguments.out_dir is not None and seed == 0:
        draw(arguments.out_dir, heads["spatial, learned"][0], head, frames, logits, scores)
    for method, row in rows.items():
        report(f"{name}, {method}: mean IoU {mean_iou(row.iou):.4f}")
    return outcome


def scores_by_steps(head: ScaledHead, frames: Frames, logits: Tensor, budget: HeadBudget) -> list[float]:
    """Return the mean IoU of the check frames after 0, 1, … steps, of the label with the largest share."""
    counted = copy.deepcopy(head.crf)
    counted.output = "relaxed"
    scores = []
    for steps in range(budget.most_steps + 1):
        counted.iterations = steps
        found = score(counted, frames, logits, windows(frames.fit, len(frames), 1))
        scores.append(100 * mean_iou(found))
    return scores


@torch.inference_mode()
def draw(
    folder: Path,
    spatial: ScaledHead,
    full: ScaledHead,
    frames: Frames,
    logits: Tensor,
    scores: Sequence[float],  # after 0, 1, … steps
) -> None:
    """Write pictures of the learned filters and of the convergence."""
    folder.mkdir(parents=True, exist_ok=True)
    filter_plot(spatial.crf.spatial_filters).savefig(folder / "spatial_filters.png", dpi=100)
    tap_plot(full.crf.bilateral_taps, full.crf.dimension, full.crf.neighbourhood).savefig(
        folder / "bilateral_taps.png", dpi=100
    )
    counted = copy.deepcopy(full.crf)
    counted.iterations = len(scores) - 1
    energies = [
        counted.infer(logits[[index]], frames.images[[index]], track=True).energy
        for index in range(frames.fit, len(frames))
    ]
    figure = convergence_plot(torch.stack(energies), scores)
    figure.savefig(folder / "convergence.png", dpi=100)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="folder for pictures of the first seed")
    run(parser, measure, COMPARISONS)


if __name__ == "__main__":
    main()
