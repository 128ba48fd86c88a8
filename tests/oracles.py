"""Slow and plain: what the packages compute, written again from the definitions without their code."""

import itertools
import math

import torch


def cloud(points, dimension, *, seed=0, spread=1.0, dtype=torch.float64, device="cpu"):
    """Return (points, dimension) Gaussian random features."""
    generator = torch.Generator().manual_seed(seed)
    drawn = spread * torch.randn(points, dimension, generator=generator, dtype=torch.float64)
    return drawn.to(dtype).to(device)


def inside_cells(make, points, dimension, *, device="cpu", **options):
    """Return a cloud that stays in its lattice cells when gradcheck moves it.

    Each weight changes by at most about 2 for a move of 1, and gradcheck's is 1e-6.
    """
    for seed in range(1000):
        features = cloud(points, dimension, seed=seed, device=device)
        if make(features, **options).structure.cells.weights.min() > 1e-4:
            return features
    raise RuntimeError("no seed puts every point inside its cell")


def gaussian(features, others=None):
    """Return the dense matrix exp(-½‖f_i - g_j‖²)."""
    others = features if others is None else others
    return torch.exp(-0.5 * (features[:, None] - others[None]).square().sum(2))


def relative_error(result, expected):
    return float((result - expected).norm() / expected.norm())


# The two lattices: a point's corners, as pairs of coordinate and weight, and the axes.


def simplex_corners(feature, order):
    """Walk y + t·1 through ℤ^{d+1} for t in [0, 1): the floors on the way, projected, are the corners.

    Their weights are the lengths of t that they hold for: ∫ ⌊y_i + t⌋ dt = y_i.
    """
    d = len(feature)
    y = [0.0] * (d + 1)
    for i, value in enumerate(feature):
        for j in range(i + 1):
            y[j] += value / math.sqrt((i + 1) * (i + 2))
        y[i + 1] -= value * math.sqrt((i + 1) / (i + 2))
    y = [value * math.sqrt(order / 2 + 1 / 6) for value in y]
    times = sorted([0.0, 1.0] + [math.ceil(value) - value for value in y])
    corners = {}
    for start, end in itertools.pairwise(times):
        if end == start:
            continue
        z = [math.floor(value + (start + end) / 2) for value in y]
        corner = tuple((d + 1) * value - sum(z) for value in z)
        corners[corner] = corners.get(corner, 0.0) + end - start
    return corners


def simplex_axes(d):
    return [tuple(d if i == a else -1 for i in range(d + 1)) for a in range(d + 1)]


def simplex_constant(d, order):
    return (2 * math.pi * (order / 2 + 1 / 6)) ** (d / 2) * math.sqrt(d + 1)


def cube_corners(feature, order):
    scaled = [value * math.sqrt(order / 2 + 1 / 3) for value in feature]
    corners = {}
    for bits in itertools.product((0, 1), repeat=len(feature)):
        weight = 1.0
        for value, bit in zip(scaled, bits, strict=True):
            fraction = value - math.floor(value)
            weight *= fraction if bit else 1 - fraction
        corners[tuple(math.floor(value) + bit for value, bit in zip(scaled, bits, strict=True))] = weight
    return corners


def cube_axes(d):
    return [tuple(int(i == a) for i in range(d)) for a in range(d)]


def cube_constant(d, order):
    return (2 * math.pi * (order / 2 + 1 / 3)) ** (d / 2)


LATTICES = {
    "simplex": (simplex_corners, simplex_axes, simplex_constant),
    "cube": (cube_corners, cube_axes, cube_constant),
}


class DictionaryFilter:
    """Splat, blur and slice with one Python dictionary from coordinate to value."""

    def __init__(self, lattice, features, order=1, halo=0):
        self.corners, axes, constant = LATTICES[lattice]
        self.order = order
        self.axes = axes(features.shape[1])
        self.constant = constant(features.shape[1], order)
        self.points = [self.corners(feature, order) for feature in features.tolist()]
        self.vertices = grown({corner for point in self.points for corner in point}, self.axes, halo)

    def splat(self, values):
        lattice = {vertex: torch.zeros(values.shape[1], dtype=torch.float64) for vertex in self.vertices}
        for point, value in zip(self.points, values.double(), strict=True):
            for corner, weight in point.items():
                lattice[corner] = lattice[corner] + weight * value
        return lattice

    def blur(self, lattice):
        for axis in self.axes:
            for _ in range(self.order):
                lattice = blurred(lattice, axis)
        return lattice

    def slice(self, lattice, query=None):
        points = self.points if query is None else [self.corners(q, self.order) for q in query.tolist()]
        nothing = torch.zeros_like(next(iter(lattice.values())))
        rows = [sum(weight * lattice.get(corner, nothing) for corner, weight in p.items()) for p in points]
        return torch.stack(rows)

    def filter(self, values, query=None):
        return self.constant * self.slice(self.blur(self.splat(values)), query)


def moved(coordinate, step, times=1):
    return tuple(x + times * s for x, s in zip(coordinate, step, strict=True))


def blurred(lattice, axis):
    """Return ½ x[v] + ¼ x[v + δ] + ¼ x[v - δ] on the same vertices."""
    result = {}
    for vertex, value in lattice.items():
        total = 0.5 * value
        for side in (1, -1):
            neighbour = lattice.get(moved(vertex, axis, side))
            if neighbour is not None:
                total = total + 0.25 * neighbour
        result[vertex] = total
    return result


def grown(vertices, axes, rings):
    vertices = set(vertices)
    for _ in range(rings):
        vertices |= {moved(vertex, axis, side) for vertex in vertices for axis in axes for side in (1, -1)}
    return vertices


def blur_matrix(coordinates, step):
    """Return the dense B_a of (V, D) coordinates, entry by entry."""
    rows = {tuple(row): i for i, row in enumerate(coordinates.tolist())}
    matrix = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for row, i in rows.items():
        matrix[i, i] = 0.5
        for side in (1, -1):
            j = rows.get(moved(row, step, side))
            if j is not None:
                matrix[i, j] = 0.25
    return matrix


def brute_convolution(coordinates, features, offsets, weight, stride=1):
    """Return the distinct v = floor(x / s) of (V, 1 + D) coordinates, and Σ_o W_oᵀ x[s v + o] at each."""
    rows = {tuple(row): i for i, row in enumerate(coordinates.tolist())}
    result = {}
    for row in rows:
        voxel = (row[0], *[x // stride for x in row[1:]])
        result[voxel] = torch.zeros(weight.shape[2], dtype=features.dtype)
        corner = (row[0], *[stride * x for x in voxel[1:]])
        for offset, matrix in zip(offsets.tolist(), weight, strict=True):
            j = rows.get(moved(corner, (0, *offset)))
            if j is not None:
                result[voxel] += features[j] @ matrix
    return list(result), torch.stack(list(result.values()))


def solved(matrices, vectors):
    """Solve dense systems (B, n, n) for vectors (B, n), one after the other; differentiable.

    On two threads, PyTorch's solution of a batch of systems of some hundred unknowns was seen to be wrong.
    """
    return torch.stack([torch.linalg.solve(*system) for system in zip(matrices, vectors, strict=True)])
