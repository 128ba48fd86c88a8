"""Pixel-adaptive convolution, transposed convolution and pooling, given the adapting kernel.

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hdcrf.pac.window import Window
from hdcrf.pac.window_products import products
from voxel.checks import check_count, check_floating, check_same_kind
from voxel.precision import full_precision

__all__ = ["pac_conv2d", "pac_conv3d", "pac_conv_transpose2d", "pac_pool2d"]

_SIZES = {2: "H, W", 3: "D, H, W"}


def pac_conv2d(
    values: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve values with weights that an adapting kernel multiplies at each place: equation 3.

        v'_j = Σ_t K_t(j) W_t v_{s·j - p + δ·t} + b

    Args:
        values: v, (B, C, H, W) float32 or float64.
        kernel: K, (B, kH, kW, H', W'), from `adapting_kernel` with the same stride, padding and dilation.
        weight: W, (C', C / groups, kH, kW); None for every channel by itself with weights of 1, which is
            much cheaper. Weights shared by channels go into the kernel: K·w.
        bias: b, (C',), or None.
        stride: s, one number or one for each axis, as in `torch.nn.functional.conv2d`; so the others.
        padding: p, on both sides, of zeros.
        dilation: δ, between taps.
        groups: The channels are cut into so many groups, each convolved with weights of its own.

    Returns:
        v', (B, C', H', W').

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not match.

    Differentiable any number of times in values, kernel, weight and bias. Nothing as large as the k² values
    under all windows is held, forward or backward: autograd keeps the arguments alone.

    Reference: Su et al. 2019, equation 3.
    """
    return _convolution(2, values, kernel, weight, bias, stride, padding, dilation, groups)


