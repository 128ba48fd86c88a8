"""What layers check of their input, and the parameters that they share."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from voxel import CoordinateRangeError
from voxel.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_number,
    check_positive,
    check_tensor,
)

__all__ = [
    "Bandwidth",
    "bandwidth_in_range",
    "built",
    "check_channels",
    "check_filters",
    "check_grid",
    "check_guide",
    "check_parameters",
    "check_progress",
    "checked_learn",
    "levels_to_user",
    "log_parameter",
    "number_parameter",
    "warn_of_range",
    "working_precision",
]

_FLOAT32 = torch.finfo(torch.float32)
_Built = TypeVar("_Built")
_MOST_BYTES = 1 << 34
_HALVES = (torch.float16, torch.bfloat16)


class Bandwidth:
    """A standard deviation of a layer, kept positive: the parameter is its logarithm, `log_` and its name."""

    def __init__(self, description: str) -> None:
        self.__doc__ = description

    def __set_name__(self, owner: type, name: str) -> None:
        self._parameter = f"log_{name}"

    def __get__(self, layer: Any, owner: type) -> Any:
        """Return the standard deviation; None if the layer has none of that name."""
        if layer is None:
            return self
        logarithm = getattr(layer, self._parameter)
        return None if logarithm is None else logarithm.exp()

    def __set__(self, layer: Any, value: object) -> None:
        """Refuse: it follows from the parameter."""
        name = self._parameter.removeprefix("log_")
        raise AttributeError(
            f"`{name}` is the exponential of the parameter `{self._parameter}`; set that, or make a new layer"
        )


def working_precision(values: object, name: str = "logits") -> Tensor:
    """Return values in the dtype to compute in: half precision as float32."""
    if isinstance(values, Tensor) and values.dtype in _HALVES:
        values = values.float()
    return check_floating(name, values)


def check_grid(logits: Tensor, guide: Tensor, num_labels: int, sizes: str) -> None:
    """Raise unless logits (B, K, *S) and a guide (B, c, *S) are finite and fit each other.

    Args:
        logits: Floating.
        guide: What the caller passed.
        num_labels: K.
        sizes: The names of the axes S, such as "H, W".
    """
    check_tensor("guide", guide)
    dimensions = sizes.count(",") + 3
    if logits.dim() != dimensions or logits.shape[1] != num_labels:
        raise ValueError(
            f"`logits` must have shape (B, K, {sizes}) with K = {num_labels}, got {tuple(logits.shape)}"
        )
    if guide.dim() != dimensions or guide.shape[0] != logits.shape[0] or guide.shape[2:] != logits.shape[2:]:
        batch, _, *got = logits.shape
        raise ValueError(
            f"`guide` must have shape (B, c, {sizes}) = ({batch}, c, {', '.join(map(str, got))}) to match "
            f"`logits`, got {tuple(guide.shape)}"
        )
    if guide.shape[1] == 0:
        raise ValueError("`guide` must have at least one channel, got none")
    if logits.numel() == 0:
        raise ValueError(f"`logits` must not be empty, got shape {tuple(logits.shape)}")
    check_finite("logits", logits)
    check_guide("guide", guide, logits)


def check_guide(name: str, value: Tensor, logits: Tensor, other: str = "logits") -> None:
    """Raise unless `value` holds real, finite numbers on the device of the logits, or of the `other`."""
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold real numbers, got {value.dtype}")
    if value.device != logits.device:
        raise ValueError(f"`{name}` must be on the device of `{other}`, {logits.device}, got {value.device}")
    if value.dtype.is_floating_point:
        check_finite(name, value)


def check_channels(guide: Tensor, channels: int) -> None:
    """Raise unless a guide (B, c, *S) has the channels that a layer was made for."""
    if guide.shape[1] != channels:
        raise ValueError(
            f"`guide` must have {channels} channels, as the layer was made for, got {guide.shape[1]}; "
            f"make it with channels={guide.shape[1]}"
        )


def check_parameters(layer: nn.Module) -> None:
    """Raise, naming it, if training has brought a parameter out of range."""
    for name, parameter in layer.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise ValueError(f"`{name}` is not finite: training has diverged; lower the learning rate")


def check_filters(taps: int, num_labels: int, smaller: str) -> None:
    """Raise if filters for each pair of labels would not fit in memory.

    Args:
        taps: How many each has.
        num_labels: K.
        smaller: What to make smaller then.
    """
    size = 4 * taps * num_labels**2
    if size > _MOST_BYTES:
        raise ValueError(
            f"{taps:,} taps for {num_labels:,}² pairs of labels would take {size / 2**30:,.1f} GiB, "
            f"more than {_MOST_BYTES >> 30}; use {smaller}, or fewer labels"
        )


def check_progress(progress: object) -> None:
    """Raise unless `progress` can be called with a number of iterations, or is None."""
    if progress is not None and not callable(progress):
        raise TypeError(
            f"`progress` must be a function of the iterations done, or None, got {type(progress).__name__}"
        )


def warn_of_range(name: str, guide: Tensor, bandwidth: str, sigma: float) -> None:
    """Warn of a guide from 0 to 1 whose bandwidth was meant for 0 to 255."""
    if sigma < 2 or not guide.dtype.is_floating_point or not guide.numel():
        return
    low, high = (float(bound) for bound in torch.aminmax(guide.detach()))
    if low >= 0 and 0 < high <= 1:
        warnings.warn(
            f"`{name}` lies between {low:.3g} and {high:.3g}, but {bandwidth}={sigma:.3g} is in its "
            f"units, so its values hardly matter; scale `{name}` to 0..255, or use "
            f"{bandwidth}={sigma / 255:.3g}",
            stacklevel=levels_to_user(),
        )


def number_parameter(name: str, value: float, learn: bool) -> nn.Parameter:
    """Return a number as a parameter, trained or not."""
    start = torch.tensor(check_number(name, value), dtype=torch.float32)
    if not bool(torch.isfinite(start)):
        raise ValueError(f"`{name}` must lie within ±{_FLOAT32.max:.3g}, as float32 does, got {value}")
    return nn.Parameter(start, requires_grad=learn)


def log_parameter(name: str, value: float | None, learn: bool, shape: Sequence[int] = ()) -> nn.Parameter:
    """Return the logarithm of a positive number as a parameter of a shape: what `Bandwidth` needs."""
    start = torch.tensor(math.log(check_positive(name, value)), dtype=torch.float32)
    if not _FLOAT32.tiny < float(start.exp()) < _FLOAT32.max:
        raise ValueError(
            f"`{name}` must lie between {_FLOAT32.tiny:.3g} and {_FLOAT32.max:.3g}, as float32 does, "
            f"got {value}"
        )
    return nn.Parameter(start.expand(tuple(shape)).clone(), requires_grad=learn)


def bandwidth_in_range(layer: nn.Module, name: str, like: Tensor | None = None) -> Tensor:
    """Return a bandwidth, in the dtype of `like` if that is given, if it can be computed with."""
    sigma: Tensor = getattr(layer, name)
    for bound in torch.aminmax(sigma.detach()):
        if not _FLOAT32.tiny < float(bound) < _FLOAT32.max:
            raise ValueError(
                f"`{name}` must lie between {_FLOAT32.tiny:.3g} and {_FLOAT32.max:.3g}, as float32 does, but "
                f"training has brought it to {float(bound)}; lower the learning rate of bandwidths"
            )
    return sigma if like is None else sigma.to(like)


def checked_learn(learn: Iterable[str], learnable: Sequence[str]) -> list[str]:
    """Return `learn` as a list if it holds names among `learnable`, or is one of them, else raise."""
    if not isinstance(learn, Iterable):
        raise TypeError(f"`learn` must be names among {', '.join(learnable)}, got {type(learn).__name__}")
    learned = [learn] if isinstance(learn, str) else list(learn)
    for name in learned:
        check_choice("learn", name, learnable)
    return learned


def built(
    build: Callable[[], _Built], layer: nn.Module, features: Tensor, axes: Sequence[str], point: str
) -> _Built:
    """Return what `build` makes of features; an error says which bandwidth is too small for its coordinates.

    Args:
        build: Makes a lattice.
        layer: Whose bandwidths they are.
        features: (P, d), as they were divided by them.
        axes: The name of the bandwidth that each feature was divided by.
        point: What a point is called.
    """
    try:
        try:
            return build()
        except CoordinateRangeError:
            raise
        except ValueError:
            infinite = torch.nonzero(~torch.isfinite(features.detach()))
            if len(infinite):
                raise CoordinateRangeError("", *infinite[0].tolist()) from None
            raise
    except CoordinateRangeError as error:
        name = axes[error.axis]
        advice = ", or float64 logits" if features.dtype == torch.float32 else ""
        raise CoordinateRangeError(
            f"`{name}`={float(getattr(layer, name).detach()):.4g} is too small: {point} {error.point} "
            f"would lie {abs(features[error.point, error.axis].item()):.6g} standard deviations from the "
            f"origin, more than the lattice's coordinates can hold; use a larger sigma{advice}",
            error.point,
            error.axis,
        ) from error


def levels_to_user() -> int:
    """Return how many calls up, from who calls this, the first function is that is no library's."""
    frame, level = sys._getframe(1), 1
    libraries = ("hdcrf", "voxel", "torch")
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in libraries:
        frame, level = frame.f_back, level + 1
    return level
