"""Lifts: from the pixels of an image to points in feature space, in units of one standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from voxel.checks import check_finite, check_floating, check_positive, check_tensor
from voxel.memory import new_large

__all__ = ["batch_index", "bilateral_features"]

POSITION_AXES = 2
"""The features of an image begin with the position; the colour follows."""


def bilateral_features(guide: Tensor, sigma_xy: float | Tensor, sigma_rgb: float | Tensor) -> Tensor:
    """Lift the pixels of images into bilateral space: (x/σ_xy, y/σ_xy, colour/σ_rgb).

    With an RGB guide that is the 5D lift of Krähenbühl and Koltun, NeurIPS 2011, equation 3.

    Args:
        guide: (B, c, H, W) float32 or float64, any number of channels c.
        sigma_xy: Standard deviation of the position, in pixels.
        sigma_rgb: Standard deviation of the colour, in the guide's own units: for a guide from 0 to 255,
            13 is the usual choice; for one from 0 to 1, that is 13/255.

    Returns:
        (B·H·W, 2 + c), the pixels of the first image first, row by row.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If the guide has another shape, or a sigma is not positive or beyond the guide's dtype.

    Differentiable in the guide and in both sigmas.
    """
    check_floating("guide", guide)
    if guide.dim() != 4:
        raise ValueError(f"`guide` must have shape (B, c, H, W), got {tuple(guide.shape)}")
    _check_sigma("sigma_xy", sigma_xy, guide.dtype)
    _check_sigma("sigma_rgb", sigma_rgb, guide.dtype)
    batch, channels, height, width = guide.shape
    y = torch.arange(height, dtype=guide.dtype, device=guide.device) / sigma_xy
    x = torch.arange(width, dtype=guide.dtype, device=guide.device) / sigma_xy
    # One contiguous row a feature: the lattices compute along them.
    if torch.is_grad_enabled() and any(
        isinstance(part, Tensor) and part.requires_grad for part in (guide, sigma_xy, sigma_rgb)
    ):
        place = (1, batch, height, width)
        lifted = torch.cat([x.expand(place), y[:, None].expand(place), (guide / sigma_rgb).transpose(0, 1)])
    else:
        lifted = new_large(guide, (POSITION_AXES + channels, batch, height, width))
        lifted[0], lifted[1] = x, y[:, None]
        torch.div(guide.transpose(0, 1), sigma_rgb, out=lifted[POSITION_AXES:])
    return lifted.flatten(1).T


def _check_sigma(name: str, sigma: float | Tensor, dtype: torch.dtype) -> None:
    if isinstance(sigma, Tensor):
        check_finite(name, check_tensor(name, sigma))
        if sigma.shape not in ((), (1,)):
            raise ValueError(f"`{name}` must be a single number, got a tensor of shape {tuple(sigma.shape)}")
    number = check_positive(name, sigma.item() if isinstance(sigma, Tensor) else sigma)
    limits = torch.finfo(dtype)
    if not limits.tiny <= number <= limits.max:
        raise ValueError(
            f"`{name}` must lie between {limits.tiny:.3g} and {limits.max:.3g}, as {dtype} does, got {number}"
        )


def batch_index(batch: int, points: int, device: torch.device) -> Tensor | None:
    """Return the (batch·points,) batch index of equally large items, or None for a single one."""
    if batch == 1:
        return None
    return torch.arange(batch, device=device).repeat_interleave(points)
