"""The pairwise kernels of a CRF, normalised and ready to be applied many times.

A kernel here is the matrix w · L K R of a weight w, a Gaussian K, and the diagonal matrices L and R of its
normalisation: L = R = 1 ("none"), R = D⁻¹ ("before"), L = D⁻¹ ("after"), L = R = D⁻½ ("symmetric").

It is applied in two steps, what all points together contribute (`gather`) and what some of them receive
(`receive`), so that mean field can go through a large image in strips that stay in the cache.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.smoothing import smooth
from voxel import FilterOperator, SparseMatrix, SplatBlurSlice
from voxel.backend import uses_native
from voxel.checks import check_choice, check_matrix, check_positive, check_same_kind
from voxel.filter_operator import NORMALIZATIONS

__all__ = ["FilterKernel", "LatticeKernel", "PairwiseKernel", "SmoothnessKernel", "pairwise_kernel"]


class PairwiseKernel(ABC):
    """A weighted, normalised kernel over P points.

    Attributes:
        grid: (points of one image, points of one row), if points can only be received row by row; else None.
    """

    grid: tuple[int, int] | None = None
    weight: float | Tensor

    @property
    @abstractmethod
    def num_points(self) -> int:
        """P."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the kernel's dtype, on its device."""

    def check(self, name: str, values: Tensor) -> None:
        """Raise unless `values` are (P, K), of the kernel's dtype and on its device."""
        check_matrix(name, values, "(P, K)", rows=self.num_points)
        check_same_kind(name, values, "kernels", self.like)

    @property
    def shape_is_fixed(self) -> bool:
        """Whether nothing but its weight is to be differentiated."""
        return False

    @property
    def requires_grad(self) -> bool:
        """Whether anything in it is to be differentiated."""
        return _tracked(self.weight) or not self.shape_is_fixed

    @abstractmethod
    def gather(self, values: Tensor) -> Tensor:
        """Return what `receive` needs of all (P, K) values."""

    @abstractmethod
    def receive(self, gathered: Tensor, points: slice, total: Tensor | None = None) -> Tensor:
        """Return the rows `points` of w · L K R v in a new tensor, or added to `total`, in place.

        Differentiable for all points together; some of them are for inference, under `torch.no_grad()`.
        """

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the (P,) diagonal of w · L K R."""

    def apply(self, values: Tensor) -> Tensor:
        """Return w · L K R v for (P, K) values.

        Raises:
            TypeError: If the values have another dtype than the kernel.
            ValueError: If they have another shape, or are on another device.
        """
        self.check("values", values)
        return self.receive(self.gather(values), slice(0, values.shape[0]))


def _normalizers(degree: Tensor | None, normalization: str) -> tuple[Tensor | None, Tensor | None]:
    """Return the diagonals of L and R, None standing for ones."""
    if degree is None or normalization == "none":
        return None, None
    if normalization == "symmetric":
        root = degree.rsqrt()
        return root, root
    return (degree.reciprocal(), None) if normalization == "after" else (None, degree.reciprocal())


def _tracked(part: float | Tensor | None) -> bool:
    return isinstance(part, Tensor) and part.requires_grad


def _require_inference() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("some of the points can only be received without gradient: use torch.no_grad()")


def _scaled(diagonal: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    for factor in (left, right):
        diagonal = diagonal if factor is None else diagonal * factor
    return diagonal


def pairwise_kernel(operator: FilterOperator, weight: float | Tensor, normalization: str) -> PairwiseKernel:
    """Make the pairwise kernel w · L K R of a Gaussian filter.

    Args:
        operator: K, over N points.
        weight: w, a number or a scalar tensor.
        normalization: "none", "before", "after" or "symmetric".

    Raises:
        ValueError: If the normalisation is none of these.
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    if isinstance(operator, SplatBlurSlice):
        return LatticeKernel(operator, weight, normalization)
    return FilterKernel(operator, weight, normalization)


