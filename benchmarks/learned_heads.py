"""Does training a CRF head pay? Mean IoU of a small network alone, and with fixed and learned heads.

    python benchmarks/learned_heads.py --images DIR --labels DIR --void 11 --video --jobs 2
    python benchmarks/learned_heads.py --images DIR --labels DIR --void 11 --quick

The first takes about half an hour of two free cores, 14 minutes of one for each of three seeds. The second
takes a few steps of everything, and its figures mean nothing.

Both folders hold pictures of the same stems, all of one size; a label is the value of an 8-bit grey or
palette PNG. Sorted by name, the first `--fit` frames are to train on and choose by, the rest only to check.

A network knows the frames that it was trained on too well, and a head trained on those would trust it too
much. So a head is fitted to logits of networks that have not seen the frame: the fit frames are cut into
blocks, and each block gets its logits from a network trained on the others. The network that is checked is
trained on all fit frames. All training minimises the same cross-entropy, in which a class counts by the
inverse square root of how frequent it is.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hdcrf
from hdcrf.image_files import InputError, read_photo

try:
    from benchmarks.inputs import machine_line
except ModuleNotFoundError:  # run as a script
    from inputs import machine_line

UNKNOWN = 255
"""Written over the void label, and what no loss and no score sees."""

SIZES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Budget:
    """How long to train."""

    blocks: int = 3
    width: int = 16
    crop: tuple[int, int] = (128, 160)
    unary_steps: int = 500
    unary_batch: int = 6
    head_steps: int = 32
    joint_steps: int = 48
    frames: int = 4  # of a step of head and joint training, and of a window of video
    weights: Sequence[float] = (2.0, 4.0)
    sigmas_xy: Sequence[float] = (0.035, 0.07, 0.14)  # of the image's diagonal
    sigmas_rgb: Sequence[float] = (4.0, 8.0, 16.0)
    sigmas_t: Sequence[float] = (0.5, 3.0)


QUICK = Budget(
    blocks=2,
    width=8,
    crop=(32, 48),
    unary_steps=40,
    unary_batch=4,
    head_steps=6,
    joint_steps=4,
    weights=(1.0, 3.0),
    sigmas_xy=(0.13,),
    sigmas_rgb=(13.0,),
    sigmas_t=(0.5,),
)


@dataclass(frozen=True)
class Frames:
    """Frames and their labels."""

    images: Tensor  # (N, 3, H, W) float32, 0 to 255
    labels: Tensor  # (N, H, W) int64, UNKNOWN where not scored
    class_weights: Tensor  # (K,)
    fit: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_labels(self) -> int:
        return len(self.class_weights)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, weight=self.class_weights, ignore_index=UNKNOWN)


def read_frames(images: Path, labels: Path, fit: int, void: int | None) -> Frames:
    """Read two folders of pictures with the same stems; a SystemExit says what is wrong with them."""
    pictures, annotations = pictures_by_stem(images, "--images"), pictures_by_stem(labels, "--labels")
    unpaired = sorted(pictures.keys() ^ annotations.keys())
    if unpaired:
        stem = unpaired[0]
        place = images if stem in pictures else labels
        raise SystemExit(
            f"{len(unpaired)} stems are in one folder only, such as {stem!r} in {place}; "
            "give each image a label picture of the same stem"
        )
    stems = sorted(pictures)
    if not 2 <= fit < len(stems):
        raise SystemExit(
            f"--fit must be from 2 to {len(stems) - 1}, to leave some of the {len(stems)} frames to check, "
            f"got {fit}"
        )
    values = np.stack(same_size([pictures[s] for s in stems], [read_image(pictures[s]) for s in stems]))
    truth = same_size([annotations[s] for s in stems], [read_labels(annotations[s]) for s in stems])
    if truth[0].shape != values[0].shape[:2]:
        raise SystemExit(
            f"{annotations[stems[0]]} is {size_of(truth[0])}, but its image is {size_of(values[0])}; "
            "labels must have the size of their images"
        )
    known = torch.from_numpy(np.stack(truth)).long()
    if void is not None:
        known[known == void] = UNKNOWN
    counts = known[:fit].flatten().bincount(minlength=256)[:UNKNOWN]
    if not counts.any():
        raise SystemExit(f"the first {fit} frames have no label other than void")
    largest = int(known[known != UNKNOWN].max())
    frequency = counts[: largest + 1] / counts.sum()
    # A class that hardly occurs must not drown the others: it counts as one pixel in a thousand.
    weights = frequency.clamp(min=1e-3) ** -0.5
    weights /= (weights * frequency).sum()
    return Frames(torch.from_numpy(values).permute(0, 3, 1, 2).float(), known, weights, fit)


def pictures_by_stem(folder: Path, option: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise SystemExit(f"{option} must be a folder, got {folder}, which is none")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SIZES)
    by_stem = {path.stem: path for path in paths}
    if not paths:
        raise SystemExit(f"{option} {folder} holds no picture ({', '.join(SIZES)})")
    if len(by_stem) < len(paths):
        raise SystemExit(f"{option} {folder} holds two pictures of one stem; remove one of them")
    return by_stem


def read_image(path: Path) -> np.ndarray:
    try:
        return read_photo(path)
    except InputError as error:
        raise SystemExit(str(error)) from None


def read_labels(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise SystemExit(
                    f"{path} is a picture of kind {picture.mode!r}; save labels as 8-bit grey or palette "
                    "PNG, whose values are the classes"
                )
            return np.array(picture)
    except OSError as error:
        raise SystemExit(f"cannot read the labels {path}: {error}") from None


def same_size(paths: Sequence[Path], arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise SystemExit(
                f"{path} is {size_of(array)}, but {paths[0]} is {size_of(arrays[0])}; scale all to one size"
            )
    return arrays


def size_of(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]} pixels"


def convolution(channels: int, features: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, features, 3, stride, 1, bias=False), nn.BatchNorm2d(features), nn.ReLU(True)
    )


class Unary(nn.Module):
    """A small encoder and decoder: down to a 32nd of the resolution, logits at a quarter, interpolated."""

    def __init__(self, num_labels: int, width: int) -> None:
        super().__init__()
        features = [width * factor for factor in (1, 2, 4, 6, 8)]
        self.down = nn.ModuleList(
            nn.Sequential(convolution(before, after, stride=2), convolution(after, after))
            for before, after in itertools.pairwise([3, *features])
        )
        self.up = nn.ModuleList(
            convolution(fine + coarse, fine) for fine, coarse in itertools.pairwise(features[1:])
        )
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(features[1], num_labels, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of images (B, 3, H, W) from 0 to 255."""
        levels = []
        values = (images / 64 - 2).contiguous(memory_format=torch.channels_last)
        for down in self.down:
            values = down(values)
            levels.append(values)
        for up, fine in zip(reversed(self.up), reversed(levels[1:-1]), strict=True):
            values = up(torch.cat([fine, enlarge(values, fine.shape[-2:])], 1))
        return enlarge(self.classify(values), images.shape[-2:])


