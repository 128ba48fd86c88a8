"""Pairwise terms within and between the frames of a video, of low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import Product
from hdcrf.gaussian.pairwise_terms import PairwiseTerms
from voxel.checks import check_choice, check_finite, check_floating, check_same_kind

__all__ = ["NEIGHBOURHOODS", "VideoTerms", "least_neighbour_eigenvalue", "temporal_neighbours"]

NEIGHBOURHOODS = {"2": (1,), "4": (1, 2), "6ms": (1, 2, 4), "full": None}
"""How far apart in frames, on either side, those are that are connected; None connects all."""


def temporal_neighbours(num_frames: int, neighbourhood: str) -> Tensor:
    """Return which frames are connected, (T, T) bool: "2", "4", "6ms" (1, 2 and 4 frames apart) or "full".

    Reference: Chandra 2018, Fig. 4.4.
    """
    check_choice("neighbourhood", neighbourhood, tuple(NEIGHBOURHOODS))
    distances = NEIGHBOURHOODS[neighbourhood]
    frames = torch.arange(num_frames)
    apart = (frames[:, None] - frames).abs()
    return apart > 0 if distances is None else torch.isin(apart, torch.tensor(distances))


def least_neighbour_eigenvalue(num_frames: int, neighbourhood: str) -> float:
    """Return the least eigenvalue of the matrix of which frames are connected; 0 for a single frame."""
    neighbours = temporal_neighbours(num_frames, neighbourhood).double()
    return min(0.0, float(torch.linalg.eigvalsh(neighbours)[0]))


class VideoTerms(PairwiseTerms):
    """Terms between all pixels of a frame, and between all pixels of frames that are connected.

    The block of frame t is A_t = E_tᵀE_t, that of connected frames t ≠ u is F_tᵀF_u, for spatial embeddings E
    and temporal ones F.

    Args:
        spatial: E. (B, D, L, T, H, W), or (B, D, T, H, W) where labels share them (a Potts model).
        temporal: F, of the same shape but for its D.
        neighbourhood: Which frames are connected: those next to each other ("2"), up to 2 apart ("4"), 1, 2
            or 4 apart ("6ms"), or all ("full").

    Symmetry alone does not make the matrix positive semidefinite, as Chandra 2018 says below eq. 4.2: with E
    = 0, every positive eigenvalue of two frames' blocks has a negative one opposite. `regularization` must
    make up for those, or `guarantee` of `solve` does: it adds to each frame as much of the largest eigenvalue
    of F_tᵀF_t as its neighbourhood needs: once for "full", less than twice for "2".

    Memory: that of E and F. Cost: 2·n·(D_E + D_F) multiplications a product over all n = L·T·H·W, for any
    neighbourhood: F_u v_u is computed once for each frame and added up by neighbourhood (eq. 4.7).

    Reference: Chandra 2018, eqs. 4.2 to 4.8; Chandra, Couprie and Kokkinos, CVPR 2018.
    """

    _axes = "T, H, W"

    def __init__(self, spatial: Tensor, temporal: Tensor, *, neighbourhood: str = "full") -> None:
        for name, value in (("spatial", spatial), ("temporal", temporal)):
            check_floating(name, value)
            if value.dim() not in (5, 6) or 0 in value.shape:
                raise ValueError(
                    f"`{name}` must have shape (B, D, L, T, H, W), or (B, D, T, H, W) where labels share "
                    f"them, with no size of 0, got {tuple(value.shape)}"
                )
        check_same_kind("temporal", temporal, "spatial", spatial)
        if spatial.shape[:1] + spatial.shape[2:] != temporal.shape[:1] + temporal.shape[2:]:
            raise ValueError(
                "`spatial` and `temporal` must have the same shape but for D, got "
                f"{tuple(spatial.shape)} and {tuple(temporal.shape)}"
            )
        check_finite("spatial", spatial)
        check_finite("temporal", temporal)
        self.like = spatial
        self.batch_size = spatial.shape[0]
        self.num_labels = spatial.shape[2] if spatial.dim() == 6 else None
        self.grid: tuple[int, ...] = tuple(spatial.shape[-3:])
        self.num_pixels = spatial.shape[-3:].numel()
        self.neighbourhood = neighbourhood
        self.neighbours = temporal_neighbours(self.grid[0], neighbourhood).to(spatial)
        self.spatial, self.temporal = self._by_frame(spatial), self._by_frame(temporal)

    def _by_frame(self, embeddings: Tensor) -> Tensor:
        """Return (B, D, [L,] T, H, W) as (B, T, D, m), with the m = [L·]H·W entries of a frame together."""
        return embeddings.flatten(-2).movedim(-2, 1).flatten(3).contiguous()

    def product(self, vectors: Tensor) -> Tensor:
        """Return A v for (B, R, n)."""
        return self._by(self.spatial, self.temporal, vectors)

    def prepared(self) -> Product:
        """Return the product without gradients."""
        spatial, temporal = self.spatial.detach(), self.temporal.detach()
        return lambda vectors: self._by(spatial, temporal, vectors)

    def _by(self, spatial: Tensor, temporal: Tensor, vectors: Tensor) -> Tensor:
        frames = self._frames(vectors)  # (B, T, R, m)
        within = (frames @ spatial.mT) @ spatial
        sums = frames @ temporal.mT  # F_u v_u, (B, T, R, D)
        if self.neighbourhood == "full":
            others = sums.sum(1, keepdim=True) - sums
        else:
            others = torch.einsum("tu,burd->btrd", self.neighbours, sums)
        return self._vectors(within + others @ temporal)

    def _frames(self, vectors: Tensor) -> Tensor:
        """Return (B, R, n) as (B, T, R, m)."""
        batch, count, _ = vectors.shape
        labels, time = self.num_labels or 1, self.grid[0]
        parts = vectors.reshape(batch, count, labels, time, -1).movedim(3, 1)
        return parts.reshape(batch, time, count, -1)

    def _vectors(self, frames: Tensor) -> Tensor:
        """Return (B, T, R, m) as (B, R, n)."""
        batch, time, count, _ = frames.shape
        parts = frames.reshape(batch, time, count, self.num_labels or 1, -1).movedim(1, 3)
        return parts.reshape(batch, count, -1)

    def diagonal(self) -> Tensor:
        """Return ‖e_i‖², (B, n)."""
        return self._vectors(self.spatial.square().sum(2)[:, :, None])[:, 0]

    def margin(self) -> Tensor:
        """Return (B, n): for each frame the largest eigenvalue of F_tᵀF_t, as often as neighbours need.

        The matrix N of neighbours has a least eigenvalue -c, so that cI + N is positive semidefinite, and so
        are the blocks (cI + N)_tu F_tᵀF_u together.
        """
        least = least_neighbour_eigenvalue(self.grid[0], self.neighbourhood)
        return self._of_frames(-least * _largest(self.temporal))

    def bound(self) -> Tensor:
        """Return (B, n): for each frame the largest eigenvalue of E_tᵀE_t, and of F_tᵀF_t times that of N."""
        most = torch.linalg.eigvalsh(self.neighbours).abs().amax()
        return self._of_frames(_largest(self.spatial) + most * _largest(self.temporal))

    def _of_frames(self, values: Tensor) -> Tensor:
        """Return (B, T) as (B, n)."""
        entries = self.spatial.shape[-1]
        return self._vectors(values[..., None, None].expand(-1, -1, 1, entries))[:, 0]


def _largest(embeddings: Tensor) -> Tensor:
    """Return the largest eigenvalue of each EᵀE, (B, T), for E (B, T, D, m)."""
    e = embeddings
    gram = e @ e.mT if e.shape[2] <= e.shape[3] else e.mT @ e
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues[..., -1]
