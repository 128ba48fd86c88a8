"""Pictures of labelled voxels and of what a head has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hdcrf.pictures import palette, render_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray

LIGHT = (0.78, 0.9, 1.0)  # on the faces towards x, y and z


def draw_voxels(cells: Array, colours: Array, height: int = 400, width: int = 600) -> Array:
    """Draw voxels (V, 3) as cubes of colours (V, 3), 0 to 255: a picture (height, width, 3) uint8."""
    low, high = cells.min(0), cells.max(0) + 1
    middle, size = (low + high) / 2, np.linalg.norm(high - low)
    eye = middle + size * np.array([-0.36, -0.76, 1.05])
    target = middle - size * np.array([0.02, 0.05, 0])  # what is near takes more room
    field = 34.0
    # The three faces of a cube that the eye may see, each of so many points that they touch in the picture.
    pixels = height / (2 * np.tan(np.radians(field / 2))) / np.linalg.norm(eye - middle)  # an edge's length
    count = int(np.ceil(1.1 * pixels)) + 1
    edge = (np.arange(count) + 0.5) / count
    first, second = (grid.ravel() for grid in np.meshgrid(edge, edge))
    taken = {tuple(cell) for cell in cells.tolist()}
    points, shades = [], []
    for axis, side in ((0, 0), (1, 0), (2, 1)):  # towards the eye
        step = np.eye(3, dtype=int)[axis] * (2 * side - 1)
        bare = np.array([tuple(cell) not in taken for cell in (cells + step).tolist()])
        face = np.insert(np.stack([first, second], 1), axis, side, axis=1)
        points.append((cells[bare][:, None] + face).reshape(-1, 3))
        shades.append(np.repeat(colours[bare] * LIGHT[axis], len(face), axis=0))
    return render_points(
        np.concatenate(points),
        np.concatenate(shades),
        eye=eye,
        target=target,
        field_of_view=field,
        height=height,
        width=width,
        radius=1.0,
    )


def comparison(pictures: dict[str, Array], columns: int, names: Sequence[str]) -> Figure:
    """Lay pictures out in rows under their titles, with the classes' colours below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    high, wide = next(iter(pictures.values())).shape[:2]
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(4.4 * columns, (4.4 * high / wide + 0.3) * rows + 0.4), dpi=130)
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.02, rect=(0, 0, 1, 0.985))
    for axes, (title, picture) in zip(figure.subplots(rows, columns).flat, pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(title, fontsize=12)
    patches = [
        Patch(color=colour / 255, label=name) for colour, name in zip(palette(len(names)), names, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def curves(
    losses: Sequence[float], scores: dict[str, tuple[Sequence[int], Sequence[float]]], switch: int
) -> Figure:
    """Plot the training loss and held-out mIoU over epochs, and where the head came in.

    Args:
        losses: Of each epoch.
        scores: By name, the epochs and the mIoU of 0 to 1 after each.
        switch: How many epochs the backbone was trained alone.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = palette(4) / 255
    left.semilogy(range(1, len(losses) + 1), losses, color=colours[0])
    left.set_ylabel("training cross-entropy")
    for (name, (epochs, values)), colour in zip(scores.items(), colours, strict=False):
        right.plot(epochs, 100 * np.asarray(values), label=name, color=colour)
    right.set_ylabel("held-out mIoU, %")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.axvline(switch + 0.5, color="0.6", linestyle=":")
        axes.set_xlabel("epochs")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.annotate("the head joins ", (switch + 0.5, max(losses)), ha="right", va="top", color="0.4")
    return figure


def matrix_plot(matrix: Array, names: Sequence[str]) -> Figure:
    """Draw a compatibility matrix (K, K): what label a of a voxel costs beside label b of one like it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    most = np.abs(matrix).max()
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most)
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > 0.6 * most else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="label b of a voxel like it", ylabel="label a of a voxel")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="weight · μ(a, b): red is a cost, blue a reward")
    return figure
