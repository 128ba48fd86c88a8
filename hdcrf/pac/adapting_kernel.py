"""The adapting kernel: what the features of two pixels make of the weight between them.

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hdcrf.layer_inputs import number_parameter
from hdcrf.pac.feature_differences import window_distances, window_similarities
from hdcrf.pac.window import Window
from hdcrf.pac.window_products import products
from voxel.checks import (
    check_choice,
    check_flag,
    check_floating,
    check_number,
    check_positive,
    check_same_kind,
    check_tensor,
)
from voxel.precision import full_precision

__all__ = ["AdaptingKernel", "adapting_kernel", "check_mask"]

_KINDS = ("gaussian", "laplacian", "detail_preserving")


@full_precision
def adapting_kernel(
    guide: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    kind: str = "gaussian",
    alpha: float | Tensor = 0.1,
    exponent: float | Tensor = 0.5,
    epsilon: float = 1e-3,
    window: Tensor | None = None,
    centres: Tensor | None = None,
    mask: Tensor | None = None,
    normalize: bool = False,
    places: Sequence[int] | None = None,
) -> Tensor:
    """Return K of each tap and place of a window: the adapting kernel of a pixel-adaptive convolution.

    With f the features of the pixel that a tap meets, and c those at the centre of the window, K is

        "gaussian"           exp(-½ ‖f - c‖²)
        "laplacian"          exp(-Σ |f - c|)
        "detail_preserving"  α + (‖f - c‖² + ε²)^λ

    so features come divided by their bandwidths. A tap that meets no pixel has K = 0.

    Args:
        guide: Features (B, d, *S), float32 or float64, with 1, 2 or 3 axes S: one for each pixel of the input
            of a convolution, or of the output of a transposed one.
        kernel_size: k: taps along each axis, one number or one for each axis.
        stride: As in `torch.nn.functional.conv2d`, of the convolution; so the others.
        padding: On both sides.
        dilation: Between taps.
        kind: Which of the three.
        alpha: α of "detail_preserving": a number, or a tensor () to be learned; with `normalize` not below 0.
        exponent: λ of it, likewise.
        epsilon: ε of it, greater than 0.
        window: (*k) factors that do not depend on the guide, such as a Gaussian of the offset; with
            `normalize` not below 0.
        centres: Features c (B, d, *O), if they are not the guide's. O are the sizes of the convolution's
            output. The centre is the tap k // 2 along each axis, and beyond the grid the nearest pixel of it.
        mask: (B, 1, *S) bool, for which pixels there are values: K = 0 for the others. With `places` it is
            (B, 1, *O), of the pixels that are spread. The guide counts everywhere.
        normalize: Whether to divide by the sum over what counts, so that an output is an average: over the
            taps of a window; with `places` over all that reaches a pixel of S. Where nothing does, K = 0.
        places: For a transposed convolution the sizes O of its input; None for a convolution.

    Returns:
        K, (B, *k, *O), in the dtype of the guide.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not match, or a number is out of range.

    Differentiable any number of times in guide, centres, window, α and λ. Cost: O(d · k² · |O|), in memory
    k² · |O|; autograd keeps K once, or twice if it is "detail_preserving", whatever d is.

    Reference: Su et al. 2019, equation 3 and section 3. It leaves open what a Laplacian of vectors is.
    """
    check_choice("kind", kind, _KINDS)
    check_flag("normalize", normalize)
    check_positive("epsilon", epsilon)
    check_floating("guide", guide)
    alpha, exponent = (
        _checked_parameter(name, value, guide) for name, value in (("alpha", alpha), ("exponent", exponent))
    )
    if not 3 <= guide.dim() <= 5 or guide.shape[0] == 0 or guide.shape[1] == 0:
        raise ValueError(
            f"`guide` must have shape (B, d, *S) with 1 to 3 axes S, B and d of at least 1, got "
            f"{tuple(guide.shape)}"
        )
    over = Window.over(guide.shape[2:], kernel_size, stride, padding, dilation, places)
    c = over.centre(guide) if centres is None else _checked_centres(centres, guide, over)
    shape = (len(guide), *over.kernel_size, *over.outputs)
    if kind == "detail_preserving":
        distances = window_distances(guide, c, over, absolute=False).view(shape)
        if normalize and not torch.compiler.is_compiling() and bool(torch.as_tensor(alpha) < 0):
            raise ValueError(f"`alpha` must not be below 0 where kernels are normalised, got {float(alpha)}")
        kernel = torch.where(over.inside(guide.device), alpha + (distances + epsilon**2) ** exponent, 0)
    else:
        kernel = window_similarities(guide, c, over, absolute=kind == "laplacian").view(shape)
    if mask is not None:
        sizes = over.sizes if places is None else over.outputs
        check_mask(mask, guide, "guide", sizes)
        if places is None:
            counted = over.unfold(over.pad(mask))[:, 0]
        else:
            counted = mask.view(len(guide), *[1] * over.axes, *sizes)
        kernel = torch.where(counted, kernel, 0)
    if window is not None:
        kernel = kernel * _checked_window(window, guide, over, normalize).view(
            *over.kernel_size, *[1] * over.axes
        )
    if not normalize:
        return kernel
    taps = tuple(range(1, 1 + over.axes))
    if places is None:
        total = kernel.sum(taps, keepdim=True)
        return kernel / torch.where(total > 0, total, 1)
    ones = guide.new_ones((len(guide), 1, *over.outputs))
    total = products(None, kernel.flatten(1, over.axes), guide.new_empty(0), ones, over, 1)
    # Divided by the sum rather than times its inverse, whose derivative leaves the range of small sums.
    total = torch.where(total > 0, total, 1)
    return kernel / over.unfold(over.pad(total, 1.0))[:, 0]


def check_mask(mask: object, like: Tensor, name: str, sizes: Sequence[int]) -> Tensor:
    """Return a mask if it is (B, 1, *sizes) bool, on the device and with the batch of `like`, else raise."""
    tensor = check_tensor("mask", mask)
    if tensor.dtype != torch.bool:
        raise TypeError(
            f"`mask` must be bool, True where a pixel counts, got {tensor.dtype}; compare it with > 0"
        )
    if tensor.shape != (len(like), 1, *sizes):
        raise ValueError(f"`mask` must have shape {(len(like), 1, *sizes)}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"`mask` must be on the device of `{name}`, {like.device}, got {tensor.device}")
    return tensor


def _checked_parameter(name: str, value: object, guide: Tensor) -> float | Tensor:
    """Return a number, or a tensor () in the dtype of the guide."""
    if not isinstance(value, Tensor):
        return check_number(name, value)
    check_floating(name, value)
    if value.dim() != 0:
        raise ValueError(f"`{name}` must be a number or a tensor of shape (), got {tuple(value.shape)}")
    if value.device != guide.device:
        raise ValueError(f"`{name}` must be on the device of `guide`, {guide.device}, got {value.device}")
    return value.to(guide.dtype)


def _checked_centres(centres: Tensor, guide: Tensor, over: Window) -> Tensor:
    check_floating("centres", centres)
    expected = (*guide.shape[:2], *over.outputs)
    if centres.shape != expected:
        raise ValueError(f"`centres` must have shape (B, d, *O) = {expected}, got {tuple(centres.shape)}")
    check_same_kind("centres", centres, "guide", guide)
    return centres


def _checked_window(window: Tensor, guide: Tensor, over: Window, normalize: bool) -> Tensor:
    check_floating("window", window)
    if window.shape != over.kernel_size:
        raise ValueError(f"`window` must have shape {over.kernel_size}, got {tuple(window.shape)}")
    check_same_kind("window", window, "guide", guide)
    if normalize and not torch.compiler.is_compiling() and bool((window.detach() < 0).any()):
        raise ValueError("`window` must not be below 0 where kernels are normalised, as sums may be 0")
    return window


class AdaptingKernel(nn.Module):
    """An adapting kernel as a layer: `adapting_kernel` with its shape, and what is learned of it.

    Args:
        kind: "gaussian", "laplacian" or "detail_preserving"; see `adapting_kernel`.
        alpha: What α of "detail_preserving" starts at.
        exponent: What λ of it starts at.
        epsilon: ε of it, greater than 0.
        learn: Whether α and λ are learned; the other two have nothing to learn.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.
    """

    def __init__(
        self,
        kind: str = "gaussian",
        *,
        alpha: float = 0.1,
        exponent: float = 0.5,
        epsilon: float = 1e-3,
        learn: bool = True,
    ) -> None:
        super().__init__()
        self.kind = check_choice("kind", kind, _KINDS)
        self.epsilon = check_positive("epsilon", epsilon)
        check_flag("learn", learn)
        self.alpha: nn.Parameter | None = None
        self.exponent: nn.Parameter | None = None
        if kind == "detail_preserving":
            self.alpha = number_parameter("alpha", alpha, learn)
            self.exponent = number_parameter("exponent", exponent, learn)

    def forward(
        self,
        guide: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        *,
        window: Tensor | None = None,
        centres: Tensor | None = None,
        mask: Tensor | None = None,
        normalize: bool = False,
        places: Sequence[int] | None = None,
    ) -> Tensor:
        """Return K, (B, *k, *O); arguments and errors as `adapting_kernel`."""
        learned = {}
        if self.alpha is not None and self.exponent is not None:
            learned = {"alpha": self.alpha.to(guide), "exponent": self.exponent.to(guide)}
        return adapting_kernel(
            guide,
            kernel_size,
            stride,
            padding,
            dilation,
            kind=self.kind,
            epsilon=self.epsilon,
            window=window,
            centres=centres,
            mask=mask,
            normalize=normalize,
            places=places,
            **learned,
        )

    def extra_repr(self) -> str:
        """Describe the kernel in `repr`."""
        return f"{self.kind!r}, epsilon={self.epsilon}" if self.alpha is not None else repr(self.kind)
