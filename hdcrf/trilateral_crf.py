"""The fully connected CRF over space-time voxels: the trilateral kernel in position, time and colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hdcrf.crf_layer import CRFLayer, Options
from hdcrf.features import trilateral_features
from hdcrf.layer_inputs import Bandwidth, check_guide
from hdcrf.mean_field import MeanFieldResult
from voxel import SparseTensor
from voxel.checks import check_finite, check_positive
from voxel.precision import full_precision
from voxel.sparse_tensor import check_sparse_tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TrilateralCRF"]


class TrilateralCRF(CRFLayer):
    """Mean field in a CRF that connects every space-time voxel with every other: the head of a 4D network.

    The pairwise kernel between the voxels i and j, at positions p in frames t and with colours I, is

        w exp(-|p_i - p_j|²/2σ_xyz² - (t_i - t_j)²/2σ_t² - |I_i - I_j|²/2σ_rgb²).

    Args:
        num_labels: K, 1 or more.
        weight: w.
        sigma_xyz: σ_xyz in the unit of the voxel size.
        sigma_t: σ_t in frames.
        sigma_rgb: σ_rgb in the unit of the colours: 13 suits 0 to 255.
        voxel_size: Edge of a voxel.
        **options: iterations, compatibility, learn, output and so on, as `DenseCRF` has them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> coordinates = torch.cartesian_prod(torch.arange(2), *[torch.arange(3)] * 4)
        >>> voxels = voxel.SparseTensor(coordinates, torch.rand(len(coordinates), 3) * 255)
        >>> logits = voxels.replace(torch.randn(len(coordinates), 5))
        >>> marginals = TrilateralCRF(5)(logits, voxels)

    Reference: Choy, Gwak, Savarese, 4D Spatio-Temporal ConvNets, CVPR 2019, section 5. They learn the entries
    of the 7D kernel; here it is a Gaussian of learned weight, bandwidths and compatibility, over all voxels.
    """

    sigma_xyz = Bandwidth("σ_xyz, in the unit of the voxel size.")
    sigma_t = Bandwidth("σ_t, in frames.")
    sigma_rgb = Bandwidth("σ_rgb, in the unit of the colours.")

    def __init__(
        self,
        num_labels: int,
        *,
        weight: float = 10.0,
        sigma_xyz: float = 4.0,
        sigma_t: float = 3.0,
        sigma_rgb: float = 13.0,
        voxel_size: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        bandwidths = {"sigma_xyz": sigma_xyz, "sigma_t": sigma_t, "sigma_rgb": sigma_rgb}
        super().__init__(num_labels, {"weight": weight}, bandwidths, **options)
        self.voxel_size = check_positive("voxel_size", voxel_size)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "voxel_size": self.voxel_size}

    def forward(self, logits: SparseTensor, colours: SparseTensor) -> SparseTensor:
        """Refine unary logits of voxels.

        Args:
            logits: Coordinates (V, 5), the columns batch, x, y, z, t, and log-probabilities (V, K) up to a
                constant for each voxel.
            colours: The same coordinates, and colours (V, c).

        Returns:
            The same coordinates with (V, K) marginals, or their logarithms, as `output` says.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If coordinates or devices do not match, an entry is not finite, or a sigma is so small
                that the lattice's coordinates overflow.
        """
        self._check_voxels(logits, colours)
        refined = self._run(logits.features, coordinates=logits.coordinates, colours=colours.features)
        return logits.replace(refined)

    def _refine(self, logits: Tensor, **guides: Any) -> Tensor:
        voxels = SparseTensor(guides["coordinates"], guides["colours"])
        with_logits = self.output == "logits"
        return self._wanted(self.infer(voxels.replace(logits), voxels, return_logits=with_logits))

    @full_precision
    def infer(
        self,
        logits: SparseTensor,
        colours: SparseTensor,
        *,
        track: bool = False,
        return_logits: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> MeanFieldResult:
        """Refine as `forward` does, and return all that mean field knows.

        Args:
            logits: Coordinates (V, 5) and features (V, K), as in `forward`.
            colours: The same coordinates and features (V, c), as in `forward`.
            track: Whether to compute the energy and the objective of each iteration, summed over the batch.
            return_logits: Whether the result has logits, which take as much memory as the marginals.
            progress: Called with the number of iterations done, after each.

        Returns:
            Marginals and logits (V, K), the number of iterations, energy and KL objective.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        self._check_voxels(logits, colours)
        rows = logits.features
        check_finite("logits", rows)
        check_guide("colours", colours.features, rows)
        self._warn_of_range("colours", colours.features, "sigma_rgb", "weight")
        features = trilateral_features(
            colours.replace(colours.features.to(rows.dtype)),
            self._sigma("sigma_xyz", rows),
            self._sigma("sigma_t", rows),
            self._sigma("sigma_rgb", rows),
            self.voxel_size,
        )
        axes = ["sigma_xyz"] * 3 + ["sigma_t"] + ["sigma_rgb"] * colours.features.shape[1]
        kernels = (
            [self._lattice_kernel(features, "weight", logits.coordinates[:, 0], axes, "voxel")]
            if self._used["weight"]
            else []
        )
        return self._mean_field(rows, kernels, track, return_logits, progress)

    def _check_voxels(self, logits: SparseTensor, colours: SparseTensor) -> None:
        check_sparse_tensor("logits", logits)
        check_sparse_tensor("colours", colours)
        if logits.dimension != 4:
            raise ValueError(
                f"`logits` must have the coordinates batch, x, y, z, t, got {logits.dimension} dimensions"
            )
        if logits.features.shape[1] != self.num_labels:
            raise ValueError(
                f"`logits` must have K = {self.num_labels} features a voxel, got {logits.features.shape[1]}"
            )
        if len(logits) == 0:
            raise ValueError("`logits` must have a voxel at least, got none")
        if colours.features.device != logits.features.device:
            raise ValueError(
                f"`colours` must be on the device of `logits`, {logits.features.device}, "
                f"got {colours.features.device}"
            )
        if logits.voxels is not colours.voxels and not torch.equal(logits.coordinates, colours.coordinates):
            raise ValueError(
                "`colours` must have the coordinates of `logits`, in the same order; make one from the other "
                "with `replace`"
            )
