"""Pixel-adaptive convolution, transposed convolution and pooling, given the adapting kernel.

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hdcrf.pac.window import Window, per_axis
from hdcrf.pac.window_products import products
from voxel.checks import check_count, check_floating, check_same_kind
from voxel.precision import full_precision

__all__ = ["pac_conv2d", "pac_conv3d", "pac_conv_transpose2d", "pac_pool2d", "window_of_transposed"]

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
            at the middle tap k // 2.
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
    return _transposed(2, values, kernel, weight, bias, stride, padding, output_padding, groups, dilation)


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
) -> Tensor:
    taps = _checked_arguments(axes, values, kernel, weight)
    window = Window.over(values.shape[2:], taps, stride, padding, dilation)
    _check_kernel(kernel, values, window, window.outputs)
    check_count("groups", groups, 1)
    if weight is None:
        _check_bias(bias, values.shape[1], values)
        matrix, groups = values.new_empty(0), 1
    else:
        _check_weight(weight, values.shape[1], groups, transposed=False)
        _check_bias(bias, weight.shape[0], values)
        matrix = weight.flatten(2)
    result = products(values, kernel.flatten(1, axes), matrix, None, window, groups)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


@full_precision
def _transposed(
    axes: int,
    values: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
) -> Tensor:
    taps = _checked_arguments(axes, values, kernel, weight)
    window = window_of_transposed(values.shape[2:], taps, stride, padding, output_padding, dilation)
    _check_kernel(kernel, values, window, tuple(values.shape[2:]))
    check_count("groups", groups, 1)
    if weight is None:
        _check_bias(bias, values.shape[1], values)
        matrix, groups = values.new_empty(0), 1
    else:
        _check_weight(weight, values.shape[1], groups, transposed=True)
        _check_bias(bias, weight.shape[1] * groups, values)
        matrix = weight.flatten(2)
    result = products(None, kernel.flatten(1, axes), matrix, values, window, groups)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


def window_of_transposed(
    places: Sequence[int],
    taps: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Window:
    """Return the window over the output of a transposed convolution of so many places."""
    axes = len(places)
    steps, pads = per_axis("stride", stride, axes, 1), per_axis("padding", padding, axes, 0)
    spread = per_axis("dilation", dilation, axes, 1)
    more = per_axis("output_padding", output_padding, axes, 0)
    for extra, s, d in zip(more, steps, spread, strict=True):
        if extra >= max(s, d):
            raise ValueError(
                f"`output_padding` must be less than the stride or the dilation, {s} and {d}, got {extra}"
            )
    sizes = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1 + extra
        for size, s, p, d, k, extra in zip(places, steps, pads, spread, taps, more, strict=True)
    ]
    if min(sizes) < 1:
        raise ValueError(
            f"`padding` of {padding} leaves nothing of the output: its size would be {tuple(sizes)}; lower it"
        )
    return Window.over(sizes, taps, steps, pads, spread, outputs=places)


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


def _check_kernel(kernel: Tensor, values: Tensor, window: Window, places: tuple[int, ...]) -> None:
    expected = (len(values), *window.kernel_size, *places)
    if tuple(kernel.shape) != expected:
        raise ValueError(
            f"`kernel` must have shape (B, *k, *O) = {expected}, got {tuple(kernel.shape)}; compute it with "
            "the same stride, padding and dilation"
        )


def _check_weight(weight: Tensor, channels: int, groups: int, transposed: bool) -> None:
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
