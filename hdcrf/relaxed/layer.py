"""What the CRF-Grad layers share: parameters, options, and inference on the energy that each builds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from hdcrf.features import batch_index
from hdcrf.layer_inputs import (
    bandwidth_in_range,
    built,
    check_channels,
    check_filters,
    check_grid,
    check_parameters,
    checked_learn,
    number_parameter,
    warn_of_range,
    working_precision,
)
from hdcrf.relaxed.bilateral import BilateralPotential
from hdcrf.relaxed.energy import PairwisePotential, RelaxedEnergy
from hdcrf.relaxed.graduated_descent import graduated_descent
from hdcrf.relaxed.projected_gradient import (
    RelaxedResult,
    check_step_size,
    parallel_mean_field,
    projected_gradient,
)
from hdcrf.relaxed.rounding import round_labels
from hdcrf.relaxed.simplex_projection import check_leak
from hdcrf.relaxed.spatial import SpatialPotential, gaussian_window
from lattice import PermutohedralLattice, neighbourhood_lattice
from lattice.neighbourhood import gaussian_taps, tap_count
from voxel.backend import BACKENDS
from voxel.checks import (
    check_choice,
    check_count,
    check_number,
    check_positive,
)
from voxel.precision import full_precision

__all__ = ["GradientLayer", "GradientOptions", "GridGradientLayer"]

_LEARNABLE = ("unary", "spatial", "bilateral", "bandwidths")
_INFERENCES = ("gradient", "graduated", "mean_field")
_OUTPUTS = ("relaxed", "logits")
_WIDEST = 255  # of a window of filters


class GradientOptions(TypedDict, total=False):
    """The options of every CRF-Grad layer; `CRFGrad` describes them."""

    iterations: int
    step_size: float | str
    unary_weight: float
    leak: float
    epsilon: float
    normalization: str
    learn: Iterable[str]
    inference: str
    output: str
    backend: str


class GradientLayer(nn.Module, ABC):
    """What the layers share: parameters, options, and inference on the energy that each builds.

    Args:
        num_labels: K.
        dimension: d, of the features.
        neighbourhood: s, or None for no bilateral potentials.
        bilateral_weight: Of the Gaussian, Potts potentials that they start at.
        options: As `CRFGrad` has them.
    """

    spatial_filters: nn.Parameter | None
    bilateral_taps: nn.Parameter | None

    def __init__(
        self,
        num_labels: int,
        dimension: int,
        neighbourhood: int | None,
        bilateral_weight: float,
        *,
        iterations: int = 5,
        step_size: float | str = "auto",
        unary_weight: float = 1.0,
        leak: float = 0.01,
        epsilon: float = 1e-2,
        normalization: str = "symmetric",
        learn: Iterable[str] = ("unary", "spatial", "bilateral"),
        inference: str = "gradient",
        output: str = "relaxed",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        self.dimension = dimension
        self.neighbourhood = neighbourhood
        self.iterations = check_count("iterations", iterations, 0)
        self.step_size = check_step_size(step_size)
        self.leak = check_leak(leak)
        self.epsilon = check_positive("epsilon", epsilon)
        self.normalization = check_choice("normalization", normalization, ("symmetric", "none"))
        self.inference = check_choice("inference", inference, _INFERENCES)
        self.output = check_choice("output", output, _OUTPUTS)
        self.backend = check_choice("backend", backend, BACKENDS)
        self._learned = checked_learn(learn, _LEARNABLE)
        self.unary_weight = number_parameter("unary_weight", unary_weight, "unary" in self._learned)
        weight = check_number("bilateral_weight", bilateral_weight)
        self.spatial_filters = None
        self.bilateral_taps = None
        if neighbourhood is not None:
            check_filters(tap_count(dimension, neighbourhood), self.num_labels, "a smaller `neighbourhood`")
            taps, _ = gaussian_taps(dimension, neighbourhood)
            self.bilateral_taps = nn.Parameter(self._potts(taps * weight), "bilateral" in self._learned)

    def _potts(self, kernel: Tensor) -> Tensor:
        """Return a kernel (…) times the Potts compatibility: (…, K, K) float32."""
        return (kernel[..., None, None] * (1 - torch.eye(self.num_labels, dtype=kernel.dtype))).float()

    def _bilateral(
        self, features: Tensor, batch: Tensor | None, axes: Sequence[str] | None, point: str
    ) -> list[PairwisePotential]:
        """Return the bilateral potentials over (P, d) features, if there are any.

        Args:
            features: Divided by their standard deviations.
            batch: (P,) or None.
            axes: The bandwidth of each feature, for an error; None where they are not the layer's.
            point: What a point is called.
        """
        if self.bilateral_taps is None or self.neighbourhood is None:
            return []
        neighbourhood = self.neighbourhood

        def build() -> tuple[PermutohedralLattice, float]:
            return neighbourhood_lattice(features, neighbourhood, batch=batch, backend=self.backend)

        lattice, constant = built(build, self, features, axes, point) if axes is not None else build()
        taps = self.bilateral_taps.to(features)
        return [
            BilateralPotential(
                lattice,
                taps,
                neighbourhood=self.neighbourhood,
                normalization=self.normalization,
                constant=constant,
            )
        ]

    def _unary(self, rows: Tensor) -> Tensor:
        """Return ψ = -w_u log(z + ε) for logits (P, K) and their softmax z."""
        logarithm = torch.log_softmax(rows, 1)
        floor = logarithm.new_tensor(math.log(self.epsilon))
        return -self.unary_weight.to(rows) * torch.logaddexp(logarithm, floor)

    def _minimise(
        self,
        energy: RelaxedEnergy,
        logits: Tensor,
        *,
        strict: bool = False,
        track: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> RelaxedResult:
        """Run the inference that was chosen; with no leak in evaluation, nor if `strict`."""
        start = torch.softmax(self._rows(working_precision(logits)), 1)
        leak = self.leak if self.training and not strict else 0.0
        common: dict[str, Any] = {"iterations": self.iterations, "track": track, "progress": progress}
        check_choice("inference", self.inference, _INFERENCES)
        if self.inference == "mean_field":
            return parallel_mean_field(energy, start, **common)
        if self.inference == "graduated":
            return graduated_descent(energy, start, backend=self.backend, **common)
        return projected_gradient(
            energy, start, step_size=self.step_size, leak=leak, backend=self.backend, **common
        )

    @abstractmethod
    def energy(self, logits: Tensor, *guides: Any) -> RelaxedEnergy:
        """Return the energy over the P points."""

    def _rows(self, logits: Tensor) -> Tensor:
        """Return logits as rows (P, K)."""
        return logits

    def _shaped(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Return (P, …) rows in the shape that the logits came in."""
        return rows

    @full_precision
    def _refined(self, logits: Tensor, *guides: Any) -> Tensor:
        """Return what `forward` returns."""
        energy = self.energy(logits, *guides)
        rows = self._minimise(energy, logits).relaxed
        if check_choice("output", self.output, _OUTPUTS) == "logits":
            rows = -energy.gradient(rows)
        return self._shaped(rows, logits).to(logits.dtype)

    @full_precision
    def _inferred(
        self, logits: Tensor, *guides: Any, track: bool, progress: Callable[[int], object] | None
    ) -> RelaxedResult:
        """Return what `infer` returns."""
        energy = self.energy(logits, *guides)
        result = self._minimise(energy, logits, track=track, progress=progress)
        return replace(result, relaxed=self._shaped(result.relaxed, logits).to(logits.dtype))

    @torch.no_grad()
    @full_precision
    def _labelled(self, logits: Tensor, *guides: Any) -> Tensor:
        """Return what `labels` returns."""
        energy = self.energy(logits, *guides)
        relaxed = self._minimise(energy, logits, strict=True).relaxed
        return self._shaped(round_labels(energy, relaxed), logits)

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return (
            f"{self.num_labels}, iterations={self.iterations}, step_size={self.step_size}, "
            f"neighbourhood={self.neighbourhood}, normalization={self.normalization}, "
            f"inference={self.inference}"
        )


