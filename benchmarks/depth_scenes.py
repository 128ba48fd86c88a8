"""Pictures of made rooms with their exact depth, by ray casting, to train and check joint upsampling on.

A room holds boxes, ellipsoids, poles, slanted panels, discs and fences, which hide one another. Half have
patterns, whose edges are no edges of depth; some have nearly the colour of the wall behind them, so that an
edge of depth hardly shows. Pictures are shaded by one lamp, smoothed as by a lens, and slightly noisy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

Array = NDArray[np.float64]

ROOM = np.array([260.0, 190.0, 420.0])  # half its size in cm: x to the right, y down, z away
CAMERA = np.array([0.0, 0.0, -150.0])  # in the room
FIELD_OF_VIEW = 0.75  # half the width of what is seen, at a distance of 1
NOISE = 0.015  # of the colours, from 0 to 1
MISSED = np.inf


@dataclass(frozen=True)
class Scenes:
    """Pictures with their depth."""

    guides: Tensor  # (N, 3, H, W) float32, colours from 0 to 1
    depths: Tensor  # (N, 1, H, W) float32, cm along the axis of the camera

    def __len__(self) -> int:
        return len(self.depths)

    def __getitem__(self, chosen: slice) -> Scenes:
        return Scenes(self.guides[chosen], self.depths[chosen])


@dataclass(frozen=True)
class Thing:
    """A shape in a frame of its own, (x - centre) · axes / half_size, and how it is painted."""

    shape: Callable[
        [Array, Array], tuple[Array, Array]
    ]  # origin (3,), rays (P, 3) -> distances (P,), normals
    centre: Array  # (3,) cm
    axes: Array  # (3, 3), one a column
    half_size: Array  # (3,) cm
    paint: Callable[[Array], Array]  # places (P, 3) in cm in its frame -> colours (P, 3)


def scenes(count: int, size: int, seed: int) -> Scenes:
    """Return scenes of size x size pixels; the same for the same seed, and scene i whatever the count."""
    drawn = [scene(size, np.random.default_rng([seed, index])) for index in range(count)]
    guides, depths = (np.stack(part).astype(np.float32) for part in zip(*drawn, strict=True))
    return Scenes(torch.from_numpy(guides), torch.from_numpy(depths))


def scene(size: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Return a picture (3, size, size) and its depth (1, size, size)."""
    wall = random.uniform(0.25, 0.8, 3)
    things = [Thing(inside_of_box, np.zeros(3), np.eye(3), ROOM, paint(random, wall))]
    things += [thing(random, wall) for _ in range(random.integers(8, 15))]
    lamp = random.uniform(-1, 1, 3) * ROOM * (0.8, 0.8, 0.3) - (0, 0, 100)
    _, depth = render(things, lamp, size)
    # Four rays a pixel and more of a blur, as lens and sensor do it; the depth is that of the pixel's centre.
    fine, _ = render(things, lamp, 2 * size)
    colours = fine.reshape(size, 2, size, 2, 3).mean((1, 3)) + random.normal(0, NOISE, (size, size, 3))
    return colours.clip(0, 1).transpose(2, 0, 1), depth[None]


def render(things: Sequence[Thing], lamp: Array, size: int) -> tuple[Array, Array]:
    """Return colours (size, size, 3) and depth (size, size) of what is nearest along each ray."""
    across = FIELD_OF_VIEW * ((np.arange(size) + 0.5) * 2 / size - 1)
    y, x = np.meshgrid(across, across, indexing="ij")
    rays = np.stack([x.ravel(), y.ravel(), np.ones(size * size)], 1)
    depth = np.full(size * size, MISSED)
    colours = np.zeros((size * size, 3))
    for drawn in things:
        origin = (CAMERA - drawn.centre) @ drawn.axes / drawn.half_size
        directions = rays @ drawn.axes / drawn.half_size
        distance, normals = drawn.shape(origin, directions)
        seen = np.flatnonzero((distance > 20) & (distance < depth))
        depth[seen] = distance[seen]
        place = (origin + distance[seen, None] * directions[seen]) * drawn.half_size
        normal = normals[seen] / drawn.half_size
        normal = normal / np.linalg.norm(normal, axis=1, keepdims=True) @ drawn.axes.T
        to_lamp = lamp - (CAMERA + distance[seen, None] * rays[seen])
        to_lamp /= np.linalg.norm(to_lamp, axis=1, keepdims=True)
        light = 0.5 + 0.5 * np.abs((normal * to_lamp).sum(1, keepdims=True))
        colours[seen] = drawn.paint(place) * light
    return colours.reshape(size, size, 3), depth.reshape(size, size)


def slabs(origin: Array, rays: Array) -> tuple[Array, Array]:
    """Return where rays enter and leave the slabs -1 to 1 of each axis: two of (P, 3)."""
    with np.errstate(divide="ignore"):
        inverse = np.where(rays == 0, 1e12, 1 / rays)
    ends = (-1 - origin) * inverse, (1 - origin) * inverse
    return np.minimum(*ends), np.maximum(*ends)


