"""Pictures of learned pairwise potentials, and of how the energy converges."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hdcrf.arrays import real_array
from hdcrf.relaxed.bilateral import symmetric_taps
from hdcrf.relaxed.spatial import symmetric_filters
from lattice.elevation import lattice_scale
from lattice.neighbourhood import gaussian_taps, neighbourhood_scale, neighbourhood_steps, tap_count
from voxel.checks import check_finite, check_held, check_tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["convergence_plot", "filter_plot", "tap_plot"]

_BLUE, _RED, _GREY = "#0072b2", "#cc2211", "0.35"
_SHOWN = 12  # pairs of labels, unless others are asked for
_MOST_PAIRS = 100  # more would make a picture too long to be written
_ACROSS = 4
_TITLE = 26  # letters a line


def filter_plot(
    filters: Tensor | ArrayLike,
    pairs: Sequence[Sequence[int]] | NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot learned spatial filters as heat maps, one for each pair of labels.

    A cell of the map of (a, b) is the energy added when a pixel carries a and the pixel at that shift from it
    carries b. The symmetric part of the filters is shown, as only that counts: see `hdcrf.relaxed.spatial`.
    The y-shift runs downwards, as in an image. The maps share a scale of colours, in which 0 is white, above
    is red and below is blue; the centre, which has no potential, is hatched.

    Args:
        filters: (K, K, h, w), h and w odd, as `CRFGrad.spatial_filters`.
        pairs: (a, b), labels from 0 to K-1, at most 100; if not given, the dozen with a ≤ b whose filters
            have the largest norm, the largest first, without those that are zero.
        names: Of the K labels; if not given, they are numbered.

    Returns:
        A matplotlib figure that needs no display; `figure.savefig(file)` writes it.

    Raises:
        TypeError: If `filters` does not hold real numbers, or a name is not a string.
        ValueError: If `filters` has another shape or an entry that is not finite, a label is out of range,
            there is no pair or more than 100, or there are not K names.

    Reference: Larsson et al. 2017, Figs. 1 and 4.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    values = _real_tensor("filters", filters)
    shape = tuple(values.shape)
    if len(shape) == 5:
        raise ValueError(
            f"`filters` must have shape (K, K, h, w), got {shape}; of a volume's, show the middle slice, "
            "filters[:, :, filters.shape[2] // 2]"
        )
    if len(shape) != 4 or shape[0] != shape[1] or shape[0] == 0 or shape[2] % 2 == 0 or shape[3] % 2 == 0:
        raise ValueError(f"`filters` must have shape (K, K, h, w), h and w odd, not empty, got {shape}")
    symmetric = symmetric_filters(values)
    chosen = _chosen_pairs(pairs, symmetric.square().sum((2, 3)))
    titles = _titles(chosen, names, shape[0])
    maps = np.stack([symmetric[a, b].numpy() for a, b in chosen])
    largest = float(np.abs(maps).max()) or 1.0
    down, right = shape[2] // 2, shape[3] // 2
    centre = np.zeros(shape[2:], dtype=bool)
    centre[down, right] = True

    rows, columns = _grid(len(chosen))
    lines = max(title.count("\n") for title in titles) + 1
    height = 1.7 * min(shape[2] / shape[3], 3) + 0.35 + 0.15 * lines
    size = (2 * columns + 1.2, max(height * rows + 0.3, 2.4))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, values_of_pair, title in zip(panels, maps, titles, strict=False):
        drawn = panel.imshow(
            np.ma.masked_array(values_of_pair, centre),
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
            extent=(-right - 0.5, right + 0.5, down + 0.5, -down - 0.5),
        )
        panel.add_patch(
            Rectangle((-0.5, -0.5), 1, 1, facecolor="white", edgecolor=_GREY, hatch="//////", linewidth=0.5)
        )
        panel.set_title(title, fontsize=9, parse_math=False)
        panel.tick_params(labelsize=7)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True, symmetric=True, min_n_ticks=1))
    for panel in panels[len(chosen) :]:
        panel.remove()
    figure.supxlabel("x-shift (pixels)", fontsize=9)
    figure.supylabel("y-shift (pixels)", fontsize=9)
    bar = figure.colorbar(drawn, ax=list(panels[: len(chosen)]), aspect=14 * rows, pad=0.06 / columns)
    bar.set_label("energy", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    bar.ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    bar.ax.yaxis.get_offset_text().set_fontsize(7)
    return figure


def tap_plot(
    taps: Tensor | ArrayLike,
    dimension: int,
    neighbourhood: int,
    pairs: Sequence[Sequence[int]] | NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot learned bilateral taps against their distance, one panel for each pair of labels.

    A point is a tap: the energy, but for normalisation, between label a at a vertex of the lattice and label
    b at another one, against the distance of the two in standard deviations of the features. The symmetric
    part is shown, as only that counts: see `hdcrf.relaxed.bilateral`. A line runs through the means at each
    distance; a dashed one through those of the Gaussian taps, times what brings them nearest to the pair's
    taps by least squares. The filter is Gaussian where all points lie on that.

    Args:
        taps: (O, K, K), as `CRFGrad.bilateral_taps`, in the order of `lattice.neighbourhood_offsets`.
        dimension: d, of the features: `CRFGrad.dimension`.
        neighbourhood: s, with which the taps were learned.
        pairs: As in `filter_plot`.
        names: As in `filter_plot`.

    Returns:
        A matplotlib figure that needs no display; `figure.savefig(file)` writes it.

    Raises:
        TypeError: If `taps` does not hold real numbers, `dimension` or `neighbourhood` is not an integer, or
            a name is not a string.
        ValueError: If `taps` has another shape or an entry that is not finite, `dimension` or `neighbourhood`
            is out of range, and as `filter_plot`.

    Reference: Larsson et al. 2017, equation 9; the picture is ours.
    """
    from matplotlib.figure import Figure

    values = _real_tensor("taps", taps)
    count, shape = tap_count(dimension, neighbourhood), tuple(values.shape)
    if len(shape) != 3 or shape[0] != count or shape[1] != shape[2] or shape[1] == 0:
        raise ValueError(
            f"`taps` must have shape (O, K, K), not empty, with O = {count}, as neighbourhood "
            f"{neighbourhood} in {dimension} dimensions has, got {shape}"
        )
    symmetric = symmetric_taps(values, dimension, neighbourhood)
    chosen = _chosen_pairs(pairs, symmetric.square().sum(0))
    titles = _titles(chosen, names, shape[1])
    distances, ring = _tap_distances(dimension, neighbourhood)
    ring_sizes = np.bincount(ring)
    gaussian = gaussian_taps(dimension, neighbourhood)[0].numpy()

    rows, columns = _grid(len(chosen))
    lines = max(title.count("\n") for title in titles) + 1
    size = (max(2.3 * columns + 0.5, 4.5), (1.8 + 0.15 * lines) * rows + 0.7)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for index, ((a, b), title) in enumerate(zip(chosen, titles, strict=True)):
        of_pair, panel = symmetric[:, a, b].numpy(), panels[index]
        nearest = gaussian * (of_pair @ gaussian / (gaussian @ gaussian))
        (points,) = panel.plot(distances[ring], of_pair, "o", ms=4, mew=0, color=_BLUE, alpha=0.35)
        means = np.bincount(ring, of_pair) / ring_sizes
        (mean,) = panel.plot(distances, means, marker="_", ms=9, color=_BLUE, linewidth=2, alpha=0.8)
        means = np.bincount(ring, nearest) / ring_sizes
        (dashed,) = panel.plot(distances, means, "--", color=_GREY, linewidth=1.3)
        panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        panel.set_title(title, fontsize=9, parse_math=False)
        panel.tick_params(labelsize=7, labelbottom=index + columns >= len(chosen))
        panel.yaxis.set_major_formatter("{x:.4g}")  # a common factor would be written over the title
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(chosen) :]:
        panel.remove()
    figure.supxlabel("distance in feature space (standard deviations)", fontsize=9)
    figure.supylabel("energy before normalisation", fontsize=9)
    figure.legend(
        (points, mean, dashed),
        ("tap", "mean", "nearest Gaussian"),
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return figure


def convergence_plot(
    energies: Tensor | ArrayLike,
    scores: Tensor | ArrayLike | None = None,
    score_name: str = "mean IoU",
) -> Figure:
    """Plot how the energies of images converge, and beside them a score.

    With E_t the energy of an image after t of T iterations, (E_t - E_T) / max_u |E_u - E_T| is drawn: all end
    at 0, and an energy that never rises starts at 1. An energy that does not change at all is drawn at 0.
    Thin blue lines are the images, the thick red one is the mean of what is drawn.

    Args:
        energies: (N, T + 1), a row an image, as `infer(..., track=True).energy` of one image at a time.
        scores: (T + 1,), a score of all images together after each number of iterations; or None.
        score_name: What the score is.

    Returns:
        A matplotlib figure that needs no display; `figure.savefig(file)` writes it.

    Raises:
        TypeError: If an argument does not hold real numbers, or `score_name` is not a string.
        ValueError: If a shape is not as above or empty, or an entry is not finite.

    Reference: Larsson et al. 2017, Figs. 6, 9 and 10. They do not say how they bring the energies to the same
    end.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = _real_tensor("energies", energies).numpy()
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"`energies` must have shape (N, T + 1), not empty, got {values.shape}; of one image, pass "
            "energies[None]"
        )
    if not isinstance(score_name, str):
        raise TypeError(f"`score_name` must be a string, got {type(score_name).__name__}")
    shown = None if scores is None else _real_tensor("scores", scores).numpy()
    if shown is not None and shown.shape != values.shape[1:]:
        raise ValueError(
            f"`scores` must have shape (T + 1,) = {values.shape[1:]}, as `energies` has T + 1 columns, got "
            f"{shown.shape}"
        )
    above = values - values[:, -1:]
    farthest = np.abs(above).max(1, keepdims=True)
    above /= np.where(farthest > 0, farthest, 1)

    count = 1 if shown is None else 2
    figure = Figure(figsize=(1.2 + 3.9 * count, 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    opacity = min(max(10 / len(above), 0.1), 0.6)
    images = panels[0].plot(above.T, color=_BLUE, linewidth=0.7, alpha=opacity)
    (mean,) = panels[0].plot(above.mean(0), color=_RED, linewidth=2.5, marker="o", markersize=4)
    panels[0].set_ylabel("energy, shifted to end at 0, and scaled")
    legend = panels[0].legend((images[0], mean), ("an image", "mean"), frameon=False)
    legend.legend_handles[0].set_alpha(0.8)
    if shown is not None:
        panels[1].plot(shown, color=_RED, linewidth=2.5, marker="o", markersize=4)
        panels[1].set_ylabel(score_name, parse_math=False)
        panels[1].ticklabel_format(axis="y", useOffset=False)
    for panel in panels:
        panel.set_xlabel("iterations")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _tap_distances(dimension: int, neighbourhood: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the distances of a neighbourhood's taps in standard deviations.

    Returns:
        distances: (R,), each once, rising.
        ring: (O,), which of these each tap has.
    """
    steps = neighbourhood_steps(dimension, neighbourhood).numpy()
    # ‖Σ n_a e_a‖² / (d+1), an integer.
    squared, ring = np.unique(
        (dimension + 1) * np.square(steps).sum(1) - np.square(steps.sum(1)), return_inverse=True
    )
    one = lattice_scale(dimension, 1) * neighbourhood_scale(dimension, neighbourhood)
    return np.sqrt((dimension + 1) * squared) / one, ring.reshape(-1)


def _real_tensor(name: str, value: Tensor | ArrayLike) -> Tensor:
    """Return `value` as a float64 tensor on the CPU if it holds finite real numbers, else raise."""
    if isinstance(value, Tensor):
        tensor = check_tensor(name, value)
        check_held(name, tensor)
        value = (tensor.double() if tensor.is_floating_point() else tensor).numpy(force=True)
    numbers = torch.tensor(real_array(name, value).astype(np.float64))
    check_finite(name, numbers)
    return numbers


def _chosen_pairs(
    pairs: Sequence[Sequence[int]] | NDArray[Any] | None, squared_norms: Tensor
) -> list[tuple[int, int]]:
    """Return the pairs to show: those asked for, or else those of the largest norms (K, K)."""
    num_labels = len(squared_norms)
    if pairs is None:
        first, second = torch.triu_indices(num_labels, num_labels)
        size, order = squared_norms[first, second].sort(descending=True, stable=True)
        shown = order[: min(_SHOWN, max(int((size > 0).sum()), 1))]
        return list(zip(first[shown].tolist(), second[shown].tolist(), strict=True))
    array = np.asarray(pairs, dtype=object)
    if array.ndim != 2 or array.shape[1] != 2 or not 1 <= len(array) <= _MOST_PAIRS:
        raise ValueError(
            f"`pairs` must be a list of 1 to {_MOST_PAIRS} pairs (label, label), got shape {array.shape}"
        )
    for pair in array.tolist():
        for label in pair:
            whole = isinstance(label, Integral) and not isinstance(label, bool)
            if not whole or not 0 <= label < num_labels:
                raise ValueError(
                    f"`pairs` must hold labels, integers from 0 to {num_labels - 1}, got {tuple(pair)}"
                )
    return [(int(a), int(b)) for a, b in array]


def _titles(pairs: list[tuple[int, int]], names: Sequence[str] | None, num_labels: int) -> list[str]:
    """Return the pairs' names, in lines short enough for a panel."""
    if names is None:
        names = [str(label) for label in range(num_labels)]
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`names` must be a list of strings, got {names!r}")
    if len(names) != num_labels:
        raise ValueError(f"`names` must name {num_labels} labels, got {len(names)} names")
    titles = []
    for a, b in pairs:
        both = [f"{names[a]} –", names[b]]
        title = " ".join(both)
        if len(title) > _TITLE:
            title = "\n".join(textwrap.fill(name, _TITLE, max_lines=3, placeholder=" …") for name in both)
        titles.append(title)
    return titles


def _grid(count: int) -> tuple[int, int]:
    """Return rows and columns for so many panels."""
    rows = -(-count // _ACROSS)
    return rows, math.ceil(count / rows)
