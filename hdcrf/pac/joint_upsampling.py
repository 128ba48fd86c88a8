"""Joint upsampling: values at low resolution brought to that of a guide, whose edges they take.

`JointUpsampler` learns it; `joint_bilateral_upsample` needs no training.

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, CVPR 2019, section 4 and appendix A; Kopf,
Cohen, Lischinski and Uyttendaele, Joint bilateral upsampling, SIGGRAPH 2007.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hdcrf.layer_inputs import check_guide, warn_of_range, working_precision
from hdcrf.pac.adapting_kernel import adapting_kernel
from hdcrf.pac.convolution import pac_conv_transpose2d
from hdcrf.pac.layers import PacConvTranspose2d
from voxel.checks import check_choice, check_count, check_finite, check_number, check_positive, check_tensor
from voxel.precision import full_precision

__all__ = ["JointUpsampler", "joint_bilateral_upsample"]

_FACTORS = (4, 8, 16)


class _Widths(NamedTuple):
    """Output channels of each layer of the three branches."""

    encoder: tuple[int, ...]
    guidance: tuple[int, ...]
    transposed: tuple[int, ...]  # each layer doubles the size
    decoder: tuple[int, ...]  # the last layer, to the channels of the values, not counted


# Table 5 of Su et al. 2019.
_VARIANTS = {
    "standard": {
        4: _Widths((32, 32, 32), (32, 32, 32), (32, 32), (32,)),
        8: _Widths((32, 32, 32), (32, 32, 48), (32, 32, 32), (32,)),
        16: _Widths((32, 32, 32), (32, 32, 64), (32, 32, 32, 32), (32,)),
    },
    "lite": {
        4: _Widths((12, 16, 22), (12, 22, 24), (12, 16), (22,)),
        8: _Widths((12, 16, 16), (12, 16, 36), (12, 16, 16), (20,)),
        16: _Widths((8, 16, 16), (8, 16, 40), (8, 16, 16, 16), (16,)),
    },
}


class JointUpsampler(nn.Module):
    """A network that enlarges depth, optical flow or the like, guided by an image at full resolution.

    An encoder sees the values and a guidance branch the image. Pixel-adaptive transposed convolutions then
    double the size, as often as it takes; each is adapted by its own share of the guidance features,
    averaged down to the size of its output. Two convolutions end it. All filters are 5 x 5, with ReLU after
    every layer but the last.

    Value (y, x) lies at pixel (m·y, m·x) of the guide: so `image[..., ::m, ::m]` samples. Filters can learn
    another position, such as the centre of a block, if it is the same in training and use.

    It has no units of its own. Scale values and guide to a mean near 0 and a standard deviation near 1, with
    the same numbers for all of them, and scale the result back.

    Args:
        factor: m, 4, 8 or 16: by how much it enlarges.
        channels: c, of the values: 1 for depth, 2 for optical flow.
        guide_channels: c_g, of the guide.
        variant: "standard", with 183,000 to 260,000 parameters for one channel; or "lite", with
            56,000.

    Attributes:
        encoder, guidance, transposed, decoder: The layers, in order.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> upsampler = JointUpsampler(8)
        >>> upsampler(torch.randn(1, 1, 12, 16), torch.randn(1, 3, 96, 128)).shape
        torch.Size([1, 1, 96, 128])

    Reference: Su et al. 2019, section 4.1 and table 5.
    """

    def __init__(
        self, factor: int, *, channels: int = 1, guide_channels: int = 3, variant: str = "standard"
    ) -> None:
        super().__init__()
        self.factor = check_count("factor", factor, 1)
        if factor not in _FACTORS:
            raise ValueError(f"`factor` must be one of {', '.join(map(str, _FACTORS))}, got {factor}")
        self.channels = check_count("channels", channels, 1)
        self.guide_channels = check_count("guide_channels", guide_channels, 1)
        self.variant = check_choice("variant", variant, tuple(_VARIANTS))
        widths = _VARIANTS[variant][factor]
        self.encoder = _convolutions(channels, widths.encoder)
        self.guidance = _convolutions(guide_channels, widths.guidance)
        self.transposed = nn.ModuleList(
            PacConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1)
            for before, after in itertools.pairwise((widths.encoder[-1], *widths.transposed))
        )
        self.decoder = _convolutions(widths.transposed[-1], (*widths.decoder, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights with which each layer keeps the size of what it gets (He et al. 2015); biases are 0.

        Under PyTorch's own weights gradients of the first layers are a thousand times smaller than those of
        the last, and kernels that hardly differ from 1 learn slowly.
        """
        for layer in (*self.encoder, *self.guidance, *self.transposed, *self.decoder):
            # A pixel of a transposed layer's output gets a value for one tap in four.
            inputs = layer.in_channels * 25 / (4 if isinstance(layer, PacConvTranspose2d) else 1)
            gain = 1 if layer is self.decoder[-1] else 2  # of variances; ReLU halves them
            nn.init.normal_(layer.weight, std=math.sqrt(gain / inputs))
            nn.init.zeros_(layer.bias)

    def forward(self, values: Tensor, guide: Tensor) -> Tensor:
        """Enlarge values.

        Args:
            values: (B, c, h, w), float32 or float64. Half precision is computed in float32.
            guide: (B, c_g, m·h, m·w), floating or integers.

        Returns:
            (B, c, m·h, m·w), in the dtype of the values.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, or an entry is not finite.

        Differentiable in values, guide and parameters. Under `torch.autocast` the plain convolutions run in
        half precision.
        """
        given, values = values, working_precision(values, "values")
        guide = _checked_guide(values, guide, self.factor)
        if values.shape[1] != self.channels:
            raise ValueError(
                f"`values` must have {self.channels} channels, as the network was made for, got "
                f"{values.shape[1]}; make it with channels={values.shape[1]}"
            )
        if guide.shape[1] != self.guide_channels:
            raise ValueError(
                f"`guide` must have {self.guide_channels} channels, as the network was made for, got "
                f"{guide.shape[1]}; make it with guide_channels={guide.shape[1]}"
            )
        features = self._run(self.guidance, guide).chunk(len(self.transposed), 1)
        hidden = self._run(self.encoder, values)
        smaller = self.factor
        for layer, adapting in zip(self.transposed, features, strict=True):
            smaller //= 2
            hidden = torch.relu(layer(hidden, functional.avg_pool2d(adapting, smaller)))
        hidden = self._run(self.decoder[:-1], hidden)
        return _convolved(hidden, self.decoder[-1]).to(given.dtype)

    @staticmethod
    def _run(layers: nn.ModuleList, values: Tensor) -> Tensor:
        for layer in layers:
            values = torch.relu(_convolved(values, layer))
        return values

    def extra_repr(self) -> str:
        """Describe the network in `repr`."""
        return (
            f"{self.factor}, channels={self.channels}, guide_channels={self.guide_channels}, "
            f"variant={self.variant!r}"
        )


