"""A small U-Net on sparse voxels, in four dimensions or any other."""

from __future__ import annotations

import torch
from torch import nn

from voxel import SparseBatchNorm, SparseConv, SparseConvTranspose, SparseTensor


class SparseUNet(nn.Module):
    """Two levels down by strided convolution, two levels up, with skip connections.

    Args:
        in_channels: Channels of the input.
        num_labels: K.
        width: Channels of the finest level; each coarser one has twice as many.
        dimension: D.
        shape: Of the kernels of 3 taps an axis: "cross" has 2 D + 1 taps, "cube" 3^D.

    Maps a SparseTensor with (V, in_channels) features to one with (V, K) logits on the same voxels.
    """

    def __init__(
        self, in_channels: int, num_labels: int, width: int = 16, dimension: int = 4, shape: str = "cross"
    ) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        same = {"dimension": dimension, "shape": shape, "bias": False}
        other = {"dimension": dimension, "stride": 2, "bias": False}
        self.enter = Layer(SparseConv(in_channels, fine, 3, **same))
        self.encode1 = Layer(SparseConv(fine, fine, 3, **same))
        self.down1 = Layer(SparseConv(fine, middle, 2, **other))
        self.encode2 = Layer(SparseConv(middle, middle, 3, **same))
        self.down2 = Layer(SparseConv(middle, coarse, 2, **other))
        self.bottom = Layer(SparseConv(coarse, coarse, 3, **same))
        self.up2 = Layer(SparseConvTranspose(coarse, middle, 2, **other))
        self.decode2 = Layer(SparseConv(2 * middle, middle, 3, **same))
        self.up1 = Layer(SparseConvTranspose(middle, fine, 2, **other))
        self.decode1 = Layer(SparseConv(2 * fine, fine, 3, **same))
        self.classify = nn.Linear(fine, num_labels)

    def forward(self, voxels: SparseTensor) -> SparseTensor:
        """Return the logits."""
        fine = self.encode1(self.enter(voxels))
        middle = self.encode2(self.down1(fine))
        coarse = self.bottom(self.down2(middle))
        middle = self.decode2(self.up2(coarse, middle).concatenate(middle))
        fine = self.decode1(self.up1(middle, fine).concatenate(fine))
        return fine.map(self.classify)


class Layer(nn.Module):
    """A convolution, batch normalisation and a ReLU."""

    def __init__(self, convolution: SparseConv | SparseConvTranspose) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, SparseBatchNorm(convolution.out_channels)

    def forward(self, *tensors: SparseTensor) -> SparseTensor:
        return self.norm(self.convolution(*tensors)).map(torch.relu)
