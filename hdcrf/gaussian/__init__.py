"""Gaussian CRFs: exact inference by solving a linear system, from neighbouring pixels to whole videos."""

from hdcrf.gaussian.conjugate_gradient import (
    ConvergenceError,
    NotPositiveDefiniteError,
    Solution,
    conjugate_gradient,
)
from hdcrf.gaussian.inference import energy, solve
from hdcrf.gaussian.low_rank_terms import LowRankTerms
from hdcrf.gaussian.potts import PottsMatrix
from hdcrf.gaussian.video_terms import VideoTerms

__all__ = [
    "ConvergenceError",
    "LowRankTerms",
    "NotPositiveDefiniteError",
    "PottsMatrix",
    "Solution",
    "VideoTerms",
    "conjugate_gradient",
    "energy",
    "solve",
]