class FilterKernel(PairwiseKernel):
    """The kernel of any Gaussian filter."""

    def __init__(self, operator: FilterOperator, weight: float | Tensor, normalization: str) -> None:
        self._operator, self.weight, self._normalization = operator, weight, normalization

    @property
    def num_points(self) -> int:
        """P."""
        return self._operator.num_points

    @property
    def like(self) -> Tensor:
        """The features."""
        return self._operator.features

    def gather(self, values: Tensor) -> Tensor:
        """Return the whole result."""
        return self.weight * self._operator.filter(values, normalization=self._normalization)

    def receive(self, gathered: Tensor, points: slice, total: Tensor | None = None) -> Tensor:
        """Return some of its rows."""
        return gathered[points].clone() if total is None else total.add_(gathered[points])

    def diagonal(self) -> Tensor:
        """Return the diagonal."""
        left, right = _normalizers(self._operator.degree(), self._normalization)
        return self.weight * _scaled(self._operator.diagonal(), left, right)


class LatticeKernel(PairwiseKernel):
    """The kernel of a sparse lattice, with L and R folded into the slicing and splatting matrices.

    So an application passes over the P points twice, to splat and to slice, and once over the vertices.
    """

    def __init__(self, operator: SplatBlurSlice, weight: float | Tensor, normalization: str) -> None:
        self.operator, self.weight = operator, weight
        degree = None if normalization == "none" else operator.degree()
        self.left, self.right = _normalizers(degree, normalization)
        self.native = operator.fused

    @property
    def num_points(self) -> int:
        """P."""
        return self.operator.num_points

    @property
    def like(self) -> Tensor:
        """The features."""
        return self.operator.features

    @cached_property
    def _splat(self) -> SparseMatrix:
        interpolation = self.operator.interpolation
        return interpolation if self.right is None else interpolation.scale_rows(self.right)

    @cached_property
    def _slice(self) -> SparseMatrix:
        if self.left is self.right:
            return self._splat
        interpolation = self.operator.interpolation
        return interpolation if self.left is None else interpolation.scale_rows(self.left)

    @property
    def shape_is_fixed(self) -> bool:
        """Whether nothing but its weight is to be differentiated."""
        return not any(map(_tracked, (self.operator.structure.cells.weights, self.left, self.right)))

    def gather(self, values: Tensor) -> Tensor:
        """Splat and blur: return the (V, K) values of the vertices; or the (P, K) result, by the kernels."""
        if self.native:
            return self._filter(values)
        vertex_values = self._splat.transposed_product(values)
        for blur in self.operator.blurs:
            vertex_values = blur.product(vertex_values)
        return vertex_values * (self.weight * self.operator.remainder)

    def _filter(self, values: Tensor) -> Tensor:
        """Return L K R v."""
        operator, left, right = self.operator, self.left, self.right
        if self.shape_is_fixed:
            return operator.scaled_filter(values, left, right, operator.constant)
        values = values if right is None else values * right[:, None]
        result = operator.scaled_filter(values, None, None, operator.constant)
        return result if left is None else result * left[:, None]

    def receive(self, gathered: Tensor, points: slice, total: Tensor | None = None) -> Tensor:
        """Slice at some of the points."""
        if self.native:
            result = gathered[points] * self.weight
        elif points == slice(0, self._slice.shape[0]):
            result = self._slice.product(gathered)
        else:
            _require_inference()
            result = self._slice.product_rows(gathered, points)
        return result if total is None else total.add_(result)

    def diagonal(self) -> Tensor:
        """Return the diagonal."""
        return _scaled(self.operator.diagonal(), self.left, self.right) * self.weight


