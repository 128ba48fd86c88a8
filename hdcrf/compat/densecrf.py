"""In place of `pydensecrf.densecrf`: the same classes, arguments, conventions and results.

Mean field as there: Q ← softmax(-U - Σ_c μ_c K_c Q), where the message of a point to itself is left in, every
kernel is a filter on the permutohedral lattice, and each has a compatibility of its own: a number w is
μ = -w on the diagonal, a vector is μ's diagonal, a matrix is μ once it is made symmetric.

Matrices come as NumPy arrays. Arguments are taken in any real dtype and layout, read-only too; what cannot be
used is an error that says why.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hdcrf.arrays import plain_value, real_array
from hdcrf.compat.inputs import check_finite, count, deviations, divide, matrix, member, places
from hdcrf.compat.pairwise import Lattice, Pairwise, their_scale
from hdcrf.compatibility import Compatibility
from hdcrf.mean_field import mean_field, out_of_range, softmax
from hdcrf.pairwise import LatticeKernel
from hdcrf.refine import MOST_ITERATIONS
from voxel import CoordinateRangeError
from voxel.checks import check_count, check_number

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
]


class KernelType(enum.IntEnum):
    """Which metric a kernel could learn. Here, as in pydensecrf, none is learned, so all are alike."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(enum.IntEnum):
    """How a kernel K is normalised, with D = diag(K 1)."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType

_NORMALIZATIONS = {
    NO_NORMALIZATION: "none",
    NORMALIZE_BEFORE: "before",
    NORMALIZE_AFTER: "after",
    NORMALIZE_SYMMETRIC: "symmetric",
}
_EXCLUDED = 1e30  # the energy of what an infinite one excludes: no message comes near it
_LEAST = 1e-20  # marginals under the logarithm of the divergence
_SET_UP = ("_nvar", "_nlabels", "_logits", "_pairwise", "_w", "_h")  # by __init__


class Unary:
    """An energy (K, N) for each label at each place."""

    def __init__(self, energy: NDArray[np.float32]) -> None:
        self.energy = energy


class ConstUnary(Unary):
    """A unary energy that is given.

    Args:
        u: (K, N).
    """

    def __init__(self, u: ArrayLike) -> None:
        super().__init__(matrix("u", u))


class LogisticUnary(Unary):
    """A unary energy that is linear in features, L f.

    Args:
        L: (K, F).
        f: (F, N).
    """

    def __init__(self, L: ArrayLike, f: ArrayLike) -> None:
        weights, features = matrix("L", L), matrix("f", f)
        if weights.shape[1] != features.shape[0]:
            raise ValueError(
                f"`f` must have shape (F, N) with F = {weights.shape[1]}, as `L` has columns, got "
                f"{features.shape}"
            )
        super().__init__(weights @ features)


class _Origin(NamedTuple):
    """What a feature was made from: how messages say that it is too large."""

    fault: str
    feature: str
    remedy: str


class DenseCRF:
    """A fully connected CRF over N places of any kind.

    Args:
        nvar: N.
        nlabels: K.
        *_: Ignored, as in pydensecrf.
        **__: Ignored.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If it is less than 1.
    """

    def __init__(self, nvar: int, nlabels: int, *_: object, **__: object) -> None:
        self._nvar = count("nvar", nvar, 1)
        self._nlabels = count("nlabels", nlabels, 1)
        self._logits: Tensor | None = None
        self._pairwise: list[Pairwise] = []

    def __getattr__(self, name: str) -> object:
        explained = "; call super().__init__ first, with the numbers of places and labels"
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}" + (explained if name in _SET_UP else "")
        )

    @property
    def _unary(self) -> Tensor:
        """The logits -U, (N, K), zeros without a unary energy."""
        if self._logits is None:
            return torch.from_numpy(np.zeros((self._nvar, self._nlabels), dtype=np.float32))
        return self._logits

    def setUnary(self, u: Unary) -> None:
        """Take a unary energy, in place of any before."""
        if not isinstance(u, Unary):
            raise TypeError(
                f"`u` must be a ConstUnary or LogisticUnary, got {type(u).__name__}; for an array use "
                "setUnaryEnergy"
            )
        energy = u.energy
        if energy.shape != (self._nlabels, self._nvar):
            turned = energy.shape == (self._nvar, self._nlabels)
            raise ValueError(
                f"`u` must have shape (K, N) = ({self._nlabels}, {self._nvar}), got {energy.shape}"
                + ("; transpose it" if turned else "")
            )
        lowest, highest = float(energy.min()), float(energy.max())
        if not lowest > -np.inf:  # also where it is not a number
            raise ValueError(
                f"`u` must hold energies, -log P, got {lowest}; look for NaN or infinity in its source"
            )
        if highest == np.inf:
            energy = np.where(energy == np.inf, np.float32(_EXCLUDED), energy)
        self._logits = -torch.from_numpy(np.ascontiguousarray(energy.T))

    def setUnaryEnergy(self, u: ArrayLike, f: ArrayLike | None = None) -> None:
        """Take a unary energy, in place of any before.

        Args:
            u: (K, N), -log P; infinite where a label is excluded. With `f`, weights (K, F).
            f: Features (F, N), whose energy is u f.

        Raises:
            TypeError: If it does not hold real numbers.
            ValueError: If it has another shape, or NaN or minus infinity in it.
        """
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def addPairwiseEnergy(
        self,
        features: ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian kernel over features.

        Args:
            features: (d, N), divided by their standard deviations; any d.
            compat: A number w for μ = -w on the diagonal, a vector (K,) for μ's diagonal (negative where
                agreement is rewarded), or a matrix (K, K) for μ, which is made symmetric.
            kernel: A `KernelType`; all are alike.
            normalization: A `NormalizationType`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If it has the wrong shape or a value that cannot be used.
        """
        array = matrix("features", features)
        if array.shape[1] != self._nvar or len(array) == 0:
            raise ValueError(
                f"`features` must have shape (d, N) with N = {self._nvar}, got {array.shape}"
                + ("; transpose it" if len(array) == self._nvar else "")
            )
        check_finite("features", array)

        def origin(axis: int) -> _Origin:
            remedy = "divide it by a larger standard deviation, or subtract its mean"
            return _Origin("`features` is too large", f"feature {axis}", remedy)

        self._add(array, origin, compat, kernel, normalization)

    def _add(
        self,
        array: NDArray[np.float32],
        origin: Callable[[int], _Origin],
        compat: float | ArrayLike,
        kernel: int,
        normalization: int,
    ) -> None:
        """Add a kernel over features (d, N), which are infinite where a deviation is too small."""
        member("kernel", kernel, KernelType)
        normalized = _NORMALIZATIONS[member("normalization", normalization, NormalizationType)]
        weight, costs = self._compatibility(compat)
        infinite = np.argwhere(np.isinf(array))
        if len(infinite):
            axis, point = infinite[0].tolist()
            raise _too_large(array, axis, point, origin)
        try:
            lattice = Lattice(torch.from_numpy(array).T)
        except CoordinateRangeError as error:
            raise _too_large(array, error.axis, error.point, origin) from error
        if normalized == "none":
            weight *= their_scale(lattice.dimension) / lattice.constant
        self._pairwise.append(Pairwise(LatticeKernel(lattice, weight, normalized), costs))

    def _compatibility(self, compat: float | ArrayLike) -> tuple[float, Tensor | None]:
        """Return a kernel's weight, and μ if that is no number."""
        number = plain_value("compat", compat)
        if isinstance(number, Real):
            return check_number("compat", number), None
        array = real_array("compat", compat)
        if array.shape not in ((self._nlabels,), (self._nlabels, self._nlabels)):
            raise ValueError(
                f"`compat` must be a number, a vector ({self._nlabels},) or a matrix "
                f"({self._nlabels}, {self._nlabels}), got shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError("`compat` must be finite, got NaN or infinity")
        costs = torch.from_numpy(np.array(array, dtype=np.float32))
        return 1.0, costs if costs.dim() == 1 else (costs + costs.T) / 2

    def inference(self, niter: int) -> NDArray[np.float32]:
        """Run mean field.

        Args:
            niter: Iterations, 0 or more.

        Returns:
            (K, N) float32 marginals; `.argmax(0)` are the labels.
        """
        iterations = count("niter", niter, 0, MOST_ITERATIONS)
        with torch.inference_mode():
            if all(part.compatibility is None for part in self._pairwise):
                kernels = [part.kernel for part in self._pairwise]
                marginals = mean_field(
                    self._unary,
                    kernels,
                    Compatibility(self._nlabels),
                    iterations=iterations,
                    exclude_self=False,
                    return_logits=False,
                ).marginals
            else:
                marginals = softmax(self._unary)
                for _ in range(iterations):
                    marginals = self._step(marginals)
        return marginals.numpy().T

    def _step(self, marginals: Tensor) -> Tensor:
        """Return the (N, K) marginals after one iteration."""
        updated = softmax(self._updated(marginals))
        if not bool(torch.isfinite(updated.sum())):
            raise out_of_range(marginals, 1)
        return updated

    def _updated(self, marginals: Tensor) -> Tensor:
        """Return -U - Σ_c μ_c K_c Q, (N, K), for marginals Q."""
        total = self._unary.clone()
        for part in self._pairwise:
            part.subtract_cost(marginals, total)
        return total

    def startInference(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return what mean field starts from, marginals (K, N) float32, and two arrays for `stepInference`.

        The two are empty: no memory is needed between steps. Without a unary energy the marginals are zeros,
        as in pydensecrf; `inference` starts from equal ones.
        """
        start = self._unary if self._logits is None else softmax(self._logits)
        empty = np.zeros((0, 0), dtype=np.float32)
        return start.numpy().T, empty, empty.copy()

    def stepInference(self, Q: NDArray[np.float32], tmp1: object, tmp2: object) -> None:
        """Do one iteration of mean field on `Q`, (K, N), in place; the other two are not looked at."""
        if not isinstance(Q, np.ndarray) or not Q.flags.writeable:
            raise TypeError("`Q` must be an array that can be written to; take the one of startInference")
        with torch.inference_mode():
            Q[...] = self._step(self._rows(Q)).numpy().T

    def klDivergence(self, Q: ArrayLike) -> float:
        """Return what pydensecrf calls the KL divergence of marginals `Q`, (K, N), which mean field lowers.

        Σ Q log Q + Σ Q U + Σ_c Σ Q (μ_c K_c Q). In the divergence itself, up to a constant, the last sum has
        a factor ½.
        """
        with torch.inference_mode():
            marginals = self._rows(Q)
            logarithm = marginals.clamp_min(_LEAST).log_()
            terms = logarithm.sub_(self._updated(marginals)).mul_(marginals)
            return float(terms.sum(dtype=torch.float64))

    def pairwiseEnergy(self, labels: ArrayLike, term: int = -1) -> NDArray[np.float32]:
        """Return each place's part of the pairwise energy of a labelling, as the original C++ code has it.

        -½ (μ_c K_c [x = l])(x_i), so that agreement counts as positive: their sign. pydensecrf does not pass
        it on to Python.

        Args:
            labels: N integers from 0 to K - 1; others stand for no label, whose part is 0.
            term: The number of the kernel, in the order they were added; -1 for the sum of all.

        Returns:
            (N,) float32.
        """
        numbers = real_array("labels", labels).ravel()
        if numbers.dtype.kind not in "iub" or len(numbers) != self._nvar:
            raise ValueError(
                f"`labels` must be N = {self._nvar} integers, got {len(numbers)} of {numbers.dtype}"
            )
        number = check_count("term", term, -1, len(self._pairwise) - 1)
        parts = self._pairwise if number == -1 else [self._pairwise[number]]
        index = torch.from_numpy(numbers.astype(np.int64))[:, None]
        known = (index >= 0) & (index < self._nlabels)
        index = index.clamp(0, self._nlabels - 1)
        with torch.inference_mode():
            marginals = torch.zeros(self._nvar, self._nlabels).scatter_(1, index, known.float())
            rewards = torch.zeros_like(marginals)
            for part in parts:
                part.subtract_cost(marginals, rewards)
            return (rewards.gather(1, index) * known)[:, 0].mul_(0.5).numpy()

    def _rows(self, Q: ArrayLike) -> Tensor:
        """Return marginals (K, N) as (N, K)."""
        array = real_array("Q", Q)
        if array.shape != (self._nlabels, self._nvar):
            raise ValueError(
                f"`Q` must have shape (K, N) = ({self._nlabels}, {self._nvar}), got {array.shape}"
            )
        return torch.from_numpy(np.ascontiguousarray(array.T, dtype=np.float32))


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of a picture, row by row.

    Args:
        w: Width, first.
        h: Height.
        nlabels: K.
        *_: Ignored, as in pydensecrf.
        **__: Ignored.
    """

    def __init__(self, w: int, h: int, nlabels: int, *_: object, **__: object) -> None:
        self._w, self._h = count("w", w, 1), count("h", h, 1)
        super().__init__(self._w * self._h, nlabels)

    def addPairwiseGaussian(
        self,
        sxy: float | Sequence[float],
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian kernel over the position, which smooths.

        Args:
            sxy: Standard deviation in pixels, one number or two, for x and y; infinity leaves one out.
            compat: As in `addPairwiseEnergy`.
            kernel: As in `addPairwiseEnergy`.
            normalization: As in `addPairwiseEnergy`.
        """
        self._add(
            np.ascontiguousarray(self._places(sxy)).reshape(2, -1), _position, compat, kernel, normalization
        )

    def addPairwiseBilateral(
        self,
        sxy: float | Sequence[float],
        srgb: float | Sequence[float],
        rgbim: ArrayLike,
        compat: float | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian kernel over position and colour, which follows edges.

        Args:
            sxy: Standard deviation in pixels, one number or two, for x and y.
            srgb: That of the colours, in units of `rgbim`, one number or one for each channel.
            rgbim: (h, w, 3) uint8, or (h, w) or (h, w, c) of any real dtype.
            compat: As in `addPairwiseEnergy`.
            kernel: As in `addPairwiseEnergy`.
            normalization: As in `addPairwiseEnergy`.
        """
        picture = real_array("rgbim", rgbim)
        channels = picture[:, :, None] if picture.ndim == 2 else picture
        if channels.ndim != 3 or channels.shape[:2] != (self._h, self._w) or channels.shape[2] == 0:
            swapped = channels.shape[:2] == (self._w, self._h)
            raise ValueError(
                f"`rgbim` must have shape (h, w, c) = ({self._h}, {self._w}, c), got {picture.shape}"
                + ("; DenseCRF2D takes the width first" if swapped and self._w != self._h else "")
            )
        check_finite("rgbim", picture)
        sigmas = deviations("srgb", srgb, channels.shape[2], "channels of `rgbim`", more=True)
        features = np.empty((2 + channels.shape[2], self._h, self._w), dtype=np.float32)
        features[:2] = self._places(sxy)
        features[2:] = np.moveaxis(channels, 2, 0)
        divide(features[2:], sigmas)

        def origin(axis: int) -> _Origin:
            remedy = "use a larger one, or look for outliers in the picture"
            colour = _Origin("`srgb` is too small for `rgbim`", f"channel {axis - 2}", remedy)
            return _position(axis) if axis < 2 else colour

        self._add(features.reshape(len(features), -1), origin, compat, kernel, normalization)

    def _places(self, sxy: float | Sequence[float]) -> NDArray[np.float32]:
        """Return x and y over their standard deviations, (2, h, w)."""
        x, y = deviations("sxy", sxy, 2, "axes x and y", more=True)
        return places((y, x), (self._h, self._w))[::-1]


def _position(axis: int) -> _Origin:
    return _Origin("`sxy` is too small", "xy"[axis], "use a larger one")


def _too_large(
    array: NDArray[np.float32], axis: int, point: int, origin: Callable[[int], _Origin]
) -> ValueError:
    """Return the error of a feature that the lattice cannot hold."""
    fault, feature, remedy = origin(axis)
    return ValueError(
        f"{fault}: {feature} of place {point} is {abs(float(array[axis, point])):.6g} standard deviations "
        f"from 0, more than the lattice can hold; {remedy}"
    )
