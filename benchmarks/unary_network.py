"""A small network that labels frames, trained here, and its logits of frames that it has not seen.

A network knows the frames that it was trained on too well, and a head trained on those would trust it too
much. So a head is fitted to logits of networks that have not seen the frame: the fit frames are cut into
blocks, and each block gets its logits from a network trained on the others. The network that is checked is
trained on all fit frames.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

try:
    from benchmarks.street_frames import Frames, enlarge, random_crop, random_frames, recoloured
except ModuleNotFoundError:  # run as a script
    from street_frames import Frames, enlarge, random_crop, random_frames, recoloured


@dataclass(frozen=True)
class NetworkBudget:
    """How long to train networks."""

    blocks: int = 3
    width: int = 16
    crop: tuple[int, int] = (128, 160)
    unary_steps: int = 500
    unary_batch: int = 6


QUICK = NetworkBudget(blocks=2, width=8, crop=(32, 48), unary_steps=40, unary_batch=4)


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


def train_unary(frames: Frames, chosen: Sequence[int], budget: NetworkBudget, name: str) -> Unary:
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


def train_on_unseen(
    head: nn.Module,
    frames: Frames,
    logits: Tensor,
    steps: int,
    batch: int,
    name: str,
    groups: Sequence[dict[str, Any]],
    video: bool = False,
) -> None:
    """Train a head on logits (N, K, H, W) of networks that have not seen the frame; see `train_further`."""
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.2)
    losses = Progress(name, steps)
    head.train()
    for _ in range(steps):
        picks = random_frames(frames, batch, video)
        drawn = [logits[picks], frames.images[picks], frames.labels[picks]]
        if torch.rand(()) < 0.5:
            drawn = [part.flip(-1) for part in drawn]
        losses.step(frames.loss(head(*drawn[:2]), drawn[2]), optimizer, schedule)
    head.eval()


def train_further(
    network: Unary,
    head: nn.Module | None,
    frames: Frames,
    steps: int,
    batch: int,
    name: str,
    head_groups: Sequence[dict[str, Any]] = (),
    video: bool = False,
) -> None:
    """Train a network, and the head on it if there is one, on all fit frames with a small learning rate.

    Args:
        network: Changed in place.
        head: Takes logits and images; changed in place.
        frames: Of which `batch` are drawn for each step, in a row if `video`.
        steps: How many.
        batch: Frames of a step.
        name: For the line about the losses.
        head_groups: The head's parameters with their learning rates, as an optimizer takes them.
        video: Whether the head sees a window of a video.
    """
    groups = [{"params": network.parameters(), "lr": 5e-4}, *head_groups]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = Progress(name, steps)
    if head is not None:
        head.train()
    for _ in range(steps):
        picks = random_frames(frames, batch, video)
        images, labels = recoloured(frames.images[picks]), frames.labels[picks]
        if torch.rand(()) < 0.5:
            images, labels = images.flip(-1), labels.flip(-1)
        logits = network(images)
        refined = logits if head is None else head(logits, images)
        losses.step(frames.loss(refined, labels), optimizer, schedule)
    if head is not None:
        head.eval()


@torch.no_grad()
def predict(network: Unary, frames: Frames, chosen: Sequence[int]) -> Tensor:
    return torch.cat([network(frames.images[[index]]) for index in chosen])


def logits_of_unseen(frames: Frames, budget: NetworkBudget, name: str) -> Tensor:
    """Return logits (fit, K, H, W) of the fit frames, each from a network trained without its block."""
    borders = [block * frames.fit // budget.blocks for block in range(budget.blocks + 1)]
    parts = []
    for first, last in itertools.pairwise(borders):
        others = [index for index in range(frames.fit) if not first <= index < last]
        network = train_unary(frames, others, budget, f"{name}, network without frames {first} to {last - 1}")
        parts.append(predict(network, frames, range(first, last)))
    return torch.cat(parts)


@dataclass(frozen=True)
class Networks:
    """What a head is trained on and checked with."""

    network: Unary  # trained on all fit frames
    unseen: Tensor  # (fit, K, H, W) logits of the fit frames, by networks that have not seen them
    seconds: float  # of training the network
    unseen_seconds: float  # of training the others

    def checked(self, network: Unary, frames: Frames) -> Tensor:
        """Return logits of all frames, none of which its network has seen; of the last ones, by `network`."""
        return torch.cat([self.unseen, predict(network, frames, range(frames.fit, len(frames)))])


def trained_networks(
    frames: Frames, budget: NetworkBudget, seed: int, name: str, kept: Path | None = None
) -> Networks:
    """Train the networks of a seed, or read those that a run before has kept in a folder.

    Random numbers go on as after the training, so that what is trained next does not depend on which it was.
    """
    described = f"{budget} {frames.fit} {frames.checksum()}"
    path = None if kept is None else kept / f"networks-{seed}.pt"
    if path is not None and path.is_file():
        state = torch.load(path, weights_only=True)
        if state["described"] != described:
            raise SystemExit(f"{path} holds networks of other frames or another budget; remove it")
        network = Unary(frames.num_labels, budget.width).to(memory_format=torch.channels_last)
        network.load_state_dict(state["network"])
        torch.set_rng_state(state["random"])
        return Networks(network.eval(), state["unseen"], *state["seconds"])
    torch.manual_seed(seed)
    start = time.perf_counter()
    network = train_unary(frames, range(frames.fit), budget, f"{name}, network")
    between = time.perf_counter()
    unseen = logits_of_unseen(frames, budget, name)
    seconds = (between - start, time.perf_counter() - between)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "described": described,
            "network": network.state_dict(),
            "unseen": unseen,
            "seconds": seconds,
            "random": torch.get_rng_state(),
        }
        unfinished = path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(path)
    return Networks(network, unseen, *seconds)
