"""Lifts: from pixels, voxels and points to feature space, in units of one standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from voxel import SparseTensor
from voxel.checks import (
    check_finite,
    check_floating,
    check_matrix,
    check_positive,
    check_same_kind,
    check_tensor,
)
from voxel.memory import new_large

__all__ = [
    "batch_index",
    "bilateral_features",
    "check_spacing",
    "point_features",
    "trilateral_features",
    "video_features",
    "volume_features",
]

Sigma = float | Tensor


def bilateral_features(guide: Tensor, sigma_xy: Sigma, sigma_rgb: Sigma) -> Tensor:
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
    _check_guide(guide, "(B, c, H, W)")
    _check_sigmas({"sigma_xy": sigma_xy, "sigma_rgb": sigma_rgb}, guide.dtype)
    return _grid_features(guide, (sigma_xy, sigma_xy), sigma_rgb)


def video_features(guide: Tensor, sigma_xy: Sigma, sigma_t: Sigma, sigma_rgb: Sigma) -> Tensor:
    """Lift the pixels of videos: (x/σ_xy, y/σ_xy, t/σ_t, colour/σ_rgb), 6D for RGB.

    Args:
        guide: (B, c, T, H, W) float32 or float64, any number of channels c.
        sigma_xy: Standard deviation of the position, in pixels.
        sigma_t: Standard deviation of the time, in frames.
        sigma_rgb: Standard deviation of the colour, in the guide's own units.

    Returns:
        (B·T·H·W, 3 + c), the first video first, frame by frame, row by row.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If the guide has another shape, or a sigma is not positive or beyond the guide's dtype.

    Differentiable in the guide and in the sigmas.
    """
    _check_guide(guide, "(B, c, T, H, W)")
    _check_sigmas({"sigma_xy": sigma_xy, "sigma_t": sigma_t, "sigma_rgb": sigma_rgb}, guide.dtype)
    return _grid_features(guide, (sigma_xy, sigma_xy, sigma_t), sigma_rgb)


def volume_features(
    guide: Tensor, sigma_xyz: Sigma, sigma_intensity: Sigma, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Lift the voxels of volumes: (x/σ_xyz, y/σ_xyz, z/σ_xyz, intensity/σ_intensity).

    Args:
        guide: (B, c, D, H, W) float32 or float64, any number of channels c: sequences of an MRI, say.
        sigma_xyz: Standard deviation of the position, in the unit of the spacing, most often millimetres.
        sigma_intensity: Standard deviation of the intensities, in the guide's own units. Channels of
            different ranges are brought to one first.
        spacing: Distance of neighbouring voxels along D, H and W. Slices far apart then see less of each
            other than neighbours within a slice.

    Returns:
        (B·D·H·W, 3 + c), the first volume first, slice by slice, row by row; x runs along W.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If the guide has another shape, the spacing is not three positive numbers, or a sigma is
            not positive or beyond the guide's dtype.

    Differentiable in the guide and in both sigmas.
    """
    _check_guide(guide, "(B, c, D, H, W)")
    _check_sigmas({"sigma_xyz": sigma_xyz, "sigma_intensity": sigma_intensity}, guide.dtype)
    steps = [sigma_xyz / distance for distance in reversed(check_spacing(spacing))]
    return _grid_features(guide, steps, sigma_intensity)


def point_features(
    positions: Tensor,
    sigma_xyz: Sigma,
    *,
    colours: Tensor | None = None,
    sigma_rgb: Sigma | None = None,
    normals: Tensor | None = None,
    sigma_normal: Sigma | None = None,
    intensities: Tensor | None = None,
    sigma_intensity: Sigma | None = None,
) -> Tensor:
    """Lift the points of a cloud: (position/σ_xyz, colour/σ_rgb, normal/σ_normal, intensity/σ_intensity).

    What is not given is left out, so that features are 3D to 10D.

    Args:
        positions: (N, 3) float32 or float64, in metres, say.
        sigma_xyz: Standard deviation of the position, in the unit of the positions.
        colours: (N, c).
        sigma_rgb: Standard deviation of the colour, in the unit of the colours.
        normals: (N, 3), of length 1.
        sigma_normal: Standard deviation of the difference of two normals, which for small angles is the
            angle in radians.
        intensities: (N,) or (N, c): of a LiDAR's returns, for example.
        sigma_intensity: Standard deviation of the intensity.

    Returns:
        (N, 3 + …).

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content, or of an attribute and its sigma
            one only is given.

    Differentiable in all tensors and sigmas.
    """
    check_matrix("positions", positions, "(N, 3)")
    if positions.shape[1] != 3:
        raise ValueError(f"`positions` must have shape (N, 3), got {tuple(positions.shape)}")
    check_finite("positions", positions)
    _check_sigmas({"sigma_xyz": sigma_xyz}, positions.dtype)
    if intensities is not None and check_tensor("intensities", intensities).dim() == 1:
        intensities = intensities[:, None]
    attributes = {
        ("colours", "sigma_rgb"): (colours, sigma_rgb),
        ("normals", "sigma_normal"): (normals, sigma_normal),
        ("intensities", "sigma_intensity"): (intensities, sigma_intensity),
    }
    columns = [positions.T / sigma_xyz]
    for (name, sigma_name), (values, sigma) in attributes.items():
        if values is None and sigma is None:
            continue
        if values is None or sigma is None:
            absent, present = (name, sigma_name) if values is None else (sigma_name, name)
            raise ValueError(f"`{present}` is given but `{absent}` is not; give both, or neither")
        check_matrix(name, values, "(N, c)", rows=len(positions))
        check_same_kind(name, values, "positions", positions)
        check_finite(name, values)
        _check_sigmas({sigma_name: sigma}, positions.dtype)
        columns.append(values.T / sigma)
    return torch.cat(columns).T


