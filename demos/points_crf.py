"""From damaged labels of a scanned room to the label of every point.

    python demos/points_crf.py

A fifth of the labels are wrong and half are missing. `PointCRF` mends them as it comes, and with weights,
bandwidths and compatibility learned on another room; `transfer_labels` carries one label in a hundred to all.

Needs `pip install "hdcrf[images]"`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from panels import panel
from scenes import ROOM, damaged_labels, mean_iou, scanned_room

import hdcrf
from hdcrf.files import whole_files
from hdcrf.pictures import palette, render_points

HERE = Path(__file__).parent
FLIPPED, UNKNOWN = 0.2, 0.5
UNKNOWN_COLOUR = 200  # pale grey: the palette has dark colours

# Logits (N, K), positions (N, 3), colours (N, 3) and true labels (N,) of a room.
Room = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the pictures go; by default output/ beside this file.",
)
@click.option("--points", type=click.IntRange(min=1000), default=100_000, help="Points of each room.")
@click.option("--steps", type=click.IntRange(min=1), default=100, help="Steps of learning.")
@click.option("--size", type=click.IntRange(min=60), default=320, help="Height of a picture, in pixels.")
def main(out_dir: Path, points: int, steps: int, size: int) -> None:
    """Mend the damaged labels of a scanned room."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error

    given, room = damaged_room(points, seed=0)
    _, positions, colours, truth = room
    crf = hdcrf.PointCRF(len(ROOM), learn=())
    learned = hdcrf.PointCRF(
        len(ROOM),
        compatibility="full",
        learn=("weights", "bandwidths", "compatibility"),
        output="logits",  # of which the loss takes the softmax
    )
    with click.progressbar(length=steps, label="Learning on another room", file=sys.stderr) as bar:
        learn(learned, damaged_room(points, seed=1)[1], steps, lambda: bar.update(1))

    with torch.no_grad():
        labels = {
            "PointCRF as it comes": refined(crf, room).argmax(1),
            "PointCRF, learned": refined(learned, room).argmax(1),
            "carried from 1% of the points": carry_one_in_a_hundred(positions, colours, truth),
        }
    click.echo(f"{points:,} points, {FLIPPED:.0%} of the labels wrong and {UNKNOWN:.0%} unknown.")
    click.echo(f"{'':32}right  mean IoU")
    known = given >= 0
    of_known = {"given, the known ones": (given[known], truth[known])}
    of_all = {name: (found, truth) for name, found in {"given, unknown is wrong": given, **labels}.items()}
    titles = []
    for name, (found, true) in {**of_known, **of_all}.items():
        right, iou = (found == true).float().mean(), mean_iou(found.numpy(), true.numpy(), len(ROOM))
        click.echo(f"{name:31}{right:6.1%}  {iou:8.1%}")
        titles.append(f"{name}: {right:.1%} right, mean IoU {iou:.1%}")

    draw = camera(positions.numpy(), size)
    label_colours = np.vstack([palette(len(ROOM)), np.full((1, 3), UNKNOWN_COLOUR, np.uint8)])  # -1 is last
    rows = [
        [draw(values) for values in (colours.numpy(), label_colours[given], label_colours[truth])],
        [draw(label_colours[found]) for found in labels.values()],
    ]
    first = ["colours", f"labels given: {FLIPPED:.0%} wrong, {UNKNOWN:.0%} unknown", "truth"]
    room_picture = panel(rows, [first, titles[-len(labels) :]], [*ROOM, "unknown"], label_colours)
    matrix_picture = compatibility_plot(learned.compatibility.matrix().detach().numpy())
    paths = [out_dir / "room.png", out_dir / "room_compatibility.png"]
    with whole_files(paths) as files:
        for file, figure in zip(files, (room_picture, matrix_picture), strict=True):
            figure.savefig(file, format="png")
    for path in paths:
        click.echo(path)
    click.echo(f"{time.perf_counter() - start:.1f} s. Look at {paths[0].name} first.")


