"""Does training a CRF head pay? Mean IoU of a small network alone, and with fixed and learned heads.

    python benchmarks/learned_heads.py --images DIR --labels DIR --void 11 --video --jobs 2
    python benchmarks/learned_heads.py --images DIR --labels DIR --void 11 --quick

The first takes about half an hour of two free cores, 14 minutes of one for each of three seeds. The second
takes a few steps of everything, and its figures mean nothing.

Both folders hold pictures of the same stems, all of one size; a label is the value of an 8-bit grey or
palette PNG. Sorted by name, the first `--fit` frames are to train on and choose by, the rest only to check.

A head is fitted to logits of networks that have not seen the frame; `unary_network.py` says how. All training
minimises the same cross-entropy, in which a class counts by the inverse square root of how frequent it is.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hdcrf

try:
    from benchmarks import unary_network
    from benchmarks.head_tables import (
        Outcome,
        Row,
        arguments_of,
        choose_parameters,
        count,
        mean_iou,
        run,
        score,
        timed,
    )
    from benchmarks.street_frames import Frames, windows
    from benchmarks.unary_network import (
        NetworkBudget,
        report,
        train_further,
        train_on_unseen,
        trained_networks,
    )
except ModuleNotFoundError:  # run as a script
    import unary_network
    from head_tables import (
        Outcome,
        Row,
        arguments_of,
        choose_parameters,
        count,
        mean_iou,
        run,
        score,
        timed,
    )
    from street_frames import Frames, windows
    from unary_network import NetworkBudget, report, train_further, train_on_unseen, trained_networks


@dataclass(frozen=True)
class HeadBudget:
    """How long to train heads, and the grid to search."""

    head_steps: int = 32
    joint_steps: int = 48
    frames: int = 4  # of a step of head and joint training, and of a window of video
    weights: Sequence[float] = (2.0, 4.0)
    sigmas_xy: Sequence[float] = (0.035, 0.07, 0.14)  # of the image's diagonal
    sigmas_rgb: Sequence[float] = (4.0, 8.0, 16.0)
    sigmas_t: Sequence[float] = (0.5, 3.0)


QUICK = HeadBudget(
    head_steps=6,
    joint_steps=4,
    weights=(1.0, 3.0),
    sigmas_xy=(0.13,),
    sigmas_rgb=(13.0,),
    sigmas_t=(0.5,),
)

COMPARISONS = (
    ("learned CRF", "unary"),
    ("learned CRF", "fixed CRF, best of a grid"),
    ("jointly trained", "unary, trained as long"),
    ("jointly trained", "the same, fixed CRF, best of a grid"),
)


class Head(nn.Module):
    """A CRF over logits times a scale, which takes back what confidence is too much.

    Takes frames (T, K, H, W): for `DenseCRF` images of their own, for `VideoCRF` one window of a video.
    """

    def __init__(self, crf: hdcrf.DenseCRF | hdcrf.VideoCRF) -> None:
        super().__init__()
        self.crf = crf
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        logits = logits * self.log_scale.exp()
        if isinstance(self.crf, hdcrf.DenseCRF):
            return self.crf(logits, images)
        return self.crf(logits.transpose(0, 1)[None], images.transpose(0, 1)[None])[0].transpose(0, 1)

    def values(self) -> dict[str, float]:
        """Return the learned numbers, apart from the compatibility."""
        values = {"scale of the logits": self.log_scale.exp().item()}
        for name, parameter in self.crf.named_parameters():
            if parameter.dim() == 0:
                values[name.removeprefix("log_")] = (parameter.exp() if "log_" in name else parameter).item()
        return values


def fixed_head(video: bool, num_labels: int, **parameters: float) -> Head:
    kind = hdcrf.VideoCRF if video else hdcrf.DenseCRF
    return Head(kind(num_labels, output="logits", learn=(), **parameters))


def learned_head(video: bool, num_labels: int, **parameters: float) -> Head:
    kind = hdcrf.VideoCRF if video else hdcrf.DenseCRF
    learn = ("weights", "bandwidths", "compatibility")
    return Head(kind(num_labels, output="logits", compatibility="full", learn=learn, **parameters))


def described(parameters: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in parameters.items())


def axes_of(frames: Frames, budget: HeadBudget, video: bool) -> dict[str, Sequence[float]]:
    """Return the grid to search."""
    diagonal = float(np.hypot(*frames.images.shape[-2:]))
    return {
        "appearance_weight": budget.weights,
        "appearance_sigma_xy": [share * diagonal for share in budget.sigmas_xy],
        "appearance_sigma_rgb": budget.sigmas_rgb,
        **({"appearance_sigma_t": budget.sigmas_t} if video else {}),
    }


def parameter_groups(head: Head, rate: float, compatibility_rate: float) -> list[dict[str, Any]]:
    """Return a head's parameters with their learning rates.

    The compatibility has its own: with K² entries it would learn by heart which labels these few networks
    confuse, and the network that is checked confuses others.
    """
    matrix = list(head.crf.compatibility.parameters())
    others = [p for p in head.parameters() if p.requires_grad and all(p is not entry for entry in matrix)]
    return [{"params": others, "lr": rate}, {"params": matrix, "lr": compatibility_rate}]


def measure(frames: Frames, arguments: argparse.Namespace, seed: int) -> Outcome:
    """Train everything for one seed, and score it on the frames after the fit ones."""
    budget = QUICK if arguments.quick else HeadBudget()
    network_budget = unary_network.QUICK if arguments.quick else NetworkBudget()
    name = f"seed {seed}"
    outcome = Outcome()
    networks = trained_networks(frames, network_budget, seed, name, arguments.networks)
    network = networks.network
    longer = copy.deepcopy(network)
    joint_steps = (budget.joint_steps, budget.frames)
    _, longer_seconds = timed(train_further, longer, None, frames, *joint_steps, f"{name}, network further")
    outcome.remarks.append(
        f"{name}: {network_budget.blocks} networks to train heads by, {networks.unseen_seconds:.0f} s"
    )
    logits, longer_logits = networks.checked(network, frames), networks.checked(longer, frames)
    for table in ("DenseCRF", "VideoCRF") if arguments.video else ("DenseCRF",):
        of_video = table == "VideoCRF"
        parameters, grid_seconds = timed(
            choose_parameters,
            frames,
            logits,
            partial(fixed_head, of_video, frames.num_labels),
            axes_of(frames, budget, of_video),
            {"smoothness_weight": 1.0},
            budget.frames if of_video else 1,
        )
        default = fixed_head(of_video, frames.num_labels)
        best = fixed_head(of_video, frames.num_labels, **parameters)
        head = learned_head(of_video, frames.num_labels, **parameters)  # starts where the grid ends
        _, head_seconds = timed(
            train_on_unseen,
            head,
            frames,
            logits,
            budget.head_steps,
            budget.frames,
            f"{name}, {table}, head",
            parameter_groups(head, 0.03, 0.005),
            of_video,
        )
        joint, joint_head = copy.deepcopy((network, head))
        _, joint_seconds = timed(
            train_further,
            joint,
            joint_head,
            frames,
            *joint_steps,
            f"{name}, {table}, jointly",
            parameter_groups(joint_head, 0.01, 0.005),
            of_video,
        )
        joint_logits = networks.checked(joint, frames)
        check = windows(frames.fit, len(frames), budget.frames if of_video else 1)
        rows = outcome.tables[table] = {
            method: Row(score(crf, frames, values, check), count(*learned), seconds)
            for method, crf, values, learned, seconds in (
                ("unary", None, logits, [network], networks.seconds),
                ("fixed CRF, defaults", default, logits, [], 0),
                ("fixed CRF, best of a grid", best, logits, [], grid_seconds),
                ("learned CRF", head, logits, [head], head_seconds),
                ("unary, trained as long", None, longer_logits, [longer], longer_seconds),
                ("the same, fixed CRF, best of a grid", best, longer_logits, [], 0),
                ("the same, learned CRF", head, longer_logits, [], 0),
                ("jointly trained", joint_head, joint_logits, [joint, joint_head], joint_seconds),
            )
        }
        outcome.remarks.append(f"{name}, {table}, best of the grid: {described(parameters)}")
        outcome.remarks.append(f"{name}, {table}, learned: {described(head.values())}")
        outcome.remarks.append(f"{name}, {table}, jointly: {described(joint_head.values())}")
        for method, row in rows.items():
            report(f"{name}, {table}, {method}: mean IoU {mean_iou(row.iou):.4f}")
    return outcome


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument(
        "--video", action="store_true", help="also a table for VideoCRF; the frames are a video"
    )
    run(parser, measure, COMPARISONS)


if __name__ == "__main__":
    main()
