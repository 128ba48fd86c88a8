"""Distances between the features of a window's centre and of what its taps meet.

With features f of a grid and c of the centres, d = f_{i(j,t)} - c_j, the distances are Σ d² or Σ |d| over
channels: both are

    P(f, c; u, v)_t(j) = Σ φ(f_{i(j,t)} - c_j) · (u_{i(j,t)} - v_j),    φ(d) = d or sign(d),

at u = f, v = c. Its derivative with respect to u and v, times a cotangent a_t(j), is

    Q(f, c; a) = (Σ_{i(j,t)=i} a_t(j) φ(f_i - c_j),  -Σ_t a_t(j) φ(f_{i(j,t)} - c_j)),

whose derivative with respect to a is P again, so that there are derivatives of any order. Differences are
formed before they are squared: ‖f‖² + ‖c‖² - 2⟨f, c⟩ would lose small ones. It goes by tiles, as in
`window_products`, or, on a CPU, by compiled kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.pac import window_kernels
from hdcrf.pac.window import Window
from voxel.backend import uses_native
from voxel.precision import full_precision

__all__ = ["window_distances", "window_similarities"]

# Exponents down to which exponentials are numbers of full precision; native/window_sums.hpp has them too.
_LOWEST = {torch.float32: -87, torch.float64: -708}


def window_distances(features: Tensor, centres: Tensor, window: Window, absolute: bool) -> Tensor:
    """Return Σ d², or Σ |d| if `absolute`, over the channels of features: (B, T, *O).

    Args:
        features: f, (B, d, *S).
        centres: c, (B, d, *O).
        window: Over S, with the places O. Beyond the grid the distance is 0.
        absolute: Which of the two.

    Differentiable any number of times, with 0 for the derivative of |d| at 0.
    """
    return _called(features, centres, window, absolute, False)


def window_similarities(features: Tensor, centres: Tensor, window: Window, absolute: bool) -> Tensor:
    """Return exp(-½ Σ d²), or exp(-Σ |d|) if `absolute`: (B, T, *O).

    Arguments as `window_distances`. Beyond the grid the similarity is 0, and so are subnormal numbers, with
    which a processor computes many times slower.
    """
    return _called(features, centres, window, absolute, True)


def _called(features: Tensor, centres: Tensor, window: Window, absolute: bool, exponential: bool) -> Tensor:
    direct = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    call = _distances if direct else distances
    result: Tensor = call(features, centres, window.numbers(), absolute, exponential)
    return result


@torch.library.custom_op("hdcrf::window_distances", mutates_args=())
def distances(
    features: Tensor,  # f, (B, d, *S)
    centres: Tensor,  # c, (B, d, *O)
    window: Sequence[int],  # `Window.numbers`
    absolute: bool,  # whether φ is the sign
    exponential: bool,  # whether similarities are wanted
) -> Tensor:
    """Return P(f, c; f, c), or the exponential of -½ or -1 times that, (B, T, *O)."""
    return _distances(features, centres, window, absolute, exponential)


# The kernels of an operation run with autocast as it stands outside: they must switch it off themselves.
@full_precision
def _distances(
    features: Tensor, centres: Tensor, numbers: Sequence[int], absolute: bool, exponential: bool
) -> Tensor:
    window = Window.of_numbers(numbers)
    compute = window_kernels.distances if uses_native("auto", features) else distances_by_tiles
    return compute(features, centres, window, absolute, exponential)


def distances_by_tiles(
    features: Tensor, centres: Tensor, window: Window, absolute: bool, exponential: bool
) -> Tensor:
    """Return what `distances` does by PyTorch: the reference of the kernel."""
    result = features.new_empty((len(features), window.taps, *window.outputs))
    f = window.unfold(window.pad(features))
    inside = window.inside(features.device)
    for item, rows in _tiles(features, window):
        at: Any = (item, ..., *rows)
        d = f[at] - window.spread(centres[at])
        total = (d.abs_() if absolute else d.square_()).sum(0)
        if exponential:
            total *= -1 if absolute else -0.5
            total = torch.where(total <= _LOWEST[total.dtype], 0, total.exp_())
        result[at] = (total * inside[(..., *rows)]).flatten(0, window.axes - 1)
    return result


def _tiles(features: Tensor, window: Window) -> Iterator[tuple[int, Any]]:
    for item in range(len(features)):
        for rows in window.tiles(features.shape[1] * window.taps, features.device):
            yield item, window.rows(rows)


@torch.library.custom_op("hdcrf::difference_products", mutates_args=())
def difference_products(
    features: Tensor,  # f, (B, d, *S)
    centres: Tensor,  # c, (B, d, *O)
    left: Tensor,  # u, (B, d, *S)
    right: Tensor,  # v, (B, d, *O)
    window: Sequence[int],  # `Window.numbers`
    absolute: bool,  # whether φ is the sign
) -> Tensor:
    """Return P(f, c; u, v), (B, T, *O)."""
    return _difference_products(features, centres, left, right, window, absolute)


@full_precision
def _difference_products(
    features: Tensor, centres: Tensor, left: Tensor, right: Tensor, numbers: Sequence[int], absolute: bool
) -> Tensor:
    window = Window.of_numbers(numbers)
    result = features.new_empty((len(features), window.taps, *window.outputs))
    f, u = (window.unfold(window.pad(grid)) for grid in (features, left))
    inside = window.inside(features.device)
    for item, rows in _tiles(features, window):
        at: Any = (item, ..., *rows)
        d = f[at] - window.spread(centres[at])
        if absolute:
            d.sign_()
        total = d.mul_(u[at] - window.spread(right[at])).sum(0)
        result[at] = (total * inside[(..., *rows)]).flatten(0, window.axes - 1)
    return result


@torch.library.custom_op("hdcrf::difference_sums", mutates_args=())
def difference_sums(
    features: Tensor,  # f, (B, d, *S)
    centres: Tensor,  # c, (B, d, *O)
    factors: Tensor,  # a, (B, T, *O)
    window: Sequence[int],
    absolute: bool,
) -> list[Tensor]:
    """Return the two parts of Q(f, c; a), (B, d, *S) and (B, d, *O)."""
    return _difference_sums(features, centres, factors, window, absolute)


@full_precision
def _difference_sums(
    features: Tensor, centres: Tensor, factors: Tensor, numbers: Sequence[int], absolute: bool
) -> list[Tensor]:
    window = Window.of_numbers(numbers)
    native = uses_native("auto", features)
    compute = window_kernels.difference_sums if native else difference_sums_by_tiles
    return compute(features, centres, factors, window, absolute)


def difference_sums_by_tiles(
    features: Tensor, centres: Tensor, factors: Tensor, window: Window, absolute: bool
) -> list[Tensor]:
    """Return both parts of Q(f, c; a) by PyTorch: the reference of the kernel."""
    of_features = features.new_zeros((*features.shape[:2], *window.padded_sizes))
    of_centres = torch.empty_like(centres, memory_format=torch.contiguous_format)
    f = window.unfold(window.pad(features))
    inside = window.inside(features.device)
    for item, rows in _tiles(features, window):
        at: Any = (item, ..., *rows)
        d = f[at] - window.spread(centres[at])
        if absolute:
            d.sign_()
        d *= factors[at].view(*window.kernel_size, *centres[at].shape[1:]) * inside[(..., *rows)]
        of_centres[at] = -d.flatten(1, window.axes).sum(1)
        window.add_tile(of_features[item], rows[0], d)
    return [window.crop(of_features), of_centres]


@distances.register_fake
def _(features, centres, window, absolute, exponential):  # type: ignore[no-untyped-def]
    over = Window.of_numbers(window)
    return features.new_empty((len(features), over.taps, *over.outputs))


@difference_products.register_fake
def _(features, centres, left, right, window, absolute):  # type: ignore[no-untyped-def]
    over = Window.of_numbers(window)
    return features.new_empty((len(features), over.taps, *over.outputs))


@difference_sums.register_fake
def _(features, centres, factors, window, absolute):  # type: ignore[no-untyped-def]
    return [features.new_empty(features.shape), centres.new_empty(centres.shape)]


def _save_distances(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features, centres, ctx.window, ctx.absolute, exponential = inputs
    ctx.save_for_backward(features, centres, *([output] if exponential else []))


def _distances_backward(ctx, cotangent):  # type: ignore[no-untyped-def]
    features, centres, *similarities = ctx.saved_tensors
    factors = cotangent if ctx.absolute else 2 * cotangent
    if similarities:  # -½ Σ d² and -Σ |d| have the derivatives -d and -sign(d)
        factors = -cotangent * similarities[0]
    return *difference_sums(features, centres, factors, ctx.window, ctx.absolute), None, None, None


def _save_products(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.window, ctx.absolute = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _products_backward(ctx, cotangent):  # type: ignore[no-untyped-def]
    features, centres, left, right = ctx.saved_tensors
    of_first = of_second = (None, None)
    if any(ctx.needs_input_grad[:2]) and not ctx.absolute:
        of_first = difference_sums(left, right, cotangent, ctx.window, False)
    if any(ctx.needs_input_grad[2:4]):
        of_second = difference_sums(features, centres, cotangent, ctx.window, ctx.absolute)
    return *of_first, *of_second, None, None


def _save_sums(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features, centres, factors, ctx.window, ctx.absolute = inputs
    ctx.save_for_backward(features, centres, factors)


def _sums_backward(ctx, cotangents):  # type: ignore[no-untyped-def]
    features, centres, factors = ctx.saved_tensors
    left, right = cotangents
    of_features = of_centres = of_factors = None
    if any(ctx.needs_input_grad[:2]) and not ctx.absolute:
        of_features, of_centres = difference_sums(left, right, factors, ctx.window, False)
    if ctx.needs_input_grad[2]:
        of_factors = difference_products(features, centres, left, right, ctx.window, ctx.absolute)
    return of_features, of_centres, of_factors, None, None


distances.register_autograd(_distances_backward, setup_context=_save_distances)
difference_products.register_autograd(_products_backward, setup_context=_save_products)
difference_sums.register_autograd(_sums_backward, setup_context=_save_sums)