def enlarge(values: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(shape).uniform_(low, high)


def recoloured(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) with random contrast, tint and brightness, each its own."""
    count = len(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, tint = uniform(0.7, 1.3, count, 1, 1, 1), uniform(0.85, 1.15, count, 3, 1, 1)
    brightness = uniform(0.75, 1.25, count, 1, 1, 1)
    return (((images - mean) * contrast + mean) * tint * brightness).clamp(0, 255)


def random_crop(image: Tensor, labels: Tensor, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a crop of a frame (3, H, W), (H, W), scaled by 0.8 to 1.5 and mirrored at random."""
    scale = float(uniform(0.8, 1.5))
    size = [max(least, round(side * scale)) for least, side in zip(crop, labels.shape, strict=True)]
    top, left = (int(torch.randint(side - least + 1, ())) for side, least in zip(size, crop, strict=True))
    window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    image = enlarge(image[None], size)[0][window]
    labels = functional.interpolate(labels[None, None].float(), size, mode="nearest")[0, 0][window].long()
    return (image.flip(-1), labels.flip(-1)) if torch.rand(()) < 0.5 else (image, labels)


def train_unary(frames: Frames, chosen: Sequence[int], budget: Budget, name: str) -> Unary:
    """Train a network on some of the frames."""
    network = Unary(frames.num_labels, budget.width).to(memory_format=torch.channels_last)
    steps = budget.unary_steps
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    losses = Progress(name, steps)
    for _ in range(steps):
        picks = torch.randint(len(chosen), (budget.unary_batch,)).tolist()
        crops = [random_crop(frames.images[chosen[i]], frames.labels[chosen[i]], budget.crop) for i in picks]
        images, labels = (torch.stack(part) for part in zip(*crops, strict=True))
        losses.step(frames.loss(network(recoloured(images)), labels), optimizer, schedule)
    return network.eval()


def report(line: str) -> None:
    """Write a line to stderr at once, so that those of several processes do not mix."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Progress:
    """The losses of a training, and a line on stderr about them."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self.losses: list[float] = []
        self.start = time.perf_counter()

    def step(
        self, loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) == self.steps:
            few = max(1, self.steps // 5)
            first, last = statistics.fmean(self.losses[:few]), statistics.fmean(self.losses[-few:])
            seconds = time.perf_counter() - self.start
            report(f"{self.name}: loss {first:.3f} -> {last:.3f}, {self.steps} steps, {seconds:.0f} s")


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


def windows(first: int, last: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, last)) for start in range(first, last, length)]


