"""Sparse convolution in any dimension: y[v] = Σ_o W_oᵀ x[s v + o] over the stored voxels, and its transpose.

At stride s = 1 the output lives on the voxels of the input (a submanifold convolution); at a larger one on
the coarser voxels floor(x / s). Absent voxels count as zero.

Reference: Graham, Engelcke, van der Maaten, 3D Semantic Segmentation with Submanifold Sparse
Convolutional Networks, CVPR 2018; Choy, Gwak, Savarese, 4D Spatio-Temporal ConvNets, CVPR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from voxel.checks import check_count, check_flag, check_same_kind
from voxel.neighbours import kernel_offsets
from voxel.precision import full_precision
from voxel.sparse_tensor import SparseTensor, check_sparse_tensor
from voxel.taps import sum_over_taps
from voxel.voxel_set import LARGEST_STRIDE

__all__ = ["SparseConv", "SparseConvTranspose"]


class _Convolution(nn.Module):
    """The weights of a convolution, and the sum over its taps."""

    offsets: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dimension: int,
        stride: int,
        shape: str,
        dilation: int,
        bias: bool,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels, 1)
        check_count("out_channels", out_channels, 1)
        self.register_buffer("offsets", kernel_offsets(kernel_size, dimension, shape, dilation), False)
        self.in_channels, self.out_channels, self.dimension = in_channels, out_channels, dimension
        self.kernel_size, self.shape, self.dilation, self.stride = kernel_size, shape, dilation, stride
        self.weight = nn.Parameter(torch.empty(len(self.offsets), in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if check_flag("bias", bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly within ±1/√(taps · in_channels), as PyTorch's convolutions do."""
        bound = 1 / math.sqrt(self.weight.shape[0] * self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _check(self, tensor: object) -> SparseTensor:
        checked = check_sparse_tensor("tensor", tensor)
        if checked.dimension != self.dimension:
            raise ValueError(f"the input must have dimension {self.dimension}, got {checked.dimension}")
        if checked.features.shape[1] != self.in_channels:
            raise ValueError(
                f"the input must have {self.in_channels} channels, got {checked.features.shape[1]}"
            )
        check_same_kind("features", checked.features, "weight", self.weight)
        return checked

    def _sum(self, features: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> Tensor:
        """Return bias + Σ_o W_oᵀ features[input] at the (input, output) pairs of each tap o: (rows, out)."""
        output = sum_over_taps(features, self.weight, pairs, rows)
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Describe the convolution in `repr`."""
        return (
            f"{self.in_channels}, {self.out_channels}, taps={len(self.offsets)}, dimension={self.dimension}, "
            f"stride={self.stride}"
        )


class SparseConv(_Convolution):
    """Learned sparse convolution, submanifold or strided.

    The output voxel v meets the input voxels x = stride · v + offset. At stride 1 the output voxels are those
    of the input. At a larger stride they are the distinct floor(x / stride) of the input voxels x, those
    below zero too; kernel_size = stride then makes each the sum over the voxels that it covers.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Extent k of the kernel along each axis. Odd: the offsets along an axis are
            -(k - 1) / 2 … (k - 1) / 2 times the dilation. Even, at a stride above 1 only: 0 … k - 1 times it.
        dimension: D, the number of spatial dimensions, 1 or more.
        stride: s, how many times coarser the output is along each axis.
        shape: "cube", k^D taps, or "cross", the D (k - 1) + 1 taps along the axes.
        dilation: Spacing of the taps.
        bias: Whether to add a learned constant to each channel.

    Attributes:
        offsets: (O, D) the taps' offsets; a cube's are in the order of `torch.nn.Conv3d`'s weights.
        weight: (O, in_channels, out_channels).
        bias: (out_channels,), or None.

    Maps a SparseTensor with (V, in_channels) features to one with (V', out_channels). The voxels of the
    output and the pairs of each tap are found once for all tensors that share the input's voxels.
    Under `torch.autocast` too it computes in the dtype of the features, and returns it.
    Differentiable in the features, the weight and the bias. Deterministic.
    Cost: O(pairs · in · out); autograd keeps the features and the pairs, which the voxels hold anyway.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dimension: int,
        stride: int = 1,
        shape: str = "cube",
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        check_count("stride", stride, 1, LARGEST_STRIDE)
        if stride == 1 and check_count("kernel_size", kernel_size, 1) % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be odd at stride 1, so that the kernel has a centre, got {kernel_size}"
            )
        super().__init__(in_channels, out_channels, kernel_size, dimension, stride, shape, dilation, bias)

    @full_precision
    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Convolve `tensor`."""
        features = self._check(tensor).features
        pairs = tensor.voxels.kernel_map(self.kernel_size, self.shape, self.dilation, self.stride)
        coarse = tensor.voxels.coarser(self.stride)
        return SparseTensor.from_voxels(coarse, self._sum(features, pairs, len(coarse)))


class SparseConvTranspose(_Convolution):
    """Learned transposed sparse convolution: from coarse voxels back onto given finer ones.

    The adjoint of the strided `SparseConv` of the same kernel: the output voxel x meets the input voxels v
    with x = stride · v + offset. With the weights of that convolution, `conv.weight.transpose(1, 2)`, and no
    bias, it is the exact transpose. An output voxel that no tap reaches holds the bias alone.

    Args:
        in_channels: Channels of the input, the coarse tensor.
        out_channels: Channels of the output.
        kernel_size: Extent k of the kernel along each axis, with the offsets of `SparseConv`.
        dimension: D, the number of spatial dimensions, 1 or more.
        stride: s, 2 or more, how many times finer the output is along each axis.
        shape: "cube", k^D taps, or "cross", the D (k - 1) + 1 taps along the axes.
        dilation: Spacing of the taps.
        bias: Whether to add a learned constant to each channel.

    Attributes:
        offsets: (O, D) the taps' offsets.
        weight: (O, in_channels, out_channels).
        bias: (out_channels,), or None.

    Precision, differentiability, determinism and cost are those of `SparseConv`, with which it shares the
    pairs of each tap.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dimension: int,
        stride: int,
        shape: str = "cube",
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        check_count("stride", stride, 2, LARGEST_STRIDE)
        super().__init__(in_channels, out_channels, kernel_size, dimension, stride, shape, dilation, bias)

    @full_precision
    def forward(self, tensor: SparseTensor, target: SparseTensor) -> SparseTensor:
        """Convolve `tensor` onto the voxels of `target`.

        Args:
            tensor: The coarse tensor, on the voxels floor(x / stride) of the target's x, in any order.
            target: The tensor that was downsampled, or any other on its voxels; its features are not used.
        """
        features = self._check(tensor).features
        check_sparse_tensor("target", target)
        if target.dimension != self.dimension:
            raise ValueError(f"`target` must have dimension {self.dimension}, got {target.dimension}")
        if target.coordinates.device != tensor.coordinates.device:
            raise ValueError(
                f"`target` must be on the device of `tensor`, {tensor.coordinates.device}, "
                f"got {target.coordinates.device}"
            )
        coarse = target.voxels.coarser(self.stride)
        if tensor.voxels is not coarse:
            rows = tensor.index.lookup(coarse.coordinates)
            if len(rows) != len(tensor) or bool((rows < 0).any()):
                raise ValueError(
                    f"`tensor` must lie on the voxels floor(x / {self.stride}) of `target`, "
                    f"{len(coarse)} of them; got {len(tensor)}, of which {int((rows >= 0).sum())} are among "
                    "them; pass as target the tensor that was downsampled with this stride"
                )
            features = features.index_select(0, rows)
        pairs = target.voxels.kernel_map(self.kernel_size, self.shape, self.dilation, self.stride)
        upwards = [(coarse_row, fine_row) for fine_row, coarse_row in pairs]
        return target.replace(self._sum(features, upwards, len(target)))
