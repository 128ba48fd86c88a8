"""The bilateral Gaussian CRF: values that agree with observations, and with their neighbours in the guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from hdcrf.features import batch_index, bilateral_features
from hdcrf.gaussian.bistochastic import Bistochastic
from hdcrf.gaussian.conjugate_gradient import Solution, check_solver_options, conjugate_gradient
from hdcrf.gaussian.inference import checked_weight
from hdcrf.gaussian.linear_system import implicit_solution
from hdcrf.gaussian_filter import METHODS, build_filter
from hdcrf.layer_inputs import (
    Bandwidth,
    check_guide,
    checked_learn,
    log_parameter,
    warn_of_range,
    working_precision,
)
from voxel import FilterOperator, VoxelGrid
from voxel.backend import BACKENDS
from voxel.blur import MOST_ROUNDS
from voxel.checks import (
    MOST_RINGS,
    check_choice,
    check_count,
    check_finite,
    check_flag,
    check_floating,
    check_matrix,
    check_same_kind,
    check_tensor,
)
from voxel.precision import full_precision

__all__ = ["BilateralSolver", "bilateral_solve"]

_LEARNABLE = ("smoothness", "bandwidths")
_REMEDY = "lower `smoothness`, raise the confidences that are above 0, or compute in float64"


@full_precision
def bilateral_solve(
    operator: FilterOperator | Tensor,
    target: Tensor,
    confidence: Tensor,
    *,
    smoothness: float | Tensor = 1.0,
    precondition: bool = True,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Return the values x that stay near a target, where that is trusted, and vary little between neighbours.

    They minimise, for each channel,

        λ/2 Σ_ij Ŵ_ij (x_i - x_j)² + Σ_i c_i (x_i - t_i)²,   that is   (λ (D̂ - Ŵ) + diag(c)) x = c ∘ t,

    where Ŵ is the Gaussian kernel over features, symmetric and scaled so that rows sum to one; see
    `Bistochastic`. Neighbours are points with features alike, in any dimension: those of
    `hdcrf.bilateral_features` for images, `hdcrf.video_features`, `hdcrf.volume_features`,
    `hdcrf.point_features`, or of your own.

    A point that no confidence reaches, even by way of others, gets the mean of what is trusted, Σ c t / Σ c.

    Args:
        operator: The Gaussian filter over N points, from `hdcrf.build_filter`, whose `batch` keeps items
            apart; or (N, d) features, for which the filter is built as it comes.
        target: t, (N, C), of the features' dtype and device; what it is where the confidence is 0 does not
            matter, but it must be finite.
        confidence: c ≥ 0, (N,), or (N, C) where it differs between channels; above 0 somewhere in each item.
        smoothness: λ > 0, a number or a tensor of one element, which can be learned. It is to be compared
            with the confidences: for λ = c a point is drawn to its neighbours as much as to its target.
        precondition: Divide by the diagonal (Jacobi) in conjugate gradient. It takes the time of about ten
            iterations, and pays where kernels are narrow, or the tolerance low.
        tolerance: Of the relative residual; None takes 1e-6 in float32 and 1e-10 in float64. A photo shows
            no difference below 1e-3 or 1e-4.
        max_iterations: None takes 10 N, at least 100.
        on_failure: "raise", or "warn" to return the best iterate with a warning.

    Returns:
        A `Solution`: x (N, C), and for each channel (C,) the iterations, the relative residual, and whether
        it converged. Residuals are relative to c ∘ (t - mean).

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        NotPositiveDefiniteError: If rounding made the system indefinite: in float32, where λ is ten thousand
            times the confidences or more.
        ConvergenceError: If `max_iterations`, or the iterations of `Bistochastic`, did not suffice.

    Differentiable, once, in target, confidence, smoothness, and the features that the filter was built from:
    in closed form, by one more solve, or two if features are learned. Deterministic on the CPU for a given
    number of threads.

    Cost: about one filter both ways an iteration, for all channels at once, and about 12 before in float32.

    Example:
        >>> features = hdcrf.video_features(video, sigma_xy=8.0, sigma_t=3.0, sigma_rgb=8.0)
        >>> solution = bilateral_solve(hdcrf.build_filter(features), depth, confidence, smoothness=4.0)

    Reference: Barron and Poole, The Fast Bilateral Solver, ECCV 2016, section 2. They solve for the
    vertices of a grid, each point lying at one vertex; here the unknowns are the points, between vertices.
    """
    operator = _checked_operator(operator)
    check_matrix("target", target, "(N, C)", rows=operator.num_points)
    if target.shape[1] == 0:
        raise ValueError("`target` must have at least one channel, got none")
    check_same_kind("target", target, "features", operator.features)
    check_finite("target", target)
    confidence = _checked_confidence(confidence, target)
    weight = checked_weight("smoothness", smoothness, target)
    check_flag("precondition", precondition)
    check_solver_options(target.dtype, tolerance, max_iterations, on_failure)

    mean = _trusted_mean(operator.batch, target.detach(), confidence.detach())
    kernel = Bistochastic(operator)
    product, diagonal = _system(kernel, weight.detach(), confidence.detach(), precondition)

    def solver(b: Tensor) -> Solution:
        return conjugate_gradient(
            product,
            b,
            diagonal=diagonal,
            tolerance=tolerance,
            max_iterations=max_iterations,
            on_failure=on_failure,
            remedy=_REMEDY,
        )

    def backward_solver(b: Tensor) -> Tensor:
        return solver(b * _reached(confidence.detach(), solver)).x

    def residual(x: Tensor) -> Tensor:
        attraction = confidence * (target - mean - x.mT)
        return (attraction - weight * kernel.laplacian(x.mT)).mT

    # The Laplacian of the mean is 0: what is left to solve for is the distance from it.
    with torch.no_grad():
        found = solver((confidence * (target - mean)).mT)
    x = implicit_solution(residual, found.x, backward_solver).mT
    return Solution(x + mean, found.iterations, found.residual, found.converged)


