"""Pictures side by side, with titles and the names of the colours: what both demos show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

TITLE, GAP, LEGEND = 26, 10, 34  # pixels
DPI = 100


def panel(
    pictures: Sequence[Sequence[np.ndarray]],  # rows of (H, W, 3) uint8, all of one size
    titles: Sequence[Sequence[str]],  # of the same rows; a row of empty ones takes no space
    names: Sequence[str],
    colours: np.ndarray,  # (K, 3)
) -> Figure:
    """Return a figure with every picture pixel by pixel, titles above and a legend below."""
    high, wide, _ = pictures[0][0].shape
    headers = [TITLE if any(row) else GAP for row in titles]
    width = len(pictures[0]) * (wide + GAP) + GAP
    height = sum(headers) + len(pictures) * high + LEGEND
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    top = height
    for row, of_row, header in zip(pictures, titles, headers, strict=True):
        top -= header
        for place, (picture, title) in enumerate(zip(row, of_row, strict=True)):
            left = GAP + place * (wide + GAP)
            figure.figimage(picture, left, top - high)
            figure.text((left + wide / 2) / width, (top + 7) / height, title, ha="center", fontsize=8.5)
        top -= high
    # As much room for each name as it has letters.
    letters = np.array([len(name) + 5 for name in names])
    starts = GAP + (width - 2 * GAP) * np.cumsum([0, *letters[:-1]]) / letters.sum()
    for left, name, colour in zip(starts, names, colours, strict=True):
        square = Rectangle((left / width, 11 / height), 12 / width, 12 / height, color=colour / 255)
        figure.add_artist(square)
        figure.text((left + 17) / width, 17 / height, name, va="center", fontsize=8)
    return figure
