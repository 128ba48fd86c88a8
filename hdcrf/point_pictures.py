"""Pictures of point clouds, for people to look at: discs with a depth test, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["render_points"]

_NEAREST = 1e-3  # of the distance to the target: points nearer than that, or behind the eye, are not drawn
_WIDEST = 8.0  # pixels: the largest radius of a disc
_GAP = 0.03  # a step in depth is one by more than this share
_CONTRAST = 25.0  # of the shading, in 1 / log2 of depth
_DARKEST = 0.35  # share of a colour that shading leaves


def render_points(
    positions: NDArray[np.floating[Any]],
    colours: NDArray[Any],
    *,
    eye: Sequence[float] | NDArray[np.floating[Any]],
    target: Sequence[float] | NDArray[np.floating[Any]],
    up: Sequence[float] | NDArray[np.floating[Any]] = (0.0, 0.0, 1.0),
    height: int = 480,
    width: int = 640,
    field_of_view: float = 50.0,
    radius: float = 1.5,
    keep: NDArray[np.bool_] | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    shading: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw a point cloud in perspective, each point a disc, the nearer over the farther.

    A pixel that is empty or far behind while most of those around it are not takes their mean, so that one
    does not look through the gaps of a surface. A pixel is darkened by how much nearer those around it are,
    which gives edges an outline (eye-dome lighting); the points need no normals for it.

    Args:
        positions: (N, 3), in any unit.
        colours: (N, 3) on the scale 0 to 255, uint8 or floating.
        eye: (3,) where the camera stands.
        target: (3,) what it looks at: the middle of the picture.
        up: (3,) what is up in the picture; need not be at a right angle to the view.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        field_of_view: From the lower to the upper border, in degrees.
        radius: Of a disc in pixels, at the distance of the target; nearer ones are larger, up to 8 pixels.
        keep: (N,) which points to draw, to cut away a ceiling or the nearest wall; all if not given.
        background: RGB, 0 to 255, where there is no point.
        shading: Strength of the darkening at edges; 0 for none.

    Returns:
        (height, width, 3) uint8. The same on every call; of two points at the same depth, the first shows.

    Raises:
        ValueError: If shapes do not match, a position or colour is not finite, a number is out of its range,
            or the view has no direction, or runs along `up`.

    Cost: a few passes over the points for every pixel of a disc.

    Reference: Boucheny, Interactive scientific visualization of large datasets, 2009, for the shading; here
    at a single scale.
    """
    _check_cloud(positions, colours, keep)
    for name, number in (("height", height), ("width", width)):
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}")
    if not 0 < field_of_view < 180:
        raise ValueError(f"`field_of_view` must lie between 0 and 180 degrees, got {field_of_view}")
    if not 0 < radius < np.inf:
        raise ValueError(f"`radius` must be positive and finite, got {radius}")
    if not 0 <= shading < np.inf:
        raise ValueError(f"`shading` must be at least 0 and finite, got {shading}")
    if np.shape(background) != (3,) or not all(0 <= part <= 255 for part in background):
        raise ValueError(f"`background` must be three numbers from 0 to 255, got {background}")
    axes, distance = _camera(eye, target, up)  # rows: right, down, forward

    if keep is not None:
        positions, colours = positions[keep], colours[keep]
    focal = height / (2 * np.tan(np.radians(field_of_view) / 2))
    place = (positions - np.asarray(eye, dtype=np.float64)) @ axes.T
    seen = place[:, 2] > _NEAREST * distance
    place, colours = place[seen], colours[seen]
    depth = place[:, 2]
    column = np.floor(focal * place[:, 0] / depth + width / 2)
    row = np.floor(focal * place[:, 1] / depth + height / 2)
    near = (np.abs(column - width / 2) < width / 2 + _WIDEST) & (
        np.abs(row - height / 2) < height / 2 + _WIDEST
    )
    nearest, depth_of = _splat(
        row[near].astype(np.int64),
        column[near].astype(np.int64),
        depth[near],
        np.clip(radius * distance / depth[near], 0.5, _WIDEST),
        focal,
        (height, width),
    )
    picture = np.empty((height, width, 3))
    picture[:] = background
    drawn = nearest >= 0
    picture[drawn] = colours[near][nearest[drawn]]
    _fill_holes(picture, depth_of)
    if shading:
        picture *= _edge_shade(depth_of, shading)[:, :, None]
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def _check_cloud(positions: NDArray[Any], colours: NDArray[Any], keep: NDArray[np.bool_] | None) -> None:
    if positions.ndim != 2 or positions.shape[1] != 3 or colours.shape != positions.shape:
        raise ValueError(
            f"`positions` and `colours` must both have shape (N, 3), got {positions.shape} and "
            f"{colours.shape}"
        )
    if keep is not None and (keep.dtype != np.bool_ or keep.shape != positions.shape[:1]):
        raise ValueError(
            f"`keep` must be boolean with shape ({len(positions)},), one entry a point, got {keep.dtype} "
            f"with shape {keep.shape}"
        )
    for name, array in (("positions", positions), ("colours", colours)):
        if not np.isfinite(array).all():
            point = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
            raise ValueError(
                f"`{name}` must be finite, but point {point} is {array[point]}; drop such points"
            )


