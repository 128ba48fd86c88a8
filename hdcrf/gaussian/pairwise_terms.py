"""Matrices known by their products, and what all pairwise terms of a Gaussian CRF have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import Product, Solution
from voxel.checks import check_finite, check_floating, check_same_kind

__all__ = ["PairwiseTerms", "Solver", "SymmetricMatrix", "checked_scores"]

Solver = Callable[[Tensor], Solution]


class SymmetricMatrix(ABC):
    """A symmetric matrix M for each item of a batch, known by its products.

    Attributes:
        batch_size: B.
        size: n, the length of the vectors it multiplies.
        like: A tensor of the matrix's dtype and device.
    """

    batch_size: int
    size: int
    like: Tensor

    @abstractmethod
    def product(self, vectors: Tensor) -> Tensor:
        """Return M v for (B, R, n) vectors, R to each item; differentiable in v and in what M is made of."""

    @abstractmethod
    def margin(self) -> Tensor:
        """Return a diagonal Δ ≥ 0, (B, n) or (B, 1), such that Δ + M is positive semidefinite."""

    def dense(self) -> Tensor:
        """Return M itself, (B, n, n): for small problems, and to check products by."""
        identity = torch.eye(self.size, dtype=self.like.dtype, device=self.like.device)
        return self.product(identity.expand(self.batch_size, -1, -1))


class PairwiseTerms(SymmetricMatrix):
    """The pairwise terms of a Gaussian CRF over a grid of pixels, or several grids.

    Attributes:
        num_labels: L if every pair of labels has terms of its own; None if all pairs of different labels
            share them (a Potts model).
        num_pixels: P.
        grid: The sizes S of the grid, such as (H, W); None for several grids.
    """

    num_labels: int | None
    num_pixels: int
    grid: tuple[int, ...] | None
    _axes: ClassVar[str] = "H, W"  # what the sizes of the grid are called

    @property
    def size(self) -> int:  # type: ignore[override]
        """n: L·P, or P where labels share the terms."""
        return self.num_pixels * (self.num_labels or 1)

    def flatten(self, unary: Any, name: str = "unary") -> Tensor:
        """Return unary terms (B, L, *S) as (B, L, P), or raise if they do not fit these terms."""
        shape = (self.batch_size, self.num_labels, *(self.grid or ()))
        return checked_scores(name, unary, shape, f"(B, L, {self._axes})", self.like).flatten(2)

    def unflatten(self, scores: Tensor) -> Any:
        """Return scores (B, L, P) in the shape that the unary terms came in."""
        return scores.reshape(*scores.shape[:2], *(self.grid or ()))

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the (B, n) diagonal of M."""

    @abstractmethod
    def bound(self) -> Tensor:
        """Return a diagonal Δ ≥ 0, (B, n) or (B, 1), such that Δ + M and Δ - M are positive semidefinite."""

    def prepared(self) -> Product:
        """Return the product made ready to be computed many times, to be called without gradients."""
        return self.product

    def direct_solvers(self, shift: Tensor, factors: Sequence[float]) -> list[Solver] | None:
        """Return for each factor a solver of (shift + factor · M) x = b that does not iterate; None if none.

        Args:
            shift: (B, 1) or (B, n).
            factors: Numbers.
        """
        return None

    def prefers_direct(self) -> bool:
        """Return whether the direct solver is expected to be faster than conjugate gradient."""
        return False


def checked_scores(
    name: str, value: object, shape: tuple[int | None, ...], words: str, like: Tensor
) -> Tensor:
    """Return `value` if it is a finite tensor of a shape, like the terms, else raise.

    Args:
        name: The argument's name, for the message.
        value: What the caller passed.
        shape: Its sizes; None where any will do.
        words: What the sizes are called, such as "(B, L, H, W)".
        like: The terms, whose dtype and device it must have.
    """
    tensor = check_floating(name, value)
    fits = tensor.dim() == len(shape) and all(
        want in (None, got) for want, got in zip(shape, tensor.shape, strict=False)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"`{name}` must have shape {words} = ({sizes}), as the pairwise terms say, "
            f"got {tuple(tensor.shape)}"
        )
    check_same_kind(name, tensor, "the pairwise terms", like)
    check_finite(name, tensor)
    return tensor
