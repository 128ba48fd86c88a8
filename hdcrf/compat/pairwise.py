"""The pairwise kernels of pydensecrf: its lattice, the scale of that, and what a kernel and its μ cost."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hdcrf.pairwise import LatticeKernel
from lattice import PermutohedralLattice
from voxel.splat_blur_slice import Structure

__all__ = ["Lattice", "Pairwise", "their_scale"]


class Lattice(PermutohedralLattice):
    """The lattice with the vertices of theirs.

    Their code goes through points by fours and fills up the last four with zeros, whose simplex gets vertices
    as a point's does. The blur reaches some neighbours only through these.
    """

    def _structure(self, axes: Tensor) -> Structure:
        features = self.features
        if len(features) % 4 == 0:
            return super()._structure(axes)
        self.features = torch.cat([features, torch.zeros_like(features[:1])])
        try:
            structure = super()._structure(axes)
        finally:
            self.features = features
        cells = structure.cells
        return replace(structure, cells=replace(cells, cell=cells.cell[:-1], weights=cells.weights[:-1]))


class Pairwise(NamedTuple):
    """A weighted kernel, and its μ: -1 on the diagonal where that is None, or a diagonal, or a matrix."""

    kernel: LatticeKernel
    compatibility: Tensor | None

    def subtract_cost(self, marginals: Tensor, total: Tensor) -> None:
        """Subtract μ K Q, for (N, K) marginals, from `total` in place."""
        message, costs = self.kernel.apply(marginals), self.compatibility
        if costs is None:
            total += message
        elif costs.dim() == 1:
            total.addcmul_(message, costs, value=-1)
        else:
            total.addmm_(message, costs, alpha=-1)


def their_scale(dimension: int) -> float:
    """Return the c of their lattice without normalisation, which is not calibrated as ours is.

    Their blur has taps ½, 1, ½, twice ours, along each of d + 1 axes, and all is divided by 1 + 2^-d.
    """
    return 2.0 ** (dimension + 1) / (1 + 2.0**-dimension)
