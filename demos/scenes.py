"""Scenes with known labels for the demos, tests and benchmarks: a street, a room, a street in space and time.

All is made with NumPy from a seed, in a second or two. Colours tell the classes apart in part only: a grey
car stands before a grey house. Labels are int64; each names a class by its place in the names beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray


# Noise that the scenes share.


def _interpolation(count: int, nodes: int) -> Array:
    """Return the weights (count, nodes) that interpolate values at evenly spaced nodes, linearly."""
    place = np.linspace(0, nodes - 1, count) if count > 1 else np.full(count, (nodes - 1) / 2)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(nodes))).astype(np.float32)


def _enlarge(values: Array, height: int, width: int) -> Array:
    """Interpolate (..., h, w) to (..., height, width)."""
    down, across = _interpolation(height, values.shape[-2]), _interpolation(width, values.shape[-1])
    return down @ values @ across.T


def _noise(random: np.random.Generator, height: int, width: int, cell: float, octaves: int = 4) -> Array:
    """Return smooth noise (height, width) of about unit variance, its largest features `cell` pixels wide."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1)
        nodes = random.standard_normal((int(height / size) + 2, int(width / size) + 2), dtype=np.float32)
        total += 0.6**octave * _enlarge(nodes, height, width)
    return total * np.float32(1.4 / np.sqrt(sum(0.36**octave for octave in range(octaves))))


# A street, filmed by a camera that pans. Lengths are in heights of the picture, from its upper left corner.

STREET = ("sky", "building", "tree", "road", "car", "person")
SKY, BUILDING, TREE, ROAD, CAR, PERSON = range(6)
HORIZON = 0.6
# Cars and houses share these; so do coats.
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


class _Canvas:
    """A picture and its labels, to paint shapes on; where nothing was painted the label is -1."""

    def __init__(self, height: int, width: int, scale: float) -> None:
        self.colours = np.zeros((height, width, 3), np.float32)
        self.labels = np.full((height, width), -1)
        self.scale = scale  # pixels to a unit
        self.moved = 0.0  # how far to the right shapes are painted

    def paint(self, box, inside, colour, label=None) -> None:
        """Paint where `inside(x, y)` is true within the box (left, top, right, bottom).

        The colour is RGB or a function of (x, y); without a label what is there keeps its own.
        """
        left, top, right, bottom = np.array(box) * self.scale
        rows = np.arange(max(int(top), 0), min(int(bottom) + 1, len(self.labels)))
        columns = np.arange(
            max(int(left + self.moved * self.scale), 0),
            min(int(right + self.moved * self.scale) + 1, self.labels.shape[1]),
        )
        if not len(rows) or not len(columns):
            return
        y, x = (rows[:, None] + 0.5) / self.scale, (columns + 0.5) / self.scale - self.moved
        mask = np.broadcast_to(inside(x, y), (len(rows), len(columns)))
        patch = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        value = colour(x, y, self.colours[patch]) if callable(colour) else colour
        self.colours[patch] = np.where(mask[..., None], value, self.colours[patch])
        if label is not None:
            self.labels[patch] = np.where(mask, label, self.labels[patch])

    def box(self, left, top, right, bottom, colour, label=None) -> None:
        """Paint a rectangle."""
        self.paint(
            (left, top, right, bottom),
            lambda x, y: (x >= left) & (x < right) & (y >= top) & (y < bottom),
            colour,
            label,
        )

    def ellipse(self, x0, y0, across, down, colour, label=None) -> None:
        """Paint an ellipse about (x0, y0) with these half axes."""
        self.paint(
            (x0 - across, y0 - down, x0 + across, y0 + down),
            lambda x, y: ((x - x0) / across) ** 2 + ((y - y0) / down) ** 2 < 1,
            colour,
            label,
        )

    def outline(self, at, top, bottom, colour, label=None) -> None:
        """Paint between two lines over x, `top` and `bottom`, each the heights at the places `at`."""
        self.paint(
            (min(at), min(top), max(at), max(bottom)),
            lambda x, y: (
                (x >= min(at)) & (x < max(at)) & (y >= np.interp(x, at, top)) & (y < np.interp(x, at, bottom))
            ),
            colour,
            label,
        )

    def limb(self, start, end, thick, colour, label=None) -> None:
        """Paint a line with round ends."""
        (x0, y0), (x1, y1) = start, end
        square = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)

        def inside(x, y):
            along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / square, 0, 1)
            return (x - x0 - along * (x1 - x0)) ** 2 + (y - y0 - along * (y1 - y0)) ** 2 < thick**2

        box = (min(x0, x1) - thick, min(y0, y1) - thick, max(x0, x1) + thick, max(y0, y1) + thick)
        self.paint(box, inside, colour, label)

    def lay(self, other: _Canvas, start: int) -> None:
        """Lay what was painted on a wider canvas over this one, from its column `start` on."""
        window = slice(start, start + self.labels.shape[1])
        painted = other.labels[:, window] >= 0
        self.colours = np.where(painted[..., None], other.colours[:, window], self.colours)
        self.labels = np.where(painted, other.labels[:, window], self.labels)


