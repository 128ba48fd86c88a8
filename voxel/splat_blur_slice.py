"""The filter as a product of sparse matrices, K = c · S B_A … B_1 Sᵀ.

`S` (N × V) interpolates at the points from the vertices around them, `Sᵀ` splats the points onto the
vertices, and the B_a blur along the axes of the lattice. A choice of lattice is a choice of S, B and c;
everything else is here.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from voxel.backend import kernels, plain, uses_native
from voxel.blur import AxisBlur, axis_links, grow
from voxel.checks import check_matrix, check_same_kind
from voxel.coordinate_index import CoordinateIndex, unique_rows
from voxel.filter_operator import FilterOperator
from voxel.fused_filter import filter_into, fused_filter
from voxel.sparse_matrix import SparseMatrix

__all__ = ["Cells", "SplatBlurSlice"]

# Each round of blur may halve a value, where a vertex has no neighbours. Of a number near 1, halved so often,
# all digits still lie above the smallest normal number, below which the kernels see zero.
_MOST_HALVINGS = {torch.float32: 126 - 24, torch.float64: 1022 - 53}


@dataclass(frozen=True)
class Cells:
    """The M lattice cells (simplices or cubes) that points lie in.

    Attributes:
        cell: (N,) integers, the cell of each point.
        weights: (N, P) interpolation weights of each point's corners; they sum to 1.
        rank: (M, P) the rank of each coordinate, which tells the shape of a simplex; (M, 0) for cubes.
    """

    cell: Tensor
    weights: Tensor
    rank: Tensor


@dataclass(frozen=True)
class Structure:
    """The cells of the points, and the vertices that they touch.

    Attributes:
        cells: The cells.
        cell_vertices: (M, P) integers, the vertex at each corner of each cell.
        coordinates: (V, D) distinct integers, those of the vertices, batch first if any.
        links: (A, V, 2) int32, the vertices one step behind and one ahead along each axis, -1 for none.
    """

    cells: Cells
    cell_vertices: Tensor
    coordinates: Tensor
    links: Tensor


class SplatBlurSlice(FilterOperator):
    """The sparse-lattice filter; see `lattice.PermutohedralLattice` and `voxel.VoxelGrid`.

    Args:
        features: (N, d), already divided by their standard deviations.
        batch: (N,) batch index of each point, or None.
        axes: (A, D) the integer steps along which the lattice is blurred, batch column included.
        order: Rounds of blur along each axis.
        halo: Rings of neighbours added around the occupied vertices.
        constant: c, which makes K approximate the true sum.
        backend: "auto", "reference" or "native".

    Attributes:
        native: Whether the compiled kernels run.
        shares: The powers of two in c, one for each axis; their product times `remainder` is c.
        remainder: What else there is.
    """

    def __init__(
        self,
        features: Tensor,
        batch: Tensor | None,
        *,
        axes: Tensor,
        order: int,
        halo: int,
        constant: float,
        backend: str,
    ) -> None:
        super().__init__(features, batch)
        self.shares, self.remainder = _shared(constant, len(axes))
        if self.remainder > torch.finfo(features.dtype).max:
            raise ValueError(
                f"`features` has d = {features.shape[1]} dimensions, for which the constant that makes the "
                "filter approximate the sum is too large for a number; use fewer dimensions"
            )
        self.order, self.halo, self.constant = order, halo, constant
        self.native = uses_native(backend, features)
        self.structure = self._structure(axes)

    def _structure(self, axes: Tensor) -> Structure:
        cells, corners = self._cells("features", self.features, self.batch)
        occupied, vertex = unique_rows(corners.flatten(0, 1))
        coordinates = occupied
        if self.halo:
            coordinates = grow(occupied, axes, self.halo)
            vertex = CoordinateIndex(coordinates).lookup(occupied)[vertex]
        index = CoordinateIndex(coordinates)
        cell_vertices = vertex.reshape(corners.shape[:2]).T.contiguous()
        if self.native:  # what the kernels read
            cells = replace(cells, cell=cells.cell.to(torch.int32))
            cell_vertices = cell_vertices.to(torch.int32)
        links = [axis_links(index, axis) for axis in axes]
        empty = torch.empty((0, len(coordinates), 2), dtype=torch.int32, device=coordinates.device)
        return Structure(cells, cell_vertices, coordinates, torch.stack(links) if links else empty)

    @cached_property
    def index(self) -> CoordinateIndex:
        """The coordinates of the vertices, to look up those around a query."""
        return CoordinateIndex(self.structure.coordinates)

    @cached_property
    def interpolation(self) -> SparseMatrix:
        """S, (N, V)."""
        cells = self.structure.cells
        vertices = self.structure.cell_vertices.index_select(0, cells.cell)
        # It is kept: whoever asks first may need no gradient, and the next one may.
        with torch.inference_mode(False), torch.enable_grad():
            return SparseMatrix.from_rows(vertices, cells.weights, self.num_vertices, native=self.native)

    @cached_property
    def axis_blurs(self) -> Sequence[AxisBlur]:
        """The blur along each axis, as tables of taps."""
        return [AxisBlur.of(links, self.order, self.features.dtype) for links in self.structure.links]

    @property
    def scaled_axis_blurs(self) -> Sequence[AxisBlur]:
        """The same with its share of c in each, so that the product of many taps stays in range."""
        pairs = zip(self.axis_blurs, self.shares, strict=True)
        return [replace(blur, taps=blur.taps * share) for blur, share in pairs]

    @cached_property
    def blurs(self) -> Sequence[SparseMatrix]:
        """B_1 … B_A, each (V, V) and times its share of c."""
        return [axis_blur.matrix(native=self.native) for axis_blur in self.scaled_axis_blurs]

    @abstractmethod
    def _cells(self, name: str, features: Tensor, batch: Tensor | None) -> tuple[Cells, Tensor]:
        """Find the cell of each point and its interpolation weights; `name` is for messages.

        Returns:
            The cells, and the (P, M, D) integer coordinates of their P corners, batch first if any.
        """

    @property
    def num_vertices(self) -> int:
        """V, the number of lattice vertices stored."""
        return len(self.structure.coordinates)

    def splat(self, values: Tensor) -> Tensor:
        """Spread (N, C) values of the points onto the vertices: Sᵀ v, (V, C)."""
        check_matrix("values", values, "(N, C)", rows=self.num_points)
        check_same_kind("values", values, "features", self.features)
        return self.interpolation.transposed_product(values)

    def blur(self, vertex_values: Tensor) -> Tensor:
        """Blur (V, C) values of the vertices along every axis in turn: B_A … B_1 x, (V, C)."""
        self._check_vertex_values(vertex_values)
        return self._blur(vertex_values) * (self.remainder / self.constant)

    def slice(
        self, vertex_values: Tensor, query: Tensor | None = None, query_batch: Tensor | None = None
    ) -> Tensor:
        """Interpolate (V, C) values of the vertices at the points, S x: (N, C), or at `query`: (M, C).

        Corners that are not stored count as zero, so a query outside the occupied lattice gets zeros.
        """
        self._check_vertex_values(vertex_values)
        if query is None:
            self._refuse_batch_alone(query_batch)
            return self.interpolation.product(vertex_values)
        return self._target_matrix(self._checked_target(query, query_batch)).product(vertex_values)

    def _check_vertex_values(self, vertex_values: Tensor) -> None:
        check_matrix("vertex_values", vertex_values, "(V, C)", rows=self.num_vertices)
        check_same_kind("vertex_values", vertex_values, "features", self.features)

    def _blur(self, vertex_values: Tensor) -> Tensor:
        """Blur along every axis, each time with its share of c."""
        for blur in self.blurs:
            vertex_values = blur.product(vertex_values)
        return vertex_values

    def _apply(self, values: Tensor, target: object) -> Tensor:
        if target is None and self.fused:
            return self.scaled_filter(values, None, None, self.constant)
        matrix = self.interpolation if target is None else self._target_matrix(target)
        blurred = self._blur(self.interpolation.transposed_product(values))
        return matrix.product(blurred * self.remainder)

    def degree(self) -> Tensor:
        """Return the (N,) row sums D = K 1, the approximate number of points within reach of each.

        Raises:
            ValueError: If one is too small for the dtype: many rounds of blur lose much in the gaps between
                points, which in many dimensions are everywhere.
        """
        degree = super().degree()
        held = torch.finfo(degree.dtype)
        if bool((degree.detach() < held.tiny / held.eps).any()):
            advice = "use float64, or " if degree.dtype == torch.float32 else "use "
            raise ValueError(
                f"`features` of d = {self.dimension} dimensions with `order` {self.order} have sums below "
                f"the range of {degree.dtype}; {advice}a lower order, a halo or fewer dimensions"
            )
        return degree

    def symmetric_product(self, values: Tensor) -> Tensor:
        """Return W v = ½ c S (B_A … B_1 + B_1 … B_A) Sᵀ v: one splat, the blurs both ways, one slice."""
        if self.fused:
            return self._native_symmetric_product(values)
        splatted = self.interpolation.transposed_product(values)
        blurred = backward = self._blur(splatted)
        if len(self.blurs) > 1:  # each is symmetric, and so is one alone
            backward = splatted
            for blur in reversed(self.blurs):
                backward = blur.product(backward)
        return self.interpolation.product((blurred + backward) * (0.5 * self.remainder))

    def _native_symmetric_product(self, values: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            half = 0.5 * self.constant
            forward = self.scaled_filter(values, None, None, half)
            return forward + self.scaled_filter(values, None, None, half, adjoint=True)
        result = torch.empty_like(values, memory_format=torch.contiguous_format)
        if values.numel():
            parts, cells = self.structure, self.structure.cells
            lattice = (cells.cell, parts.cell_vertices, plain(cells.weights), parts.links)
            threads = torch.get_num_threads()
            kernels().symmetric_filter(plain(values), *lattice, self.order, self.constant, result, threads)
        return result

    @property
    def fused(self) -> bool:
        """Whether a compiled kernel does the whole filter in one.

        It does not where the blur is none along axes; nor where the axes are so many that values would fall
        out of range before c makes up for it, which the kernel applies last.
        """
        rounds = self.order * len(self.structure.links)
        return self.native and 0 < rounds <= _MOST_HALVINGS[self.features.dtype]

    def scaled_filter(
        self,
        values: Tensor,
        left: Tensor | None,
        right: Tensor | None,
        scale: float,
        *,
        adjoint: bool = False,
    ) -> Tensor:
        """Return scale · L S B Sᵀ R v by the compiled kernels, for (N,) diagonals L and R or None.

        With Bᵀ in place of B if `adjoint`.

        Differentiable in `values` and the features, not in the diagonals.
        """
        parts, cells = self.structure, self.structure.cells
        arguments = (values, cells.weights, cells.cell, parts.cell_vertices, parts.links, left, right)
        settings = (self.order, scale, adjoint)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            result: Tensor = fused_filter(*arguments, *settings)
            return result
        # What the operation does, without the cost of dispatching to it.
        return filter_into(
            torch.empty_like(values, memory_format=torch.contiguous_format), *arguments, *settings
        )

    def _target(self, query: Tensor, query_batch: Tensor | None) -> SparseMatrix:
        cells, corners = self._cells("query", query, query_batch)
        vertex = self.index.lookup(corners.flatten(0, 1)).reshape(corners.shape[:2]).T
        return SparseMatrix.from_rows(
            vertex.index_select(0, cells.cell), cells.weights, self.num_vertices, native=self.native
        )

    @staticmethod
    def _target_matrix(target: object) -> SparseMatrix:
        if not isinstance(target, SparseMatrix):
            raise TypeError(f"expected a sparse matrix of interpolation weights, got {type(target).__name__}")
        return target

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_points} points, {self.num_vertices} vertices, "
            f"d={self.dimension}, order={self.order}, halo={self.halo})"
        )


def _shared(constant: float, axes: int) -> tuple[list[float], float]:
    """Split a constant into powers of two for the axes, as even as can be, and what remains of it."""
    if not axes:
        return [], constant
    remainder, exponent = math.frexp(constant)
    ends = [exponent * axis // axes for axis in range(axes + 1)]
    return [2.0 ** (end - start) for start, end in itertools.pairwise(ends)], remainder


def power(base: float, exponent: float) -> float:
    """Return base^exponent, infinity where it overflows."""
    logarithm = exponent * math.log(base)
    return base**exponent if logarithm < 700 else math.inf


def with_batch(coordinates: Tensor, batch: Tensor | None) -> Tensor:
    """Put the batch index in front of (N, D) coordinates: (N, 1 + D), or as they are without a batch."""
    if batch is None:
        return coordinates
    return torch.cat([batch.to(coordinates.dtype)[:, None], coordinates], 1)


def axis_steps(steps: Tensor, batch: Tensor | None) -> Tensor:
    """Put a zero in front of (A, D) steps if coordinates start with a batch index."""
    return steps if batch is None else torch.nn.functional.pad(steps, (1, 0))
