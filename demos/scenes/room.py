"""A furnished room, scanned by a laser from two places."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .noise import Array

ROOM = (
    "floor",
    "ceiling",
    "wall",
    "window",
    "door",
    "table",
    "chair",
    "sofa",
    "shelf",
    "book",
    "lamp",
    "plant",
)


class Solids(NamedTuple):
    """Boxes and ellipsoids that rays can hit, P of them."""

    centre: Array  # (P, 3) metres
    half: Array  # (P, 3) half the extent along the solid's own axes, metres
    yaw: Array  # (P,) radians about the vertical
    round: Array  # (P,) whether it is an ellipsoid
    label: Array  # (P,)
    colour: Array  # (P, 3) on the scale 0 to 255


class Room(NamedTuple):
    """What is scanned, and from where."""

    size: Array  # (3,) metres; the corner is at 0
    solids: Solids
    scanners: Array  # (S, 3)
    light: Array  # (3,)
    colours: Array  # (3, 3) of floor, ceiling and walls


def scanned_room(points: int, seed: int = 0) -> tuple[Array, Array, Array, Array, tuple[str, ...]]:
    """Return the points of a furnished room as a laser scanner would, from two places, one after the other.

    What a scanner cannot see is missing; the density falls with the distance; the range errs by 2 mm and by
    1.5 mm more for each metre; grazing and glassy echoes are lost more often. The order is the scanners'.

    Returns:
        Positions (N, 3) float32 in metres, colours (N, 3) float32 from 0 to 255, normals (N, 3) float32
        towards the scanner, labels (N,) and their names.
    """
    random = np.random.default_rng(seed)
    room = furnished_room(random)
    scans = []
    for scanner, count in zip(room.scanners, (points - points // 2, points // 2), strict=True):
        directions = _scan_directions(int(1.15 * count) + 1, random)
        distance, solid, normal, label = cast_rays(room, scanner, directions)
        cosine = -(directions * normal).sum(1)
        # The chance to be lost is largest at grazing incidence and on glass; the best echoes are kept.
        score = random.random(len(distance)) - 0.02 / np.maximum(cosine, 0.02)
        score -= 0.4 * (label == ROOM.index("window"))
        kept = np.sort(np.argsort(-score, kind="stable")[:count])
        directions, distance, normal, label = directions[kept], distance[kept], normal[kept], label[kept]
        place = scanner + distance[:, None] * directions
        colour = _room_colours(room, place, normal, label, solid[kept], random) * random.uniform(0.93, 1)
        error = random.standard_normal(count) * (0.002 + 0.0015 * distance)
        tilted = normal + 0.06 * random.standard_normal((count, 3))
        tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
        scans.append((place + error[:, None] * directions, colour, tilted, label))
    positions, colours, normals, labels = (np.concatenate(parts) for parts in zip(*scans, strict=True))
    colours = np.clip(colours + 7 * random.standard_normal(colours.shape), 0, 255)
    return (
        positions.astype(np.float32),
        colours.astype(np.float32),
        normals.astype(np.float32),
        labels,
        ROOM,
    )


def _scan_directions(count: int, random: np.random.Generator) -> Array:
    """Return `count` or a few more unit vectors (R, 3), column by column, as a turning head sends them."""
    down, up = np.radians(-68), np.radians(72)
    rows = int(np.ceil(np.sqrt(count * (up - down) / (2 * np.pi))))
    columns = -(-count // rows)
    azimuth, elevation = np.meshgrid(
        2 * np.pi * np.arange(columns) / columns,
        down + (up - down) * (np.arange(rows) + 0.5) / rows,
        indexing="ij",
    )
    azimuth = azimuth.ravel() + random.uniform(0, 2 * np.pi)
    # A little wider apart towards the poles than even angles: nobody needs most of the points overhead.
    elevation = elevation.ravel() * (1 - 0.12 * np.cos(elevation.ravel()))
    level = np.cos(elevation)
    return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=1)


def cast_rays(room: Room, origin: Array, directions: Array) -> tuple[Array, Array, Array, Array]:
    """Return what unit rays (R, 3) hit first: distance (R,), solid (R,), normal (R, 3), label (R,).

    The solid is -1 for floor, ceiling and walls. Normals point against the rays.
    """
    parts = [
        _cast_chunk(room, origin, part) for part in np.array_split(directions, len(directions) // 16384 + 1)
    ]
    distance, solid, normal, label = (np.concatenate(of_all) for of_all in zip(*parts, strict=True))
    return distance, solid, normal, label


def _cast_chunk(room: Room, origin: Array, directions: Array) -> tuple[Array, Array, Array, Array]:
    # The room itself is left through the plane that is reached first.
    safe = np.where(np.abs(directions) < 1e-9, 1e-9, directions)
    exits = (np.where(safe > 0, room.size, 0) - origin) / safe
    axis = exits.argmin(1)
    distance = exits.min(1)
    normal = -np.sign(safe) * (axis[:, None] == np.arange(3))
    label = np.where(
        axis < 2, ROOM.index("wall"), np.where(safe[:, 2] < 0, ROOM.index("floor"), ROOM.index("ceiling"))
    )
    solid = np.full(len(directions), -1)

    # Solids whose bounding sphere the ray meets.
    solids = room.solids
    towards = solids.centre - origin
    away, bound = np.linalg.norm(towards, axis=1), np.linalg.norm(solids.half, axis=1)
    cosine = np.sqrt(np.maximum(0, 1 - (bound / np.maximum(away, 1e-9)) ** 2))
    cosine = np.where(away <= bound, -2, cosine)
    ray, which = np.nonzero(directions @ (towards / np.maximum(away, 1e-9)[:, None]).T >= cosine)
    turn = np.stack([np.cos(solids.yaw), np.sin(solids.yaw)], axis=1)
    start = _turned(-towards, turn) / solids.half  # in the solid's own axes, where it has half extent 1
    along = _turned(safe[ray], turn[which]) / solids.half[which]
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    begin = start[which]

    slabs = (-np.sign(along) - begin) / along
    entered, left = slabs.max(1), ((np.sign(along) - begin) / along).min(1)
    reach = np.where((entered <= left) & (entered > 0), entered, np.inf)
    own = -np.sign(along) * (slabs.argmax(1)[:, None] == np.arange(3))
    ball = solids.round[which]
    a, b, c = ((u[ball] * v[ball]).sum(1) for u, v in ((along, along), (along, begin), (begin, begin)))
    root = b * b - a * (c - 1)
    reach[ball] = np.where((root > 0) & (c > 1) & (b < 0), (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    own[ball] = (
        begin[ball] + np.where(np.isfinite(reach), reach, 0)[ball, None] * along[ball]
    ) / solids.half[which[ball]]

    # The nearest of each ray: pairs come sorted by ray.
    if len(ray):
        first = np.flatnonzero(np.diff(ray, prepend=-1))
        nearest = np.minimum.reduceat(reach, first)
        pair = np.flatnonzero(reach == np.repeat(nearest, np.diff(first, append=len(ray))))
        pair = pair[reach[pair] < distance[ray[pair]]]
        to, hit = ray[pair], which[pair]
        distance[to], solid[to], label[to] = reach[pair], hit, solids.label[hit]
        back = turn[hit] * (1, -1)
        normal[to] = _turned(own[pair] / np.linalg.norm(own[pair], axis=1, keepdims=True), back)
    return distance, solid, normal, label


def _turned(vectors: Array, turn: Array) -> Array:
    """Return vectors (N, 3) as seen from axes turned about the vertical, by cosines and sines (N, 2)."""
    x, y = vectors[:, 0], vectors[:, 1]
    cosine, sine = turn[:, 0], turn[:, 1]
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, vectors[:, 2]], axis=1)


def _room_colours(
    room: Room, place: Array, normal: Array, label: Array, solid: Array, random: np.random.Generator
) -> Array:
    """Return colours (N, 3): of the surface, its grain, and the light of a lamp and a window with shadows."""
    colour = np.where(
        (solid >= 0)[:, None], room.solids.colour[solid], room.colours[np.minimum(label, ROOM.index("wall"))]
    )
    # Floor boards, 14 cm by 1.2 m, each of its own tone.
    board = np.floor(place[:, 1] / 0.14).astype(int)
    piece = np.floor(place[:, 0] / 1.2 + 0.37 * board).astype(int)
    tones = np.random.default_rng(0).normal(1, 0.09, (64, 64))
    bare = (solid < 0) & (label == ROOM.index("floor"))
    colour = colour * np.where(bare, tones[board % 64, piece % 64], 1)[:, None]
    colour *= 1 + 0.04 * random.standard_normal((len(place), 1))

    to_light = place - room.light
    distance = np.linalg.norm(to_light, axis=1)
    reached, *_ = cast_rays(room, room.light, to_light / distance[:, None])
    lit = reached > distance - 0.02
    facing = np.maximum(0, -(normal * to_light).sum(1) / distance)
    lamp = np.where(lit, facing, 0) * 3.2 / (1.6 + distance**2)
    sky = 0.5 + 0.25 * normal[:, 1] + 0.2 * normal[:, 2]
    corner = 1 - 0.25 * np.exp(-np.minimum(place, room.size - place).clip(0).min(1) / 0.15) * (solid < 0)
    shade = (0.5 * sky + 0.52) * corner
    glow = np.array([1.0, 0.93, 0.82])
    return colour * (shade[:, None] + lamp[:, None] * glow * 0.7)


def furnished_room(random: np.random.Generator) -> Room:
    """Return a room with furniture in places that differ a little, and may be mirrored."""
    size = random.uniform((5.2, 4.3, 2.5), (6.2, 5.0, 2.8))
    wide, deep, high = size
    solids: list[tuple] = []
    wood = np.array([150, 105, 65]) * random.uniform(0.75, 1.25)
    pale = np.array([214, 206, 192]) * random.uniform(0.94, 1.05)
    cloth = random.permutation([(96, 108, 128), (140, 92, 70), (92, 112, 88), (150, 140, 124)])[0]

    def add(name, centre, extent, colour, at=(0, 0), yaw=0.0, ball=False):
        """Add a solid at `centre` of a piece of furniture that stands at `at`, turned by `yaw`."""
        x, y, z = centre
        cosine, sine = np.cos(yaw), np.sin(yaw)
        moved = (at[0] + cosine * x - sine * y, at[1] + sine * x + cosine * y, z)
        solids.append((moved, np.array(extent) / 2, yaw, ball, ROOM.index(name), colour))

    # A table with chairs around it, one pulled out.
    at, yaw = np.array([0.55 * wide, 0.63 * deep]) + random.uniform(-0.1, 0.1, 2), random.uniform(-0.15, 0.15)
    long, broad = random.uniform(1.4, 1.7), random.uniform(0.8, 0.95)
    add("table", (0, 0, 0.73), (long, broad, 0.05), wood, at, yaw)
    for x in (-1, 1):
        for y in (-1, 1):
            add(
                "table",
                (x * (long / 2 - 0.08), y * (broad / 2 - 0.08), 0.35),
                (0.07, 0.07, 0.7),
                wood,
                at,
                yaw,
            )
    for x, y, facing in ((-0.36, -0.62, 0), (0.36, -0.75, 0), (-0.36, 0.62, np.pi), (0.36, 0.62, np.pi)):
        spot = at + np.array([np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y])
        _chair(
            add, spot + random.uniform(-0.06, 0.06, 2), yaw + facing + random.uniform(-0.3, 0.3), wood * 0.85
        )
    add("book", (0.3, 0.1, 0.775), (0.3, 0.22, 0.04), (168, 52, 48), at, yaw + 0.4)
    add("lamp", (0, 0, high - 0.3), (0.02, 0.02, 0.6), (60, 60, 60), at)
    add("lamp", (0, 0, high - 0.7), (0.46, 0.46, 0.3), (236, 222, 190), at, ball=True)
    light = np.array([*at, high - 0.9])

    # A sofa against the wall, with a low table before it.
    at = np.array([random.uniform(0.36, 0.42) * wide, 0.48])
    add("sofa", (0, 0.02, 0.21), (2.0, 0.84, 0.34), cloth, at)
    add("sofa", (0, -0.34, 0.5), (2.0, 0.22, 0.64), cloth, at)
    for x in (-0.93, 0.93):
        add("sofa", (x, 0.02, 0.32), (0.2, 0.84, 0.6), cloth, at)
    for x in (-0.42, 0.42):
        add("sofa", (x, 0.08, 0.43), (0.8, 0.68, 0.14), cloth * 1.12, at, random.uniform(-0.02, 0.02))
    add("sofa", (-0.6, -0.12, 0.66), (0.42, 0.2, 0.4), (190, 150, 70), at, 0.1, ball=True)
    low = at + np.array([random.uniform(-0.3, 0.3), 1.15])
    add("table", (0, 0, 0.4), (1.0, 0.55, 0.04), wood * 1.1, low)
    for x in (-0.42, 0.42):
        add("table", (x, 0, 0.19), (0.06, 0.45, 0.38), wood * 1.1, low)
    add("floor", (0, 0, 0.006), (2.3, 1.5, 0.012), cloth * 0.6 + 70, low)  # a rug
    add("book", (0.2, 0.05, 0.44), (0.24, 0.17, 0.03), (70, 90, 140), low, 0.7)

    _bookcase(add, random, np.array([wide - 0.17, random.uniform(0.52, 0.6) * deep]), wood, pale)
    _plant(add, random, np.array([0.42, deep - 0.45]))

    # A floor lamp in the corner; a window, a door, a picture.
    at = np.array([wide - 0.45, 0.45])
    add("lamp", (0, 0, 0.015), (0.3, 0.3, 0.03), (70, 66, 62), at)
    add("lamp", (0, 0, 0.75), (0.03, 0.03, 1.5), (70, 66, 62), at)
    add("lamp", (0, 0, 1.58), (0.4, 0.4, 0.34), (240, 226, 196), at, ball=True)
    at, half = np.array([random.uniform(0.5, 0.6) * wide, deep]), random.uniform(0.7, 0.9)
    add("window", (0, -0.01, 1.5), (2 * half, 0.02, 1.25), (188, 208, 226), at)
    for x in (-half, 0, half):
        add("window", (x, -0.03, 1.5), (0.06, 0.06, 1.31), (238, 236, 232), at)
    for z in (0.87, 2.13):
        add("window", (0, -0.04, z), (2 * half + 0.1, 0.08, 0.06), (238, 236, 232), at)
    at = np.array([0, random.uniform(0.32, 0.42) * deep])
    add("door", (0.02, 0, 1.02), (0.04, 0.9, 2.04), pale * 0.86 + wood * 0.1, at)
    for y in (-0.5, 0.5):
        add("door", (0.03, y, 1.05), (0.06, 0.09, 2.1), pale, at)
    add("door", (0.03, 0, 2.1), (0.06, 1.09, 0.09), pale, at)
    add("door", (0.07, -0.36, 1.02), (0.06, 0.12, 0.03), (120, 110, 90), at)
    add("wall", (0.4 * wide, 0.01, 1.65), (0.9, 0.03, 0.6), random.uniform(60, 190, 3))

    scanners = np.array([(0.2 * wide, 0.56 * deep, 1.5), (0.8 * wide, 0.3 * deep, random.uniform(1.4, 1.6))])
    made = Solids(*(np.array(of_all) for of_all in zip(*solids, strict=True)))
    for axis in range(2):  # mirror
        if random.random() < 0.5:
            for places in (made.centre, scanners, light[None]):
                places[:, axis] = size[axis] - places[:, axis]
            made = made._replace(yaw=-made.yaw)
    surfaces = np.array([wood * 1.15 + 20, pale * 1.08, pale])
    return Room(size, made, scanners, light, surfaces)


def _chair(add: Callable, at: Array, yaw: float, colour: Array) -> None:
    add("chair", (0, 0, 0.45), (0.42, 0.42, 0.05), colour, at, yaw)
    for x in (-0.18, 0.18):
        add("chair", (x, 0.18, 0.21), (0.04, 0.04, 0.43), colour, at, yaw)
        add("chair", (x, -0.18, 0.47), (0.04, 0.04, 0.94), colour, at, yaw)
    for z in (0.66, 0.86):
        add("chair", (0, -0.18, z), (0.36, 0.03, 0.12), colour, at, yaw)


def _bookcase(add: Callable, random: np.random.Generator, at: Array, wood: Array, pale: Array) -> None:
    broad, high, shelves = random.uniform(1.3, 1.7), 2.0, 5
    colour = random.permutation([wood, pale * 0.95, wood * 1.2])[0]
    add("shelf", (0.15, 0, high / 2), (0.02, broad, high), colour * 0.9, at)
    for y in (-broad / 2, broad / 2):
        add("shelf", (0, y, high / 2), (0.32, 0.04, high), colour, at)
    for shelf in range(shelves + 1):
        height = 0.06 + shelf * (high - 0.08) / shelves
        add("shelf", (0, 0, height), (0.32, broad, 0.035), colour, at)
        y = -broad / 2 + 0.05
        while shelf < shelves and y < broad / 2 - 0.12:
            if random.random() < 0.12:  # a gap
                y += random.uniform(0.1, 0.25)
                continue
            thick, tall = random.uniform(0.03, 0.07), random.uniform(0.2, 0.32)
            paper = (
                random.uniform(0.5, 1.2)
                * random.permutation(
                    [
                        (190, 70, 60),
                        (70, 100, 150),
                        (90, 130, 90),
                        (200, 180, 140),
                        (150, 105, 65),
                        (70, 66, 62),
                    ]
                )[0]
            )
            add(
                "book",
                (random.uniform(0, 0.03), y + thick / 2, height + 0.02 + tall / 2),
                (0.22, thick, tall),
                paper,
                at,
            )
            y += thick + 0.004


def _plant(add: Callable, random: np.random.Generator, at: Array) -> None:
    add("plant", (0, 0, 0.2), (0.34, 0.34, 0.4), (172, 100, 70), at)
    add("plant", (0, 0, 0.6), (0.04, 0.04, 0.6), (110, 84, 56), at)
    for _ in range(60):
        yaw, out = random.uniform(0, 2 * np.pi), random.uniform(0.08, 0.36)
        rise = random.uniform(0.65, 1.5)
        out *= 1.15 - 0.6 * abs(rise - 1.05)
        green = np.array([62, 118, 54]) * random.uniform(0.6, 1.35)
        add("plant", (out, 0, rise), (0.24, 0.09, random.uniform(0.02, 0.12)), green, at, yaw, ball=True)