def _camera(eye: Any, target: Any, up: Any) -> tuple[NDArray[np.float64], float]:
    """Return the camera's axes as rows, right, down and forward, and how far it is to the target."""
    vectors = {}
    for name, vector in (("eye", eye), ("target", target), ("up", up)):
        vectors[name] = np.asarray(vector, dtype=np.float64)
        if vectors[name].shape != (3,) or not np.isfinite(vectors[name]).all():
            raise ValueError(f"`{name}` must be three finite numbers, got {vector}")
    view = vectors["target"] - vectors["eye"]
    distance = float(np.linalg.norm(view))
    if distance == 0:
        raise ValueError(f"`eye` and `target` must differ, got {eye} for both")
    right = np.cross(view / distance, vectors["up"])
    length = float(np.linalg.norm(right))
    if length <= 1e-9 * np.linalg.norm(vectors["up"]):
        raise ValueError(f"`up` must not be zero or run along the view from `eye` to `target`, got {up}")
    forward, right = view / distance, right / length
    return np.stack([right, np.cross(forward, right), forward]), distance


def _splat(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    depth: NDArray[np.float64],
    radius: NDArray[np.float64],
    focal: float,
    shape: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which point each pixel shows, -1 for none, and how deep it lies there, infinite for none.

    A disc is a paraboloid, as deep at its rim as it is wide: where discs overlap, each pixel shows the point
    whose middle it is nearest to.
    """
    height, width = shape
    # The bits of positive floats sort as the floats do: depth and point in one number, so that its least
    # finds the nearest point.
    empty = np.uint64(2**64 - 1)
    buffer = np.full(height * width, empty, dtype=np.uint64)
    order = np.argsort(-radius, kind="stable")
    row, column, depth, radius = row[order], column[order], depth[order], radius[order]
    reach = int(radius[0]) if len(radius) else 0
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            square = down * down + across * across
            count = int(np.searchsorted(-radius, -np.sqrt(square), side="right"))
            to_row, to_column = row[:count] + down, column[:count] + across
            inside = (to_row >= 0) & (to_row < height) & (to_column >= 0) & (to_column < width)
            at = depth[:count] * (1 + square / (radius[:count] * focal))
            bits = at[inside].astype(np.float32).view(np.uint32).astype(np.uint64)
            key = (bits << np.uint64(32)) | order[:count][inside].astype(np.uint64)
            np.minimum.at(buffer, to_row[inside] * width + to_column[inside], key)
    buffer = buffer.reshape(shape)
    hit = buffer != empty
    point = np.where(hit, (buffer & np.uint64(2**32 - 1)).astype(np.int64), -1)
    bits = (buffer >> np.uint64(32)).astype(np.uint32)
    return point, np.where(hit, bits.view(np.float32), np.inf).astype(np.float64)


def _around(array: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield the array as each of a pixel's eight neighbours sees it; the border sees itself."""
    padded = np.pad(array, [(1, 1), (1, 1)] + [(0, 0)] * (array.ndim - 2), mode="edge")
    height, width = array.shape[:2]
    for down in range(3):
        for across in range(3):
            if (down, across) != (1, 1):
                yield padded[down : down + height, across : across + width]


def _fill_holes(picture: NDArray[np.float64], depth: NDArray[np.float64]) -> None:
    """Give each pixel that six or more of its neighbours lie in front of their mean, in place."""
    limit = depth * (1 - _GAP)
    count = np.zeros(depth.shape)
    for other in _around(depth):
        count += other < limit
    row, column = np.nonzero(count >= 6)
    total, deep = np.zeros((len(row), 3)), np.zeros(len(row))
    for colour, other in zip(_around(picture), _around(depth), strict=True):
        front = other[row, column] < limit[row, column]
        total[front] += colour[row, column][front]
        deep[front] += other[row, column][front]
    picture[row, column] = total / count[row, column][:, None]
    depth[row, column] = deep / count[row, column]


def _edge_shade(depth: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Return the share of its colour that each pixel keeps: less where its neighbours are nearer."""
    drawn = np.isfinite(depth)
    log = np.log2(depth, out=np.full(depth.shape, np.inf), where=drawn)
    nearer = np.zeros(depth.shape)
    for other in _around(log):
        step = np.subtract(log, other, out=np.zeros(depth.shape), where=drawn & np.isfinite(other))
        nearer += np.clip(step, 0, 0.1)
    return np.maximum(np.exp(-strength * _CONTRAST * nearer / 8), _DARKEST)