class GridGradientLayer(GradientLayer):
    """Over a grid: logits (B, K, *S), guided by values (B, c, *S)."""

    _sizes: ClassVar[str]
    _place: ClassVar[str]
    _axes: ClassVar[Sequence[str]]
    _guide_bandwidth: ClassVar[str]

    def __init__(
        self,
        num_labels: int,
        channels: int,
        window: int | None,
        spatial_weight: float,
        sigmas: Sequence[float],
        neighbourhood: int | None,
        bilateral_weight: float,
        **options: Any,
    ) -> None:
        self.channels = check_count("channels", channels, 1)
        super().__init__(
            num_labels, len(self._axes) + self.channels, neighbourhood, bilateral_weight, **options
        )
        self.window = window
        weight = check_number("spatial_weight", spatial_weight)
        for sigma in sigmas:
            check_positive("spatial_sigma", sigma)
        if window is None:
            return
        if check_count("window", window, 1, _WIDEST) % 2 == 0:
            raise ValueError(f"`window` must be odd, so that it has a centre, got {window}")
        check_filters(window ** len(sigmas), self.num_labels, "a smaller `window`")
        kernel = gaussian_window([window] * len(sigmas), sigmas) * weight
        potts = self._potts(kernel).movedim((-2, -1), (0, 1)).contiguous()
        self.spatial_filters = nn.Parameter(potts, "spatial" in self._learned)

    @abstractmethod
    def _features(self, guide: Tensor) -> Tensor:
        """Lift the points of the guide."""

    def forward(self, logits: Tensor, guide: Tensor | None = None) -> Tensor:
        """Refine unary logits, guided by values on the same grid.

        Args:
            logits: (B, K, *S) float32 or float64: log-probabilities up to a constant for each point. Half
                precision is computed in float32.
            guide: (B, c, *S) with `channels` channels, floating or integers. None will do where there are no
                bilateral potentials.

        Returns:
            (B, K, *S): relaxed labels, or logits of them, as `output` says, in the dtype of the logits.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, an entry is not finite, a sigma is so small that
                the lattice's coordinates overflow, or the numbers leave the range of their dtype.
        """
        return self._refined(logits, guide)

    @full_precision
    def energy(self, logits: Tensor, guide: Tensor | None = None) -> RelaxedEnergy:
        """Return the energy over the P = B·|S| points of the grid, the last axis of S running fastest.

        Args:
            logits: (B, K, *S), as in `forward`.
            guide: (B, c, *S), as in `forward`.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        logits = working_precision(logits)
        if guide is None:
            if self.bilateral_taps is not None:
                raise ValueError("`guide` is needed, as the layer has bilateral potentials, got None")
            guide = logits.new_zeros((*logits.shape[:1], self.channels, *logits.shape[2:]))
        check_grid(logits, guide, self.num_labels, self._sizes)
        check_channels(guide, self.channels)
        check_parameters(self)
        batch, _, *sizes = logits.shape
        items = batch_index(batch, math.prod(sizes), logits.device)
        potentials: list[PairwisePotential] = []
        if self.spatial_filters is not None:
            potentials.append(SpatialPotential((batch, *sizes), self.spatial_filters.to(logits)))
        if self.bilateral_taps is not None:
            sigma = float(bandwidth_in_range(self, self._guide_bandwidth).detach())
            warn_of_range("guide", guide, self._guide_bandwidth, sigma)
            features = self._features(guide.to(logits.dtype))
            axes = [*self._axes, *[self._guide_bandwidth] * self.channels]
            potentials += self._bilateral(features, items, axes, self._place)
        return RelaxedEnergy(self._unary(self._rows(logits)), potentials, items)

    def infer(
        self,
        logits: Tensor,
        guide: Tensor | None = None,
        *,
        track: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> RelaxedResult:
        """Refine as `forward` does, and return all that is known.

        Args:
            logits: (B, K, *S), as in `forward`.
            guide: (B, c, *S), as in `forward`.
            track: Whether to compute the energy of each iteration, summed over the batch.
            progress: Called with the number of iterations done, after each.

        Returns:
            Relaxed labels (B, K, *S), the number of iterations, and the energies.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        return self._inferred(logits, guide, track=track, progress=progress)

    def labels(self, logits: Tensor, guide: Tensor | None = None) -> Tensor:
        """Refine without a leak, and round to labels (B, *S), int64, whose energy is no higher.

        Arguments and errors as `forward`. See `hdcrf.round_labels`.
        """
        return self._labelled(logits, guide)

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return f"{super().extra_repr()}, window={self.window}"

    def _rows(self, logits: Tensor) -> Tensor:
        return logits.movedim(1, -1).reshape(-1, logits.shape[1])

    def _shaped(self, rows: Tensor, logits: Tensor) -> Tensor:
        batch, _, *sizes = logits.shape
        grid = rows.view(batch, *sizes, *rows.shape[1:])
        return grid if rows.dim() == 1 else grid.movedim(-1, 1)
