"""The one form behind pixel-adaptive convolution, and its derivatives.

Over places j and taps t of a window, which meets the pixel i(j, t), with values x, kernel K, weights W and a
cotangent g of the outputs,

    F(x, K, W, g) = Σ_j Σ_t K_t(j) · g_jᵀ W_t x_{i(j,t)}

is linear in each. Its derivative with respect to g is pixel-adaptive convolution, Σ_t K_t(j) W_t x_{i(j,t)};
that with respect to x is the transposed one, Σ_{i(j,t)=i} K_t(j) W_tᵀ g_j; those with respect to K and W are
gradients. The derivative of any of the four is another of them with one argument exchanged: so one operation
does everything, any number of times. Without W, every channel is by itself: g_jᵀ x_{i(j,t)}.

K_t(j) x_{i(j,t)} for all taps, or W_tᵀ g_j, is k² times as large as x. A tile of it at a time, over a few
rows of places, is computed, used for all that is wanted, and forgotten. On a CPU compiled kernels do so, with
tiles that stay in its nearest caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.pac import window_kernels
from hdcrf.pac.window import Window
from voxel.backend import uses_native
from voxel.precision import full_precision

__all__ = ["products"]


def products(
    values: Tensor | None,
    kernel: Tensor | None,
    weight: Tensor | None,
    outputs: Tensor | None,
    window: Window,
    groups: int,
) -> Tensor:
    """Return the derivative of F with respect to the one argument that is missing.

    Args:
        values: x, (B, C, *S).
        kernel: K, (B, T, *O), T the number of taps.
        weight: W, (C', C / groups, T); or an empty tensor, for every channel by itself.
        outputs: g, (B, C', *O).
        window: Over S, with the places O.
        groups: As in `torch.nn.Conv2d`.

    Differentiable any number of times in all that is given. Autograd keeps the arguments alone.
    """
    given = (values, kernel, weight, outputs)
    wanted = [argument is None for argument in given]
    arguments = (*given, window.numbers(), groups, wanted)
    # Without autograd what is behind the operation is called directly: to dispatch takes time, too.
    direct = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    result: Tensor
    (result,) = (_window_products if direct else window_products)(*arguments)
    return result


@torch.library.custom_op("hdcrf::window_products", mutates_args=())
def window_products(
    values: Tensor | None,  # (B, C, *S)
    kernel: Tensor | None,  # (B, T, *O)
    weight: Tensor | None,  # (C', C / groups, T) or empty
    outputs: Tensor | None,  # (B, C', *O)
    window: Sequence[int],  # `Window.numbers`
    groups: int,
    wanted: Sequence[bool],  # the derivatives with respect to which of the four; the others must be given
) -> list[Tensor]:
    """Return the derivatives of F that are wanted, in order."""
    return _window_products(values, kernel, weight, outputs, window, groups, wanted)


# The kernels of an operation run with autocast as it stands outside: they must switch it off themselves.
@full_precision
def _window_products(
    values: Tensor | None,
    kernel: Tensor | None,
    weight: Tensor | None,
    outputs: Tensor | None,
    numbers: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> list[Tensor]:
    window = Window.of_numbers(numbers)
    given = (values, kernel, weight, outputs)
    shapes = _shapes(values, weight, outputs, window, groups)
    native = uses_native("auto", _like(values, outputs))
    compute = window_kernels.products if native else products_by_tiles
    return compute(given, shapes, wanted, window, groups)


def products_by_tiles(
    given: Sequence[Tensor | None],
    shapes: Sequence[tuple[int, ...]],
    wanted: Sequence[bool],
    window: Window,
    groups: int,
) -> list[Tensor]:
    """Return the derivatives of F that are wanted by PyTorch: the reference of the kernels."""
    values, kernel, weight, outputs = given
    (_, channels, *_), _, (out_channels, *_), _ = shapes
    like = _like(values, outputs)
    padded = (*shapes[0][:2], *window.padded_sizes)
    of: list[Any] = [
        like.new_zeros(shape) if want else None
        for shape, want in zip((padded, *shapes[1:]), wanted, strict=True)
    ]
    of_values, of_kernel, of_weight, of_outputs = of
    mixed = (weight is not None and weight.numel() > 0) or of_weight is not None
    matrix: Any = None if weight is None else weight.reshape(groups, out_channels // groups, -1)
    unfolded = None if values is None else window.unfold(window.pad(values))
    taps_of_group = channels // groups * window.taps
    for item in range(len(like)):
        for rows in window.tiles(channels * window.taps, like.device):
            at: Any = (item, ..., *window.rows(rows))
            # Over taps and places: x (C, *k, *n), K (*k, *n). Over places: g (C', *n).
            x: Any = None if unfolded is None else unfolded[at]
            k: Any = None if kernel is None else kernel[at].view(*window.kernel_size, *kernel[at].shape[1:])
            g: Any = None if outputs is None else outputs[at]
            if mixed:
                # By groups: W (G, C'/G, C/G·T), W_tᵀ g and K x (G, C/G·T, n), g (G, C'/G, n).
                flat: Any = None if g is None else g.reshape(groups, out_channels // groups, -1)
                if of_outputs is not None or of_weight is not None:
                    adapted = _product(x, k).view(groups, taps_of_group, -1)
                if of_outputs is not None:
                    of_outputs[at] = (matrix @ adapted).view(of_outputs[at].shape)
                if of_weight is not None:
                    of_weight += (flat @ adapted.mT).view(of_weight.shape)
                if of_values is not None or of_kernel is not None:
                    spread = (matrix.mT @ flat).view(channels, *window.kernel_size, *g.shape[1:])
            else:
                if of_outputs is not None:
                    of_outputs[at] = _product(x, k).flatten(1, window.axes).sum(1)
                if of_values is not None or of_kernel is not None:
                    spread = window.spread(g)
            if of_kernel is not None:
                of_kernel[at] = (x * spread).sum(0).flatten(0, window.axes - 1)
            if of_values is not None:
                window.add_tile(of_values[item], rows, spread * k)
    if of_values is not None:
        of[0] = window.crop(of_values)
    return [result for result in of if result is not None]


def _product(unfolded: Tensor, kernel: Tensor) -> Tensor:
    """Return the product in rows of places; PyTorch would order it as the view is, which is slow to read."""
    return torch.mul(unfolded, kernel, out=kernel.new_empty(unfolded.shape))


def _like(values: Any, outputs: Any) -> Tensor:
    """Return either, of which one is given."""
    like: Tensor = outputs if values is None else values
    return like


def _channels(values: Any, weight: Any, outputs: Any, groups: int) -> tuple[int, int]:
    """Return C and C', of which each argument knows some."""
    mixed = weight is not None and weight.numel() > 0
    channels: Any = values.shape[1] if values is not None else None
    out_channels: Any = outputs.shape[1] if outputs is not None else None
    if channels is None:
        channels = weight.shape[1] * groups if mixed else out_channels
    if out_channels is None:
        out_channels = weight.shape[0] if mixed else channels
    return channels, out_channels


def _shapes(values: Any, weight: Any, outputs: Any, window: Window, groups: int) -> list[tuple[int, ...]]:
    """Return the shapes of x, K, W and g."""
    batch = len(_like(values, outputs))
    channels, out_channels = _channels(values, weight, outputs, groups)
    return [
        (batch, channels, *window.sizes),
        (batch, window.taps, *window.outputs),
        (out_channels, channels // groups, window.taps),
        (batch, out_channels, *window.outputs),
    ]


@window_products.register_fake
def _(values, kernel, weight, outputs, window, groups, wanted):  # type: ignore[no-untyped-def]
    like = outputs if values is None else values
    shapes = _shapes(values, weight, outputs, Window.of_numbers(window), groups)
    return [like.new_empty(shape) for shape, want in zip(shapes, wanted, strict=True) if want]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.window, ctx.groups, ctx.wanted = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx, cotangents):  # type: ignore[no-untyped-def]
    given = ctx.saved_tensors
    needed = ctx.needs_input_grad[:4]
    gradients: list[Tensor | None] = [None] * 4
    of_results = iter(cotangents)
    for index in range(4):
        if not ctx.wanted[index]:
            continue
        # The derivative of F with respect to argument `index`, times a cotangent: F with that in its place.
        arguments = list(given)
        arguments[index] = next(of_results)
        wanted = [need and other != index for other, need in enumerate(needed)]
        found = iter(window_products(*arguments, ctx.window, ctx.groups, wanted) if any(wanted) else ())
        for other, want in enumerate(wanted):
            if want:
                part = next(found)
                gradients[other] = part if gradients[other] is None else gradients[other] + part
    return *gradients, None, None, None


window_products.register_autograd(_backward, setup_context=_save)
