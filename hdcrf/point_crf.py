"""The fully connected CRF as a layer for point clouds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hdcrf.crf_layer import CRFLayer, Options, reshaped
from hdcrf.features import point_features
from hdcrf.layer_inputs import Bandwidth, check_guide, working_precision
from hdcrf.mean_field import MeanFieldResult
from hdcrf.pairwise import PairwiseKernel
from voxel.checks import check_batch_index, check_finite, check_tensor
from voxel.precision import full_precision

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PointCRF", "lowest_corners"]

_ATTRIBUTES = {
    "colours": "appearance_sigma_rgb",
    "normals": "appearance_sigma_normal",
    "intensities": "appearance_sigma_intensity",
}
_ORIGIN_STEP = 1024.0


class PointCRF(CRFLayer):
    """Mean field in a CRF that connects every point of a cloud with every other.

    The pairwise kernel between the points i and j, at positions p and with colours I, is

        w_a exp(-|p_i - p_j|²/2σ_xyz² - |I_i - I_j|²/2σ_rgb²) + w_s exp(-|p_i - p_j|²/2σ_s²),

    with normals and intensities beside the colours, or in their place, for those that have a sigma. For
    clouds larger than memory see `points_in_blocks`.

    Args:
        num_labels: K, 1 or more.
        appearance_weight: w_a; 0 leaves the kernel out, unless weights are learned.
        appearance_sigma_xyz: σ_xyz in the unit of the positions, metres, say.
        appearance_sigma_rgb: σ_rgb in the unit of the colours: 13 suits 0 to 255. None for clouds without.
        appearance_sigma_normal: Of the difference of two normals, which for small angles is the angle in
            radians; None leaves normals out.
        appearance_sigma_intensity: Of intensities, in their own unit; None leaves them out.
        smoothness_weight: w_s; 0 leaves the kernel out, unless weights are learned.
        smoothness_sigma: σ_s in the unit of the positions.
        **options: iterations, compatibility, learn, output and so on, as `DenseCRF` has them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> crf = PointCRF(13, appearance_sigma_xyz=0.2, learn=())
        >>> marginals = crf(torch.randn(500, 13), torch.rand(500, 3), colours=torch.rand(500, 3) * 255)
    """

    appearance_sigma_xyz = Bandwidth("σ_xyz, in the unit of the positions.")
    appearance_sigma_rgb = Bandwidth("σ_rgb, in the unit of the colours; None without.")
    appearance_sigma_normal = Bandwidth("Of normals; None without.")
    appearance_sigma_intensity = Bandwidth("Of intensities; None without.")
    smoothness_sigma = Bandwidth("σ_s, in the unit of the positions.")

    def __init__(
        self,
        num_labels: int,
        *,
        appearance_weight: float = 10.0,
        appearance_sigma_xyz: float = 0.3,
        appearance_sigma_rgb: float | None = 13.0,
        appearance_sigma_normal: float | None = None,
        appearance_sigma_intensity: float | None = None,
        smoothness_weight: float = 3.0,
        smoothness_sigma: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            num_labels,
            {"appearance_weight": appearance_weight, "smoothness_weight": smoothness_weight},
            {
                "appearance_sigma_xyz": appearance_sigma_xyz,
                "appearance_sigma_rgb": appearance_sigma_rgb,
                "appearance_sigma_normal": appearance_sigma_normal,
                "appearance_sigma_intensity": appearance_sigma_intensity,
                "smoothness_sigma": smoothness_sigma,
            },
            optional=_ATTRIBUTES.values(),
            **options,
        )

    def forward(
        self,
        logits: Tensor,
        positions: Tensor,
        *,
        colours: Tensor | None = None,
        normals: Tensor | None = None,
        intensities: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Refine unary logits of points.

        Args:
            logits: (N, K) float32 or float64: log-probabilities up to a constant for each point. Half
                precision is computed in float32.
            positions: (N, 3), floating.
            colours: (N, c), floating or integers; needed exactly if `appearance_sigma_rgb` is not None.
            normals: (N, 3) of length 1; needed exactly if `appearance_sigma_normal` is not None.
            intensities: (N,) or (N, c); needed exactly if `appearance_sigma_intensity` is not None.
            batch: (N,) integers: points of different clouds do not see each other.

        Returns:
            (N, K) marginals, or their logarithms, as `output` says, in the dtype of the logits.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, what a sigma asks for is missing, an entry is not
                finite, or a sigma is so small that the lattice's coordinates overflow.
        """
        given = {"colours": colours, "normals": normals, "intensities": intensities, "batch": batch}
        present = {name: value for name, value in given.items() if value is not None}
        return self._run(logits, positions=positions, **present)

    @full_precision
    def infer(
        self,
        logits: Tensor,
        positions: Tensor,
        *,
        colours: Tensor | None = None,
        normals: Tensor | None = None,
        intensities: Tensor | None = None,
        batch: Tensor | None = None,
        track: bool = False,
        return_logits: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> MeanFieldResult:
        """Refine as `forward` does, and return all that mean field knows.

        Args:
            logits: (N, K), and the other tensors as in `forward`.
            positions: (N, 3).
            colours: (N, c).
            normals: (N, 3).
            intensities: (N,) or (N, c).
            batch: (N,).
            track: Whether to compute the energy and the objective of each iteration, summed over the batch.
            return_logits: Whether the result has logits, which take as much memory as the marginals.
            progress: Called with the number of iterations done, after each.

        Returns:
            Marginals and logits (N, K), the number of iterations, energy and KL objective.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        dtype = logits.dtype if isinstance(logits, Tensor) else None
        logits = working_precision(logits)
        if logits.dim() != 2 or logits.shape[1] != self.num_labels:
            raise ValueError(
                f"`logits` must have shape (N, K) with K = {self.num_labels}, got {tuple(logits.shape)}"
            )
        if len(logits) == 0:
            raise ValueError("`logits` must have a point at least, got none")
        check_finite("logits", logits)
        _check_rows("positions", positions, logits, 3)
        if batch is not None:
            check_batch_index("batch", batch, len(logits), logits)
        positions = _near_origin(positions, batch).to(logits.dtype)
        attributes = self._attributes(
            logits, {"colours": colours, "normals": normals, "intensities": intensities}
        )
        kernels = self._kernels(positions, attributes, batch)
        result = self._mean_field(logits, kernels, track, return_logits, progress)
        return reshaped(result, dtype or logits.dtype, lambda rows: rows)

    def _attributes(self, logits: Tensor, given: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Return the attributes that have a sigma, checking that just these are given."""
        used = {}
        for name, value in given.items():
            sigma = _ATTRIBUTES[name]
            if not self._has(sigma):
                if value is not None:
                    raise ValueError(
                        f"`{name}` are given, but the layer has {sigma}=None; make it with one, or leave "
                        f"the {name} out"
                    )
                continue
            if value is None:
                raise ValueError(
                    f"`{name}` are needed, as the layer has an {sigma}; give them, or make the layer with "
                    f"{sigma}=None"
                )
            _check_rows(name, value, logits, 3 if name == "normals" else None)
            if name == "colours":
                self._warn_of_range(name, value, sigma, "appearance_weight")
            used[name] = value.to(logits.dtype)
        return used

    def _kernels(
        self, positions: Tensor, attributes: dict[str, Tensor], batch: Tensor | None
    ) -> list[PairwiseKernel]:
        kernels = []
        if self._used["appearance_weight"]:
            sigma_xyz = self._sigma("appearance_sigma_xyz", positions)
            axes = ["appearance_sigma_xyz"] * 3
            options: dict[str, Tensor] = {}
            for name, value in attributes.items():
                sigma = _ATTRIBUTES[name]
                axes += [sigma] * (value.shape[1] if value.dim() > 1 else 1)
                options |= {
                    name: value,
                    sigma.removeprefix("appearance_"): self._sigma(sigma, positions),
                }
            features = point_features(positions, sigma_xyz, **options)
            kernels.append(self._lattice_kernel(features, "appearance_weight", batch, axes, "point"))
        if self._used["smoothness_weight"]:
            features = point_features(positions, self._sigma("smoothness_sigma", positions))
            axes = ["smoothness_sigma"] * 3
            kernels.append(self._lattice_kernel(features, "smoothness_weight", batch, axes, "point"))
        return kernels


def _near_origin(positions: Tensor, batch: Tensor | None) -> Tensor:
    """Move each cloud towards the origin by multiples of 1,024, which its kernels do not see.

    Map coordinates in double precision then keep their metres' fractions in single precision.
    """
    if not positions.dtype.is_floating_point:
        positions = positions.double()
    item, lowest = lowest_corners(positions, batch)
    return positions - (torch.trunc(lowest / _ORIGIN_STEP) * _ORIGIN_STEP)[item]


def lowest_corners(positions: Tensor, batch: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the number (N,) of each point's cloud, and the lowest coordinates (B, 3) of each cloud."""
    item = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
    if batch is not None:
        item = torch.unique(batch, return_inverse=True)[1]
    lowest = positions.new_full((int(item.max()) + 1 if len(item) else 0, 3), torch.inf)
    return item, lowest.scatter_reduce(0, item[:, None].expand(-1, 3), positions.detach(), "amin")


def _check_rows(name: str, value: Tensor, logits: Tensor, columns: int | None = None) -> None:
    """Raise unless `value` has a row of real, finite numbers for each of the logits, on their device."""
    check_tensor(name, value)
    if value.dim() not in (1, 2) or len(value) != len(logits):
        raise ValueError(
            f"`{name}` must have {len(logits)} rows to match `logits`, got shape {tuple(value.shape)}"
        )
    if columns is not None and value.shape[1:] != (columns,):
        raise ValueError(
            f"`{name}` must have shape (N, {columns}) = ({len(logits)}, {columns}), got {tuple(value.shape)}"
        )
    check_guide(name, value, logits)