def box(origin: Array, rays: Array) -> tuple[Array, Array]:
    """The box from -1 to 1, from outside."""
    enter, leave = slabs(origin, rays)
    first = enter.max(1)
    return np.where(first < leave.min(1), first, MISSED), np.eye(3)[enter.argmax(1)]


def inside_of_box(origin: Array, rays: Array) -> tuple[Array, Array]:
    """The box from -1 to 1, from inside: a room."""
    _, leave = slabs(origin, rays)
    return leave.min(1), np.eye(3)[leave.argmin(1)]


def ball(origin: Array, rays: Array) -> tuple[Array, Array]:
    """The ball of radius 1."""
    a, b, c = (rays**2).sum(1), rays @ origin, origin @ origin - 1
    root = b**2 - a * c
    hit = root > 0
    distance = np.where(hit, (-b - np.sqrt(np.where(hit, root, 0))) / a, MISSED)
    return distance, np.where(hit[:, None], origin + np.where(hit, distance, 0)[:, None] * rays, 1.0)


def panel(
    inside: Callable[[Array, Array], NDArray[np.bool_]],
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """The part of the plane z = 0 that lies `inside`, a function of x and y."""

    def shape(origin: Array, rays: Array) -> tuple[Array, Array]:
        along = np.where(np.abs(rays[:, 2]) < 1e-12, 1e-12, rays[:, 2])
        distance = -origin[2] / along
        x, y = (origin[axis] + distance * rays[:, axis] for axis in range(2))
        return np.where(inside(x, y), distance, MISSED), np.tile((0.0, 0.0, 1.0), (len(rays), 1))

    return shape


def polygon(random: np.random.Generator) -> Callable[[Array, Array], tuple[Array, Array]]:
    """A panel of three to six sides."""
    count = random.integers(3, 7)
    angles = 2 * np.pi * (np.arange(count) + random.uniform(-0.25, 0.25, count)) / count
    sides = np.stack([np.cos(angles), np.sin(angles)])
    reach = random.uniform(0.6, 1, count)
    return panel(lambda x, y: (np.stack([x, y], 1) @ sides < reach).all(1))


def fence(random: np.random.Generator) -> Callable[[Array, Array], tuple[Array, Array]]:
    """A panel of bars with gaps, within a frame."""
    bars, share = random.integers(3, 7), random.uniform(0.25, 0.5)

    def inside(x: Array, y: Array) -> NDArray[np.bool_]:
        square = (np.abs(x) < 1) & (np.abs(y) < 1)
        return square & (((x + 1) * bars / 2 % 1 < share) | (np.abs(y) > 0.85))

    return panel(inside)


def thing(random: np.random.Generator, wall: Array) -> Thing:
    """Draw a thing somewhere in the room, of which at least the middle is in the picture."""
    away = random.uniform(130, 500)
    across = random.uniform(-0.9, 0.9, 2) * FIELD_OF_VIEW * away
    centre = CAMERA + np.array([*across, away])
    half_size = random.uniform(0.08, 0.28, 3) * away
    kind = random.choice(
        ["box", "ball", "pole", "polygon", "disc", "fence"], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1]
    )
    turned = Rotation.random(random_state=random).as_matrix()
    if kind in ("polygon", "disc", "fence"):  # slanted, and not seen from the edge
        turned = Rotation.from_euler("zyx", random.uniform(-1, 1, 3)).as_matrix()
    if kind == "pole":
        half_size *= np.array([0.08, 0.08, 2.5])
    shape = {
        "box": box,
        "pole": box,
        "ball": ball,
        "disc": panel(lambda x, y: x**2 + y**2 < 1),
        "polygon": polygon(random),
        "fence": fence(random),
    }[str(kind)]
    weak = random.random() < 0.3
    colour = wall + random.normal(0, 0.04, 3) if weak else random.uniform(0.05, 1, 3)
    return Thing(shape, centre, turned, half_size, paint(random, colour.clip(0.02, 1), plain=weak))


def paint(random: np.random.Generator, colour: Array, plain: bool = False) -> Callable[[Array], Array]:
    """Draw a pattern in two colours: squares, stripes, waves, blotches, or none; places are in cm."""
    other = (colour + random.normal(0, 0.25, 3)).clip(0.02, 1)
    period = random.uniform(12, 60)
    direction = random.normal(0, 1, 3)
    direction /= np.linalg.norm(direction)
    waves = random.normal(0, 1, (6, 3)) * 2 * np.pi / period / 2
    phases = random.uniform(0, 2 * np.pi, 6)
    patterns: list[Callable[[Array], Array]] = [
        lambda place: np.zeros(len(place)),
        lambda place: np.floor(place / period + 0.37).sum(1) % 2,
        lambda place: np.floor(place @ direction / period * 2) % 2,
        lambda place: 0.5 + 0.5 * np.sin(place @ direction * 2 * np.pi / period),
        lambda place: (np.sin(place @ waves.T + phases).sum(1) > 0).astype(np.float64),
    ]
    pattern = patterns[0 if plain or random.random() < 0.4 else random.integers(len(patterns))]

    def painted(place: Array) -> Array:
        share = pattern(place)[:, None]
        return (1 - share) * colour + share * other

    return painted