def moving_scene(frames: int, height: int, width: int, seed: int = 0) -> tuple[Array, Array, tuple[str, ...]]:
    """Return a video of a street: cars and people pass one another and the trees while the camera pans.

    Near things pan faster than far ones. It is drawn at twice the resolution, and made smaller with a little
    blur and the noise of a sensor.

    Returns:
        The video (T, H, W, 3) uint8, labels (T, H, W) int64, and the names of the classes.
    """
    random = np.random.default_rng(seed)
    scale, wide, high = 2.0 * height, width / height, 2 * height
    pan = 0.012 * frames * random.choice([-1, 1])
    begin = max(0, -pan)

    def layer() -> _Canvas:
        return _Canvas(high, 2 * width + int(1.5 * abs(pan) * scale) + 4, scale)

    far, middle, near = layer(), layer(), layer()
    grain = _noise(random, high, far.labels.shape[1], 0.05 * scale)
    span = far.labels.shape[1] / scale
    _sky(far, random)
    _houses(middle, random, span, grain)
    for x in np.arange(random.uniform(0.05, 0.3), span, 0.55):
        _tree(middle, random, x + random.uniform(-0.1, 0.1), HORIZON + 0.05, random.uniform(0.28, 0.42))
    _tree(near, random, 0.7 * abs(pan) + wide * random.choice([0.08, 0.92]), 1.02, 0.75)
    cars = [_Mover(random, frames, wide, lane, part) for lane in (0, 1) for part in ((0, 0.35), (0.65, 1))]
    people = [_Mover(random, frames, wide, 2, part) for part in ((0, 0.5), (0.5, 1))]
    people += [_Mover(random, frames, wide, 3, part) for part in ((0.05, 0.3), (0.35, 0.6), (0.6, 0.95))]

    video = np.empty((frames, height, width, 3), np.uint8)
    labels = np.empty((frames, height, width), np.int64)
    for t in range(frames):
        at = begin + pan * t / max(frames, 1)  # of the camera, at the pace of the ground in the middle
        canvas = _Canvas(high, 2 * width, scale)
        canvas.lay(far, int(0.2 * at * scale))
        _ground(canvas, at, grain)
        canvas.lay(middle, int(0.6 * at * scale))
        # From far to near.
        for person in people[:2]:
            _person(canvas, person, t, HORIZON + 0.09, 0.17)
        for lane in (0, 1):
            for car in (car for car in cars if car.lane == lane):
                _car(canvas, car, t, HORIZON + 0.17 + 0.14 * lane, 0.36 + 0.12 * lane)
        for person in people[2:]:
            _person(canvas, person, t, 0.985, 0.36)
        canvas.lay(near, int(1.4 * at * scale))
        video[t] = _photograph(canvas.colours, random)
        labels[t] = _majority(canvas.labels)
    return video, labels, STREET


class _Mover:
    """A car or a person: where it is in each frame, in the picture, and what it looks like."""

    def __init__(self, random: np.random.Generator, frames: int, wide: float, lane: int, part: tuple) -> None:
        self.lane = lane
        # Cars drive on the right, those of a lane alike; people walk either way.
        self.ahead = (-1 if lane == 0 else 1) if lane < 2 else random.choice([-1, 1])
        self.speed = self.ahead * (0.032 + 0.01 * lane if lane < 2 else random.uniform(0.008, 0.014))
        # Halfway through it is in its part of the picture's width.
        self.start = random.uniform(*part) * wide - self.speed * frames / 2
        self.paint = PAINTS[random.integers(len(PAINTS))] * random.uniform(0.85, 1.15)
        self.other = PAINTS[random.integers(len(PAINTS))] * random.uniform(0.5, 0.8)
        self.skin = np.array([224, 178, 148]) * random.uniform(0.45, 1)
        self.size = random.uniform(0.9, 1.1)
        self.phase = random.uniform(0, 2 * np.pi)
        self.body = int(random.integers(3))  # saloon, hatchback, van

    def at(self, t: int) -> float:
        return self.start + self.speed * t


