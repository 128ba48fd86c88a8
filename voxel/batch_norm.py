"""Batch normalisation of sparse tensors: each channel over the stored voxels."""

from __future__ import annotations

from torch import nn

from voxel.checks import check_count, check_same_kind
from voxel.sparse_tensor import SparseTensor, check_sparse_tensor

__all__ = ["SparseBatchNorm"]


class SparseBatchNorm(nn.Module):
    """Batch normalisation of each channel over the stored voxels of the whole batch, absent ones aside.

    Training needs two voxels or more, since one has no variance: one alone is an error. A tensor without
    voxels passes through, in training too, and leaves the running statistics as they are.

    Args:
        channels: Channels of the input.
        eps: As in `torch.nn.BatchNorm1d`, as are the others.
        momentum: The weight of new statistics in the running ones; None averages all evenly.
        affine: Whether to learn a scale and a shift of each channel.
        track_running_stats: Whether to keep running statistics, which evaluation then uses.

    Attributes:
        norm: The `torch.nn.BatchNorm1d` that runs on the features.

    Under `torch.autocast` too it computes in the dtype of the features, and returns it.
    Differentiable in the features, the scale and the shift.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        check_count("channels", channels, 1)
        self.norm = nn.BatchNorm1d(channels, eps, momentum, affine, track_running_stats)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Normalise `tensor`."""
        features = check_sparse_tensor("tensor", tensor).features
        channels = self.norm.num_features
        if features.shape[1] != channels:
            raise ValueError(f"the input must have {channels} channels, got {features.shape[1]}")
        like = self.norm.weight if self.norm.affine else self.norm.running_mean
        if like is not None:
            check_same_kind("features", features, "norm", like)
        if len(tensor) == 0:
            return tensor
        if len(tensor) == 1 and (self.training or not self.norm.track_running_stats):
            raise ValueError(
                "`tensor` must have 2 voxels or more for their variance, got 1; use larger batches, "
                "or running statistics, as evaluation does with `track_running_stats=True`"
            )
        return tensor.map(self.norm)
