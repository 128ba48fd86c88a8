"""Mean field by the compiled kernel that does one iteration in a single pass over the points.

What it computes is what the loop in `hdcrf.mean_field` computes, for at most one lattice kernel and one
smoothness kernel, where nothing is to be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.compatibility import Compatibility
from hdcrf.pairwise import LatticeKernel, PairwiseKernel, SmoothnessKernel
from voxel.backend import kernels

__all__ = ["FusedMeanField", "fused_mean_field"]


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
    lattice = [
        kernel for kernel in pairwise if isinstance(kernel, LatticeKernel) and kernel.operator.has_axes
    ]
    smoothness = [kernel for kernel in pairwise if isinstance(kernel, SmoothnessKernel)]
    fitting: list[LatticeKernel | SmoothnessKernel] = [*lattice, *smoothness]
    if logits.numel() == 0 or not fitting or len(fitting) < len(pairwise):
        return None
    if len(lattice) > 1 or len(smoothness) > 1 or not all(kernel.native for kernel in fitting):
        return None
    tensors = [logits] if compatibility.values is None else [logits, compatibility.values]
    if torch.is_grad_enabled() and any(item.requires_grad for item in (*tensors, *fitting)):
        return None
    return FusedMeanField(
        logits, lattice[0] if lattice else None, smoothness[0] if smoothness else None, compatibility, own
    )


class FusedMeanField:
    """Mean field with one lattice kernel, one smoothness kernel, or both."""

    def __init__(
        self,
        logits: Tensor,
        lattice: LatticeKernel | None,
        smoothness: SmoothnessKernel | None,
        compatibility: Compatibility,
        own: Tensor | None,
    ) -> None:
        self._logits = logits.detach().contiguous()
        kind = kernels().MeanField32 if logits.dtype == torch.float32 else kernels().MeanField64
        self._field = kind(
            self._logits,
            None if lattice is None else _lattice_arrays(lattice),
            None if smoothness is None else _smoothness_arrays(smoothness),
            None if own is None else _plain(own[:, 0]),
            _reward(compatibility, logits.dtype),
            torch.get_num_threads(),
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
        marginals = torch.empty_like(logits)
        if iterations == 0:
            self._step(None, marginals, None, False, 0)
            return marginals, logits if return_logits else None, 0
        updated = torch.empty_like(logits) if return_logits or tolerance is not None else None
        # With two labels under Potts, one number a point goes from iteration to iteration: Q(1) - Q(0).
        paired = field.channels != logits.shape[1]
        current = logits.new_empty((len(logits), field.channels))
        spare = torch.empty_like(current) if paired else marginals
        self._step(None, current, None, True, 0)
        for done in range(1, iterations + 1):
            last = done == iterations
            target = marginals if last and paired else spare
            self._step(current, target, updated if last or tolerance is not None else None, not last, done)
            if progress is not None:
                progress(done)
            if last:
                return target, updated if return_logits else None, done
            change = None if tolerance is None else float((target - current).abs().max()) / (1 + paired)
            current, spare = target, current
            if change is not None and tolerance is not None and change <= tolerance:
                break
        if paired and updated is not None:
            current = torch.softmax(updated, 1, out=marginals)
        return current, updated if return_logits else None, done

    def _step(
        self, previous: Tensor | None, target: Tensor, updated: Tensor | None, more: bool, iteration: int
    ) -> None:
        if not self._field.step(previous, target, updated, more):
            raise OverflowError(iteration)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def _lattice_arrays(kernel: LatticeKernel) -> tuple[Any, ...]:
    structure = kernel.operator.structure
    return (
        structure.cells.cell.to(torch.int32),
        structure.cell_vertices.to(torch.int32),
        _plain(structure.cells.weights),
        structure.links,
        None if kernel.left is None else _plain(kernel.left),
        None if kernel.right is None else _plain(kernel.right),
        kernel.operator.order,
        float(kernel.scale),
    )


def _smoothness_arrays(kernel: SmoothnessKernel) -> tuple[Any, ...]:
    ones = (torch.ones(length, dtype=kernel.taps.dtype) for length in kernel.shape[1:])
    rows, columns = ones
    return (
        _plain(kernel.taps),
        *(
            _plain(one if factor is None else factor)
            for i, one in enumerate((rows, columns))
            for factor in (kernel.left[i], kernel.right[i])
        ),
        float(kernel.weight),
    )


def _reward(compatibility: Compatibility, dtype: torch.dtype) -> Tensor | None:
    """Return what each label gains from a message: (K,), or (K, K) with a row for each of its labels."""
    if compatibility.values is None:
        return None
    values = compatibility.values.detach().to(dtype)
    return values.contiguous() if values.dim() == 1 else (-values.T).contiguous()