def _convolutions(channels: int, widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv2d(before, after, 5, padding=2) for before, after in itertools.pairwise((channels, *widths))
    )


def _convolved(values: Tensor, layer: Any) -> Tensor:
    """Convolve in the dtype of the values, as pixel-adaptive layers do."""
    weight, bias = layer.weight.to(values.dtype), layer.bias.to(values.dtype)
    return functional.conv2d(values, weight, bias, padding=2)


@full_precision
def joint_bilateral_upsample(
    values: Tensor,
    guide: Tensor,
    factor: int,
    *,
    radius: int = 2,
    sigma: float = 0.5,
    sigma_guide: float = 25.0,
    offset: float | None = None,
) -> Tensor:
    """Enlarge values with weights of near and alike pixels of a guide: joint bilateral upsampling.

    Value j lies at pixel q_j = m·j + offset of the guide I, interpolated bilinearly there. Pixel p gets

        v'_p = Σ_j w_pj v_j / Σ_j w_pj,   w_pj = exp(-½ ‖p - q_j‖² / (m σ)² - ½ ‖I_p - I(q_j)‖² / σ_guide²)

    over the values with |p - q_j| ≤ m·radius along both axes. So values keep their bounds, and constants
    stay. Where no value is alike the nearest one counts: its weight is larger by 4·10⁻²⁹ in float32, and
    by 2·10⁻²³¹ in float64.

    Args:
        values: v, (B, c, h, w), float32 or float64. Half precision is computed in float32.
        guide: I, (B, c_g, m·h, m·w), floating or integers, in any units.
        factor: m, 1 or more: by how much it enlarges.
        radius: Of the window in low-resolution pixels, 1 or more.
        sigma: σ, in low-resolution pixels.
        sigma_guide: In units of the guide: 25 suits a guide from 0 to 255; for one from 0 to 1 say 0.1.
        offset: Where value 0 lies along each axis, in pixels of the guide, from 0 to m - 1. None for
            (m - 1) / 2, the centre of its block, as averages over blocks have it; 0 for
            `image[..., ::m, ::m]`.

    Returns:
        v', (B, c, m·h, m·w), in the dtype of the values.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not match, an entry is not finite, or a number is out of range.

    Differentiable any number of times in values and guide. Cost: 4 · radius² · (c + c_g) multiplications a
    pixel; memory 4 · radius² numbers a pixel.

    Reference: Kopf et al. 2007; as a transposed pixel-adaptive convolution with a fixed window of factors.
    """
    given, values = values, working_precision(values, "values")
    m = check_count("factor", factor, 1)
    check_count("radius", radius, 1)
    sigma = check_positive("sigma", sigma) * m
    check_positive("sigma_guide", sigma_guide)
    offset = (m - 1) / 2 if offset is None else check_number("offset", offset)
    if not 0 <= offset <= m - 1:
        raise ValueError(
            f"`offset` must lie in the block of the first value, from 0 to {m - 1}, got {offset:g}; "
            "crop the guide, or the values, if they are further apart"
        )
    guide = _checked_guide(values, guide, m)
    warn_of_range("guide", guide, "sigma_guide", sigma_guide)
    guide = guide / sigma_guide
    # Pixels from q_j, of the taps from -padding on; there may be one or more in front that are out of reach.
    reach = m * radius
    last = math.floor(reach + offset)
    padding = max(math.floor(reach - offset), last - (m - 1))
    taps = padding + last + 1
    steps = torch.arange(-padding, last + 1, device=values.device, dtype=values.dtype) - offset
    window = torch.exp(-0.5 * (steps / sigma) ** 2) * (steps.abs() <= reach)
    sizes = values.shape[2:]
    kernel = adapting_kernel(
        guide,
        taps,
        m,
        padding,
        window=window[:, None] * window,
        centres=_at_values(guide, m, offset),
    )
    # With ones, which become the sum of weights.
    spread = torch.cat([values, torch.ones_like(values[:, :1])], 1)
    more = m + 2 * padding - taps
    total = pac_conv_transpose2d(spread, kernel, None, None, m, padding, more)
    nearest = _nearest(values, [((_indices(m * size) - offset) / m).round() for size in sizes])
    # Far above the smallest number, so that gradients are finite.
    least = torch.finfo(values.dtype).tiny ** 0.75
    result: Tensor = (total[:, :-1] + least * nearest) / (total[:, -1:] + least)
    return result.to(given.dtype)