def _sky(canvas: _Canvas, random: np.random.Generator) -> None:
    high, wide = canvas.labels.shape
    clouds = _noise(random, high, wide, 0.35 * canvas.scale, 5) - 0.4
    clouds = np.clip(clouds * 0.8, 0, 1)[..., None]
    fall = np.clip(np.linspace(0, 1 / HORIZON, high), 0, 1)[:, None, None]
    blue = (1 - fall) * np.array([96, 146, 206]) + fall * np.array([206, 218, 226])
    canvas.colours[:] = (1 - clouds) * blue + clouds * np.array([236, 236, 234])
    canvas.labels[:] = SKY


def _houses(canvas: _Canvas, random: np.random.Generator, span: float, grain: Array) -> None:
    bottom = HORIZON + 0.035
    left = -random.uniform(0, 0.2)
    tone = -1
    while left < span:
        broad, tall = random.uniform(0.3, 0.55), random.uniform(0.22, 0.46)
        if random.random() < 0.15:  # a gap, with the sky in it
            left += 0.15
        right, top = left + broad, bottom - tall
        tone = (tone + random.integers(1, len(PAINTS) - 1)) % (len(PAINTS) - 1)  # another one than next door
        wall = PAINTS[tone] * random.uniform(0.8, 1.05)

        def plaster(x, y, below, wall=wall, left=left, right=right, top=top):
            row, column = (y[:, 0] * canvas.scale).astype(int), (x * canvas.scale).astype(int)
            light = 1 + 0.05 * grain[np.ix_(row, column)]
            courses = 1 - 0.07 * ((y * 70) % 1 < 0.25)
            return wall * (light * courses * (1.08 - 0.25 * (x - left) / (right - left)))[..., None]

        canvas.box(left, top, right, bottom, plaster, BUILDING)
        if random.random() < 0.5:  # a gable
            peak = top - random.uniform(0.06, 0.12)
            at = [left - 0.01, (left + right) / 2, right + 0.01]
            canvas.outline(at, [top, peak, top], [top + 0.005] * 3, wall * 0.25 + (70, 40, 34), BUILDING)
        else:
            canvas.box(left - 0.008, top - 0.012, right + 0.008, top + 0.012, wall * 0.7, BUILDING)
        columns = max(2, round(broad / 0.11))
        step, storey = broad / columns, 0.1
        glass = np.array([120, 142, 166]) * random.uniform(0.6, 1.1)
        for floor in range(int((tall - 0.03) / storey)):
            y = top + 0.03 + floor * storey
            ground = y + storey > bottom - 0.03
            for column in range(columns):
                x = left + (column + 0.25) * step
                if ground and column == columns // 2:
                    canvas.box(x, y, x + 0.5 * step, bottom, wall * 0.35, BUILDING)  # a door
                    continue
                canvas.box(x - 0.005, y - 0.005, x + 0.5 * step + 0.005, y + 0.064, wall * 0.6 + 80, BUILDING)
                pane = glass * random.uniform(0.7, 1.2)
                canvas.box(
                    x,
                    y,
                    x + 0.5 * step,
                    y + 0.058,
                    lambda x, y, below, top=y, pane=pane: (
                        pane * (1.15 - 5 * (y - top))[..., None] + 0 * x[..., None]
                    ),
                    BUILDING,
                )
        left = right