def _system(
    kernel: Bistochastic, weight: Tensor, confidence: Tensor, precondition: bool
) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """Return the product with λ (D̂ - Ŵ) + diag(c), and its diagonal if that is wanted.

    Vectors are (C, N) views of (N, C) in memory, one channel a system: so neither the solver nor the filter
    has to copy them.
    """
    scale = weight.sqrt() * kernel.scale.detach()[:, None]
    entries = weight * kernel.row_sums[:, None] + confidence

    def product(x: Tensor) -> Tensor:
        smoothed = kernel.operator.symmetric_product(scale * x.mT)
        return (entries * x.mT).addcmul_(scale, smoothed, value=-1).mT

    if not precondition:
        return product, None
    diagonal = weight * kernel.laplacian_diagonal()[:, None] + confidence
    # Rounding is all that is left to a point without neighbours or confidence.
    least = 4 * torch.finfo(entries.dtype).eps * entries
    return product, diagonal.maximum(least).mT


def _reached(confidence: Tensor, solver: Callable[[Tensor], Solution]) -> Tensor | float:
    """Return 1 for the points that a confidence reaches, else 0: as the solution for the target 1 says."""
    if bool((confidence > 0).all()):
        return 1.0
    return (solver(confidence.mT).x > 0.5).to(confidence.dtype)


def _trusted_mean(batch: Tensor | None, target: Tensor, confidence: Tensor) -> Tensor:
    """Return Σ c t / Σ c over each item, for each of its points: (N, C), or (1, C) without a batch.

    Raises:
        ValueError: If an item has no confidence in a channel.
    """
    if batch is None:
        items, place = 1, torch.zeros_like(target[:, 0], dtype=torch.int64)
    else:
        labels, place = torch.unique(batch, return_inverse=True)
        items = len(labels)
    # In float64: sums of many, in any order, that float32 could not hold.
    trust, values = confidence.double(), target.double()
    total = trust.new_zeros((items, trust.shape[1])).index_add(0, place, trust)
    if not bool((total > 0).all()):
        item, channel = torch.nonzero(total <= 0)[0].tolist()
        where = [f"item {int(labels[item])} of the batch"] if batch is not None else []
        where += [f"channel {channel}"] if trust.shape[1] > 1 else []
        raise ValueError(
            f"`confidence` must be above 0 somewhere, but it is 0 at every point{' of ' * bool(where)}"
            f"{', '.join(where)}; there is nothing for the others to follow"
        )
    weighted = total.new_zeros((items, values.shape[1])).index_add(0, place, trust * values)
    mean = (weighted / total).to(target.dtype)
    return mean if batch is None else mean.index_select(0, place)


