"""A network on space-time voxels learns to name what it sees, alone and then together with a CRF as its head.

    python demos/train_head.py

Scenes are made up: streets in space and time, with noise in their colours. A small 4D U-Net is trained on a
few of them; then a `TrilateralCRF` is put on top, and both are trained together. Held-out scenes say what
that brings. Takes a minute or two. Needs `pip install "hdcrf[images]"`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn

from hdcrf import TrilateralCRF
from hdcrf.files import whole_files
from hdcrf.pictures import palette
from voxel import SparseTensor

try:
    from demos.scenes import CITY, moving_voxels
    from demos.unet_4d import SparseUNet
    from demos.voxel_pictures import comparison, curves, draw_voxels, matrix_plot
except ModuleNotFoundError:  # run as a script
    from scenes import CITY, moving_voxels
    from unet_4d import SparseUNet
    from voxel_pictures import comparison, curves, draw_voxels, matrix_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
LABELS = len(CITY)
CHANNELS = 4
BACKBONE_RATE, JOINT_RATE, HEAD_RATE = 1e-2, 3e-4, 3e-2


class Scene(NamedTuple):
    voxels: SparseTensor  # coordinates (V, 5): batch, x, y, z, t; features (V, 4): colours of 0 to 1, and 1
    labels: Tensor  # (V,)


class WithHead(nn.Module):
    """A network and the CRF that refines its logits, by the colours that the network sees."""

    def __init__(self, backbone: nn.Module, head: TrilateralCRF) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, voxels: SparseTensor) -> SparseTensor:
        return self.head(self.backbone(voxels), voxels.replace(255 * voxels.features[:, :3]))


def make_scenes(seed: int, count: int, frames: int = 5, *, held_out: bool = False) -> list[Scene]:
    """Return scenes to train on, or others for the same seed; no two are the same street."""
    first = 100_000 * (1 + 2 * seed + held_out)
    return [make_scene(first + number, frames) for number in range(count)]


def make_scene(seed: int, frames: int) -> Scene:
    # Noisier, and with more holes, than by default: a voxel and those around it alone say little.
    coordinates, colours, labels, _ = moving_voxels(frames, seed, noise=45.0, flicker=24.0, missing=0.5)
    features = np.column_stack([colours / 255, np.ones(len(colours))]).astype(np.float32)
    batched = np.insert(coordinates, 0, 0, axis=1)  # a batch of one
    return Scene(
        SparseTensor(torch.from_numpy(batched), torch.from_numpy(features)), torch.from_numpy(labels)
    )


def new_head(**options: Any) -> TrilateralCRF:
    """Return a CRF that starts as a plain Potts model; what it learns is up to `options`."""
    start = {"weight": 1.0, "sigma_xyz": 3.0, "sigma_t": 2.0, "sigma_rgb": 30.0}
    return TrilateralCRF(LABELS, **start, iterations=3, output="logits", **options)


LEARN_ALL = {"compatibility": "full", "learn": ("weights", "bandwidths", "compatibility")}


def train(net: nn.Module, scenes: list[Scene], epochs: int, rates: dict[nn.Module, float]) -> Iterator[float]:
    """Train with Adam on the cross-entropy, one scene a step; yield the mean loss of each epoch.

    `rates` are the peak learning rates of parts of the network, reached early on their way back to zero.
    """
    optimizer = torch.optim.Adam([{"params": list(part.parameters())} for part in rates])
    steps = epochs * len(scenes)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(rates.values()), total_steps=steps)
    for _ in range(epochs):
        net.train()
        losses = []
        for index in torch.randperm(len(scenes)).tolist():
            voxels, labels = scenes[index]
            loss = nn.functional.cross_entropy(net(voxels).features, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        yield sum(losses) / len(losses)


@torch.no_grad()
def predict(net: nn.Module, voxels: SparseTensor) -> Tensor:
    """Return the most probable labels (V,)."""
    net.eval()
    return net(voxels).features.argmax(1)


def class_iou(net: nn.Module, scenes: list[Scene]) -> Tensor:
    """Return the intersection over union of each class over all voxels of the scenes, (K,)."""
    counts = torch.zeros(LABELS, LABELS)
    for voxels, labels in scenes:
        pairs = labels * LABELS + predict(net, voxels)
        counts += torch.bincount(pairs, minlength=LABELS**2).view(LABELS, LABELS)
    return counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the pictures go; by default output/ beside this file.",
)
@click.option("--scenes", type=click.IntRange(1), default=3, show_default=True, help="To train on.")
@click.option("--frames", type=click.IntRange(1), default=5, show_default=True, help="Of each scene.")
@click.option("--epochs", type=click.IntRange(1), default=80, show_default=True, help="Of the network alone.")
@click.option("--joint-epochs", type=click.IntRange(1), default=20, show_default=True, help="With the head.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of scenes and weights.")
def main(out_dir: Path, scenes: int, frames: int, epochs: int, joint_epochs: int, seed: int) -> None:
    """Train a 4D U-Net alone, then with a trilateral CRF as its head, and compare on held-out scenes."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error
    training = make_scenes(seed, scenes, frames)
    held_out = make_scenes(seed, 4, frames, held_out=True)

    torch.manual_seed(seed)
    backbone = SparseUNet(CHANNELS, LABELS)
    losses, scores = [], {"U-Net alone": ([], []), "U-Net and head": ([], [])}

    def follow(net: nn.Module, name: str, count: int, rates: dict[nn.Module, float]) -> Tensor:
        """Train, note how it went, and return each class's IoU at the end."""
        with click.progressbar(
            train(net, training, count, rates), length=count, label=f"Training {name}", file=sys.stderr
        ) as bar:
            for loss in bar:
                losses.append(loss)
                iou = class_iou(net, held_out)
                scores[name][0].append(len(losses))
                scores[name][1].append(float(iou.nanmean()))
        return iou

    alone = follow(backbone, "U-Net alone", epochs, {backbone: BACKBONE_RATE})
    labels_alone = [predict(backbone, scene.voxels) for scene in held_out]
    net = WithHead(backbone, new_head(**LEARN_ALL))
    together = follow(net, "U-Net and head", joint_epochs, {net.backbone: JOINT_RATE, net.head: HEAD_RATE})
    labels_together = [predict(net, scene.voxels) for scene in held_out]

    # Show where the head changed most, for better or worse.
    frame = frames // 2
    example, before, after = max(
        zip(held_out, labels_alone, labels_together, strict=True),
        key=lambda of: int((of[1] != of[2])[of[0].voxels.coordinates[:, 4] == frame].sum()),
    )
    head = net.head
    figures = {
        "training.png": curves(losses, scores, epochs),
        "compatibility.png": matrix_plot((head.weight * head.compatibility.matrix()).detach().numpy(), CITY),
        "scene.png": scene_figure(example, before, after, frame),
    }
    paths = [out_dir / name for name in figures]
    with whole_files(paths) as files:
        for file, figure in zip(files, figures.values(), strict=True):
            figure.savefig(file, format="png")

    size = sum(len(scene.labels) for scene in training) // scenes
    click.echo(f"{scenes} scenes of about {size:,} voxels to train on, {len(held_out)} held out.")
    click.echo(f"{'held-out IoU, %':18}{'U-Net':>8}{'+ head':>8}")
    for name, before, after in zip(
        (*CITY, "mean"), (*alone, alone.nanmean()), (*together, together.nanmean()), strict=True
    ):
        click.echo(f"{name:18}{100 * before:8.1f}{100 * after:8.1f}")
    click.echo(
        f"The head learned weight {head.weight.item():.2f}, σ_xyz {head.sigma_xyz.item():.1f} voxels, "
        f"σ_t {head.sigma_t.item():.1f} frames, σ_rgb {head.sigma_rgb.item():.0f} of 255."
    )
    for path in paths:
        click.echo(path)
    click.echo(f"{time.perf_counter() - start:.1f} s. Look at {paths[-1].name} first.")


def scene_figure(scene: Scene, alone: Tensor, together: Tensor, frame: int) -> Figure:
    """Draw a frame of a scene: the truth, both results, what the network sees, and both results' errors."""
    shown = scene.voxels.coordinates[:, 4] == frame
    cells = scene.voxels.coordinates[shown, 1:4].numpy()
    seen = 255 * scene.voxels.features[shown, :3].numpy()
    truth, alone, together = (labels[shown].numpy() for labels in (scene.labels, alone, together))
    colours = palette(LABELS)

    def errors(labels: np.ndarray) -> np.ndarray:
        return np.where((labels == truth)[:, None], 214, (200, 30, 30))

    def wrong(labels: np.ndarray) -> str:
        return f"{(labels != truth).mean():.1%} wrong"

    pictures = {
        "the truth": colours[truth],
        "U-Net alone": colours[alone],
        "U-Net and head, trained together": colours[together],
        "what both see": seen,
        f"U-Net alone: {wrong(alone)}": errors(alone),
        f"U-Net and head: {wrong(together)}": errors(together),
    }
    return comparison({title: draw_voxels(cells, each) for title, each in pictures.items()}, 3, CITY)


if __name__ == "__main__":
    main()
