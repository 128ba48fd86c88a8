"""Mean-field inference in a fully connected CRF.

Energy of a labelling x, with ψ = -log P and the kernels w_c k_c:

    E(x) = Σ_i ψ_i(x_i) + Σ_{i<j} μ(x_i, x_j) Σ_c w_c k_c(f_i, f_j).

Mean field looks for the product Q of one distribution for each point that minimises

    KL(Q‖P) - log Z = Σ_i Σ_l Q_i(l) (ψ_i(l) + log Q_i(l)) + ½ Σ_i Σ_l Q_i(l) (μ m_i)(l),

where the message is m = Σ_c w_c K_c Q without the point's own part, and it repeats for all points at once

    Q ← softmax(-ψ - μ m).

Reference: Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials,
NeurIPS 2011, algorithm 1; Zheng et al., Conditional Random Fields as Recurrent Neural Networks, ICCV 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.compatibility import Compatibility
from hdcrf.fused import fused_mean_field
from hdcrf.fused_training import trained_mean_field
from hdcrf.pairwise import PairwiseKernel
from voxel.checks import check_count, check_matrix
from voxel.precision import full_precision

__all__ = ["MeanFieldResult", "mean_field", "out_of_range"]

_VECTOR_LABELS = 16
_STRIP_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class MeanFieldResult:
    """What mean field found.

    Attributes:
        marginals: (P, K), or as its caller reshaped it: the distributions Q.
        logits: The same shape: their logarithms, before rounding to 0; None if not asked for.
        iterations: How many iterations ran.
        energy: (iterations + 1,) float64: the expected energy under Q, before and after each iteration;
            None unless asked for.
        kl: (iterations + 1,) float64: KL(Q‖P) - log Z, which mean field descends; None unless asked for.
    """

    marginals: Tensor
    logits: Tensor | None
    iterations: int
    energy: Tensor | None = None
    kl: Tensor | None = None


@full_precision
def mean_field(
    logits: Tensor,
    kernels: Sequence[PairwiseKernel],
    compatibility: Compatibility,
    *,
    iterations: int,
    exclude_self: bool = True,
    tolerance: float | None = None,
    track: bool = False,
    return_logits: bool = True,
    progress: Callable[[int], object] | None = None,
) -> MeanFieldResult:
    """Run mean field.

    Args:
        logits: (P, K) unary logits, -ψ up to a constant for each point.
        kernels: The weighted, normalised pairwise kernels over the P points.
        compatibility: μ.
        iterations: How many at most; 0 returns the unary's distribution.
        exclude_self: Whether the message leaves out what each point sends itself.
        tolerance: Stop when no marginal changed by more than this in an iteration.
        track: Whether to compute the energy and the objective, at the price of one more message in each
            iteration and one at the end.
        return_logits: Whether the result has logits, which take as much memory as the marginals.
        progress: Called with the number of iterations done, after each.

    Returns:
        The marginals and logits, (P, K). Differentiable in the logits, the kernels and the compatibility.

    Raises:
        TypeError: If the logits are not float32 or float64.
        ValueError: If they have another number of labels than the compatibility, iterations are negative, or
            the messages are too large for the dtype.
    """
    check_matrix("logits", logits, "(P, K)")
    check_count("iterations", iterations, 0)
    if logits.shape[1] != compatibility.num_labels:
        raise ValueError(
            f"`logits` must have K = {compatibility.num_labels} columns, as `compatibility` has labels, "
            f"got {logits.shape[1]}"
        )
    for kernel in kernels:
        kernel.check("logits", logits)
    own: Tensor | None = None
    if exclude_self and kernels:
        own = torch.stack([kernel.diagonal() for kernel in kernels]).sum(0)[:, None]

    def message(gathered: Sequence[Tensor], marginals: Tensor, points: slice) -> Tensor:
        if not kernels:
            return torch.zeros_like(marginals[points])
        total = kernels[0].receive(gathered[0], points)
        for kernel, contribution in zip(kernels[1:], gathered[1:], strict=True):
            total = kernel.receive(contribution, points, total)
        return total if own is None else total.addcmul_(own[points], marginals[points], value=-1)

    if not track:
        native = _natively(
            logits, kernels, compatibility, own, iterations, tolerance, return_logits, progress
        )
        if native is not None:
            return native
    strips = _strips(logits, kernels)
    marginals = softmax(logits)
    updated: Tensor | None = logits if return_logits else None
    spare = torch.empty_like(marginals) if len(strips) > 1 else None
    energies = []
    done = 0
    for iteration in range(iterations):
        gathered = [kernel.gather(marginals) for kernel in kernels]
        if track:
            energies.append(_objective(logits, marginals, compatibility, message, gathered, strips))
        previous = marginals
        if spare is None:
            updated = logits + compatibility.reward(message(gathered, previous, strips[0]))
            marginals = softmax(updated)
        else:
            keep = return_logits and (tolerance is not None or iteration == iterations - 1)
            if keep and updated is logits:
                updated = torch.empty_like(logits)
            for strip in strips:
                part = compatibility.reward(message(gathered, previous, strip)).add_(logits[strip])
                softmax(part, out=spare[strip])
                if keep and updated is not None:
                    updated[strip] = part
            marginals, spare = spare, previous
        done += 1
        if progress is not None:
            progress(done)
        if tolerance is not None:
            change = (marginals.detach() - previous.detach()).abs().max()
            if float(change) <= tolerance:
                break
    updated = log_softmax(updated) if return_logits and updated is not None else None
    if not track:
        return _checked(MeanFieldResult(marginals, updated, done), logits)
    gathered = [kernel.gather(marginals) for kernel in kernels]
    energies.append(_objective(logits, marginals, compatibility, message, gathered, strips))
    energy, kl = (torch.stack(column) for column in zip(*energies, strict=True))
    return _checked(MeanFieldResult(marginals, updated, done, energy, kl), logits)


def _natively(
    logits: Tensor,
    kernels: Sequence[PairwiseKernel],
    compatibility: Compatibility,
    own: Tensor | None,
    iterations: int,
    tolerance: float | None,
    return_logits: bool,
    progress: Callable[[int], object] | None,
) -> MeanFieldResult | None:
    """Return what the compiled kernels make of it, or None where they do not apply."""
    fused = fused_mean_field(logits, kernels, compatibility, own)
    if fused is not None:
        try:
            marginals, updated, done = fused.run(iterations, tolerance, return_logits, progress)
        except OverflowError as error:
            raise out_of_range(logits, error.args[0]) from error
        return MeanFieldResult(marginals, None if updated is None else log_softmax(updated), done)
    if tolerance is not None or progress is not None:
        return None
    trained = trained_mean_field(logits, kernels, compatibility, own, iterations)
    if trained is None:
        return None
    marginals, updated = trained
    return _checked(
        MeanFieldResult(marginals, log_softmax(updated) if return_logits else None, iterations), logits
    )


def _checked(result: MeanFieldResult, logits: Tensor) -> MeanFieldResult:
    """Return the result if it is finite."""
    tensors = (result.marginals, result.logits, result.energy, result.kl)
    if all(bool(torch.isfinite(tensor.detach().sum())) for tensor in tensors if tensor is not None):
        return result
    # Sums of what is finite may overflow.
    if all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors if tensor is not None):
        return result
    raise out_of_range(logits, result.iterations)


def out_of_range(logits: Tensor, iterations: int) -> ValueError:
    """Return the error of numbers that have left the range of their dtype within so many iterations."""
    return ValueError(
        f"mean field left the range of {logits.dtype} within {iterations} iterations; "
        "lower the weights, the compatibility, or the scale of `logits`"
    )


def _strips(logits: Tensor, kernels: Sequence[PairwiseKernel]) -> list[slice]:
    """Cut the points into strips that a CPU's cache holds; into one, where autograd watches or on a GPU."""
    points, labels = logits.shape
    if torch.is_grad_enabled() or logits.device.type != "cpu" or logits.numel() <= _STRIP_ELEMENTS:
        return [slice(0, points)]
    image, row = next((kernel.grid for kernel in kernels if kernel.grid is not None), (points, 1))
    step = row * max(1, _STRIP_ELEMENTS // (labels * row))
    return [
        slice(start, min(start + step, first + image))
        for first in range(0, points, image)
        for start in range(first, first + image, step)
    ]


def softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the softmax over the last dimension of (P, K) logits, in `out` if that is given."""
    labels = logits.shape[1]
    if labels >= _VECTOR_LABELS or logits.device.type != "cpu":
        return torch.softmax(logits, 1, out=out)
    if labels == 2:
        return torch.sigmoid(logits - logits.flip(1), out=out)
    narrow = torch.softmax(_lengthened(logits), 1)[:, :labels]
    return narrow.contiguous() if out is None else out.copy_(narrow)


def log_softmax(logits: Tensor) -> Tensor:
    """Return the logarithm of the softmax over the last dimension of (P, K) logits."""
    labels = logits.shape[1]
    if labels >= _VECTOR_LABELS or logits.device.type != "cpu":
        return torch.log_softmax(logits, 1)
    return torch.log_softmax(_lengthened(logits), 1)[:, :labels].contiguous()


def _lengthened(logits: Tensor) -> Tensor:
    """PyTorch's CPU softmax runs label by label over rows shorter than a vector register: lengthen them."""
    return functional.pad(logits, (0, _VECTOR_LABELS - logits.shape[1]), value=-torch.inf)


@torch.no_grad()
def _objective(
    logits: Tensor,
    marginals: Tensor,
    compatibility: Compatibility,
    message: Callable[[Sequence[Tensor], Tensor, slice], Tensor],
    gathered: Sequence[Tensor],
    strips: Sequence[slice],
) -> tuple[Tensor, Tensor]:
    """Return the expected energy and KL(Q‖P) - log Z of the marginals, in float64."""
    energy = entropy = torch.zeros((), dtype=torch.float64, device=logits.device)
    for strip in strips:
        cost = compatibility.cost(message(gathered, marginals, strip))
        unary, part = -torch.log_softmax(logits[strip], 1), marginals[strip]
        energy = energy + (part * (unary + 0.5 * cost)).sum(dtype=torch.float64)
        entropy = entropy - torch.xlogy(part, part).sum(dtype=torch.float64)
    return energy, energy - entropy
