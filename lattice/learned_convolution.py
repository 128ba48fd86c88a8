"""Learned convolution on the permutohedral lattice: y[v] = Σ_o W_oᵀ x[v + o] over a neighbourhood.

Between a splat and a slice it is a filter of any shape in feature space, where the lattice's own blur is a
Gaussian: the bilateral convolution layer of Jampani et al.

Reference: Jampani, Kiefel, Gehler, Learning Sparse High Dimensional Filters: Image Filtering, Dense CRFs and
Bilateral Neural Networks, CVPR 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lattice.neighbourhood import (
    check_lattice,
    gaussian_taps,
    neighbourhood_lattice,
    neighbourhood_scale,
    tap_count,
    tap_pairs,
)
from lattice.permutohedral import PermutohedralLattice
from voxel.checks import check_choice, check_count, check_flag, check_floating, check_matrix, check_same_kind
from voxel.filter_operator import reciprocal_or_zero
from voxel.precision import full_precision
from voxel.taps import sum_over_taps

__all__ = ["BilateralConv", "PermutohedralConv", "convolve"]

_INITIAL = ("uniform", "gaussian", "zero")
_NORMALIZATIONS = ("none", "after")
_MOST_BYTES = 1 << 34


@full_precision
def convolve(
    lattice: PermutohedralLattice,
    vertex_values: Tensor,
    weight: Tensor,
    neighbourhood: int,
    *,
    groups: int = 1,
) -> Tensor:
    """Convolve values on the vertices: y[v] = Σ_o W_oᵀ x[v + o]. Vertices that are not stored count as zero.

    Args:
        lattice: The lattice of V vertices.
        vertex_values: x, (V, C_in), of the lattice's dtype and device.
        weight: W, (O, C_in / groups, C_out), one matrix for each of `neighbourhood_offsets`.
        neighbourhood: s.
        groups: How many groups the channels are cut into, as in `torch.nn.Conv2d`; C_in = C_out groups make a
            filter of each channel by itself.

    Returns:
        (V, C_out). Under `torch.autocast` too it computes in the dtype of the values, and returns it.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape or device.

    Differentiable in the values and the weights. Deterministic.
    Cost: O(pairs · C_in · C_out / groups); the pairs of vertices are found once for each lattice.
    """
    check_lattice("lattice", lattice)
    check_matrix("vertex_values", vertex_values, "(V, C_in)", rows=lattice.num_vertices)
    check_same_kind("vertex_values", vertex_values, "features", lattice.features)
    check_floating("weight", weight)
    check_same_kind("weight", weight, "vertex_values", vertex_values)
    check_count("groups", groups, 1)
    taps, channels = tap_count(lattice.dimension, neighbourhood), vertex_values.shape[1]
    if (
        weight.dim() != 3
        or weight.shape[0] != taps
        or weight.shape[1] * groups != channels
        or weight.shape[2] % groups
    ):
        raise ValueError(
            f"`weight` must have shape (O, C_in / groups, C_out) with O = {taps} taps, C_in = {channels} and "
            f"groups = {groups}, which divides C_in and C_out; got {tuple(weight.shape)}"
        )
    return sum_over_taps(vertex_values, weight, tap_pairs(lattice, neighbourhood), len(vertex_values), groups)


class PermutohedralConv(nn.Module):
    """Learned convolution over the vertices of a permutohedral lattice.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        dimension: d, of the lattice.
        neighbourhood: s, how many steps a tap goes along an axis at most: (s+1)^{d+1} - s^{d+1} taps, in five
            dimensions 63 for s = 1 and 665 for s = 2.
        groups: How many groups the channels are cut into, as in `torch.nn.Conv2d`.
        bias: Whether to add a learned constant to each channel.
        initial: "uniform", within ±1/√(taps · in_channels / groups) as PyTorch's convolutions do; "gaussian",
            each channel filtered by the lattice's own blur as far as the neighbourhood holds it, without
            bias; or "zero".

    Attributes:
        weight: (O, C_in / groups, C_out), in the order of `neighbourhood_offsets`.
        bias: (C_out,), or None.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, the groups do not divide the channels, "gaussian" is asked for
            with C_out other than C_in, or the weights would take more than 16 GiB.

    Maps (V, C_in) values of a lattice's vertices to (V, C_out). Under `torch.autocast` too it computes in the
    dtype of the values, and returns it. Differentiable in the values, the weight and the bias. Deterministic.
    Cost: O(pairs of vertices · C_in · C_out / groups).
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dimension: int,
        *,
        neighbourhood: int = 1,
        groups: int = 1,
        bias: bool = True,
        initial: str = "uniform",
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels, 1)
        check_count("out_channels", out_channels, 1)
        check_count("groups", groups, 1)
        check_choice("initial", initial, _INITIAL)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"`groups` must divide in_channels, {in_channels}, and out_channels, {out_channels}, "
                f"got {groups}"
            )
        if initial == "gaussian" and in_channels != out_channels:
            raise ValueError(
                "`initial='gaussian'` filters each channel by itself and needs as many out_channels "
                f"as in_channels, {in_channels}, got {out_channels}; use 'uniform' or 'zero'"
            )
        shape = (tap_count(dimension, neighbourhood), in_channels // groups, out_channels)
        size = math.prod(shape) * torch.get_default_dtype().itemsize
        if size > _MOST_BYTES:
            raise ValueError(
                f"`neighbourhood` {neighbourhood} in {dimension} dimensions has {shape[0]:,} taps, whose "
                f"weights would take {size / 2**30:,.1f} GiB, more than {_MOST_BYTES >> 30}; use fewer "
                "channels, more groups, a smaller neighbourhood or fewer dimensions"
            )
        self.in_channels, self.out_channels, self.dimension = in_channels, out_channels, dimension
        self.neighbourhood, self.groups, self.initial = neighbourhood, groups, initial
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if check_flag("bias", bias) else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set weight and bias as `initial` says."""
        bound = 0.0
        if self.initial == "uniform":
            bound = 1 / math.sqrt(self.weight.shape[0] * self.weight.shape[1])
        for parameter in self.parameters(recurse=False):
            parameter.uniform_(-bound, bound)
        if self.initial == "gaussian":
            taps, _variance = gaussian_taps(self.dimension, self.neighbourhood)
            inputs = self.weight.shape[1]
            outputs = torch.arange(self.out_channels, device=self.weight.device)
            self.weight[:, outputs % inputs, outputs] = taps.to(self.weight)[:, None]

    @full_precision
    def forward(self, lattice: PermutohedralLattice, vertex_values: Tensor) -> Tensor:
        """Convolve (V, C_in) values of the vertices of `lattice`: (V, C_out)."""
        check_matrix("vertex_values", vertex_values, "(V, C_in)")
        self._check("lattice", check_lattice("lattice", lattice).dimension, "vertex_values", vertex_values)
        result = self._convolve(lattice, vertex_values)
        return result if self.bias is None else result + self.bias

    def _check(self, name: str, dimension: int, values_name: str, values: Tensor) -> None:
        if dimension != self.dimension:
            raise ValueError(f"`{name}` must have dimension {self.dimension}, got {dimension}")
        if values.shape[1] != self.in_channels:
            raise ValueError(f"`{values_name}` must have {self.in_channels} channels, got {values.shape[1]}")
        check_same_kind(values_name, values, "weight", self.weight)

    def _convolve(self, lattice: PermutohedralLattice, vertex_values: Tensor) -> Tensor:
        return convolve(lattice, vertex_values, self.weight, self.neighbourhood, groups=self.groups)

    def extra_repr(self) -> str:
        """Describe the convolution in `repr`."""
        return (
            f"{self.in_channels}, {self.out_channels}, taps={len(self.weight)}, dimension={self.dimension}, "
            f"neighbourhood={self.neighbourhood}, groups={self.groups}"
        )


class BilateralConv(PermutohedralConv):
    """The bilateral convolution layer: a learned filter in feature space, between any two sets of points.

    Splat the values onto the lattice of `neighbourhood_lattice`, convolve, slice, and then add the bias:

        y = c · S T Sᵀ v + b                    ("none")
        y = (S T Sᵀ v) / (S G Sᵀ 1) + b         ("after"),

    where T holds the weights and G the Gaussian taps of the same neighbourhood. With the weights "gaussian",
    "none" is the calibrated sum of Gaussians, which grows with the number of points within reach, and "after"
    their weighted mean, which leaves a constant as it is. Weights of any other size scale the result alike.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        dimension: d, of the features.
        neighbourhood: s, as in PermutohedralConv.
        groups: As there.
        bias: As there; it is added at the points, so that they all get it in full.
        initial: As there.
        normalization: "none" or "after".

    Attributes and errors are those of PermutohedralConv.

    Maps (N, C_in) values at the points with (N, d) features, already divided by their standard deviations, to
    (N, C_out) at the same points or (M, C_out) at those of a query. Under `torch.autocast` too it computes in
    the dtype of the values, and returns it. Differentiable in values, features, query, weight and bias; in
    features and query as the lattice is. Deterministic on the CPU for a given number of threads.

    Cost: Building the lattice and finding its pairs of vertices in every call, and what PermutohedralConv
    costs. Where many calls share their features, build a lattice once and use that.

    Reference: Jampani, Kiefel, Gehler, CVPR 2016, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dimension: int,
        *,
        neighbourhood: int = 1,
        groups: int = 1,
        bias: bool = True,
        initial: str = "uniform",
        normalization: str = "after",
    ) -> None:
        self.normalization = check_choice("normalization", normalization, _NORMALIZATIONS)
        super().__init__(
            in_channels,
            out_channels,
            dimension,
            neighbourhood=neighbourhood,
            groups=groups,
            bias=bias,
            initial=initial,
        )

    @full_precision
    def forward(  # type: ignore[override]
        self,
        values: Tensor,
        features: Tensor,
        *,
        batch: Tensor | None = None,
        query: Tensor | None = None,
        query_batch: Tensor | None = None,
    ) -> Tensor:
        """Filter `values`.

        Args:
            values: (N, C_in), of the dtype and device of the weights.
            features: (N, d).
            batch: (N,) integers; points of different batches do not see each other. None: all are one.
            query: (M, d) features at which to read the result; None reads it at the N points.
            query_batch: (M,) batch index of each query; needed exactly if the points have one.

        Returns:
            (N, C_out), or (M, C_out) with a query. A query that no point reaches gets the bias alone.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If an argument has the wrong shape, device or content.
        """
        check_matrix("features", features, "(N, d)")
        check_matrix("values", values, "(N, C_in)", rows=features.shape[0])
        self._check("features", features.shape[1], "values", values)
        lattice, constant = neighbourhood_lattice(features, self.neighbourhood, batch=batch)
        if query is not None:
            check_matrix("query", query, "(M, d)")
            query = query * neighbourhood_scale(self.dimension, self.neighbourhood)
        vertex_values = self._convolve(lattice, lattice.splat(values))
        if self.normalization == "none":
            result = constant * lattice.slice(vertex_values, query, query_batch)
        else:
            both = torch.cat([vertex_values, self._gaussian_degree(lattice)], 1)
            sliced = lattice.slice(both, query, query_batch)
            result = sliced[:, :-1] * reciprocal_or_zero(sliced[:, -1:])
        return result if self.bias is None else result + self.bias

    def _gaussian_degree(self, lattice: PermutohedralLattice) -> Tensor:
        """Return G Sᵀ 1, (V, 1)."""
        taps, _variance = gaussian_taps(self.dimension, self.neighbourhood)
        weight = taps.to(self.weight)[:, None, None]
        ones = lattice.splat(self.weight.new_ones((lattice.num_points, 1)))
        return convolve(lattice, ones, weight, self.neighbourhood)

    def extra_repr(self) -> str:
        """Describe the layer in `repr`."""
        return f"{super().extra_repr()}, normalization={self.normalization!r}"