def _tree(canvas: _Canvas, random: np.random.Generator, x0: float, foot: float, tall: float) -> None:
    """Paint a tree: a trunk, and a crown of clumps with a ragged border, lit from the upper left."""
    bark = np.array([104, 84, 66]) * random.uniform(0.8, 1.1)
    at = [x0 - 0.06 * tall, x0 - 0.025 * tall, x0 + 0.025 * tall, x0 + 0.06 * tall]
    canvas.outline(
        at,
        [foot - 0.02 * tall, foot - 0.6 * tall, foot - 0.6 * tall, foot - 0.02 * tall],
        [foot] * 4,
        lambda x, y, below: bark * (1.1 - 6 * (x - x0) / tall)[..., None] + 0 * y[..., None],
        TREE,
    )
    leaf = np.array([(74, 112, 52), (92, 116, 50), (128, 112, 56), (62, 98, 60)])[random.integers(4)]
    for side in (-1, 1):
        canvas.limb(
            (x0, foot - 0.4 * tall),
            (x0 + side * 0.15 * tall, foot - 0.62 * tall),
            0.02 * tall,
            bark * 0.9,
            TREE,
        )
    ragged = _noise(random, 256, 256, 16, 4)
    clumps = np.stack(
        [random.normal(x0, 0.16 * tall, 14), random.normal(foot - 0.72 * tall, 0.11 * tall, 14)], axis=1
    )
    reach = random.uniform(0.09, 0.15, 14) * tall
    box = (x0 - 0.55 * tall, foot - 1.2 * tall, x0 + 0.55 * tall, foot - 0.3 * tall)

    def texture(x, y):
        row = ((y - box[1]) / (box[3] - box[1]) * 255).astype(int).clip(0, 255)
        column = ((x - box[0]) / (box[2] - box[0]) * 255).astype(int).clip(0, 255)
        return ragged[row, column]

    def fullness(x, y):
        return sum(
            np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / r**2) for (cx, cy), r in zip(clumps, reach, strict=True)
        )

    def colour(x, y, below):
        step = 0.03 * tall
        relief = fullness(x, y) - fullness(x - step, y - step)
        light = (
            0.95
            + np.clip(1.2 * relief, -0.35, 0.5)
            + 0.2 * texture(x, y)
            - 0.3 * (y - foot + 0.7 * tall) / tall
        )
        return leaf * np.clip(light, 0.3, 1.7)[..., None]

    canvas.paint(box, lambda x, y: fullness(x, y) * (1 + 0.3 * texture(x, y)) > 0.6, colour, TREE)


def _ground(canvas: _Canvas, at: float, grain: Array) -> None:
    """Paint pavements and a road whose near side passes faster than its far side."""
    high, wide = canvas.labels.shape
    y = (np.arange(high) + 0.5) / canvas.scale
    rows = np.flatnonzero(y >= HORIZON)
    y = y[rows][:, None]
    depth = (y - HORIZON) / (1 - HORIZON)  # 0 far, 1 near
    pace = 0.6 + 0.8 * depth
    x = np.arange(wide) / canvas.scale + pace * at
    column = (x / pace * canvas.scale).astype(int) % grain.shape[1]
    speckle = grain[rows[:, None], column]
    asphalt = np.array([112, 112, 114]) * (0.93 + 0.12 * depth[..., None])
    paving = np.array([166, 160, 148]) * (0.95 + 0.1 * depth[..., None])
    paved = (y < HORIZON + 0.105) | (y > 0.955)
    colour = np.where(paved[..., None], paving, asphalt) + 0 * x[..., None]
    joint = (x / pace % 0.12 < 0.006) & paved
    kerb = (np.abs(y - HORIZON - 0.105) < 0.006) | (np.abs(y - 0.95) < 0.008)
    dash = (np.abs(y - HORIZON - 0.205) < 0.006) & (x / pace % 0.3 < 0.15)
    colour = np.where(joint[..., None], colour * 0.82, colour)
    colour = np.where(kerb[..., None], 190, np.where(dash[..., None], 218, colour))
    canvas.colours[rows] = colour * (1 + 0.05 * speckle[..., None])
    canvas.labels[rows] = ROAD


def _shadow(canvas: _Canvas, x: float, y: float, across: float, down: float) -> None:
    canvas.ellipse(x, y, across, down, lambda x, y, below: below * 0.55)