class SmoothnessKernel(PairwiseKernel):
    """The Gaussian over the positions on a grid, of pixels or voxels, as a dense separable convolution.

    A grid is dense, so the sum over a window is exact up to its truncation and cheap.

    Args:
        shape: (B, H, W), or (B, *S) of any dimension; the P points are the grids' places, the last axis
            running fastest.
        sigma: Standard deviation in steps of the grid, a scalar tensor, so that it can be learned; or one
            for each axis of S.
        weight: w.
        normalization: "none", "before", "after" or "symmetric". D counts what lies inside the grid.
        truncate: The window reaches ⌈truncate · σ⌉ steps to each side.
        backend: "auto", compiled kernels where they can run; "reference", PyTorch; or "native", the kernels.

    Attributes:
        taps: The Gaussian's taps for each axis.
    """

    def __init__(
        self,
        shape: Sequence[int],
        sigma: Tensor | Sequence[Tensor],
        weight: float | Tensor,
        normalization: str,
        truncate: float = 3.0,
        backend: str = "auto",
    ) -> None:
        self.shape = tuple(shape)
        if len(self.shape) < 2:
            raise ValueError(f"`shape` must be (B, *S) with an axis at least, got {self.shape}")
        check_choice("normalization", normalization, NORMALIZATIONS)
        self.weight = weight
        sizes = self.shape[1:]
        sigmas = [sigma] * len(sizes) if isinstance(sigma, Tensor) else list(sigma)
        if len(sigmas) != len(sizes) or any(part.numel() != 1 for part in sigmas):
            raise ValueError(
                f"`sigma` must be one number, or {len(sizes)} for the axes {sizes}, got "
                f"{[tuple(part.shape) for part in sigmas]}"
            )
        for part in sigmas:
            check_positive("sigma", float(part.detach()))
        self.native = uses_native(backend, sigmas[0])
        self.taps = [_taps(*pair, truncate) for pair in zip(sigmas, sizes, strict=True)]
        if self.dimension == 2:
            self.grid = sizes[0] * sizes[1], sizes[1]
        self._scratch: Tensor | None = None
        # D is separable, so its power is too: each a tuple of factors along the axes, or of None for ones.
        reach = [_reach(*pair) for pair in zip(self.taps, sizes, strict=True)]
        factors = [_normalizers(part, normalization) for part in reach]
        self.left, self.right = zip(*factors, strict=True)

    @property
    def dimension(self) -> int:
        """Of the grid, without the batch."""
        return len(self.shape) - 1

    @property
    def num_points(self) -> int:
        """P."""
        return math.prod(self.shape)

    @property
    def like(self) -> Tensor:
        """The first taps."""
        return self.taps[0]

    @property
    def shape_is_fixed(self) -> bool:
        """Whether nothing but its weight is to be differentiated."""
        return not any(map(_tracked, self.taps))

    @cached_property
    def _left(self) -> Tensor | None:
        return self._everywhere(self.left)

    @cached_property
    def _right(self) -> Tensor | None:
        return self._everywhere(self.right)

    def _everywhere(self, factors: Sequence[Tensor | None]) -> Tensor | None:
        product: Tensor | None = None
        for factor in factors:
            if factor is None:
                return None
            product = factor if product is None else (product[:, None] * factor).flatten()
        return None if product is None else product.repeat(self.shape[0])

    def gather(self, values: Tensor) -> Tensor:
        """Return the values themselves; or the result but for w, by the kernel or beyond two dimensions."""
        if self.native and self.shape_is_fixed:
            return self._smoothed_natively(values)
        return values if self.dimension == 2 else self._smoothed(values)

    def _smoothed_natively(self, values: Tensor) -> Tensor:
        """Return L G R v by the kernel, over the last two axes and then over each before them."""
        *before, rows, columns = range(self.dimension) if self.dimension > 1 else (0, None)
        sizes, labels = self.shape[1:], values.shape[1]
        one = self.like.new_ones(1)

        def over(values: Tensor, shape: tuple[int, ...], down: int, along: int | None) -> Tensor:
            sides = [
                None if axis is None else side[axis]
                for side in (self.left, self.right)
                for axis in (down, along)
            ]
            taps = one if along is None else self.taps[along]
            smoothed: Tensor = smooth(values.reshape(*shape, labels), self.taps[down], taps, *sides)
            return smoothed

        if columns is None:
            return over(values, (self.shape[0], sizes[0], 1), rows, None).view_as(values)
        result = over(values, (-1, sizes[rows], sizes[columns]), rows, columns)
        for axis in before:
            result = over(result, (-1, sizes[axis], math.prod(sizes[axis + 1 :])), axis, None)
        return result.view_as(values)

    def _smoothed(self, values: Tensor) -> Tensor:
        """Return L G R v axis by axis."""
        result = values if self._right is None else values * self._right[:, None]
        for taps, size, axis in zip(self.taps, self.shape[1:], range(self.dimension), strict=True):
            after = math.prod(self.shape[axis + 2 :]) * values.shape[1]
            result = _along(result.reshape(-1, size, after), taps)
        result = result.reshape(values.shape)
        return result if self._left is None else result * self._left[:, None]

    def receive(self, gathered: Tensor, points: slice, total: Tensor | None = None) -> Tensor:
        """Convolve; `points` are all of them, or in two dimensions whole rows of one image."""
        if self.dimension != 2 or (self.native and self.shape_is_fixed):
            result = gathered[points] * self.weight
            return result if total is None else total.add_(result)
        batch, height, width = self.shape
        channels = gathered.shape[1]
        down, along = self.taps
        if points.stop - points.start == batch * height * width:
            values = gathered if self._right is None else gathered * self._right[:, None]
            images, above = values.view(batch, height, width, channels), len(down) // 2
        else:
            _require_inference()
            images, above = self._strip(gathered, points).view(1, -1, width, channels), 0
        vertical = down.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        horizontal = (along * self.weight).view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        # A view in channels-last order, in which depthwise convolutions run fastest.
        images = images.permute(0, 3, 1, 2)
        images = functional.conv2d(images, vertical, padding=(above, 0), groups=channels)
        images = functional.conv2d(images, horizontal, padding=(0, len(along) // 2), groups=channels)
        result = images.permute(0, 2, 3, 1).reshape(-1, channels)
        if total is None:
            return result if self._left is None else result * self._left[points, None]
        if self._left is None:
            return total.add_(result)
        return total.addcmul_(result, self._left[points, None])

    def _strip(self, values: Tensor, points: slice) -> Tensor:
        """Return R v at the rows of pixels of `points` and a radius around, zero outside the image."""
        _, height, width = self.shape
        radius = len(self.taps[0]) // 2
        image, first = divmod(points.start // width, height)
        last = first + (points.stop - points.start) // width
        low, high = max(0, first - radius), min(height, last + radius)
        needed = (last - first + 2 * radius) * width
        # In the same memory for each strip: to map fresh pages costs more than to fill them.
        scratch, channels = self._scratch, values.shape[1]
        if scratch is None or scratch.shape[0] < needed or scratch.shape[1] != channels:
            self._scratch = scratch = values.new_empty((needed, channels))
        strip = scratch[:needed]
        inside = slice((low - first + radius) * width, (high - first + radius) * width)
        strip[: inside.start].zero_()
        strip[inside.stop :].zero_()
        seen = slice((image * height + low) * width, (image * height + high) * width)
        if self._right is None:
            strip[inside] = values[seen]
        else:
            torch.mul(values[seen], self._right[seen, None], out=strip[inside])
        return strip

    def diagonal(self) -> Tensor:
        """Return the diagonal."""
        ones = self.like.new_ones(self.num_points)
        return _scaled(ones, self._left, self._right) * self.weight


def _taps(sigma: Tensor, length: int, truncate: float) -> Tensor:
    """Return the (2 radius + 1,) taps of a Gaussian along an axis of that length."""
    # A window wider than the axis sees no more of it.
    radius = min(math.ceil(truncate * float(sigma.detach())), length)
    steps = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    return torch.exp(-0.5 * (steps / sigma).square())


def _reach(taps: Tensor, length: int) -> Tensor:
    """Return the (length,) sums of the taps that fall inside, at each place of an axis."""
    return _along(taps.new_ones((1, length, 1)), taps)[0, :, 0]


def _along(values: Tensor, taps: Tensor) -> Tensor:
    """Convolve (…, length, …) values along their middle axis, zero outside.

    A sum of shifted copies: convolutions on a GPU may round to ten bits on the way.
    """
    radius, length = len(taps) // 2, values.shape[1]
    padded = functional.pad(values, (0, 0, radius, radius))
    shifted = (tap * padded.narrow(1, start, length) for start, tap in enumerate(taps.unbind()))
    return functools.reduce(torch.add, shifted)
