"""CRF-Grad as a layer for images, volumes and points.

Reference: Larsson et al., Learning Arbitrary Pairwise Potentials in CRFs for Semantic Segmentation, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hdcrf.features import bilateral_features, check_spacing, volume_features
from hdcrf.layer_inputs import (
    Bandwidth,
    bandwidth_in_range,
    check_parameters,
    log_parameter,
    working_precision,
)
from hdcrf.relaxed.energy import RelaxedEnergy
from hdcrf.relaxed.layer import GradientLayer, GradientOptions, GridGradientLayer
from hdcrf.relaxed.projected_gradient import RelaxedResult
from voxel.checks import (
    check_batch_index,
    check_count,
    check_finite,
    check_matrix,
    check_positive,
    check_same_kind,
)
from voxel.precision import full_precision

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CRFGrad", "PointCRFGrad", "VolumeCRFGrad"]


class CRFGrad(GridGradientLayer):
    """CRF-Grad for images: pairwise potentials of any shape, for each pair of labels, all learned.

    The energy of labels x, with z the softmax of the logits, p positions and f = (p / σ_xy, colour / σ_rgb),
    is

        Σ_i -w_u log(z_i(x_i) + ε) + Σ_{i<j} k_{x_i,x_j}(p_j - p_i) + k'_{x_i,x_j}(f_j - f_i).

    k is any function within a window of pixels, k' any function of the offset on the permutohedral lattice,
    between neighbours at most s steps apart; each for every pair of labels. Relaxed to shares of labels, the
    energy is minimised by T projected gradient steps. Unlike mean field that descends the energy itself.

    Args:
        num_labels: K, 1 or more.
        channels: c, of the guide.
        iterations: T, 0 or more.
        step_size: γ; or "auto", for each pixel close to the longest of which a bound shows that the energy
            cannot rise. Weights that grow in training call for shorter steps, which "auto" takes.
        unary_weight: w_u.
        window: Width of the window of k in pixels, odd; None for no spatial potentials.
        spatial_weight: What k starts at: so many times a Gaussian window that sums to one, for every pair of
            different labels. At 0 it starts at nothing.
        spatial_sigma: Standard deviation of that Gaussian in pixels.
        neighbourhood: s of k', with (s+1)^{d+1} - s^{d+1} taps, d = 2 + c; None for no bilateral potentials.
        bilateral_weight: What k' starts at: so many times a Gaussian of variance one, likewise.
        sigma_xy: σ_xy in pixels.
        sigma_rgb: σ_rgb in the guide's own units: 13 suits a guide from 0 to 255.
        leak: α: in training the projection onto the simplex has this slope below zero rather than none, so
            that gradients get through; in evaluation there is no leak.
        epsilon: ε, which bounds what an overconfident network can say.
        normalization: Of k', as the Gaussian that it starts at has it: "symmetric" or "none".
        learn: Which parameters are trained: any of "unary", "spatial", "bilateral" and "bandwidths".
        inference: "gradient"; "graduated", which finds lower energies from some 20 iterations on; or
            "mean_field" on the same energy, to compare. These two take neither step size nor leak.
        output: What `forward` returns: "relaxed" labels q on the simplex, or "logits", -∂E/∂q: what each
            pixel makes of its unary costs and of the others' labels. They are for a loss that applies softmax
            itself, and pass on gradients where q has become whole labels.
        backend: "auto", compiled kernels where they can run; "reference", PyTorch; or "native", the kernels.

    Attributes:
        spatial_filters: (K, K, window, window): [a, b, y, x] is what a pixel labelled a and the pixel at
            (y, x) from the window's centre, labelled b, add to the energy. Only the part counts that is the
            same seen from either pixel: see `hdcrf.relaxed.spatial`.
        bilateral_taps: (O, K, K), in the order of `lattice.neighbourhood_offsets`; likewise.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> crf = CRFGrad(21, output="logits")
        >>> logits = crf(torch.randn(2, 21, 48, 64), torch.rand(2, 3, 48, 64) * 255)

    Reference: Larsson et al. 2017. We count what a pixel would send itself nowhere, make potentials of pairs
    symmetric, so that there is an energy, and choose the step.
    """

    _sizes, _place = "H, W", "pixel"
    _axes = ("sigma_xy",) * 2
    _guide_bandwidth = "sigma_rgb"

    sigma_xy = Bandwidth("σ_xy, in pixels.")
    sigma_rgb = Bandwidth("σ_rgb, in the guide's units.")

    def __init__(
        self,
        num_labels: int,
        *,
        channels: int = 3,
        window: int | None = 9,
        spatial_weight: float = 0.0,
        spatial_sigma: float = 3.0,
        neighbourhood: int | None = 1,
        bilateral_weight: float = 4.0,
        sigma_xy: float = 80.0,
        sigma_rgb: float = 13.0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(
            num_labels,
            channels,
            window,
            spatial_weight,
            (spatial_sigma,) * 2,
            neighbourhood,
            bilateral_weight,
            **options,
        )
        self.log_sigma_xy = log_parameter("sigma_xy", sigma_xy, "bandwidths" in self._learned)
        self.log_sigma_rgb = log_parameter("sigma_rgb", sigma_rgb, "bandwidths" in self._learned)

    def _features(self, guide: Tensor) -> Tensor:
        xy, rgb = (bandwidth_in_range(self, name, guide) for name in ("sigma_xy", "sigma_rgb"))
        return bilateral_features(guide, xy, rgb)


class VolumeCRFGrad(GridGradientLayer):
    """CRF-Grad for volumes: logits (B, K, D, H, W) and a guide (B, c, D, H, W); see `CRFGrad`.

    Args:
        num_labels: K, 1 or more.
        channels: c, of the guide.
        window: Width of the window of spatial potentials in voxels, odd; None for none.
        spatial_weight: What they start at, as in `CRFGrad`.
        spatial_sigma: Standard deviation of that Gaussian in the unit of the spacing.
        neighbourhood: Of the bilateral potentials, d = 3 + c; None for none.
        bilateral_weight: What they start at.
        sigma_xyz: σ_xyz in the unit of the spacing, most often millimetres.
        sigma_intensity: σ_I in the guide's own units: 13 suits a guide from 0 to 255.
        spacing: Distance of neighbouring voxels along D, H and W.
        **options: iterations, step_size, unary_weight, leak, epsilon, normalization, learn, inference, output
            and backend, as `CRFGrad` has them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.
    """

    _sizes, _place = "D, H, W", "voxel"
    _axes = ("sigma_xyz",) * 3
    _guide_bandwidth = "sigma_intensity"

    sigma_xyz = Bandwidth("σ_xyz, in the unit of the spacing.")
    sigma_intensity = Bandwidth("σ_I, in the guide's units.")

    def __init__(
        self,
        num_labels: int,
        *,
        channels: int = 1,
        window: int | None = 5,
        spatial_weight: float = 0.0,
        spatial_sigma: float = 1.5,
        neighbourhood: int | None = 1,
        bilateral_weight: float = 4.0,
        sigma_xyz: float = 20.0,
        sigma_intensity: float = 13.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        **options: Unpack[GradientOptions],
    ) -> None:
        distances = check_spacing(spacing)
        check_positive("spatial_sigma", spatial_sigma)
        super().__init__(
            num_labels,
            channels,
            window,
            spatial_weight,
            [spatial_sigma / distance for distance in distances],
            neighbourhood,
            bilateral_weight,
            **options,
        )
        self.spacing = distances
        self.log_sigma_xyz = log_parameter("sigma_xyz", sigma_xyz, "bandwidths" in self._learned)
        self.log_sigma_intensity = log_parameter(
            "sigma_intensity", sigma_intensity, "bandwidths" in self._learned
        )

    def _features(self, guide: Tensor) -> Tensor:
        xyz, intensity = (bandwidth_in_range(self, name, guide) for name in ("sigma_xyz", "sigma_intensity"))
        return volume_features(guide, xyz, intensity, self.spacing)


class PointCRFGrad(GradientLayer):
    """CRF-Grad for points with any features: logits (N, K) and features (N, d); see `CRFGrad`.

    There are bilateral potentials alone. Features come from `point_features`, `video_features` or any other
    lift, divided by their standard deviations.

    Args:
        num_labels: K, 1 or more.
        dimension: d, of the features.
        neighbourhood: s, with (s+1)^{d+1} - s^{d+1} taps.
        bilateral_weight: What the potentials start at, as in `CRFGrad`.
        **options: iterations, step_size, unary_weight, leak, epsilon, normalization, learn, inference, output
            and backend, as `CRFGrad` has them.

    Attributes:
        bilateral_taps: (O, K, K), as in `CRFGrad`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.
    """

    def __init__(
        self,
        num_labels: int,
        dimension: int,
        *,
        neighbourhood: int = 1,
        bilateral_weight: float = 4.0,
        **options: Unpack[GradientOptions],
    ) -> None:
        check_count("dimension", dimension, 1)
        check_count("neighbourhood", neighbourhood, 0)
        super().__init__(num_labels, dimension, neighbourhood, bilateral_weight, **options)

    def forward(self, logits: Tensor, features: Tensor, batch: Tensor | None = None) -> Tensor:
        """Refine unary logits of points.

        Args:
            logits: (N, K) float32 or float64: log-probabilities up to a constant for each point. Half
                precision is computed in float32.
            features: (N, d), divided by their standard deviations.
            batch: (N,) integers: points of different clouds do not see each other.

        Returns:
            (N, K): relaxed labels, or logits of them, as `output` says, in the dtype of the logits.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, an entry is not finite, or a feature is so large
                that the lattice's coordinates overflow.
        """
        return self._refined(logits, features, batch)

    @full_precision
    def energy(self, logits: Tensor, features: Tensor, batch: Tensor | None = None) -> RelaxedEnergy:
        """Return the energy over the N points; arguments and errors as `forward`."""
        logits = working_precision(logits)
        if logits.dim() != 2 or logits.shape[1] != self.num_labels or len(logits) == 0:
            raise ValueError(
                f"`logits` must have shape (N, K) with K = {self.num_labels} and N of at least 1, "
                f"got {tuple(logits.shape)}"
            )
        check_finite("logits", logits)
        check_matrix("features", features, "(N, d)", rows=len(logits))
        if features.shape[1] != self.dimension:
            raise ValueError(
                f"`features` must have d = {self.dimension} columns, as the layer was made for, "
                f"got {features.shape[1]}"
            )
        check_finite("features", features)
        check_same_kind("features", features, "logits", logits)
        if batch is not None:
            check_batch_index("batch", batch, len(logits), logits)
        check_parameters(self)
        return RelaxedEnergy(self._unary(logits), self._bilateral(features, batch, None, "point"), batch)

    def infer(
        self,
        logits: Tensor,
        features: Tensor,
        batch: Tensor | None = None,
        *,
        track: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> RelaxedResult:
        """Refine as `forward` does, and return all that is known.

        Args:
            logits: (N, K), and the others as in `forward`.
            features: (N, d).
            batch: (N,).
            track: Whether to compute the energy of each iteration.
            progress: Called with the number of iterations done, after each.

        Returns:
            Relaxed labels (N, K), the number of iterations, and the energies.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        return self._inferred(logits, features, batch, track=track, progress=progress)

    def labels(self, logits: Tensor, features: Tensor, batch: Tensor | None = None) -> Tensor:
        """Refine without a leak, and round to labels (N,), int64, whose energy is no higher.

        Arguments and errors as `forward`. See `hdcrf.round_labels`.
        """
        return self._labelled(logits, features, batch)