def _indices(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64)


def _nearest(values: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return values (B, c, H, W) at rows and columns, which may lie outside."""
    for axis, at in enumerate(places, start=2):
        index = at.long().clamp(0, values.shape[axis] - 1).to(values.device)
        values = values.index_select(axis, index)
    return values


def _at_values(guide: Tensor, factor: int, offset: float) -> Tensor:
    """Return a guide (B, c, m·h, m·w) at an offset in each block, also between pixels: (B, c, h, w)."""
    below = math.floor(offset)
    share = offset - below
    for axis in (2, 3):
        blocks = guide.reshape(*guide.shape[:axis], -1, factor, *guide.shape[axis + 1 :])
        near = blocks.select(axis + 1, below)
        far = blocks.select(axis + 1, min(below + 1, factor - 1))
        guide = near + share * (far - near)
    return guide


def _checked_guide(values: Tensor, guide: Tensor, factor: int) -> Tensor:
    """Return the guide in the dtype of the values if both are finite and fit, else raise."""
    check_tensor("guide", guide)
    if values.dim() != 4 or 0 in values.shape:
        raise ValueError(f"`values` must have shape (B, c, h, w), none of them 0, got {tuple(values.shape)}")
    batch, _, height, width = values.shape
    expected = (factor * height, factor * width)
    if guide.dim() != 4 or guide.shape[0] != batch or guide.shape[1] == 0 or guide.shape[2:] != expected:
        raise ValueError(
            f"`guide` must have shape ({batch}, c_g, {expected[0]}, {expected[1]}), {factor} times as high "
            f"and wide as `values` {tuple(values.shape)}, got {tuple(guide.shape)}; crop or pad it"
        )
    if not torch.compiler.is_compiling():
        check_finite("values", values)
        check_guide("guide", guide, values, "values")
    return guide.to(values.dtype)