def random_frames(frames: Frames, budget: Budget, video: bool) -> Tensor:
    """Return the indices of fit frames for a step: consecutive ones for a video."""
    count = min(budget.frames, frames.fit)
    if not video:
        return torch.randint(frames.fit, (count,))
    return torch.randint(frames.fit - count + 1, ()) + torch.arange(count)


def choose_parameters(frames: Frames, logits: Tensor, budget: Budget, video: bool) -> dict[str, float]:
    """Return the parameters of the grid that have the best mean IoU on a third of the fit frames."""
    diagonal = float(np.hypot(*frames.images.shape[-2:]))
    axes = {
        "appearance_weight": budget.weights,
        "appearance_sigma_xy": [share * diagonal for share in budget.sigmas_xy],
        "appearance_sigma_rgb": budget.sigmas_rgb,
        **({"appearance_sigma_t": budget.sigmas_t} if video else {}),
    }
    chosen = windows(0, frames.fit, budget.frames if video else 1)[::3]
    scores = {}
    for values in itertools.product(*axes.values()):
        parameters = {**dict(zip(axes, values, strict=True)), "smoothness_weight": 1.0}
        head = fixed_head(video, frames.num_labels, **parameters)
        scores[mean_iou(score(head, frames, logits, chosen))] = parameters
    return scores[max(scores)]


def parameter_groups(head: Head, rate: float, compatibility_rate: float) -> list[dict[str, Any]]:
    """Return a head's parameters with their learning rates.

    The compatibility has its own: with K² entries it would learn by heart which labels these few networks
    confuse, and the network that is checked confuses others.
    """
    matrix = list(head.crf.compatibility.parameters())
    others = [p for p in head.parameters() if p.requires_grad and all(p is not entry for entry in matrix)]
    return [{"params": others, "lr": rate}, {"params": matrix, "lr": compatibility_rate}]


def train_head(head: Head, frames: Frames, logits: Tensor, budget: Budget, name: str) -> Progress:
    """Train a head on logits (N, K, H, W) of networks that have not seen the frame."""
    video = isinstance(head.crf, hdcrf.VideoCRF)
    steps = budget.head_steps
    optimizer = torch.optim.Adam(parameter_groups(head, 0.03, 0.005))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.03, 0.005], total_steps=steps, pct_start=0.2)
    losses = Progress(name, steps)
    for _ in range(steps):
        picks = random_frames(frames, budget, video)
        batch = [logits[picks], frames.images[picks], frames.labels[picks]]
        if torch.rand(()) < 0.5:
            batch = [part.flip(-1) for part in batch]
        losses.step(frames.loss(head(*batch[:2]), batch[2]), optimizer, schedule)
    return losses


def train_further(
    network: Unary, head: Head | None, frames: Frames, budget: Budget, name: str, video: bool
) -> Progress:
    """Train a network, and the head on it if there is one, on all fit frames with a small learning rate."""
    steps = budget.joint_steps
    groups: list[dict[str, Any]] = [{"params": network.parameters(), "lr": 5e-4}]
    if head is not None:
        groups += parameter_groups(head, 0.01, 0.005)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = Progress(name, steps)
    for _ in range(steps):
        picks = random_frames(frames, budget, video)
        images, labels = recoloured(frames.images[picks]), frames.labels[picks]
        if torch.rand(()) < 0.5:
            images, labels = images.flip(-1), labels.flip(-1)
        logits = network(images)
        losses.step(
            frames.loss(logits if head is None else head(logits, images), labels), optimizer, schedule
        )
    return losses


@torch.no_grad()
def predict(network: Unary, frames: Frames, chosen: Sequence[int]) -> Tensor:
    return torch.cat([network(frames.images[[index]]) for index in chosen])


@torch.inference_mode()
def score(head: Head | None, frames: Frames, logits: Tensor, chosen: Iterable[slice]) -> Tensor:
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