def trilateral_features(
    voxels: SparseTensor, sigma_xyz: Sigma, sigma_t: Sigma, sigma_rgb: Sigma, voxel_size: float = 1.0
) -> Tensor:
    """Lift space-time voxels: (x/σ_xyz, y/σ_xyz, z/σ_xyz, t/σ_t, colour/σ_rgb), 7D for RGB.

    The trilateral kernel of Choy, Gwak and Savarese, CVPR 2019, section 5.

    Args:
        voxels: Coordinates (V, 5), the columns batch, x, y, z, t, and colours (V, c).
        sigma_xyz: Standard deviation of the position, in the unit of the voxel size.
        sigma_t: Standard deviation of the time, in frames.
        sigma_rgb: Standard deviation of the colour, in the unit of the colours.
        voxel_size: Edge of a voxel.

    Returns:
        (V, 4 + c). Items of a batch do not interact if `voxels.coordinates[:, 0]` is given as the batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the voxels have not four dimensions, or a sigma is not positive or beyond the dtype.

    Differentiable in the colours and the sigmas.
    """
    if not isinstance(voxels, SparseTensor):
        raise TypeError(f"`voxels` must be a voxel.SparseTensor, got {type(voxels).__name__}")
    if voxels.dimension != 4:
        raise ValueError(
            f"`voxels` must have the coordinates batch, x, y, z, t, got {voxels.dimension} dimensions"
        )
    colours = voxels.features
    _check_sigmas({"sigma_xyz": sigma_xyz, "sigma_t": sigma_t, "sigma_rgb": sigma_rgb}, colours.dtype)
    check_positive("voxel_size", voxel_size)
    place = voxels.coordinates[:, 1:].T.to(colours.dtype)
    return torch.cat([place[:3] * (voxel_size / sigma_xyz), place[3:] / sigma_t, colours.T / sigma_rgb]).T


def _grid_features(guide: Tensor, steps: Sequence[Sigma], sigma_guide: Sigma) -> Tensor:
    """Lift a (B, c, …) grid: standard deviations in steps along the last axis, the one before, and so on."""
    batch, channels, *sizes = guide.shape
    place = (1, batch, *sizes)
    positions = []
    for k, (size, step) in enumerate(zip(reversed(sizes), steps, strict=True)):
        along = torch.arange(size, dtype=guide.dtype, device=guide.device) / step
        positions.append(along.view(size, *[1] * k).expand(place))
    # One contiguous row a feature: the lattices compute along them.
    if torch.is_grad_enabled() and any(
        isinstance(part, Tensor) and part.requires_grad for part in (guide, sigma_guide, *steps)
    ):
        lifted = torch.cat([*positions, (guide / sigma_guide).transpose(0, 1)])
    else:
        lifted = new_large(guide, (len(steps) + channels, batch, *sizes))
        for row, position in zip(lifted, positions, strict=False):
            row.copy_(position[0])
        torch.div(guide.transpose(0, 1), sigma_guide, out=lifted[len(steps) :])
    return lifted.flatten(1).T


def check_spacing(spacing: object) -> tuple[float, ...]:
    """Return the distances of voxels along D, H and W if they are three positive numbers, else raise."""
    if isinstance(spacing, Tensor | np.ndarray):
        spacing = spacing.tolist()
    if not isinstance(spacing, Sequence) or isinstance(spacing, str) or len(spacing) != 3:
        raise ValueError(
            f"`spacing` must be three numbers, the distances of voxels along D, H and W, got {spacing!r}"
        )
    return tuple(check_positive(f"spacing[{axis}]", distance) for axis, distance in enumerate(spacing))


def _check_guide(guide: Tensor, shape: str) -> None:
    check_floating("guide", guide)
    if guide.dim() != shape.count(",") + 1:
        raise ValueError(f"`guide` must have shape {shape}, got {tuple(guide.shape)}")


def _check_sigmas(sigmas: dict[str, Sigma], dtype: torch.dtype) -> None:
    for name, sigma in sigmas.items():
        if isinstance(sigma, Tensor):
            check_finite(name, check_tensor(name, sigma))
            if sigma.shape not in ((), (1,)):
                raise ValueError(
                    f"`{name}` must be a single number, got a tensor of shape {tuple(sigma.shape)}"
                )
        number = check_positive(name, sigma.item() if isinstance(sigma, Tensor) else sigma)
        limits = torch.finfo(dtype)
        if not limits.tiny <= number <= limits.max:
            raise ValueError(
                f"`{name}` must lie between {limits.tiny:.3g} and {limits.max:.3g}, as {dtype} does, "
                f"got {number}"
            )


def batch_index(batch: int, points: int, device: torch.device) -> Tensor | None:
    """Return the (batch·points,) batch index of equally large items, or None for a single one."""
    if batch == 1:
        return None
    return torch.arange(batch, device=device).repeat_interleave(points)
