"""Gaussian CRFs: exact inference by solving a linear system, from neighbouring pixels to whole videos."""

from hdcrf.gaussian.affinity import affinity
from hdcrf.gaussian.bilateral_solver import BilateralSolver, bilateral_solve
from hdcrf.gaussian.classic_solvers import gauss_seidel, gmres, jacobi
from hdcrf.gaussian.conjugate_gradient import (
    ConvergenceError,
    NotPositiveDefiniteError,
    Solution,
    conjugate_gradient,
)
from hdcrf.gaussian.contexts import video_in_contexts
from hdcrf.gaussian.grid_terms import GridTerms
from hdcrf.gaussian.inference import energy, solve
from hdcrf.gaussian.layers import DenseGaussianCRF, GaussianCRF, SparseGaussianCRF, VideoGaussianCRF
from hdcrf.gaussian.losses import affinity_loss, margin_loss, similarity_loss
from hdcrf.gaussian.low_rank_terms import LowRankTerms
from hdcrf.gaussian.mean_field_network import (
    GaussianMeanFieldNetwork,
    gaussian_mean_field,
    gaussian_mean_field_energy,
)
from hdcrf.gaussian.multiresolution_terms import MultiResolutionTerms
from hdcrf.gaussian.pairwise_terms import PairwiseTerms
from hdcrf.gaussian.potts import PottsMatrix
from hdcrf.gaussian.similarity_terms import SimilarityTerms, pixel_similarity
from hdcrf.gaussian.video_terms import VideoTerms

__all__ = [
    "BilateralSolver",
    "ConvergenceError",
    "DenseGaussianCRF",
    "GaussianCRF",
    "GaussianMeanFieldNetwork",
    "GridTerms",
    "LowRankTerms",
    "MultiResolutionTerms",
    "NotPositiveDefiniteError",
    "PairwiseTerms",
    "PottsMatrix",
    "SimilarityTerms",
    "Solution",
    "SparseGaussianCRF",
    "VideoGaussianCRF",
    "VideoTerms",
    "affinity",
    "affinity_loss",
    "bilateral_solve",
    "conjugate_gradient",
    "energy",
    "gauss_seidel",
    "gaussian_mean_field",
    "gaussian_mean_field_energy",
    "gmres",
    "jacobi",
    "margin_loss",
    "pixel_similarity",
    "similarity_loss",
    "solve",
    "video_in_contexts",
]