def logits_of_unseen(frames: Frames, budget: Budget, name: str) -> Tensor:
    """Return logits (fit, K, H, W) of the fit frames, each from a network trained without its block."""
    borders = [block * frames.fit // budget.blocks for block in range(budget.blocks + 1)]
    parts = []
    for first, last in itertools.pairwise(borders):
        others = [index for index in range(frames.fit) if not first <= index < last]
        network = train_unary(frames, others, budget, f"{name}, network without frames {first} to {last - 1}")
        parts.append(predict(network, frames, range(first, last)))
    return torch.cat(parts)


def measure(frames: Frames, budget: Budget, seed: int, video: bool) -> Outcome:
    """Train everything for one seed, and score it on the frames after the fit ones."""
    torch.manual_seed(seed)
    name = f"seed {seed}"
    outcome = Outcome()
    network, network_seconds = timed(train_unary, frames, range(frames.fit), budget, f"{name}, network")
    unseen, unseen_seconds = timed(logits_of_unseen, frames, budget, name)
    longer = copy.deepcopy(network)
    _, longer_seconds = timed(train_further, longer, None, frames, budget, f"{name}, network further", False)
    outcome.remarks.append(f"{name}: {budget.blocks} networks to train heads by, {unseen_seconds:.0f} s")

    def checked(network: Unary) -> Tensor:
        """Return logits of all frames, none of which its network has seen."""
        return torch.cat([unseen, predict(network, frames, range(frames.fit, len(frames)))])

    logits, longer_logits = checked(network), checked(longer)
    for table in ("DenseCRF", "VideoCRF") if video else ("DenseCRF",):
        of_video = table == "VideoCRF"
        parameters, grid_seconds = timed(choose_parameters, frames, logits, budget, of_video)
        default = fixed_head(of_video, frames.num_labels)
        best = fixed_head(of_video, frames.num_labels, **parameters)
        head = learned_head(of_video, frames.num_labels, **parameters)  # starts where the grid ends
        _, head_seconds = timed(train_head, head, frames, logits, budget, f"{name}, {table}, head")
        joint, joint_head = copy.deepcopy((network, head))
        arguments = (joint, joint_head, frames, budget, f"{name}, {table}, jointly", of_video)
        _, joint_seconds = timed(train_further, *arguments)
        check = windows(frames.fit, len(frames), budget.frames if of_video else 1)
        rows = outcome.tables[table] = {
            method: Row(score(crf, frames, values, check), count(*learned), seconds)
            for method, crf, values, learned, seconds in (
                ("unary", None, logits, [network], network_seconds),
                ("fixed CRF, defaults", default, logits, [], 0),
                ("fixed CRF, best of a grid", best, logits, [], grid_seconds),
                ("learned CRF", head, logits, [head], head_seconds),
                ("unary, trained as long", None, longer_logits, [longer], longer_seconds),
                ("the same, fixed CRF, best of a grid", best, longer_logits, [], 0),
                ("the same, learned CRF", head, longer_logits, [], 0),
                ("jointly trained", joint_head, checked(joint), [joint, joint_head], joint_seconds),
            )
        }
        outcome.remarks.append(f"{name}, {table}, best of the grid: {described(parameters)}")
        outcome.remarks.append(f"{name}, {table}, learned: {described(head.values())}")
        outcome.remarks.append(f"{name}, {table}, jointly: {described(joint_head.values())}")
        for method, row in rows.items():
            report(f"{name}, {table}, {method}: mean IoU {mean_iou(row.iou):.4f}")
    return outcome


def print_table(table: str, rows: Sequence[dict[str, Row]]) -> None:
    """Print the mean over the seeds, and the sample standard deviation of the mean IoU."""
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
    for better, than in (
        ("learned CRF", "unary"),
        ("learned CRF", "fixed CRF, best of a grid"),
        ("jointly trained", "unary, trained as long"),
        ("jointly trained", "the same, fixed CRF, best of a grid"),
    ):
        gains = [100 * (mean_iou(row[better].iou) - mean_iou(row[than].iou)) for row in rows]
        print(f"- {better}, above {than}: {', '.join(f'{gain:+.1f}' for gain in gains)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of label pictures")
    parser.add_argument("--void", type=int, metavar="LABEL", help="a label that is not scored")
    parser.add_argument(
        "--fit", type=int, default=60, metavar="N", help="frames to train on: the first N (60)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds trained at a time (1)")
    parser.add_argument(
        "--video", action="store_true", help="also a table for VideoCRF; the frames are a video"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see it run")
    arguments = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    frames = read_frames(arguments.images, arguments.labels, arguments.fit, arguments.void)
    budget = QUICK if arguments.quick else Budget()
    print(machine_line())
    start = time.perf_counter()
    tasks = [(frames, budget, seed, arguments.video) for seed in range(arguments.seeds)]
    if arguments.jobs == 1:
        outcomes = [measure(*task) for task in tasks]
    else:
        # Fresh processes: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, context, torch.set_num_threads, (1,)) as pool:
            outcomes = list(pool.map(measure, *zip(*tasks, strict=True)))
    for table in outcomes[0].tables:
        print_table(table, [outcome.tables[table] for outcome in outcomes])
    print()
    for outcome in outcomes:
        print("\n".join(f"- {remark}" for remark in outcome.remarks))
    print(
        f"\n{frames.fit} frames to fit, {len(frames) - frames.fit} to check, "
        f"{frames.images.shape[3]} x {frames.images.shape[2]} pixels; "
        f"{time.perf_counter() - start:.0f} s in all, {arguments.jobs} seeds at a time"
    )


if __name__ == "__main__":
    main()
