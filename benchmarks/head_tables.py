"""What the benchmarks of heads share: the score, trainings, the table over several seeds, and the command."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

try:
    from benchmarks.inputs import machine_line
    from benchmarks.street_frames import UNKNOWN, Frames, read_frames, windows
    from benchmarks.unary_network import Networks, train_further
except ModuleNotFoundError:  # run as a script
    from inputs import machine_line
    from street_frames import UNKNOWN, Frames, read_frames, windows
    from unary_network import Networks, train_further


@torch.inference_mode()
def score(head: nn.Module | None, frames: Frames, logits: Tensor, chosen: Iterable[slice]) -> Tensor:
    """Return the IoU (K,) of each class over windows of frames; NaN for a class that they have nothing of."""
    labels = frames.num_labels
    confusion = torch.zeros(labels * labels, dtype=torch.int64)
    for window in chosen:
        truth, values = frames.labels[window], logits[window]
        found = (values if head is None else head(values, frames.images[window])).argmax(1)
        scored = truth != UNKNOWN
        confusion += torch.bincount(truth[scored] * labels + found[scored], minlength=labels * labels)
    counts = confusion.view(labels, labels)
    both = counts.diag()
    iou = both / (counts.sum(0) + counts.sum(1) - both)
    return torch.where(counts.sum(1) > 0, iou, torch.nan)


def mean_iou(iou: Tensor) -> float:
    return float(iou.nanmean())


@dataclass
class Row:
    """One method, one seed."""

    iou: Tensor  # (K,)
    learned: int  # parameters trained or chosen for this row, the network's not counted again
    seconds: float = 0.0


@dataclass
class Outcome:
    """What one seed gave: the rows of each table, and remarks about them."""

    tables: dict[str, dict[str, Row]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


class ScaledHead(nn.Module):
    """A CRF whose output, logits, is multiplied by a scale, which leaves labels as they are.

    Without one, training would make potentials smaller so that logits are not overconfident.
    """

    def __init__(self, crf: nn.Module) -> None:
        super().__init__()
        self.crf = crf
        self.log_scale = nn.Parameter(torch.tensor(-0.7))

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        return self.crf(logits, images) * self.log_scale.exp()


def groups_of(head: nn.Module, rates: Mapping[str, float], factor: float = 1.0) -> list[dict[str, Any]]:
    """Return a head's parameters with their learning rates, by name, times a factor."""
    return [
        {"params": [parameter], "lr": factor * rates[name]}
        for name, parameter in head.named_parameters()
        if parameter.requires_grad
    ]


def choose_parameters(
    frames: Frames,
    logits: Tensor,
    make_head: Callable[..., nn.Module],
    axes: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any] | None = None,
    length: int = 1,
) -> dict[str, Any]:
    """Return the parameters of a grid that have the best mean IoU on a third of the fit frames.

    Args:
        frames: All frames.
        logits: Of all frames, or of the fit ones.
        make_head: Takes parameters by name.
        axes: The values of each parameter.
        fixed: Parameters of one value.
        length: Frames that a head sees at a time.
    """
    chosen = windows(0, frames.fit, length)[::3]
    scores = {}
    for values in itertools.product(*axes.values()):
        parameters = {**(fixed or {}), **dict(zip(axes, values, strict=True))}
        scores[mean_iou(score(make_head(**parameters), frames, logits, chosen))] = parameters
    return scores[max(scores)]


def trained_further(
    networks: Networks,
    network: nn.Module,
    head: nn.Module | None,
    frames: Frames,
    steps: int,
    batch: int,
    name: str,
    groups: Sequence[dict[str, Any]] = (),
) -> Row:
    """Train a network, and the head on it if there is one, further in place, and score them."""
    _, seconds = timed(train_further, network, head, frames, steps, batch, name, groups)
    logits = networks.checked(network, frames)
    iou = score(head, frames, logits, windows(frames.fit, len(frames), 1))
    return Row(iou, count(network) if head is None else count(network, head), seconds)


def print_table(table: str, rows: Sequence[dict[str, Row]], comparisons: Sequence[tuple[str, str]]) -> None:
    """Print the mean over the seeds, the sample standard deviation of the mean IoU, and gains by seed."""
    labels = range(len(rows[0]["unary"].iou))
    print(f"\nIoU in percent with {table}, mean over {len(rows)} seeds\n")
    print(
        f"| method | mean IoU | {' | '.join(f'class {label}' for label in labels)} | parameters | seconds |"
    )
    print("|---" * (len(labels) + 4) + "|")
    for method in rows[0]:
        results = [row[method] for row in rows]
        means = [100 * mean_iou(result.iou) for result in results]
        spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
        classes = [
            "-" if value.isnan() else f"{100 * float(value):.1f}"
            for value in torch.stack([result.iou for result in results]).mean(0)
        ]
        seconds = statistics.fmean(result.seconds for result in results)
        print(
            f"| {method} | {statistics.fmean(means):.1f}{spread} | {' | '.join(classes)} | "
            f"{results[0].learned:,} | {seconds:.0f} |"
        )
    print("\nGain of each seed in mean IoU:\n")
    for better, than in comparisons:
        gains = [100 * (mean_iou(row[better].iou) - mean_iou(row[than].iou)) for row in rows]
        print(f"- {better}, above {than}: {', '.join(f'{gain:+.1f}' for gain in gains)}")


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all benchmarks of heads take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of label pictures")
    parser.add_argument("--void", type=int, metavar="LABEL", help="a label that is not scored")
    parser.add_argument(
        "--fit", type=int, default=60, metavar="N", help="frames to train on: the first N (60)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds trained at a time (1)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see it run")
    parser.add_argument(
        "--networks", type=Path, metavar="DIR", help="folder to keep the trained networks in, and find them"
    )
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[Frames, argparse.Namespace, int], Outcome],
    comparisons: Sequence[tuple[str, str]],
) -> None:
    """Measure each seed of frames, as the arguments of the command say, and print the tables."""
    arguments = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    frames = read_frames(arguments.images, arguments.labels, arguments.fit, arguments.void)
    print(machine_line())
    start = time.perf_counter()
    tasks = [(frames, arguments, seed) for seed in range(arguments.seeds)]
    if arguments.jobs == 1:
        outcomes = [measure(*task) for task in tasks]
    else:
        # Fresh processes: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, context, torch.set_num_threads, (1,)) as pool:
            outcomes = list(pool.map(measure, *zip(*tasks, strict=True)))
    for table in outcomes[0].tables:
        print_table(table, [outcome.tables[table] for outcome in outcomes], comparisons)
    print()
    for outcome in outcomes:
        print("\n".join(f"- {remark}" for remark in outcome.remarks))
    print(
        f"\n{frames.fit} frames to fit, {len(frames) - frames.fit} to check, "
        f"{frames.images.shape[3]} x {frames.images.shape[2]} pixels; "
        f"{time.perf_counter() - start:.0f} s in all, {arguments.jobs} seeds at a time"
    )
