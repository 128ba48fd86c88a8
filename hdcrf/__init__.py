"""High-dimensional Gaussian filtering by sparse convolution, and the CRFs that run on it."""

import hdcrf.compiled  # noqa: F401 - registers an operation
from hdcrf.blocks import points_in_blocks, video_in_windows, volume_in_blocks
from hdcrf.compatibility import Compatibility
from hdcrf.dense_crf import DenseCRF
from hdcrf.exact import ExactGaussian
from hdcrf.features import (
    bilateral_features,
    point_features,
    trilateral_features,
    video_features,
    volume_features,
)
from hdcrf.gaussian_filter import build_filter, gaussian_filter
from hdcrf.mean_field import MeanFieldResult, mean_field
from hdcrf.pac import PacCRF
from hdcrf.pairwise import PairwiseKernel, SmoothnessKernel, pairwise_kernel
from hdcrf.point_crf import PointCRF
from hdcrf.potentials import labels_from_annotation, logits_from_labels, logits_from_probabilities
from hdcrf.refine import refine
from hdcrf.relaxed import CRFGrad, PointCRFGrad, VolumeCRFGrad, project_simplex, round_labels
from hdcrf.transfer import transfer_labels
from hdcrf.trilateral_crf import TrilateralCRF
from hdcrf.video_crf import VideoCRF
from hdcrf.volume_crf import VolumeCRF

__version__ = "0.1.0"

__all__ = [
    "CRFGrad",
    "Compatibility",
    "DenseCRF",
    "ExactGaussian",
    "MeanFieldResult",
    "PacCRF",
    "PairwiseKernel",
    "PointCRF",
    "PointCRFGrad",
    "SmoothnessKernel",
    "TrilateralCRF",
    "VideoCRF",
    "VolumeCRF",
    "VolumeCRFGrad",
    "bilateral_features",
    "build_filter",
    "gaussian_filter",
    "labels_from_annotation",
    "logits_from_labels",
    "logits_from_probabilities",
    "mean_field",
    "pairwise_kernel",
    "point_features",
    "points_in_blocks",
    "project_simplex",
    "refine",
    "round_labels",
    "transfer_labels",
    "trilateral_features",
    "video_features",
    "video_in_windows",
    "volume_features",
    "volume_in_blocks",
]
