"""What all CRF layers share: parameters, options, and mean field over the kernels that each builds."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from hdcrf.compatibility import Compatibility
from hdcrf.gaussian_filter import METHODS, build_filter
from hdcrf.layer_inputs import (
    bandwidth_in_range,
    built,
    check_progress,
    checked_learn,
    log_parameter,
    number_parameter,
    warn_of_range,
)
from hdcrf.mean_field import MeanFieldResult, mean_field
from hdcrf.pairwise import PairwiseKernel, pairwise_kernel
from voxel import VoxelGrid
from voxel.backend import BACKENDS
from voxel.blur import MOST_ROUNDS
from voxel.checks import (
    MOST_RINGS,
    check_choice,
    check_count,
    check_flag,
    check_positive,
)
from voxel.filter_operator import NORMALIZATIONS

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CRFLayer", "Options", "reshaped"]

_LEARNABLE = ("weights", "bandwidths", "compatibility")


class Options(TypedDict, total=False):
    """The options of every CRF layer; `DenseCRF` describes them."""

    iterations: int
    compatibility: str | Tensor
    normalization: str
    exclude_self: bool
    method: str
    order: int
    halo: int
    learn: Iterable[str]
    tolerance: float | None
    output: str
    backend: str


class CRFLayer(nn.Module, ABC):
    """A layer that runs mean field; its subclasses say over which kernels.

    Args:
        num_labels: K.
        weights: The kernels' weights, by name.
        bandwidths: The kernels' standard deviations, by name.
        optional: The bandwidths that may be None, where what they belong to is not used.
        **options: See `DenseCRF`.
    """

    registered: ClassVar[dict[str, type[CRFLayer]]] = {}
    _name: ClassVar[str]  # in that dict, for the operation in hdcrf.compiled

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._name = f"{cls.__module__}.{cls.__qualname__}"
        cls.registered[cls._name] = cls

    def __init__(
        self,
        num_labels: int,
        weights: Mapping[str, float],
        bandwidths: Mapping[str, float | None],
        optional: Collection[str] = (),
        *,
        iterations: int = 5,
        compatibility: str | Tensor = "potts",
        normalization: str = "symmetric",
        exclude_self: bool = True,
        method: str = "permutohedral",
        order: int = 1,
        halo: int = 0,
        learn: Iterable[str] = ("weights",),
        tolerance: float | None = None,
        output: str = "marginals",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        self.iterations = check_count("iterations", iterations, 0)
        self.normalization = check_choice("normalization", normalization, NORMALIZATIONS)
        self.method = check_choice("method", method, METHODS)
        self.order = check_count("order", order, 1, MOST_ROUNDS)
        self.halo = check_count("halo", halo, 0, MOST_RINGS)
        self.output = check_choice("output", output, ("marginals", "logits"))
        self.backend = check_choice("backend", backend, BACKENDS)
        self.exclude_self = check_flag("exclude_self", exclude_self)
        # In a tuple: a compiler takes a plain number, once it has seen two, for one that it does not know.
        self._tolerance = (None if tolerance is None else check_positive("tolerance", tolerance),)
        learned = checked_learn(learn, _LEARNABLE)
        # A kernel whose weight is 0 from the start is left out, unless weights are learned.
        self._used = {name: "weights" in learned or weight != 0 for name, weight in weights.items()}
        self._bandwidths = tuple(bandwidths)
        for name, weight in weights.items():
            self.register_parameter(name, number_parameter(name, weight, "weights" in learned))
        for name, value in bandwidths.items():
            absent = value is None and name in optional
            logarithm = None if absent else log_parameter(name, value, "bandwidths" in learned)
            self.register_parameter(f"log_{name}", logarithm)
        self.compatibility = Compatibility(num_labels, compatibility, learn="compatibility" in learned)

    @classmethod
    def from_params(cls, path: str | os.PathLike[str], num_labels: int, **options: Any) -> Self:
        """Make the layer with the parameters that a file holds, such as `hdcrf tune` writes it.

        What the file leaves out has the layer's default. A file that was tuned on images also fits
        `VideoCRF`, whose parameters have the same names; keys that the layer does not have are an error.

        Args:
            path: A TOML file with a line for each parameter, such as `appearance_sigma_xy = 40.0`.
            num_labels: K.
            **options: The constructor's arguments; they win over the file.

        Raises:
            InputError: If the file cannot be read, or holds what the layer does not take; a ValueError.
            TypeError, ValueError: If an option is wrong, as of the constructor.

        Example:
            >>> crf = DenseCRF.from_params("params.toml", 21, output="logits")
        """
        # Not above: it needs the layers, to know their parameters.
        from hdcrf.params_file import layer_params

        return cls(num_labels, **layer_params(path, cls, num_labels, options), **options)

    @property
    def tolerance(self) -> float | None:
        """Mean field stops when no marginal changed by more than this."""
        return self._tolerance[0]

    @abstractmethod
    def infer(self, logits: Any, *guides: Any, **options: Any) -> MeanFieldResult:
        """Refine as `forward` does, and return all that mean field knows."""

    def _refine(self, logits: Tensor, **guides: Any) -> Tensor:
        """Return what the layer returns."""
        return self._wanted(self.infer(logits, **guides, return_logits=self.output == "logits"))

    def _wanted(self, result: MeanFieldResult) -> Tensor:
        """Return the logits or the marginals, as `output` says."""
        return result.logits if self.output == "logits" and result.logits is not None else result.marginals

    def _run(self, logits: Tensor, **guides: Tensor) -> Tensor:
        """Refine; in a compiled model, as an operation that is not looked into."""
        if not torch.compiler.is_compiling():
            return self._refine(logits, **guides)
        compiled: Tensor = torch.ops.hdcrf.crf(
            logits, list(guides.values()), list(self.parameters()), self._description(list(guides))
        )
        return compiled

    def _description(self, guides: Sequence[str]) -> str:
        """Return the layer's name, the guides' names and the settings, written as a dict."""
        return str({"layer": self._name, "guides": list(guides), **self._settings()})

    def _settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, with numbers in place of what `parameters` hold."""
        return {
            "num_labels": self.num_labels,
            **{name: int(used) for name, used in self._used.items()},
            **{name: 1.0 if self._has(name) else None for name in self._bandwidths},
            "iterations": self.iterations,
            "normalization": self.normalization,
            "exclude_self": self.exclude_self,
            "method": self.method,
            "order": self.order,
            "halo": self.halo,
            "tolerance": self.tolerance,
            "output": self.output,
            "backend": self.backend,
        }

    def _has(self, bandwidth: str) -> bool:
        """Return whether the layer has a bandwidth of that name, and not None."""
        return getattr(self, f"log_{bandwidth}") is not None

    def _sigma(self, name: str, like: Tensor | None = None) -> Tensor:
        """Return a bandwidth, in the dtype of `like` if that is given, if it can be computed with."""
        return bandwidth_in_range(self, name, like)

    def _warn_of_range(self, name: str, guide: Tensor, bandwidth: str, weight: str) -> None:
        """Warn of a guide from 0 to 1 whose bandwidth was meant for 0 to 255."""
        if self._used[weight]:
            warn_of_range(name, guide, bandwidth, float(self._sigma(bandwidth).detach()))

    def _mean_field(
        self,
        rows: Tensor,
        kernels: Sequence[PairwiseKernel],
        track: bool,
        return_logits: bool,
        progress: Callable[[int], object] | None,
    ) -> MeanFieldResult:
        """Run mean field on (P, K) logits."""
        check_flag("track", track)
        check_flag("return_logits", return_logits)
        check_progress(progress)
        return mean_field(
            rows,
            kernels,
            self.compatibility,
            iterations=self.iterations,
            exclude_self=self.exclude_self,
            tolerance=self.tolerance,
            track=track,
            return_logits=return_logits,
            progress=progress,
        )

    def _lattice_kernel(
        self,
        features: Tensor,
        weight: str,
        batch: Tensor | None,
        axes: Sequence[str],
        point: str,
    ) -> PairwiseKernel:
        """Build the kernel of a lattice over features.

        Args:
            features: (P, d).
            weight: The name of its weight.
            batch: (P,) batch index, or None.
            axes: The name of the bandwidth that each feature was divided by, for an error.
            point: What a point is called there.
        """
        operator = built(
            lambda: build_filter(
                features,
                method=self.method,
                batch=batch,
                order=self.order,
                halo=self.halo,
                backend=self.backend,
            ),
            self,
            features,
            axes,
            point,
        )
        nearest = isinstance(operator, VoxelGrid) and not operator.linear
        if nearest and torch.is_grad_enabled() and features.requires_grad:
            raise ValueError(
                f"method='voxel' has no gradient for bandwidths and guides in {operator.dimension} "
                "dimensions: beyond 6, its cubes are nearest ones, which do not change with them; use "
                "method='permutohedral', or leave bandwidths out of `learn` and detach the guide"
            )
        return pairwise_kernel(operator, getattr(self, weight).to(features), self.normalization)

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return (
            f"{self.num_labels}, iterations={self.iterations}, method={self.method}, "
            f"normalization={self.normalization}, order={self.order}, halo={self.halo}, "
            f"exclude_self={self.exclude_self}"
        )


def reshaped(
    result: MeanFieldResult, dtype: torch.dtype, shape: Callable[[Tensor], Tensor]
) -> MeanFieldResult:
    """Return a result over (P, K) rows in another shape and in the dtype that came in."""
    logits = None if result.logits is None else shape(result.logits).to(dtype)
    return replace(result, marginals=shape(result.marginals).to(dtype), logits=logits)