def _checked_operator(operator: object) -> FilterOperator:
    if isinstance(operator, Tensor):
        operator = build_filter(operator)
    if not isinstance(operator, FilterOperator):
        raise TypeError(
            "`operator` must be a filter from hdcrf.build_filter, or (N, d) features, got "
            f"{type(operator).__name__}"
        )
    if operator.num_points == 0:
        raise ValueError("`operator` must have at least one point, got none")
    nearest = isinstance(operator, VoxelGrid) and not operator.linear
    if nearest and torch.is_grad_enabled() and operator.features.requires_grad:
        raise ValueError(
            f"method='voxel' has no gradient for features in {operator.dimension} dimensions: its cubes are "
            "nearest ones, which do not change with them; use method='permutohedral', or detach the features"
        )
    return operator


def _checked_confidence(confidence: object, target: Tensor) -> Tensor:
    """Return the confidence as (N, 1) or (N, C)."""
    tensor = check_floating("confidence", confidence)
    points, channels = target.shape
    if tensor.shape not in ((points,), (points, 1), (points, channels)):
        raise ValueError(
            f"`confidence` must have shape (N,) = ({points},), or (N, C) = ({points}, {channels}) to match "
            f"`target`, got {tuple(tensor.shape)}"
        )
    check_same_kind("confidence", tensor, "target", target)
    check_finite("confidence", tensor)
    least = float(tensor.detach().min())
    if least < 0:
        raise ValueError(
            f"`confidence` must be 0 or greater, got {least:.4g}; give 0 to what is not to be trusted at all"
        )
    return tensor.reshape(points, -1)


