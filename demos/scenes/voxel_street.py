"""A street in space and time, as voxels."""

from __future__ import annotations

import numpy as np

from .noise import PAINTS, Array, smooth_noise

CITY = ("road", "lawn", "building", "tree", "car", "person")


def moving_voxels(
    frames: int,
    seed: int = 0,
    *,
    size: tuple[int, int] = (40, 36),
    noise: float = 18.0,
    flicker: float = 16.0,
    missing: float = 0.3,
) -> tuple[Array, Array, Array, tuple[str, ...]]:
    """Return the surface voxels of a street in which cars and people move, frame after frame.

    Houses, cars, coats and the ground share their colours, and in each frame other patches are tinted. So a
    voxel is told by its colour together with where and when it is there. Some 2,000 voxels a frame at the
    usual size; another seed is another street, with a road and lawns of another colour.

    Args:
        frames: T.
        seed: Of the street and of the noise.
        size: Voxels along the street, and across it: at least 24 each.
        noise: Standard deviation of the colours from voxel to voxel.
        flicker: Standard deviation of the tints.
        missing: Share of the voxels that are not there, other ones in each frame.

    Returns:
        Coordinates (V, 4) int64 as x, y, z, t, no two alike, sorted by t, x, y, z; colours (V, 3) float32
        from 0 to 255; labels (V,) and their names.
    """
    random = np.random.default_rng(seed)
    long, across = size
    high = 16
    road, lawn, building, tree, car, person = range(6)
    labels = np.full((long, across, high), -1)
    colours = np.zeros((long, across, high, 3))
    middle, half = across // 2 + random.integers(-1, 2), 5
    labels[:, :, 0] = lawn
    colours[:, :, 0] = np.array([(112, 124, 84), (136, 128, 102), (104, 112, 96)])[random.integers(3)]
    labels[:, middle - half : middle + half + 1, 0] = road
    colours[:, middle - half : middle + half + 1, 0] = np.array([118, 116, 114]) * random.uniform(0.75, 1.2)

    def paint(to, start, extent, label, colour):
        """Fill a box with a label, as far as it lies inside."""
        window = tuple(slice(max(0, a), max(0, a + n)) for a, n in zip(start, extent, strict=True))
        to[0][window], to[1][window] = label, colour

    still = (labels, colours)
    for side in (-1, 1):
        x = int(random.integers(-4, 2))
        while x < long:
            n = int(random.integers(7, 13))
            tall, deep = int(random.integers(4, 7 if side < 0 else 12)), int(random.integers(4, 7))
            y = 0 if side < 0 else across - deep
            wall = PAINTS[random.integers(len(PAINTS))]
            paint(still, (x, y, 1), (n, deep, tall), building, wall)
            for z in range(2, tall, 3):  # windows, two voxels apart
                for place in range(max(x, 0) + 1, min(x + n, long), 3):
                    colours[place, y : y + deep, z] = (104, 122, 140)
            x += n + int(random.integers(0, 5))
        for x in np.arange(random.integers(2, 8), long, 9):
            y, tall = middle + side * (half + 2), int(random.integers(3, 5))
            x, reach = int(x + random.integers(-1, 2)), random.uniform(1.8, 2.8)
            paint(still, (x, y, 1), (1, 1, tall), tree, (104, 84, 66))
            grid = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), axis=-1)
            away = np.linalg.norm(grid - (x, y, tall + 2), axis=-1)
            crown = away + random.normal(0, 0.4, away.shape) < reach
            labels[crown] = tree
            colours[crown] = np.array([(92, 116, 66), (132, 112, 68), (150, 88, 60)])[random.integers(3)]

    def automobile(to, x, y, colour):
        paint(to, (x, y, 1), (6, 3, 1), car, colour)
        paint(to, (x + 1, y, 2), (4, 3, 1), car, np.multiply(colour, 0.6) + 40)

    def coloured():
        return PAINTS[random.integers(len(PAINTS))] * random.uniform(0.8, 1.2)

    for x in (random.integers(0, long // 2 - 6), random.integers(long // 2, long - 6)):  # parked
        automobile(still, int(x), middle + half - 2, coloured())
    # Lane, place halfway through, pace and colour.
    driving = [
        (y, random.uniform(*part) * long, ahead * random.uniform(1.5, 3), coloured())
        for y, ahead in ((middle - 4, -1), (middle, 1))
        for part in ((0, 0.35), (0.55, 0.9))
    ]
    walking = [
        (middle + side * (half + 1), random.uniform(0.1, 0.9) * long, random.uniform(-1, 1), coloured())
        for side in (-1, -1, -1, 1, 1, 1)
    ]

    shadow = smooth_noise(random, long, across, 9, 3)
    parts = [(np.empty((0, 4)), np.empty((0, 3)), np.empty(0))]
    for t in range(frames):
        now = (labels.copy(), colours.copy())
        for y, x, pace, colour in driving:
            automobile(now, round(x + pace * (t - frames / 2)), y, colour)
        for y, x, pace, colour in walking:
            x = round(x + pace * (t - frames / 2))
            paint(now, (x, y, 1), (1, 2, 2), person, colour * 0.7)
            paint(now, (x, y, 3), (1, 2, 1), person, colour)
            paint(now, (x, y, 4), (1, 1, 1), person, (190, 150, 126))
        filled = np.pad(now[0] >= 0, 1, constant_values=True)  # what lies outside hides nothing
        filled[:, :, -1] = False
        open_side = np.zeros(labels.shape, bool)
        for axis in range(3):
            for step in (-1, 1):
                open_side |= ~np.roll(filled, step, axis)[1:-1, 1:-1, 1:-1]
        place = np.argwhere((now[0] >= 0) & open_side & (random.random(labels.shape) > missing))
        at = tuple(place.T)
        light = random.normal(1, 0.05) * (1 + 0.14 * shadow[at[0], at[1]])
        tint = np.stack([smooth_noise(random, long, across, 8, 2) for _ in range(3)], axis=-1)
        value = now[1][at] * light[:, None] + flicker * tint[at[0], at[1]]
        value += noise * (
            random.standard_normal((len(place), 1)) + 0.6 * random.standard_normal((len(place), 3))
        )
        parts.append((np.insert(place, 3, t, axis=1), value, now[0][at]))
    where, value, label = (np.concatenate(of_all) for of_all in zip(*parts, strict=True))
    return where.astype(np.int64), np.clip(value, 0, 255).astype(np.float32), label.astype(np.int64), CITY
