"""What the result for an image depends on besides its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import hdcrf
from hdcrf.files import Note
from hdcrf.folders.manifest import digest
from hdcrf.folders.pairs import Pair
from hdcrf.folders.predictions import Prediction, read_prediction

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The options of the model, and how predictions are taken.

    Attributes:
        model: Arguments of `DenseCRF`, with the compatibility as it was read.
        gt_prob: How far to trust a label of a PNG.
        unknown: Values of a PNG that say nothing.
    """

    model: Mapping[str, Any]
    gt_prob: float
    unknown: tuple[int, ...]

    @property
    def num_labels(self) -> int | None:
        """How many labels the compatibility is for; None if for any."""
        matrix = self.model["compatibility"]
        return matrix.shape[0] if isinstance(matrix, Tensor) and matrix.dim() else None

    @property
    def digest(self) -> str:
        """What tells settings and versions apart."""
        said = {
            **self.model,
            "gt_prob": self.gt_prob,
            "unknown": sorted(set(self.unknown)),
            "version": hdcrf.__version__,
        }
        return digest(json.dumps(said, sort_keys=True, default=Tensor.tolist).encode())

    def read(self, pair: Pair, shape: tuple[int, int], note: Note) -> Prediction:
        """Read what was predicted for an image of that shape (H, W).

        Raises:
            InputError: As of `read_prediction`.
        """
        return read_prediction(
            pair.prediction,
            shape,
            gt_prob=self.gt_prob,
            unknown=self.unknown,
            num_labels=self.num_labels,
            note=note,
        )
