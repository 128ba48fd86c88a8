"""The range of lattice coordinates: what does not fit is an error, never a wrap-around."""

from __future__ import annotations

import torch
from torch import Tensor

from voxel.backend import kernels
from voxel.checks import CoordinateRangeError

__all__ = ["check_coordinate_range"]


def check_coordinate_range(
    name: str, features: Tensor, scale: float, spread: float = 1.0, native: bool = False
) -> None:
    """Raise unless every feature has a lattice coordinate that int32 holds and the dtype resolves.

    Beyond 2²⁰ lattice steps, float32 no longer tells the positions within one lattice cell apart; in
    float64 the limit is 2³⁰, well within int32.

    Args:
        name: The argument's name, for the message.
        features: (N, d).
        scale: Lattice coordinates for one unit of feature.
        spread: How many features of the largest magnitude can add up in one coordinate.
        native: Whether to look by the compiled kernels.

    Raises:
        CoordinateRangeError: Naming the point and the axis.
    """
    if features.numel() == 0:
        return
    limit = 2.0**20 if features.dtype == torch.float32 else 2.0**30
    bound = limit / (scale * spread)
    if native:
        low, high = features.new_empty((2, features.shape[1])).unbind()
        kernels().extents(features.detach(), low, high, torch.get_num_threads())
        low, high = low.min(), high.max()
    else:
        low, high = torch.aminmax(features.detach())
    if -bound <= float(low) and float(high) <= bound:
        return
    magnitude = features.detach().abs()
    point = int(torch.nonzero(magnitude.amax(1) > bound)[0])
    axis = int(magnitude[point].argmax())
    advice = ", or use float64" if features.dtype == torch.float32 else ""
    raise CoordinateRangeError(
        f"`{name}[{point}, {axis}]` is {features[point, axis].item():.6g} standard deviations from the "
        f"origin, beyond the ±{bound:.6g} whose lattice coordinates {features.dtype} can hold; "
        f"divide axis {axis} by a larger sigma, or centre the features{advice}",
        point,
        axis,
    )