class BilateralSolver(nn.Module):
    """Images smoothed towards a target within the edges of a guide: `bilateral_solve` as a layer.

    For depth or flow to be denoised, filled in or brought to a higher resolution, for colours to be spread
    from strokes, for soft masks to be snapped to edges. With the positions p and the colours I of a guide,
    neighbours are those of the kernel

        exp(-|p_i - p_j|²/2σ_xy² - |I_i - I_j|²/2σ_rgb²).

    Args:
        sigma_xy: σ_xy in pixels. What is known spreads further than that, from pixel to pixel: as far as
            nothing is known, and further for a larger λ. Narrow kernels keep edges best.
        sigma_rgb: σ_rgb in the guide's own units: the default suits a guide from 0 to 255; for one from 0 to
            1 divide it by 255.
        smoothness: λ, to be compared with the confidences; the default suits those from 0 to 1 for most
            pixels. Where one in a hundred is known, in reach of each other, 0.1 is plenty.
        method: How the kernel is computed: "permutohedral", "voxel", or "exact" (O(N²)).
        order: Accuracy of the fast methods, 1 to 16: rounds of blur.
        halo: Accuracy, 0 to 8: rings of vertices stored around the occupied ones.
        learn: Which parameters are trained: any of "smoothness" and "bandwidths", which are kept positive.
        tolerance: Of the relative residual; None takes 1e-6 in float32 and 1e-10 in float64.
        max_iterations: Of conjugate gradient; None takes 10 times the number of pixels.
        on_failure: "raise", or "warn" to return the best iterate with a warning.
        backend: "auto", compiled kernels where they can run; "reference", PyTorch; or "native", the kernels.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has the wrong value.

    Example:
        >>> solver = BilateralSolver(smoothness=8.0)
        >>> depth, confidence = torch.rand(2, 1, 48, 64), torch.rand(2, 1, 48, 64)
        >>> smooth = solver(depth, confidence, torch.rand(2, 3, 48, 64) * 255)

    Videos, volumes and points are solved by `bilateral_solve`, with their own features:

        >>> video, depth = torch.rand(1, 3, 4, 24, 32) * 255, torch.rand(1, 1, 4, 24, 32)
        >>> features = hdcrf.video_features(video, sigma_xy=8.0, sigma_t=2.0, sigma_rgb=8.0)
        >>> solution = bilateral_solve(features, depth.reshape(-1, 1), torch.ones(depth.numel()))
        >>> smooth = solution.x.view_as(depth)

    Reference: Barron and Poole, The Fast Bilateral Solver, ECCV 2016.
    """

    sigma_xy = Bandwidth("σ_xy, in pixels.")
    sigma_rgb = Bandwidth("σ_rgb, in the guide's units.")
    smoothness = Bandwidth("λ.")

    def __init__(
        self,
        *,
        sigma_xy: float = 4.0,
        sigma_rgb: float = 8.0,
        smoothness: float = 4.0,
        method: str = "permutohedral",
        order: int = 1,
        halo: int = 0,
        learn: Iterable[str] = (),
        tolerance: float | None = None,
        max_iterations: int | None = None,
        on_failure: str = "raise",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.method = check_choice("method", method, METHODS)
        self.order = check_count("order", order, 1, MOST_ROUNDS)
        self.halo = check_count("halo", halo, 0, MOST_RINGS)
        self.backend = check_choice("backend", backend, BACKENDS)
        check_solver_options(torch.float32, tolerance, max_iterations, on_failure)
        self.tolerance, self.max_iterations, self.on_failure = tolerance, max_iterations, on_failure
        learned = checked_learn(learn, _LEARNABLE)
        self.log_sigma_xy = log_parameter("sigma_xy", sigma_xy, "bandwidths" in learned)
        self.log_sigma_rgb = log_parameter("sigma_rgb", sigma_rgb, "bandwidths" in learned)
        self.log_smoothness = log_parameter("smoothness", smoothness, "smoothness" in learned)

    @full_precision
    def forward(self, target: Tensor, confidence: Tensor, guide: Tensor) -> Tensor:
        """Solve for images.

        Args:
            target: (B, C, H, W) float32 or float64, finite. Half precision is computed in float32.
            confidence: (B, 1, H, W), or (B, C, H, W) where it differs between channels, floating, 0 or
                greater; above 0 somewhere in each image.
            guide: (B, c, H, W) with any number of channels, floating or integers.

        Returns:
            (B, C, H, W) in the dtype of the target.

        Raises:
            TypeError: If an argument has the wrong dtype.
            ValueError: If shapes or devices do not match, or an entry is negative or not finite.
            ConvergenceError: If `max_iterations` did not suffice.
        """
        values = working_precision(target, "target")
        trust = working_precision(confidence, "confidence")
        self._check_images(values, trust, guide)
        guide = guide.to(values.dtype)
        features = bilateral_features(guide, self.sigma_xy.to(values), self.sigma_rgb.to(values))
        batch, channels, height, width = values.shape
        operator = build_filter(
            features,
            method=self.method,
            batch=batch_index(batch, height * width, guide.device),
            order=self.order,
            halo=self.halo,
            backend=self.backend,
        )
        solution = bilateral_solve(
            operator,
            values.movedim(1, -1).reshape(-1, channels),
            trust.movedim(1, -1).reshape(-1, trust.shape[1]),
            smoothness=self.smoothness.to(values),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            on_failure=self.on_failure,
        )
        return solution.x.view(batch, height, width, channels).movedim(-1, 1).to(target.dtype)

    def _check_images(self, target: Tensor, confidence: Tensor, guide: Tensor) -> None:
        check_tensor("guide", guide)
        if target.dim() != 4 or target.numel() == 0:
            raise ValueError(
                f"`target` must have shape (B, C, H, W) with no size of 0, got {tuple(target.shape)}"
            )
        batch, _, *sizes = target.shape
        if confidence.shape not in ((batch, 1, *sizes), target.shape):
            raise ValueError(
                f"`confidence` must have shape (B, 1, H, W) = {(batch, 1, *sizes)}, or that of `target`, "
                f"{tuple(target.shape)}, got {tuple(confidence.shape)}"
            )
        if guide.dim() != 4 or guide.shape[1] == 0 or (guide.shape[0], *guide.shape[2:]) != (batch, *sizes):
            raise ValueError(
                f"`guide` must have shape (B, c, H, W) = ({batch}, c, {sizes[0]}, {sizes[1]}) to match "
                f"`target`, with a channel at least, got {tuple(guide.shape)}"
            )
        check_guide("guide", guide, target, "target")
        warn_of_range("guide", guide, "sigma_rgb", float(self.sigma_rgb.detach()))

    def extra_repr(self) -> str:
        """Describe the model in `repr`."""
        return (
            f"sigma_xy={float(self.sigma_xy):.4g}, sigma_rgb={float(self.sigma_rgb):.4g}, "
            f"smoothness={float(self.smoothness):.4g}, method={self.method}, order={self.order}, "
            f"halo={self.halo}"
        )