def _car(canvas: _Canvas, car: _Mover, t: int, foot: float, length: float) -> None:
    """Paint a car from the side, `length` long, its wheels on the line `foot`."""
    canvas.moved = car.at(t)
    size = length * car.size
    ahead = car.ahead

    def place(points):
        """Turn (along, up) in lengths of the car, from its rear, into lines over growing x."""
        points = np.array(points)
        x, y = ahead * (points[:, 0] - 0.5) * size, foot - points[:, 1] * size
        return (x, y) if ahead > 0 else (x[::-1], y[::-1])

    roofs = (
        [
            (0, 0.15),
            (0.02, 0.22),
            (0.16, 0.25),
            (0.28, 0.36),
            (0.58, 0.36),
            (0.74, 0.24),
            (0.96, 0.2),
            (1, 0.13),
        ],
        [
            (0, 0.15),
            (0.01, 0.25),
            (0.08, 0.36),
            (0.2, 0.38),
            (0.58, 0.37),
            (0.76, 0.24),
            (0.97, 0.2),
            (1, 0.13),
        ],
        [
            (0, 0.15),
            (0.01, 0.45),
            (0.04, 0.47),
            (0.62, 0.47),
            (0.7, 0.45),
            (0.82, 0.28),
            (0.97, 0.24),
            (1, 0.13),
        ],
    )
    windows = (
        [(0.2, 0.25, 0.25), (0.3, 0.25, 0.34), (0.56, 0.25, 0.34), (0.69, 0.25, 0.255)],
        [(0.1, 0.26, 0.31), (0.14, 0.26, 0.35), (0.56, 0.26, 0.345), (0.7, 0.26, 0.265)],
        [(0.5, 0.3, 0.43), (0.6, 0.3, 0.43), (0.67, 0.3, 0.42), (0.77, 0.3, 0.31)],
    )
    _shadow(canvas, 0, foot - 0.005, 0.54 * size, 0.05 * size)
    x, top = place(roofs[car.body])

    def shine(x, y, below):
        up = (foot - y) / size
        light = 0.62 + 1.5 * up - 0.25 * (np.abs(up - 0.19) < 0.006) + 0.12 * (np.abs(up - 0.22) < 0.012)
        return car.paint * light[..., None] + 0 * x[..., None]

    canvas.outline(x, top, np.full(len(x), foot - 0.06 * size), shine, CAR)
    pane = np.array(windows[car.body])
    x, top = place(pane[:, [0, 2]])
    _, sill = place(pane[:, [0, 1]])
    canvas.outline(
        x,
        top,
        sill,
        lambda x, y, below: (
            np.array([92, 112, 132]) * (0.7 + 3 * (foot - y) / size - 0.6)[..., None] + 0 * x[..., None]
        ),
        CAR,
    )
    if car.body < 2:
        x, _ = place([(0.42, 0), (0.445, 0)])
        canvas.box(x[0], foot - 0.36 * size, x[1], foot - 0.24 * size, car.paint * 0.9, CAR)
    for along, colour in ((0.012, (170, 40, 36)), (0.975, (244, 236, 200))):
        x, _ = place([(along - 0.012, 0), (along + 0.012, 0)])
        canvas.box(x[0], foot - 0.2 * size, x[1], foot - 0.16 * size, colour, CAR)
    for along in (0.2, 0.8):
        x = ahead * (along - 0.5) * size
        canvas.ellipse(x, foot - 0.075 * size, 0.08 * size, 0.08 * size, (34, 34, 36), CAR)
        canvas.ellipse(x, foot - 0.075 * size, 0.045 * size, 0.045 * size, (150, 150, 152), CAR)
        canvas.ellipse(x, foot - 0.075 * size, 0.018 * size, 0.018 * size, (80, 80, 82), CAR)
    canvas.moved = 0


