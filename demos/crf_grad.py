"""Filters that learn what ink looks like: pairwise potentials of any shape, against the best Gaussian.

    python demos/crf_grad.py

A scanned page is drowned in noise, and each pixel is to be ink or paper. A Gaussian potential can only say
that neighbours are mostly alike, which wears thin strokes away. CRF-Grad learns from one half of the page
which pairs of labels go together at which shift, and is then checked on the other half. The Gaussian gets the
weight, the width and the prior of ink, up to how rare it is, that do best on the first half.

Needs `pip install "hdcrf[images]" scikit-image`, which brings the page.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from panels import panel
from torch import Tensor

import hdcrf
from hdcrf.files import whole_files
from hdcrf.pictures import convergence_plot, filter_plot

HERE = Path(__file__).parent
NAMES = ("paper", "ink")
NOISE = 80.0  # standard deviation, in grey values
PRIORS, WEIGHTS, SIGMAS = (0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (0.5, 0.7, 1.0, 2.0)


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the pictures go; by default output/ beside this file.",
)
@click.option("--steps", type=click.IntRange(1), default=150, help="Steps of training.")
def main(out_dir: Path, steps: int) -> None:
    """Learn pairwise potentials on half a page, and read the other half."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error
    from skimage.data import page  # comes with scikit-image, without a download
    from skimage.filters import threshold_sauvola

    torch.manual_seed(0)
    scan = page()
    truth = torch.from_numpy((scan < threshold_sauvola(scan, 25)).astype(np.int64))
    middle = scan.shape[1] // 2
    halves = [slice(0, middle), slice(middle, scan.shape[1])]
    # What is known of grey values and of how much ink there is comes from the first half too.
    first = truth[:, halves[0]]
    levels = [float(scan[:, halves[0]][first.numpy() == label].mean()) for label in (0, 1)]
    share = torch.tensor([float((first == label).double().mean()) for label in (0, 1)])
    clean = torch.tensor(levels)[truth]  # the shades of the page would tell more than any filter

    def noisy(half: slice) -> tuple[Tensor, Tensor]:
        """Return a noisy half of the page (1, 1, H, W), and logits (1, 2, H, W) of its grey values."""
        seen = clean[:, half] + NOISE * torch.randn(clean[:, half].shape)
        logits = torch.stack([-((seen - level) ** 2) / (2 * NOISE**2) for level in levels])
        return seen[None, None], logits[None]

    def with_prior(given: tuple[Tensor, Tensor], prior: float) -> tuple[Tensor, Tensor]:
        """Return the logits with a part of what is known of how much ink there is."""
        guide, logits = given
        return guide, logits + prior * share.log()[:, None, None]

    checked = noisy(halves[1])
    known = truth[:, halves[1]]

    def spatial(weight: float, sigma: float, learn: bool) -> hdcrf.CRFGrad:
        names = ("unary", "spatial") if learn else ()
        return hdcrf.CRFGrad(
            2, channels=1, neighbourhood=None, spatial_weight=weight, spatial_sigma=sigma, learn=names,
            iterations=5 if learn else 15, output="logits",
        )  # fmt: skip

    def overlap(crf: hdcrf.CRFGrad | None, given: tuple[Tensor, Tensor], labels: Tensor) -> float:
        """Return the IoU of ink in percent."""
        found = read(crf, given)
        return 100 * float((found & labels).sum()) / float((found | labels).sum())

    def read(crf: hdcrf.CRFGrad | None, given: tuple[Tensor, Tensor]) -> Tensor:
        """Return the labels (H, W)."""
        guide, logits = given
        return logits.argmax(1)[0] if crf is None else crf.labels(logits, guide)[0]

    fitted = noisy(halves[0])
    alone = max(PRIORS, key=lambda prior: overlap(None, with_prior(fitted, prior), first))
    grid = list(itertools.product(PRIORS, WEIGHTS, SIGMAS))
    prior, weight, sigma = max(
        grid,
        key=lambda chosen: overlap(spatial(*chosen[1:], learn=False), with_prior(fitted, chosen[0]), first),
    )
    learned = spatial(1.0, 1.0, learn=True)
    train(learned, lambda: noisy(halves[0]), first[None], steps)

    click.echo(f"The best Gaussian: weight {weight:g}, sigma {sigma:g}, {prior:g} of the prior.")
    ways = {
        "each pixel alone": (None, alone),
        "the best Gaussian": (spatial(weight, sigma, learn=False), prior),
        "learned filters": (learned, 0.0),
    }
    click.echo(f"{'IoU of ink in percent':22}{'learned half':>14}{'other half':>14}")
    for name, (crf, part) in ways.items():
        shares = [
            overlap(crf, with_prior(fitted, part), first),
            overlap(crf, with_prior(checked, part), known),
        ]
        click.echo(f"{name:22}{shares[0]:14.1f}{shares[1]:14.1f}")

    shades = np.array([[225, 225, 225], [0, 0, 0]], np.uint8)
    pictures = [checked[0][0, 0].clamp(0, 255).byte().numpy()[..., None].repeat(3, 2)]
    pictures += [shades[read(crf, with_prior(checked, part)).numpy()] for crf, part in ways.values()]
    pictures.append(shades[known.numpy()])
    pictures.append(scan[:, halves[1], None].repeat(3, 2))
    titles = ["noisy page", *ways, "truth", "page"]
    figures = {
        "page.png": panel([pictures[:3], pictures[3:]], [titles[:3], titles[3:]], NAMES, shades),
        "filters.png": filter_plot(learned.spatial_filters, [(0, 0), (0, 1), (1, 1)], NAMES),
        "convergence.png": convergence_plot(convergence(learned, checked)),
    }
    paths = [out_dir / name for name in figures]
    with whole_files(paths) as files:
        for file, figure in zip(files, figures.values(), strict=True):
            figure.savefig(file, format="png")
    for path in paths:
        click.echo(path)
    click.echo(f"{time.perf_counter() - start:.1f} s.")


def train(crf: hdcrf.CRFGrad, draw: Callable[[], tuple[Tensor, Tensor]], truth: Tensor, steps: int) -> None:
    """Train the potentials, each step with other noise."""
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    with click.progressbar(range(steps), label="training") as bar:
        for _ in bar:
            guide, logits = draw()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(crf(logits, guide), truth).backward()
            optimizer.step()
            schedule.step()
    crf.eval()


@torch.inference_mode()
def convergence(crf: hdcrf.CRFGrad, given: tuple[Tensor, Tensor]) -> Tensor:
    """Return the energies (1, 16) of 15 steps."""
    guide, logits = given
    longer = copy.deepcopy(crf)
    longer.iterations = 15
    return longer.infer(logits, guide, track=True).energy[None]


if __name__ == "__main__":
    main()
