"""A network learns to label streets, and a Gaussian CRF over it which pixels belong together.

    python demos/gaussian_heads.py

Streets are painted. A small network gives logits at an eighth of the resolution; a `DenseGaussianCRF` couples
all pixels at half of it. Training has the three phases of Chandra 2018: the network; the embeddings, so that
the pairwise terms tell whether two pixels have the same label; and both together. Streets that none of it has
seen say what that brings, beside the network trained as long, and beside one that has what feeds the CRF, a
branch that sees the frame, but no CRF. Takes about half a minute. Needs `pip install "hdcrf[images]"`.
"""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hdcrf.files import whole_files
from hdcrf.gaussian import DenseGaussianCRF, affinity, affinity_loss
from hdcrf.pictures import affinity_plot, overlay, palette

try:
    from demos.panels import panel
    from demos.scenes import STREET, mean_iou, moving_scene
except ModuleNotFoundError:  # run as a script
    from panels import panel
    from scenes import STREET, mean_iou, moving_scene

HERE = Path(__file__).parent
LABELS = len(STREET)
CHANNELS = 32  # of the branch's features
PLACES = 2  # row and column
BATCH = 4
NETWORK_RATE, FURTHER_RATE, HEAD_RATE = 1e-2, 1e-3, 2e-2

Loss = Callable[[Tensor, Tensor], Tensor]


def make_streets(first: int, count: int, frames: int, height: int) -> tuple[Tensor, Tensor]:
    """Return frames (N, 3, H, W) from 0 to 255 and labels (N, H, W) of streets, some frames of each."""
    images, labels = [], []
    for seed in range(first, first + count):
        video, truth, _ = moving_scene(12, height, height * 3 // 2, seed)
        apart = np.linspace(0, 11, frames).astype(int)
        images.append(video[apart])
        labels.append(truth[apart])
    pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float()
    return pixels, torch.from_numpy(np.concatenate(labels))


def convolution(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def enlarge(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values, size, mode="bilinear", align_corners=False)


def small_network() -> nn.Sequential:
    """Return a network from frames (B, 3, H, W) to logits (B, L, H / 8, W / 8)."""
    widths = (3, 8, 16, 32)
    layers = [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (convolution(before, after, stride=2), convolution(after, after))
    ]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], LABELS, 1))


