"""Relaxed energies of CRFs with pairwise potentials of any shape, and what minimises them: CRF-Grad."""

from hdcrf.relaxed.bilateral import BilateralPotential
from hdcrf.relaxed.crf_grad import CRFGrad, PointCRFGrad, VolumeCRFGrad
from hdcrf.relaxed.energy import PairwisePotential, RelaxedEnergy
from hdcrf.relaxed.graduated_descent import graduated_descent
from hdcrf.relaxed.projected_gradient import RelaxedResult, parallel_mean_field, projected_gradient
from hdcrf.relaxed.rounding import round_labels
from hdcrf.relaxed.simplex_projection import project_simplex
from hdcrf.relaxed.spatial import SpatialPotential

__all__ = [
    "BilateralPotential",
    "CRFGrad",
    "PairwisePotential",
    "PointCRFGrad",
    "RelaxedEnergy",
    "RelaxedResult",
    "SpatialPotential",
    "VolumeCRFGrad",
    "graduated_descent",
    "parallel_mean_field",
    "project_simplex",
    "projected_gradient",
    "round_labels",
]