def _person(canvas: _Canvas, person: _Mover, t: int, foot: float, tall: float) -> None:
    """Paint a walking person, `tall` high, standing on the line `foot`."""
    canvas.moved = person.at(t)
    h = tall * person.size
    swing = 0.5 * np.sin(person.phase + t * 0.9)
    _shadow(canvas, 0, foot, 0.2 * h, 0.03 * h)
    hip, neck = foot - 0.46 * h, foot - 0.82 * h
    for side, shade in ((-1, 0.75), (1, 1.0)):
        lean = side * swing
        knee = (0.22 * h * np.sin(lean), hip + 0.24 * h * np.cos(lean))
        ankle = (knee[0] + 0.22 * h * np.sin(lean - 0.25 * person.ahead), foot - 0.03 * h)
        canvas.limb((0, hip), knee, 0.05 * h, person.other * shade, PERSON)
        canvas.limb(knee, ankle, 0.038 * h, person.other * shade, PERSON)
        canvas.limb(
            ankle, (ankle[0] + 0.05 * h * person.ahead, foot - 0.02 * h), 0.025 * h, (50, 44, 40), PERSON
        )
        if side == 1:
            canvas.limb(
                (0, neck + 0.08 * h),
                (0, hip - 0.02 * h),
                0.085 * h,
                lambda x, y, below: person.paint * (0.95 - 2 * x / h)[..., None] + 0 * y[..., None],
                PERSON,
            )
        hand = (-0.3 * h * np.sin(lean), neck + 0.36 * h)
        canvas.limb((0, neck + 0.06 * h), hand, 0.033 * h, person.paint * shade * 0.85, PERSON)
        canvas.ellipse(*hand, 0.03 * h, 0.03 * h, person.skin, PERSON)
    canvas.limb((0, neck), (0, neck - 0.02 * h), 0.03 * h, person.skin * 0.85, PERSON)
    head = foot - 0.91 * h
    canvas.ellipse(0, head, 0.062 * h, 0.08 * h, person.skin, PERSON)
    canvas.ellipse(
        -0.012 * h * person.ahead, head - 0.03 * h, 0.062 * h, 0.06 * h, person.other * 0.6, PERSON
    )
    canvas.moved = 0


def _photograph(colours: Array, random: np.random.Generator) -> Array:
    """Return colours (2H, 2W, 3) at half the size, as a camera gives them: blurred and noisy uint8."""
    padded = np.pad(colours, ((1, 1), (1, 1), (0, 0)), mode="edge")
    small = sum(  # (1 3 3 1) / 8 along both axes
        weight * other * padded[row : row + len(colours) : 2, column : column + colours.shape[1] : 2]
        for row, weight in enumerate((0.125, 0.375, 0.375, 0.125))
        for column, other in enumerate((0.125, 0.375, 0.375, 0.125))
    )
    small = small * random.normal(1, 0.01) + 4.5 * random.standard_normal(small.shape, dtype=np.float32)
    return np.rint(np.clip(small, 0, 255)).astype(np.uint8)


def _majority(labels: Array) -> Array:
    """Return the label that most of each 2 by 2 pixels have."""
    a, b, c, d = labels[::2, ::2], labels[::2, 1::2], labels[1::2, ::2], labels[1::2, 1::2]
    return np.where((a == b) | (a == c) | (a == d), a, np.where((b == c) | (b == d), b, c))


# What a network or a hurried person would say.