def pac_conv3d(
    values: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Do what `pac_conv2d` does for volumes and videos.

    Args:
        values: (B, C, D, H, W).
        kernel: (B, kD, kH, kW, D', H', W').
        weight: (C', C / groups, kD, kH, kW), or None.
        bias: (C',), or None.
        stride: As in `torch.nn.functional.conv3d`; so the others.
        padding: On both sides.
        dilation: Between taps.
        groups: Of channels.

    Returns:
        (B, C', D', H', W').

    Raises:
        TypeError, ValueError: As `pac_conv2d`.
    """
    return _convolution(3, values, kernel, weight, bias, stride, padding, dilation, groups)


def pac_conv_transpose2d(
    values: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Spread values with weights that an adapting kernel multiplies: the transpose of `pac_conv2d`.

        v'_i = Σ_{s·j - p + δ·t = i} K_t(j) W_tᵀ v_j + b

    Args:
        values: v, (B, C, H, W) float32 or float64.
        kernel: K, (B, kH, kW, H, W), from `adapting_kernel` of a guide at the size of the output, with the
            same stride, padding and dilation: it compares each output pixel with the one that v_j lies at,
            at the middle tap k // 2. `places=(H, W)` says how many values there are.
        weight: W, (C, C' / groups, kH, kW); None for every channel by itself with weights of 1.
        bias: b, (C',), or None.
        stride: s, as in `torch.nn.functional.conv_transpose2d`; so the others.
        padding: p.
        output_padding: Rows and columns added at the far sides, fewer than the stride or the dilation.
        groups: Of channels.
        dilation: δ.

    Returns:
        v', (B, C', H', W') with H' = (H - 1)·s - 2p + δ·(kH - 1) + 1 + output_padding, and W' likewise.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not match.

    Gradients and memory as `pac_conv2d`. No zeros are inserted and multiplied, as they are where a
    transposed convolution is computed as a convolution.

    Reference: Su et al. 2019, section 3, "Implementation and variants".
    """
    return _convolution(2, values, kernel, weight, bias, stride, padding, dilation, groups, output_padding)


def pac_pool2d(
    values: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Average values with an adapting kernel: v'_j = Σ_t K_t(j) v_{s·j - p + δ·t}, each channel by itself.

    Args:
        values: v, (B, C, H, W) float32 or float64.
        kernel: K, (B, kH, kW, H', W'), from `adapting_kernel`: with `normalize=True` this is an average.
            Divided by kH·kW instead, K = 1 gives `torch.nn.functional.avg_pool2d`, which counts its padding.
        stride: s; None for the kernel's size, as in `torch.nn.functional.avg_pool2d`.
        padding: p.
        dilation: δ.

    Returns:
        v', (B, C, H', W').

    Raises:
        TypeError, ValueError: As `pac_conv2d`.
    """
    check_floating("kernel", kernel)
    if stride is None:
        stride = tuple(kernel.shape[1:3])
    return _convolution(2, values, kernel, None, None, stride, padding, dilation, 1)


@full_precision
def _convolution(
    axes: int,
    values: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    output_padding: int | Sequence[int] | None = None,
) -> Tensor:
    """Convolve, or transposed if there is an `output_padding`."""
    taps = _checked_arguments(axes, values, kernel, weight)
    sizes, transposed = values.shape[2:], output_padding is not None
    if transposed:
        window = Window.of_transposed(sizes, taps, stride, padding, output_padding, dilation)
    else:
        window = Window.over(sizes, taps, stride, padding, dilation)
    _check_kernel(kernel, values, window)
    check_count("groups", groups, 1)
    channels = values.shape[1]
    if weight is None:
        if groups != 1:
            raise ValueError(f"`groups` must be 1 where there is no `weight`, got {groups}")
        matrix = values.new_empty(0)
    else:
        _check_weight(weight, channels, groups, transposed)
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        matrix = weight.flatten(2)
    _check_bias(bias, channels, values)
    x, g = (None, values) if transposed else (values, None)
    result = products(x, kernel.flatten(1, axes), matrix, g, window, groups)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


def _checked_arguments(axes: int, values: Tensor, kernel: Tensor, weight: Tensor | None) -> tuple[int, ...]:
    """Check what can be told of each argument by itself, and return the taps along each axis."""
    check_floating("values", values)
    if values.dim() != axes + 2 or 0 in values.shape:
        raise ValueError(
            f"`values` must have shape (B, C, {_SIZES[axes]}), none of them 0, got {tuple(values.shape)}"
        )
    check_floating("kernel", kernel)
    check_same_kind("kernel", kernel, "values", values)
    if kernel.dim() != 2 * axes + 1:
        raise ValueError(
            f"`kernel` must have {2 * axes + 1} dimensions, (B, *k, *O), as `adapting_kernel` returns it, "
            f"got {tuple(kernel.shape)}"
        )
    taps = tuple(kernel.shape[1 : axes + 1])
    if weight is not None:
        check_floating("weight", weight)
        check_same_kind("weight", weight, "values", values)
        if weight.dim() != axes + 2 or tuple(weight.shape[2:]) != taps:
            raise ValueError(
                f"`weight` must have {axes + 2} dimensions, the last of them the taps {taps} of `kernel`, "
                f"got {tuple(weight.shape)}"
            )
    return taps


def _check_kernel(kernel: Tensor, values: Tensor, window: Window) -> None:
    expected = (len(values), *window.kernel_size, *window.outputs)
    if tuple(kernel.shape) != expected:
        raise ValueError(
            f"`kernel` must have shape (B, *k, *O) = {expected}, got {tuple(kernel.shape)}; compute it with "
            "the same stride, padding and dilation, and `places` for a transposed convolution"
        )


def _check_weight(weight: Tensor, channels: int, groups: int, transposed: bool) -> None:
    if 0 in weight.shape:
        raise ValueError(
            f"`weight` must not be empty, got shape {tuple(weight.shape)}; None is for no weights"
        )
    rows, columns = weight.shape[:2]
    got, other = (rows, channels) if transposed else (columns * groups, rows)
    if got != channels or other % groups:
        shape = "(C, C' / groups, *k)" if transposed else "(C', C / groups, *k)"
        raise ValueError(
            f"`weight` must have shape {shape} for {channels} channels of `values` in {groups} groups, got "
            f"{tuple(weight.shape)}"
        )


def _check_bias(bias: Tensor | None, channels: int, values: Tensor) -> None:
    if bias is None:
        return
    check_floating("bias", bias)
    check_same_kind("bias", bias, "values", values)
    if bias.shape != (channels,):
        raise ValueError(
            f"`bias` must have shape ({channels},), one entry a channel, got {tuple(bias.shape)}"
        )
