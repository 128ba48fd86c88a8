"""Pairwise terms within and between several resolutions of a picture, in one system."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import Product
from hdcrf.gaussian.grid_terms import GridTerms
from hdcrf.gaussian.pairwise_terms import PairwiseTerms, checked_scores
from voxel.checks import check_finite, check_floating, check_same_kind

__all__ = ["MultiResolutionTerms"]


class MultiResolutionTerms(PairwiseTerms):
    """Terms between neighbours at each resolution, and between a pixel and the coarser one that covers it.

    The fine pixel (y, x) of H_f x W_f is linked to the coarse pixel (⌊y H_c / H_f⌋, ⌊x W_c / W_f⌋) of
    H_c x W_c: A(p, m; q, n) = A(q, n; p, m) = link[m, n, y, x], with m the fine pixel's label and n the
    coarse one's. Unary terms and scores are sequences of tensors (B, L, H_s, W_s), one a resolution.

    Args:
        grids: The `GridTerms` of each resolution, the finest first; of one batch size, and all with terms for
            each pair of labels, or all of a Potts model.
        links: For each resolution but the coarsest, (B, L, L, H_f, W_f); or (B, H_f, W_f) where labels share
            the terms.

    The diagonal of A is 0: what `GridTerms` says of λ and of `guarantee` holds here too.

    Memory: that of the weights and the links. Cost: that of the products with the grids, and 2·L² (or 2)
    multiplications a fine pixel for each link. On a GPU sums over the fine pixels of a coarse one run in no
    fixed order; on the CPU the products are deterministic.

    Reference: Chandra 2018, section 2.4.2 and figure 2.4.
    """

    def __init__(self, grids: Sequence[GridTerms], links: Sequence[Tensor]) -> None:
        self.grids = _checked_grids(grids)
        self.grid = None
        finest = self.grids[0]
        self.like = finest.like
        self.batch_size = finest.batch_size
        self.num_labels = finest.num_labels
        self.sizes = [grid.num_pixels for grid in self.grids]
        self.num_pixels = sum(self.sizes)
        links = _checked_list("links", links, len(self.grids) - 1, "a tensor for each but the coarsest grid")
        labels = () if self.num_labels is None else (self.num_labels, self.num_labels)
        self.links = []  # (B, L, L, P_f), or (B, 1, 1, P_f)
        self.parents = []  # (P_f,), for each fine pixel the coarse one
        for scale, ((fine, coarse), link) in enumerate(zip(pairwise(self.grids), links, strict=True)):
            name, shape = f"links[{scale}]", (self.batch_size, *labels, *fine.grid)
            if check_floating(name, link).shape != shape:
                raise ValueError(
                    f"`{name}` must have shape {shape}, as the grids say, got {tuple(link.shape)}"
                )
            check_same_kind(name, link, "grids", self.like)
            check_finite(name, link)
            self.links.append((link if labels else link[:, None, None]).flatten(3))
            self.parents.append(_parents(fine.grid, coarse.grid, self.like.device))

    def flatten(self, unary: object, name: str = "unary") -> Tensor:
        """Return tensors (B, L, H_s, W_s) as one (B, L, P), the resolutions one after another."""
        unary = _checked_list(name, unary, len(self.grids), "a tensor for each grid")
        parts = []
        labels = self.num_labels
        for scale, (grid, part) in enumerate(zip(self.grids, unary, strict=True)):
            shape = (self.batch_size, labels, *grid.grid)
            part = checked_scores(f"{name}[{scale}]", part, shape, "(B, L, H, W)", self.like)
            labels = part.shape[1]
            parts.append(part.flatten(2))
        return torch.cat(parts, 2)

    def unflatten(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Return (B, L, P) as tensors (B, L, H_s, W_s)."""
        parts = torch.split(scores, self.sizes, 2)
        return tuple(grid.unflatten(part) for grid, part in zip(self.grids, parts, strict=True))

    def product(self, vectors: Tensor) -> Tensor:
        """Return A v for (B, R, n)."""
        return self._by([grid.product for grid in self.grids], vectors)

    def prepared(self) -> Product:
        """Return the product without gradients, made ready to be computed many times."""
        products = [grid.prepared() for grid in self.grids]
        return torch.no_grad()(lambda vectors: self._by(products, vectors))

    def _by(self, products: list[Product], vectors: Tensor) -> Tensor:
        by_label = vectors.reshape(*vectors.shape[:2], -1, self.num_pixels)
        parts = torch.split(by_label, self.sizes, 3)  # (B, R, L, P_s)
        results = [
            product(part.flatten(2)).view(part.shape) for product, part in zip(products, parts, strict=True)
        ]
        for scale, (link, parents) in enumerate(zip(self.links, self.parents, strict=True)):
            fine, coarse = parts[scale : scale + 2]
            block = link[:, None]  # (B, 1, L, L, P_f)
            to_fine = (block * coarse.index_select(3, parents)[:, :, None]).sum(3)
            to_coarse = (block * fine[:, :, :, None]).sum(2)
            results[scale] = results[scale] + to_fine
            results[scale + 1] = results[scale + 1].index_add(3, parents, to_coarse)
        return torch.cat(results, 3).flatten(2)

    def diagonal(self) -> Tensor:
        """Return zeros (B, n)."""
        return self.like.new_zeros((self.batch_size, self.size))

    def margin(self) -> Tensor:
        """Return Σ_j |A_ij|, (B, n): by Gershgorin no eigenvalue of A is larger in magnitude."""
        results = [grid.margin().reshape(self.batch_size, -1, grid.num_pixels) for grid in self.grids]
        for scale, (link, parents) in enumerate(zip(self.links, self.parents, strict=True)):
            results[scale] = results[scale] + link.abs().sum(2)
            results[scale + 1] = results[scale + 1].index_add(2, parents, link.abs().sum(1))
        return torch.cat(results, 2).flatten(1)

    def bound(self) -> Tensor:
        """Return Σ_j |A_ij|, (B, n), as `margin`."""
        return self.margin()


def _checked_list(name: str, value: object, count: int, words: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"`{name}` must be a list with {words}, got {type(value).__name__}")
    if len(value) != count:
        raise ValueError(f"`{name}` must have {words}, {count} in all, got {len(value)}")
    return value


def _checked_grids(grids: object) -> list[GridTerms]:
    if not isinstance(grids, list | tuple):
        raise TypeError(f"`grids` must be a list of GridTerms, got {type(grids).__name__}")
    if not grids:
        raise ValueError("`grids` must have at least one GridTerms, got none")
    for scale, grid in enumerate(grids):
        if not isinstance(grid, GridTerms):
            raise TypeError(f"`grids[{scale}]` must be GridTerms, got {type(grid).__name__}")
        check_same_kind(f"grids[{scale}]", grid.like, "grids[0]", grids[0].like)
        for name in ("batch_size", "num_labels"):
            own, first = getattr(grid, name), getattr(grids[0], name)
            if own != first:
                raise ValueError(
                    f"`grids` must all have the same {name}, got {first} in grids[0] and {own} in "
                    f"grids[{scale}]"
                )
    return list(grids)


def _parents(fine: tuple[int, int], coarse: tuple[int, int], device: torch.device) -> Tensor:
    """Return for each fine pixel, row by row, the number of the coarse pixel that covers it, (P_f,)."""
    y, x = (torch.arange(many, device=device) * few // many for many, few in zip(fine, coarse, strict=True))
    return (y[:, None] * coarse[1] + x).flatten()
