"""Smooth noise, and the paints that cars, houses and coats share."""

from __future__ import annotations

import numpy as np

Array = np.ndarray

# RGB on the scale 0 to 255.
PAINTS = np.array(
    [
        (168, 60, 50),
        (150, 148, 144),
        (196, 180, 152),
        (104, 116, 132),
        (214, 212, 206),
        (126, 94, 76),
        (70, 74, 80),
    ],
    dtype=np.float32,
)


def interpolation(count: int, nodes: int) -> Array:
    """Return the weights (count, nodes) that interpolate values at evenly spaced nodes, linearly."""
    place = np.linspace(0, nodes - 1, count) if count > 1 else np.full(count, (nodes - 1) / 2)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(nodes))).astype(np.float32)


def _enlarge(values: Array, height: int, width: int) -> Array:
    """Interpolate (..., h, w) to (..., height, width)."""
    down, across = interpolation(height, values.shape[-2]), interpolation(width, values.shape[-1])
    return down @ values @ across.T


def smooth_noise(
    random: np.random.Generator, height: int, width: int, cell: float, octaves: int = 4
) -> Array:
    """Return smooth noise (height, width) of about unit variance, its largest features `cell` pixels wide."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1)
        nodes = random.standard_normal((int(height / size) + 2, int(width / size) + 2), dtype=np.float32)
        total += 0.6**octave * _enlarge(nodes, height, width)
    return total * np.float32(1.4 / np.sqrt(sum(0.36**octave for octave in range(octaves))))
