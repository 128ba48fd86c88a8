"""Mean field by the compiled kernel that does one iteration in a single pass over the points.

What it computes is what the loop in `hdcrf.mean_field` computes, for lattice kernels and at most one
smoothness kernel, where nothing is to be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.compatibility import Compatibility
from hdcrf.pairwise import LatticeKernel, PairwiseKernel, SmoothnessKernel
from hdcrf.smoothing import plain_factors
from voxel.backend import kernels, plain
from voxel.memory import new_large

__all__ = ["FusedMeanField", "fused_mean_field", "native_kernels", "native_mean_field"]


def native_kernels(
    logits: Tensor, pairwise: Sequence[PairwiseKernel]
) -> tuple[list[LatticeKernel], SmoothnessKernel | None] | None:
    """Return the lattice kernels and the smoothness kernel, if there is nothing but what is compiled."""
    lattices = [kernel for kernel in pairwise if isinstance(kernel, LatticeKernel)]
    smoothness = [kernel for kernel in pairwise if isinstance(kernel, SmoothnessKernel)]
    fitting = len(lattices) + len(smoothness) == len(pairwise) > 0
    if logits.numel() == 0 or not fitting or len(smoothness) > 1:
        return None
    if not all(kernel.native for kernel in lattices) or not all(kernel.native for kernel in smoothness):
        return None
    if smoothness and smoothness[0].dimension != 2:
        return None
    return lattices, smoothness[0] if smoothness else None


def fused_mean_field(
    logits: Tensor, pairwise: Sequence[PairwiseKernel], compatibility: Compatibility, own: Tensor | None
) -> FusedMeanField | None:
    """Return mean field by the compiled kernel, or None where it does not apply.

    Args:
        logits: (P, K) unary logits.
        pairwise: The kernels.
        compatibility: μ.
        own: (P, 1) diagonal of their sum, to be left out; None leaves it in.
    """
    taken = native_kernels(logits, pairwise)
    values = compatibility.values
    differentiable = logits.requires_grad or (values is not None and values.requires_grad)
    if torch.is_grad_enabled() and (differentiable or any(kernel.requires_grad for kernel in pairwise)):
        return None
    return None if taken is None else FusedMeanField(logits, *taken, compatibility, own)


class FusedMeanField:
    """Mean field with lattice kernels, one smoothness kernel, or both."""

    def __init__(
        self,
        logits: Tensor,
        lattices: Sequence[LatticeKernel],
        smoothness: SmoothnessKernel | None,
        compatibility: Compatibility,
        own: Tensor | None,
    ) -> None:
        self._logits = plain(logits)
        self._field = native_mean_field(
            self._logits,
            [_lattice_arrays(lattice) for lattice in lattices],
            None if smoothness is None else _smoothness_arrays(smoothness),
            None if own is None else own[:, 0],
            compatibility.values,
        )

    def run(
        self,
        iterations: int,
        tolerance: float | None,
        return_logits: bool,
        progress: Callable[[int], object] | None,
    ) -> tuple[Tensor, Tensor | None, int]:
        """Return the marginals and logits, (P, K), and how many iterations ran.

        Raises:
            OverflowError: If an iteration left the range of the dtype; its argument is which.
        """
        logits, field = self._logits, self._field
        marginals = new_large(logits, logits.shape)
        if iterations == 0:
            self._step(None, marginals, None, False, 0)
            return marginals, logits if return_logits else None, 0
        keep = return_logits or tolerance is not None
        updated = new_large(logits, logits.shape) if keep else None
        # With two labels under Potts, one number a point goes from iteration to iteration: Q(1) - Q(0).
        paired = field.channels != logits.shape[1]
        current = new_large(logits, (len(logits), field.channels))
        spare = new_large(current, current.shape) if paired else marginals
        self._step(None, current, None, True, 0)
        for done in range(1, iterations + 1):
            last = done == iterations
            target = marginals if last and paired else spare
            self._step(current, target, updated if last or tolerance is not None else None, not last, done)
            if progress is not None:
                progress(done)
            if last:
                return target, updated if return_logits else None, done
            # The difference of two marginals changes by twice what each does.
            converged = (
                tolerance is not None and float((target - current).abs().max()) / (1 + paired) <= tolerance
            )
            current, spare = target, current
            if converged:
                break
        if paired and updated is not None:
            current = torch.softmax(updated, 1, out=marginals)
        return current, updated if return_logits else None, done

    def _step(
        self, previous: Tensor | None, target: Tensor, updated: Tensor | None, more: bool, iteration: int
    ) -> None:
        if not self._field.step(previous, target, updated, more):
            raise OverflowError(iteration)


def native_mean_field(
    logits: Tensor,
    lattices: Sequence[tuple[Any, ...]],
    smoothing: tuple[Any, ...] | None,
    own: Tensor | None,
    compatibility: Tensor | None,
) -> Any:
    """Return the compiled mean field over plain arrays.

    Args:
        logits: (P, K), contiguous.
        lattices: Of each, cell, cell_vertices, weights and links as in voxel.fused_filter, the diagonals L
            and R or None, order, and scale.
        smoothing: the taps over rows and along a row, the factors of L for rows and for columns, those of R,
            and the weight.
        own: (P,) diagonal to be left out, or None.
        compatibility: (K,) or (K, K), or None for Potts.
    """
    kind = kernels().MeanField32 if logits.dtype == torch.float32 else kernels().MeanField64
    arrays = [_plain(lattice) for lattice in lattices]
    taps = None if smoothing is None else _plain(smoothing)
    reward = None
    if compatibility is not None:
        # What each label gains from a message: (K,), or (K, K) with a row for each of the message's labels.
        values = compatibility.detach().to(logits.dtype)
        reward = values.contiguous() if values.dim() == 1 else (-values.T).contiguous()
    return kind(
        plain(logits), arrays, taps, None if own is None else plain(own), reward, torch.get_num_threads()
    )


def _plain(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(plain(item) if isinstance(item, Tensor) else item for item in arrays)


def _lattice_arrays(kernel: LatticeKernel) -> tuple[Any, ...]:
    structure = kernel.operator.structure
    return (
        structure.cells.cell,
        structure.cell_vertices,
        structure.cells.weights,
        structure.links,
        kernel.left,
        kernel.right,
        kernel.operator.order,
        float(kernel.weight) * kernel.operator.constant,
    )


def _smoothness_arrays(kernel: SmoothnessKernel) -> tuple[Any, ...]:
    factors = plain_factors(kernel.like, kernel.shape, *kernel.left, *kernel.right)
    return (*kernel.taps, *factors, float(kernel.weight))
