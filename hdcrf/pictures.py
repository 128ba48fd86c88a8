"""Pictures of labels, energies, pairwise terms, learned filters, volumes and point clouds, to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hdcrf.filter_pictures import convergence_plot, filter_plot, tap_plot
from hdcrf.point_pictures import render_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "affinity_plot",
    "convergence_plot",
    "energy_plot",
    "filter_plot",
    "overlay",
    "palette",
    "render_points",
    "slices",
    "tap_plot",
]

# Okabe and Ito's colours, which people with colour-blindness tell apart too, most distant neighbours first.
_FIRST = np.array(
    [
        (0, 114, 178),
        (230, 159, 0),
        (0, 158, 115),
        (213, 94, 0),
        (204, 121, 167),
        (86, 180, 233),
        (240, 228, 66),
    ],
    dtype=np.uint8,
)
_STEPS = 16
_DARKEST = 0.3  # OKLab lightness: darker ones pass for black on a screen
_MOST = 4096
_MOST_STRETCHED = 10  # times: more is a mistake in the spacing, and would fill the memory


def palette(num_labels: int) -> NDArray[np.uint8]:
    """Return a colour for each label, as different from one another as they can be.

    After the first seven, each is the colour farthest from black, which stands for unknown, and from all
    before it, so that a longer palette begins with a shorter one. They repeat after 4,096.

    Args:
        num_labels: K, 0 or more.

    Returns:
        (K, 3) uint8 RGB; the same on every call.

    Raises:
        ValueError: If `num_labels` is negative.

    Reference: Okabe and Ito, Color Universal Design, 2008; Ottosson, A perceptual color space for image
    processing (OKLab), 2020, in which distances are measured.
    """
    if num_labels < 0:
        raise ValueError(f"`num_labels` must be at least 0, got {num_labels}")
    count = min(num_labels, _MOST)
    levels = np.linspace(0, 255, _STEPS + 1).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    places = _oklab(candidates)
    bright = places[:, 0] > _DARKEST
    candidates, places = candidates[bright], places[bright]
    distance = np.full(len(candidates), np.inf)
    for place in _oklab(np.concatenate([np.zeros((1, 3), np.uint8), _FIRST])):
        np.minimum(distance, np.square(places - place).sum(1), out=distance)
    colours = list(_FIRST[:count])
    while len(colours) < count:
        farthest = int(distance.argmax())
        colours.append(candidates[farthest])
        np.minimum(distance, np.square(places - places[farthest]).sum(1), out=distance)
    found = np.array(colours, dtype=np.uint8).reshape(-1, 3)
    return found[np.arange(num_labels) % max(count, 1)]


def _oklab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert (N, 3) sRGB to OKLab, where distances match what the eye sees."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: NDArray[np.float64] = np.cbrt(linear @ to_cones.T) @ to_lab.T
    return lab


def overlay(
    photo: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    colours: NDArray[np.uint8],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Lay the labels' colours over a photo.

    Args:
        photo: (H, W, 3) uint8.
        labels: (H, W) integers, 0 … K-1; where -1, unknown, the photo stays as it is.
        colours: (K, 3) uint8.
        opacity: Of the colours: 0 shows the photo alone, 1 the colours alone.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If shapes do not match, a label has no colour, or `opacity` is not between 0 and 1.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or labels.shape != photo.shape[:2]:
        raise ValueError(
            f"`photo` must have shape (H, W, 3) and `labels` (H, W), got {photo.shape} and {labels.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must lie between 0 and 1, got {opacity}")
    if labels.size and not -1 <= int(labels.min()) <= int(labels.max()) < len(colours):
        raise ValueError(
            f"`labels` must lie from -1 to {len(colours) - 1}, as there are {len(colours)} colours, got "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    result = photo.copy()
    known = labels >= 0
    share = np.float32(opacity)
    tinted = photo[known] * (1 - share) + colours[labels[known]] * share
    result[known] = np.rint(tinted).astype(np.uint8)
    return result


def slices(
    volume: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    colours: NDArray[np.uint8],
    opacity: float = 0.5,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    most: int = 12,
) -> NDArray[np.uint8]:
    """Lay the labels' colours over slices of a volume, and these side by side.

    They are even steps along D apart, from the first at the upper left. H runs upwards, as the y axis of a
    scan does, and voxels are as much wider than
    high as they are there.

    Args:
        volume: (D, H, W) uint8, grey.
        labels: (D, H, W) integers, 0 … K-1; -1 is unknown, and stays grey.
        colours: (K, 3) uint8.
        opacity: Of the colours, 0 to 1.
        spacing: Distance of neighbouring voxels along D, H and W.
        most: How many slices there are, at most.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: If the shapes do not match, and as `overlay`.
    """
    if volume.ndim != 3 or labels.shape != volume.shape or 0 in volume.shape:
        raise ValueError(
            f"`volume` and `labels` must have one shape (D, H, W), not empty, got {volume.shape} and "
            f"{labels.shape}"
        )
    count = min(most, len(volume))
    chosen = ((np.arange(count) + 0.5) * len(volume) / count).astype(int)
    _, height, width = volume.shape
    # Which voxel each pixel shows: the rows from the last on.
    finest = min(spacing[1:])
    down, right = (min(step / finest, _MOST_STRETCHED) for step in spacing[1:])
    rows = height - 1 - (np.arange(round(height * down)) / down).astype(int)
    columns = (np.arange(round(width * right)) / right).astype(int)
    shown = np.ix_(rows, columns)
    across = math.ceil(math.sqrt(count))
    picture = np.zeros((-(-count // across) * len(rows), across * len(columns), 3), np.uint8)
    for index, depth in enumerate(chosen):
        grey = np.repeat(volume[depth][shown][..., None], 3, axis=2)
        top, left = index // across * len(rows), index % across * len(columns)
        place = picture[top : top + len(rows), left : left + len(columns)]
        place[:] = overlay(grey, labels[depth][shown], colours, opacity)
    return picture


def energy_plot(energy: Sequence[float] | NDArray[Any], kl: Sequence[float] | NDArray[Any]) -> Figure:
    """Plot how the energy and the objective of mean field go down.

    Args:
        energy: (iterations + 1,) expected energy, before and after each iteration.
        kl: (iterations + 1,) KL(Q‖P) - log Z.

    Returns:
        A matplotlib figure that needs no display; `figure.savefig(file)` writes it.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if len(energy) != len(kl) or len(energy) == 0:
        raise ValueError(
            f"`energy` and `kl` must have one entry an iteration each, got {len(energy)} and {len(kl)}"
        )
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for values, name, colour in (
        (energy, "expected energy E", _FIRST[0]),
        (kl, "objective KL(Q‖P) − log Z", _FIRST[3]),
    ):
        axes.plot(values, marker="o", markersize=4, label=name, color=tuple(colour / 255))
    axes.set_xlabel("iterations of mean field")
    axes.set_ylabel("nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def affinity_plot(
    photo: NDArray[np.uint8],
    pixels: Sequence[Sequence[int]],
    maps: Mapping[str, Sequence[NDArray[Any]] | NDArray[Any]],
) -> Figure:
    """Plot the pairwise terms of reference pixels with all others, over the photo in grey.

    Each reference is a row: the photo with the pixel marked, and a map under each title. The maps of a row
    share a scale of colours, in which 0 leaves the photo pale, above is red and below is blue.

    Args:
        photo: (H, W, 3) uint8.
        pixels: (row, column) in the photo of each of R references.
        maps: By title, R maps (h, w) of terms on the photo's grid or a coarser one, as
            `hdcrf.gaussian.affinity` gives them.

    Returns:
        A matplotlib figure that needs no display; `figure.savefig(file)` writes it.

    Raises:
        ValueError: If the photo or a map has another shape, an entry is not finite, there is no pixel or no
            map, their numbers differ, or a pixel lies outside.

    Reference: Chandra 2018, Figs. 3.3 to 3.6.
    """
    from matplotlib.figure import Figure

    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape or photo.dtype != np.uint8:
        raise ValueError(f"`photo` must have shape (H, W, 3) and be uint8, got {photo.shape} {photo.dtype}")
    height, width = photo.shape[:2]
    if len(pixels) == 0 or len(maps) == 0:
        raise ValueError(
            f"`pixels` and `maps` must hold one at least, got {len(pixels)} pixels and {len(maps)} maps"
        )
    for pixel in pixels:
        if np.shape(pixel) != (2,) or not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
            raise ValueError(f"`pixels` must be (row, column) within {(height, width)}, got {pixel}")
    for title, of_title in maps.items():
        if len(of_title) != len(pixels):
            raise ValueError(
                f"`maps` must hold a map for each of {len(pixels)} pixels, got {len(of_title)} for {title!r}"
            )
        for values in of_title:
            if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
                raise ValueError(
                    f"`maps` must hold finite maps (h, w), got shape {values.shape} for {title!r}"
                )
    columns = len(maps) + 1
    size = (3 * columns + 0.9, 3 * height / width * len(pixels) + 0.3)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(len(pixels), columns, squeeze=False)
    grey = photo.mean(2)
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    for row, (pixel, panels) in enumerate(zip(pixels, grid, strict=True)):
        panels[0].imshow(photo)
        shown = [of_title[row] for of_title in maps.values()]
        largest = max(float(np.abs(values).max()) for values in shown) or 1.0
        for panel, values in zip(panels[1:], shown, strict=True):
            panel.imshow(grey, cmap="gray", vmin=-80, vmax=255)  # pale, for the colours to stand out
            drawn = panel.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.65, extent=whole)
        for panel in panels:
            for radius, colour in ((9, "white"), (6, "black")):
                panel.plot(pixel[1], pixel[0], "o", ms=radius, mec=colour, mfc="none", mew=1.5)
            panel.set_axis_off()
        bar = figure.colorbar(drawn, ax=list(panels), aspect=14, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        if all(values.min() >= 0 for values in shown):
            bar.ax.set_ylim(0, largest)
        bar.ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        bar.ax.yaxis.get_offset_text().set_fontsize(7)
    for panel, title in zip(grid[0], ["reference pixel", *maps], strict=True):
        panel.set_title(title, fontsize=9)
    return figure
