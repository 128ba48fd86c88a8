"""Does pixel-adaptive convolution pay? Mean IoU of the network of `learned_heads.py` with it.

    python benchmarks/pac_heads.py --images DIR --labels DIR --void 11 --networks DIR --jobs 2
    python benchmarks/pac_heads.py --images DIR --labels DIR --void 11 --quick

Tables 3, 4 and 6 of Su et al. 2019. A fully connected CRF ("Full-CRF", `hdcrf.DenseCRF`), its parameters the
best of a grid, or trained from there; PAC-CRF with one window, of dilation 32, or two, of 16 and 64; and, as
those are for images twice as large, with two of 2 and 8. These start at the best of a grid, too. Heads are
trained on logits of networks that have not seen the frame and do not change, and then jointly with the
network. "PAC network" is the network with pixel-adaptive convolutions in place of some, trained for as many
steps as "unary, trained as long", without a head and with one.

Frames, split, networks and losses are those of `learned_heads.py`; with the same `--networks` folder the
networks are the very same.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hdcrf
from hdcrf.pac import PacCRF, swap_in_pac

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
    from benchmarks.unary_network import NetworkBudget, Networks, report, train_on_unseen, trained_networks
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
    from unary_network import NetworkBudget, Networks, report, train_on_unseen, trained_networks


@dataclass(frozen=True)
class HeadBudget:
    """How long to train heads, and the grids to search."""

    head_steps: int = 32
    joint_steps: int = 24
    frames: int = 2  # of a step
    full_weights: Sequence[float] = (2.0, 4.0)
    full_sigmas_xy: Sequence[float] = (0.035, 0.07, 0.14)  # of the image's diagonal
    pac_weights: Sequence[float] = (4.0, 16.0)
    sigmas_rgb: Sequence[float] = (8.0, 16.0)
    iterations: Sequence[int] = (1, 3, 5, 7)  # of the table of steps
    paired_steps: Sequence[int] = (24, 96)  # of what swapping adds
    draws: int = 3


QUICK = HeadBudget(
    head_steps=3,
    joint_steps=2,
    frames=2,
    full_weights=(2.0,),
    full_sigmas_xy=(0.07,),
    pac_weights=(4.0,),
    sigmas_rgb=(8.0, 16.0),
    iterations=(1, 3),
    paired_steps=(2,),
    draws=2,
)

FULL = "Full-CRF"
WINDOWS = {"PAC-CRF, 32": (32,), "PAC-CRF, 16-64": (16, 64), "PAC-CRF, 2-8": (2, 8)}
TABLE_6 = "PAC-CRF, 16-64"
RATES = {
    "log_scale": 0.03,
    "crf.filters": 3e-3,
    "crf.log_sigma_rgb": 0.01,
    "crf.appearance_weight": 0.03,
    "crf.smoothness_weight": 0.03,
    "crf.log_appearance_sigma_xy": 0.03,
    "crf.log_appearance_sigma_rgb": 0.03,
    "crf.log_smoothness_sigma": 0.03,
    "crf.compatibility.values": 5e-3,
}

SWAPS = {f"down.{group}.1.0": "down.1" for group in (2, 3, 4)}  # the last convolutions of three groups
GUIDE_SCALE = 0.1
TIMED = 5  # frames

HEADS = (FULL, *WINDOWS)
COMPARISONS = (
    (f"{FULL}, best of a grid", "unary"),
    *((head, "unary") for head in HEADS),
    *((head, FULL) for head in WINDOWS),
    *((f"{head}, jointly", "unary, trained as long") for head in HEADS),
    ("PAC network", "unary, trained as long"),
    *((f"PAC network, {TABLE_6}, jointly", than) for than in ("PAC network", f"{TABLE_6}, jointly")),
)


def full_head(num_labels: int, **parameters: Any) -> ScaledHead:
    return ScaledHead(hdcrf.DenseCRF(num_labels, output="logits", smoothness_weight=1.0, **parameters))


def pac_head(num_labels: int, **parameters: Any) -> ScaledHead:
    return ScaledHead(PacCRF(num_labels, output="logits", **parameters))


def searches(frames: Frames, budget: HeadBudget) -> dict[str, tuple[Callable[..., ScaledHead], Any, Any]]:
    """Return for each head what makes it, the grid to search, and what else it takes."""
    diagonal = float(torch.tensor(frames.images.shape[-2:]).float().norm())
    full = {
        "appearance_weight": budget.full_weights,
        "appearance_sigma_xy": [share * diagonal for share in budget.full_sigmas_xy],
        "appearance_sigma_rgb": budget.sigmas_rgb,
    }
    pac = {"weight": budget.pac_weights, "sigma_rgb": budget.sigmas_rgb}
    return {
        FULL: (partial(full_head, frames.num_labels), full, {}),
        **{
            name: (partial(pac_head, frames.num_labels), pac, {"dilations": dilations})
            for name, dilations in WINDOWS.items()
        },
    }


def measure(frames: Frames, arguments: argparse.Namespace, seed: int) -> Outcome:
    """Train everything for one seed, and score it on the frames after the fit ones."""
    budget = QUICK if arguments.quick else HeadBudget()
    network_budget = unary_network.QUICK if arguments.quick else NetworkBudget()
    name = f"seed {seed}"
    networks = trained_networks(frames, network_budget, seed, name, arguments.networks)
    check = windows(frames.fit, len(frames), 1)
    logits = networks.checked(networks.network, frames)

    def further(method: str, network: unary_network.Unary, head: ScaledHead | None) -> Row:
        torch.manual_seed(seed)  # the same frames for all, so that rows can be compared
        network, head = copy.deepcopy((network, head))
        groups = () if head is None else groups_of(head, RATES, 0.3)
        steps = (budget.joint_steps, budget.frames)
        return trained_further(networks, network, head, frames, *steps, f"{name}, {method}", groups)

    rows = {
        "unary": Row(score(None, frames, logits, check), count(networks.network), networks.seconds),
        "unary, trained as long": further("unary, trained as long", networks.network, None),
    }
    outcome = Outcome({"PAC": rows})
    heads = {}
    for model, (make, axes, fixed) in searches(frames, budget).items():
        start, seconds = timed(choose_parameters, frames, logits, make, axes, fixed)
        outcome.remarks.append(f"{name}, {model}, best of the grid: {start}")
        head = make(**start)
        rows[f"{model}, best of a grid"] = Row(score(head, frames, logits, check), 0, seconds)
        if model == FULL:
            head = make(**start, compatibility="full", learn=("weights", "bandwidths", "compatibility"))
        training = (budget.head_steps, budget.frames, f"{name}, {model}", groups_of(head, RATES))
        _, seconds = timed(train_on_unseen, head, frames, logits, *training)
        rows[model] = Row(score(head, frames, logits, check), count(head), seconds)
        rows[f"{model}, jointly"] = further(f"{model}, jointly", networks.network, head)
        heads[model] = head.eval()
    swapped = swap_in_pac(copy.deepcopy(networks.network), SWAPS, guide_scale=GUIDE_SCALE)
    rows["PAC network"] = further("PAC network", swapped, None)
    both = f"PAC network, {TABLE_6}, jointly"
    rows[both] = further(both, swapped, heads[TABLE_6])
    outcome.remarks += [f"{name}, {line}" for line in gains_of_swapping(networks, swapped, frames, budget)]
    outcome.remarks += [f"{name}, {line}" for line in learned(heads)]
    outcome.remarks += [f"{name}, {line}" for line in by_iterations(heads[TABLE_6], frames, logits, budget)]
    times = {model: head_time(head, frames, logits) for model, head in heads.items()}
    times["network"] = network_time(networks.network, frames)
    times["PAC network"] = network_time(swapped, frames)
    outcome.remarks.append(f"{name}, processor milliseconds an image: {listed(times)}")
    for method, row in rows.items():
        report(f"{name}, {method}: mean IoU {mean_iou(row.iou):.4f}")
    return outcome


def listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def learned(heads: Mapping[str, ScaledHead]) -> list[str]:
    """Return lines about what PAC-CRFs learned."""
    lines = []
    for model, head in heads.items():
        if isinstance(head.crf, PacCRF):
            sigmas = ["/".join(f"{value:.1f}" for value in row) for row in head.crf.sigma_rgb.tolist()]
            lines.append(f"{model}, learned: σ {', '.join(sigmas)}, scale {head.log_scale.exp().item():.3g}")
    return lines


def gains_of_swapping(
    networks: Networks, swapped: nn.Module, frames: Frames, budget: HeadBudget
) -> list[str]:
    """Return lines with what swapping adds where both are trained on the same frames, a few times.

    Which frames are drawn matters more than what is trained; here it is the same.
    """
    lines = []
    for steps in budget.paired_steps:
        gains = []
        for draw in range(budget.draws):
            scores = []
            for network in (networks.network, swapped):
                torch.manual_seed(draw)
                trained = copy.deepcopy(network)
                row = trained_further(networks, trained, None, frames, steps, budget.frames, f"draw {draw}")
                scores.append(100 * mean_iou(row.iou))
            gains.append(scores[1] - scores[0])
        shown = ", ".join(f"{gain:+.1f}" for gain in gains)
        lines.append(f"PAC network above the network, {steps} steps on the same frames: {shown}")
    return lines


def by_iterations(head: ScaledHead, frames: Frames, logits: Tensor, budget: HeadBudget) -> list[str]:
    """Return lines with the mean IoU of the check frames and the time after 1, 3, … iterations."""
    counted = copy.deepcopy(head)
    lines = []
    for iterations in budget.iterations:
        counted.crf.iterations = iterations
        found = mean_iou(score(counted, frames, logits, windows(frames.fit, len(frames), 1)))
        milliseconds = head_time(counted, frames, logits)
        lines.append(f"{TABLE_6}, {iterations} iterations: {100 * found:.1f}, {milliseconds:.0f} ms")
    return lines


def head_time(head: ScaledHead, frames: Frames, logits: Tensor) -> float:
    return processor_time(lambda index: head(logits[[index]], frames.images[[index]]), frames)


def network_time(network: unary_network.Unary, frames: Frames) -> float:
    return processor_time(lambda index: network(frames.images[[index]]), frames)


@torch.inference_mode()
def processor_time(run_on: Callable[[int], Tensor], frames: Frames) -> float:
    """Return the median of the processor's milliseconds for some frames: other programs count for nothing."""
    times = []
    for index in range(frames.fit, min(frames.fit + TIMED, len(frames))):
        start = time.process_time()
        run_on(index)
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    run(arguments_of(__doc__), measure, COMPARISONS)


if __name__ == "__main__":
    main()