def network_output(
    labels: Array,
    num_classes: int,
    seed: int = 0,
    *,
    stride: int = 8,
    margin: float = 5.0,
    noise: float = 1.3,
    confusion: float = 0.12,
) -> Array:
    """Return probabilities (..., K) float32 as a mediocre network would give them, one frame at a time.

    They are known at 1/stride of the resolution; borders are displaced by some pixels; in blobs that cover a
    share of about `confusion` of the picture another class that is in it wins. Half of all that stays from
    frame to frame, and half flickers.

    Args:
        labels: (H, W) or (T, H, W), 0 … K-1.
        num_classes: K.
        seed: Of the errors.
        stride: Pixels to a cell of the network's output.
        margin: Of the true class's logit, where it fills a cell.
        noise: Standard deviation of the logits.
        confusion: Share of the picture in which a blob may hide the true class.
    """
    random = np.random.default_rng(seed)
    frames = labels.reshape(-1, *labels.shape[-2:])
    height, width = frames.shape[1:]
    rows, columns = -(-height // stride), -(-width // stride)
    row, column = np.ogrid[:height, :width]
    high, wide = rows * stride, columns * stride
    shape = (num_classes, rows, columns)
    lasting = random.standard_normal(shape)
    shift = [_noise(random, height, width, 3 * stride, 2) for _ in range(2)]
    blobs = _noise(random, rows, columns, 4, 2)
    present = np.unique(frames)
    other = random.choice(present, len(frames) + 1)
    result = np.empty((*frames.shape, num_classes), np.float32)
    for frame, truth in enumerate(frames):
        moved = [
            np.rint(0.4 * stride * (0.7 * kept + 0.7 * _noise(random, height, width, 3 * stride, 2))).astype(
                int
            )
            for kept in shift
        ]
        seen = truth[(row + moved[0]).clip(0, height - 1), (column + moved[1]).clip(0, width - 1)]
        seen = np.pad(seen, ((0, high - height), (0, wide - width)), mode="edge")
        cells = (seen == np.arange(num_classes)[:, None, None]).reshape(
            num_classes, rows, stride, columns, stride
        )
        logits = margin * cells.mean((2, 4))
        logits += noise * (0.7 * lasting + 0.7 * random.standard_normal(shape))
        for blob, wrong in ((blobs, other[-1]), (_noise(random, rows, columns, 4, 2), other[frame])):
            logits[wrong] += margin * 1.1 * (blob > np.quantile(blob, 1 - confusion / 2))
        # A cell's value lies at its middle: half a cell more on every side, to be cut off again.
        logits = np.pad(logits, ((0, 0), (1, 1), (1, 1)), mode="edge")
        down = _interpolation((rows + 1) * stride + 1, rows + 2)[(stride + 1) // 2 :][:height]
        across = _interpolation((columns + 1) * stride + 1, columns + 2)[(stride + 1) // 2 :][:width]
        fine = np.moveaxis(down @ logits @ across.T, 0, -1)
        fine = np.exp(fine - fine.max(-1, keepdims=True))
        result[frame] = fine / fine.sum(-1, keepdims=True)
    return result.reshape(*labels.shape, num_classes)


def damaged_labels(labels: Array, flipped: float = 0.2, unknown: float = 0.5, seed: int = 0) -> Array:
    """Return the labels with a share unknown, -1, and a share of the others flipped to any other class.

    Args:
        labels: Any shape, 0 … K-1; K is one more than the largest.
        flipped: Share of the known labels that are wrong.
        unknown: Share of all labels that are -1.
        seed: Of the damage.
    """
    random = np.random.default_rng(seed)
    classes = int(labels.max(initial=0)) + 1
    wrong = (labels + random.integers(1, max(classes, 2), labels.shape)) % classes
    result = np.where(random.random(labels.shape) < flipped, wrong, labels)
    return np.where(random.random(labels.shape) < unknown, -1, result)


# A room, scanned from two places.

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


# A street in space and time, as voxels.

CITY = ("road", "lawn", "building", "tree", "car", "person")


def moving_voxels(
    frames: int,
    seed: int = 0,
    *,
    size: tuple[int, int] = (40, 36),
    noise: float = 22.0,
    missing: float = 0.2,
) -> tuple[Array, Array, Array, tuple[str, ...]]:
    """Return the surface voxels of a street in which cars and people move, frame after frame.

    Houses, cars, coats and the road share their colours; light and shadow change from place to place and
    from frame to frame. So a voxel is told by its colour together with where and when it is there. Some 3,000
    voxels a frame at the usual size; another seed is another street.

    Args:
        frames: T.
        seed: Of the street and of the noise.
        size: Voxels along the street, and across it: at least 24 each.
        noise: Standard deviation of the colours from voxel to voxel.
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
    colours[:, :, 0] = (112, 122, 84)
    labels[:, middle - half : middle + half + 1, 0] = road
    colours[:, middle - half : middle + half + 1, 0] = (118, 116, 114)

    def paint(to, start, extent, label, colour):
        """Fill a box with a label, as far as it lies inside."""
        window = tuple(slice(max(0, a), max(0, a + n)) for a, n in zip(start, extent, strict=True))
        to[0][window], to[1][window] = label, colour

    still = (labels, colours)
    for side in (-1, 1):
        x = int(random.integers(-4, 2))
        while x < long:
            n = int(random.integers(7, 13))
            tall, deep = int(random.integers(5, 13)), int(random.integers(5, 8))
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
            colours[crown] = np.array([(92, 116, 66), (128, 112, 62)])[random.integers(2)]

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

    shadow = _noise(random, long, across, 9, 3)
    parts = []
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
        value = now[1][at] * light[:, None] + noise * random.standard_normal((len(place), 3))
        parts.append((np.insert(place, 3, t, axis=1), value, now[0][at]))
    where, value, label = (
        np.concatenate(of_all) if parts else np.empty(shape)
        for of_all, shape in zip(zip(*parts, strict=True), ((0, 4), (0, 3), (0,)), strict=True)
    )
    return where.astype(np.int64), np.clip(value, 0, 255).astype(np.float32), label.astype(np.int64), CITY
