"""Pixel-adaptive convolution as its authors' package computes it: with the pixels under each window unfolded.

What `hdcrf.pac` is compared with, in results, memory and time. Su et al. 2019, equation 3, a Gaussian kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def unfolded_kernel(
    guide: Tensor, kernel_size: Sequence[int], stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Return exp(-½ ‖f_j - f_i‖²) of all taps of all windows over a guide (B, d, H, W): (B, 1, taps, places).

    Windows have odd sizes, and their middle lies in the guide.
    """
    taps = kernel_size[0] * kernel_size[1]
    columns = functional.unfold(guide, kernel_size, dilation, padding, stride)
    columns = columns.view(len(guide), guide.shape[1], taps, -1)
    differences = columns - columns[:, :, taps // 2, None]
    return torch.exp(-0.5 * differences.square().sum(1, keepdim=True))


def unfolded_pac_conv2d(
    values: Tensor,
    guide: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Return the convolution (B, C', H', W') of values (B, C, H, W) with weights (C', C, kH, kW)."""
    batch, channels, height, width = values.shape
    kernel_size = weight.shape[2:]
    columns = functional.unfold(values, kernel_size, dilation, padding, stride)
    kernel = unfolded_kernel(guide, kernel_size, stride, padding, dilation)
    adapted = columns.view(batch, channels, kernel.shape[2], -1) * kernel
    result = weight.flatten(1) @ adapted.flatten(1, 2)
    if bias is not None:
        result = result + bias[:, None]
    sizes = (
        (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for size, k in zip((height, width), kernel_size, strict=True)
    )
    return result.unflatten(2, tuple(sizes))