class Head(nn.Module):
    """What refines a network's logits at half the resolution: a branch that sees the frame, and a CRF.

    Without a CRF the branch adds logits of its own.
    """

    def __init__(self, embedding: int | None = 32) -> None:
        super().__init__()
        self.branch = convolution(3 + PLACES + LABELS, CHANNELS)
        self.log_scale = nn.Parameter(
            torch.zeros(())
        )  # of the logits: takes back what confidence is too much
        if embedding is None:
            self.crf = None
            self.classify = nn.Conv2d(CHANNELS, LABELS, 1)
            for parameter in self.classify.parameters():
                nn.init.zeros_(parameter)  # to start as the network alone
            return
        self.crf = DenseGaussianCRF(LABELS, CHANNELS, embedding=embedding, strength=0.2)
        # Embeddings are probabilities, and their products far from the logits that the loss wants.
        self.threshold = nn.Parameter(torch.ones(()))
        self.log_factor = nn.Parameter(torch.tensor(1.5))

    def inputs(self, logits: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features at half the resolution, from logits (B, L, h, w) and frames."""
        size = height, width = (frames.shape[2] // 2, frames.shape[3] // 2)
        colours = functional.interpolate(frames, size, mode="area") / 64 - 2
        rows, columns = torch.linspace(-2, 2, height), torch.linspace(-3, 3, width)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(frames), -1, -1, -1)
        logits = enlarge(logits, size)
        return logits, self.branch(torch.cat([colours, places, 2 * logits.softmax(1)], 1))

    def forward(self, logits: Tensor, frames: Tensor) -> Tensor:
        logits, features = self.inputs(logits * self.log_scale.exp(), frames)
        return logits + self.classify(features) if self.crf is None else self.crf(logits, features)

    def affinity_loss(self, logits: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the embeddings alone."""
        _, features = self.inputs(logits, frames)
        embeddings = self.crf.embeddings(features) * self.log_factor.exp()
        coarse = functional.interpolate(labels[:, None].float(), features.shape[2:], mode="nearest")
        return affinity_loss(embeddings, coarse[:, 0].long(), threshold=self.threshold)

    @torch.no_grad()
    def pairwise_terms(self, logits: Tensor, frame: Tensor, pixel: tuple[int, int]) -> np.ndarray:
        """Return the terms (H / 2, W / 2) of a pixel of one frame with all pixels."""
        _, features = self.inputs(logits * self.log_scale.exp(), frame)
        row, column = (min(at // 2, size - 1) for at, size in zip(pixel, features.shape[2:], strict=True))
        return affinity(self.crf.terms(features), (row, column)).numpy()


def random_batch(frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return some frames, each recoloured and all mirrored at random, and their labels."""
    picks = torch.randint(len(frames), (BATCH,))
    frames, labels = frames[picks], labels[picks]
    mean = frames.mean((1, 2, 3), keepdim=True)
    contrast, tint = torch.empty(BATCH, 1, 1, 1).uniform_(0.7, 1.3), torch.empty(BATCH, 3, 1, 1)
    frames = (((frames - mean) * contrast + mean) * tint.uniform_(0.7, 1.3)).clamp(0, 255)
    return (frames.flip(-1), labels.flip(-1)) if torch.rand(()) < 0.5 else (frames, labels)


def train(
    name: str, loss: Loss, streets: tuple[Tensor, Tensor], steps: int, rates: dict[nn.Module, float]
) -> tuple[float, float]:
    """Train the modules of `rates`, up to these learning rates; return the loss at the start and the end."""
    optimizer = torch.optim.Adam([{"params": list(module.parameters())} for module in rates])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, list(rates.values()), total_steps=steps, pct_start=0.2
    )
    for module in rates:
        module.train()
    losses = []
    with click.progressbar(range(steps), label=f"Training {name}", file=sys.stderr) as bar:
        for _ in bar:
            value = loss(*random_batch(*streets))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses.append(value.item())
    for module in rates:
        module.eval()
    few = max(1, steps // 10)
    return float(np.mean(losses[:few])), float(np.mean(losses[-few:]))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(enlarge(logits, labels.shape[1:]), labels)


@torch.no_grad()
def predict(network: nn.Module, head: Head | None, frames: Tensor) -> np.ndarray:
    """Return labels (N, H, W) of frames."""
    found = []
    for frame in frames.split(BATCH):
        logits = network(frame)
        logits = logits if head is None else head(logits, frame)
        found.append(enlarge(logits, frames.shape[2:]).argmax(1))
    return torch.cat(found).numpy()


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the pictures go; by default output/ beside this file.",
)
@click.option("--streets", type=click.IntRange(1), default=6, show_default=True, help="To train on.")
@click.option("--size", type=click.IntRange(48), default=96, show_default=True, help="Height of a frame.")
@click.option(
    "--steps", type=click.IntRange(10), default=200, show_default=True, help="Of the network alone."
)
@click.option("--affinity-steps", type=click.IntRange(10), default=100, show_default=True, help="Of phase 2.")
@click.option("--joint-steps", type=click.IntRange(10), default=150, show_default=True, help="Of phase 3.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of streets and weights.")
def main(
    out_dir: Path, streets: int, size: int, steps: int, affinity_steps: int, joint_steps: int, seed: int
) -> None:
    """Train a network and a dense Gaussian CRF over it, and compare on streets that neither has seen."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error
    training = make_streets(1000 * seed, streets, 3, size)
    frames, truth = make_streets(1000 * seed + 500, 12, 2, size)
    truth = truth.numpy()

    torch.manual_seed(seed)
    network, head, branch = small_network(), Head(), Head(embedding=None)
    phases = {}
    phases["1, the network"] = train(
        "the network",
        lambda frames, labels: cross_entropy(network(frames), labels),
        training,
        steps,
        {network: NETWORK_RATE},
    )
    longer, under_branch = copy.deepcopy((network, network))

    def embedding_loss(frames: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            logits = network(frames)
        return head.affinity_loss(logits, frames, labels)

    found = {"network": predict(network, None, frames)}
    phases["2, the embeddings"] = train(
        "the embeddings", embedding_loss, training, affinity_steps, {head: HEAD_RATE}
    )
    terms_after = {"after phase 2": copy.deepcopy((network, head))}
    phases["3, both together"] = train(
        "both together",
        lambda frames, labels: cross_entropy(head(network(frames), frames), labels),
        training,
        joint_steps,
        {network: FURTHER_RATE, head: HEAD_RATE},
    )
    terms_after["after phase 3"] = (network, head)
    train(
        "the network as long",
        lambda frames, labels: cross_entropy(longer(frames), labels),
        training,
        joint_steps,
        {longer: FURTHER_RATE},
    )
    train(
        "the branch without a CRF",
        lambda frames, labels: cross_entropy(branch(under_branch(frames), frames), labels),
        training,
        joint_steps,
        {under_branch: FURTHER_RATE, branch: HEAD_RATE},
    )
    found["trained as long"] = predict(longer, None, frames)
    found["branch, no CRF"] = predict(under_branch, branch, frames)
    found["Gaussian CRF"] = predict(network, head, frames)

    click.echo(f"{len(training[0])} frames of {streets} streets to train on, {len(frames)} of 12 others.")
    for name, (first, last) in phases.items():
        click.echo(f"phase {name:18} loss {first:.3f} -> {last:.3f}")
    click.echo(f"{'':18}mean IoU")
    for name, labels in found.items():
        click.echo(f"{name:18}{mean_iou(labels, truth, LABELS):8.1%}")
    click.echo("The branch sees the frame for the CRF; without one, it adds logits of its own.")
    click.echo(
        f"The largest eigenvalue of the pairwise terms is {head.crf.strength.item():.2f} λ; it was 0.20 λ."
    )

    # Pairwise terms in the frame with most people; labels of three streets.
    photos = frames.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    example = int(np.argmax([(labels == STREET.index("person")).sum() for labels in truth]))
    pixels = [middle_of(truth[example], STREET.index(name)) for name in ("road", "car", "person")]
    pixels = [pixel for pixel in pixels if pixel is not None]
    maps = {}
    with torch.no_grad():
        for name, (below, above) in terms_after.items():
            frame = frames[example : example + 1]
            maps[name] = [above.pairwise_terms(below(frame), frame, pixel) for pixel in pixels]
    colours = palette(6)[[5, 1, 2, 3, 4, 0]]  # the sky light blue, and people dark
    shown = {
        "network, trained as long": found["trained as long"],
        "Gaussian CRF": found["Gaussian CRF"],
        "truth": truth,
    }
    rows = [
        [twice(photos[at])]
        + [twice(overlay(photos[at], labels[at], colours, 0.7)) for labels in shown.values()]
        for at in (0, 8, 16)
    ]
    titles = [["frame", *shown], *[[""] * (len(shown) + 1)] * (len(rows) - 1)]
    paths = [out_dir / "gaussian_heads.png", out_dir / "pairwise_terms.png"]
    with whole_files(paths) as files:
        panel(rows, titles, STREET, colours).savefig(files[0], format="png")
        affinity_plot(photos[example], pixels, maps).savefig(files[1], format="png")
    for path in paths:
        click.echo(path)
    click.echo(f"{time.perf_counter() - start:.1f} s. Look at {paths[0].name} first.")


def twice(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, 0).repeat(2, 1)


def middle_of(labels: np.ndarray, label: int) -> tuple[int, int] | None:
    """Return the pixel of a label farthest from where another begins; None if there is none."""
    inside = np.pad(labels == label, 1)
    if not inside.any():
        return None
    while True:
        smaller = inside.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                smaller &= np.roll(inside, step, axis)
        if not smaller.any():
            row, column = np.argwhere(inside)[0] - 1
            return int(row), int(column)
        inside = smaller


if __name__ == "__main__":
    main()