def damaged_room(points: int, seed: int) -> tuple[torch.Tensor, Room]:
    """Return the labels given, (N,) with -1 for unknown, and what a CRF needs."""
    positions, colours, _, truth, _ = scanned_room(points, seed)
    given = torch.from_numpy(damaged_labels(truth, FLIPPED, UNKNOWN, seed))
    logits = hdcrf.logits_from_labels(given[None], len(ROOM), gt_prob=1 - FLIPPED)[0].T.contiguous()
    return given, (logits, *map(torch.from_numpy, (positions, colours, truth)))


def learn(crf: hdcrf.PointCRF, room: Room, steps: int, done: Callable[[], object]) -> None:
    """Learn from an eighth of the room at a time.

    How a bandwidth should change shows through the lattice's cells with much noise, the more the farther
    points are from the origin. So parts are small, and each lies at an origin of its own, near its middle.
    """
    _, positions, _, truth = room
    # Without weights the few points of lamps and books would not count beside the walls.
    weights = torch.bincount(truth, minlength=len(ROOM)).clamp_min(1).rsqrt()
    bandwidths = [value for name, value in crf.named_parameters() if "_sigma" in name]
    others = [value for name, value in crf.named_parameters() if "_sigma" not in name]
    optimizer = torch.optim.Adam([{"params": bandwidths}, {"params": others}])
    # A bandwidth is learned as its logarithm, and has a longer way to go.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.03], total_steps=max(steps, 2))
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        nearest = positions[torch.randint(len(positions), (1,), generator=random)]
        part = torch.argsort((positions - nearest).abs().amax(1))[: len(positions) // 8]
        logits, place, colour, target = (of_all[part] for of_all in room)
        place = place - place.mean(0) + torch.rand(3, generator=random)
        colour = colour - colour.mean(0) + 40 * torch.rand(3, generator=random)
        result = crf(logits, place, colours=colour)
        loss = torch.nn.functional.cross_entropy(result, target, weight=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        done()


def refined(crf: hdcrf.PointCRF, room: Room) -> torch.Tensor:
    """Return what the layer's `output` says, (N, K)."""
    logits, positions, colours, _ = room
    return crf(logits, positions, colours=colours)


def carry_one_in_a_hundred(
    positions: torch.Tensor, colours: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """Return labels (N,) carried from one annotated point in a hundred, -1 where none is near."""
    # Wider than for a CRF: the next annotated point is some 20 cm away, and its shade differs.
    features = hdcrf.point_features(positions, 0.3, colours=colours, sigma_rgb=20.0)
    annotated = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    annotated = annotated[: len(positions) // 100]
    return hdcrf.transfer_labels(
        features[annotated], truth[annotated], features, num_labels=len(ROOM), halo=2
    )


def camera(positions: np.ndarray, height: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what draws the room with given colours, the ceiling and the two nearest walls cut away."""
    low, high = positions.min(0), positions.max(0)
    keep = (positions < high - (0.15, 0.15, 0.12)).all(1)
    middle = (low + high) / 2
    view = {
        "eye": middle + np.array([3.9, 4.5, 3.5]),
        "target": middle - np.array([0, 0, 0.45]),
        "field_of_view": 43.0,
    }
    high, wide = height, height * 4 // 3

    def draw(colours: np.ndarray) -> np.ndarray:
        # At twice the size, and averaged: smooth edges.
        large = render_points(
            positions, colours, keep=keep, height=2 * high, width=2 * wide, radius=high / 100, **view
        )
        return large.reshape(high, 2, wide, 2, 3).mean((1, 3)).astype(np.uint8)

    return draw


def compatibility_plot(matrix: np.ndarray) -> Figure:
    """Plot the costs (K, K), a number in each cell."""
    figure = Figure(figsize=(7.4, 6.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    # White where nothing was learned of two different labels; Potts has 0 along the diagonal.
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=0, vmax=2)
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if abs(value - 1) > 0.6 else "black",
        )
    axes.set_xticks(range(len(ROOM)), ROOM, rotation=45, ha="right")
    axes.set_yticks(range(len(ROOM)), ROOM)
    axes.set_xlabel("label of a similar point")
    axes.set_ylabel("label of the point")
    axes.set_title("Learned cost; Potts is 1 everywhere, and 0 along the diagonal", fontsize=10)
    figure.colorbar(shown, shrink=0.8)
    return figure


if __name__ == "__main__":
    main()
