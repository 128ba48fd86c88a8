"""A street, filmed by a camera that pans.

Lengths are in heights of the picture, from its upper left corner.
"""

from __future__ import annotations

import numpy as np

from .noise import PAINTS, Array, smooth_noise

STREET = ("sky", "building", "tree", "road", "car", "person")
SKY, BUILDING, TREE, ROAD, CAR, PERSON = range(6)
HORIZON = 0.6


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
    grain = smooth_noise(random, high, far.labels.shape[1], 0.05 * scale)
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
    clouds = smooth_noise(random, high, wide, 0.35 * canvas.scale, 5) - 0.4
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
    ragged = smooth_noise(random, 256, 256, 16, 4)
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
