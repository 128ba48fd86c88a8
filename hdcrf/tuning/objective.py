"""What is tuned, and how good values of it are: the mean IoU of examples that were refined with them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hdcrf
from hdcrf.failures import as_input_error
from hdcrf.files import InputError
from hdcrf.folders.pairs import Pair
from hdcrf.folders.scores import LabelScores, score_labels
from hdcrf.tuning.examples import Example, Examples

__all__ = ["DEFAULTS", "RANGES", "Objective", "Parameters", "RefusedError", "refusals", "rounded", "within"]

Parameters = dict[str, float]
"""The weights and bandwidths of `DenseCRF`, by name."""

RANGES: dict[str, tuple[float, float]] = {
    "appearance_weight": (0.1, 30.0),
    "appearance_sigma_xy": (2.0, 200.0),
    "appearance_sigma_rgb": (2.0, 60.0),
    "smoothness_weight": (0.1, 30.0),
    "smoothness_sigma": (0.5, 10.0),
}
"""Where to look for each: from a kernel that hardly counts to one that outvotes any network."""

DEFAULTS: Parameters = {name: inspect.signature(hdcrf.DenseCRF).parameters[name].default for name in RANGES}

_CHUNKS = 8


def rounded(parameters: Mapping[str, float]) -> Parameters:
    """Return parameters with four digits, as they are scored and written."""
    return {name: float(f"{value:.4g}") for name, value in parameters.items()}


def within(parameters: Mapping[str, float]) -> Parameters:
    """Return parameters, those out of their ranges moved to the ends."""
    return {name: min(max(value, RANGES[name][0]), RANGES[name][1]) for name, value in parameters.items()}


class RefusedError(InputError):
    """The model cannot refine an example with these parameters; perhaps it can with others."""


_Key = tuple[tuple[str, float], ...]


def _key(parameters: Parameters) -> _Key:
    return tuple(sorted(parameters.items()))


class Objective:
    """Refines examples with given parameters and scores what comes out.

    Scores are kept of the starts and of the best, image by image, as they are asked for again.

    Args:
        examples: Where they are read.
        settings: The other options of `DenseCRF`, which stay as they are.
        device: Where it is computed.
        ignore: A value of the truth that does not count; None leaves it to each example.
        starts: Parameters that `look` refines each example with.
        source: What begins a message on settings that do not fit the labels of an example.
    """

    def __init__(
        self,
        examples: Examples,
        settings: Mapping[str, Any],
        device: torch.device,
        ignore: int | None,
        *,
        starts: Sequence[Parameters] = (),
        source: str = "",
    ) -> None:
        self.examples, self.device = examples, device
        self._settings, self._ignore, self._source = settings, ignore, source
        self._starts = {_key(parameters): parameters for parameters in starts}
        self._best: tuple[float, _Key] = (-math.inf, ())
        self._known: dict[_Key, dict[str, LabelScores]] = {key: {} for key in self._starts}

    def layer(self, num_labels: int, parameters: Parameters, **options: Any) -> hdcrf.DenseCRF:
        """Return the CRF with these parameters.

        Raises:
            ValueError: If the settings do not fit so many labels.
        """
        try:
            made = hdcrf.DenseCRF(num_labels, **{**self._settings, **parameters, **options})
        except ValueError as error:
            raise ValueError(self._source + str(error)) from error
        return made.to(self.device)

    def inputs(self, example: Example) -> tuple[Tensor, Tensor]:
        """Return the logits (1, K, H, W) and the guide (1, 3, H, W) of an example."""
        guide = torch.from_numpy(example.photo).permute(2, 0, 1)[None]
        return example.start.logits[None].to(self.device), guide.to(self.device)

    def targets(self, example: Example) -> Tensor:
        """Return the truth (H, W) of an example as numbers of its K labels; -1 where it is none of them."""
        values = torch.from_numpy(example.start.values)
        truth = torch.from_numpy(example.truth)
        order = torch.argsort(values)
        places = torch.searchsorted(values[order], truth).clamp(max=len(values) - 1)
        numbers = order[places]
        known = (values[numbers] == truth) & (truth >= 0)
        ignore = example.start.ignored(self._ignore)
        if ignore is not None:
            known &= truth != ignore
        return torch.where(known, numbers, -1).to(self.device)

    def score(self, example: Example, labels: NDArray[np.int64]) -> LabelScores:
        """Score labels (H, W) of an example, which are values as in the truth, -1 for none."""
        with as_input_error(f"ground truth {example.pair.truth}: "):
            return score_labels(
                labels, example.truth, ignore=example.start.ignored(self._ignore), boundaries=False
            )

    def unrefined(self, example: Example) -> LabelScores:
        """Score an example as it was predicted."""
        return self.score(example, example.start.given)

    def refined(self, example: Example, parameters: Parameters) -> LabelScores:
        """Score an example as it is refined.

        Raises:
            RefusedError: If the model refuses it.
        """
        with refusals(example), torch.inference_mode():
            crf = self.layer(len(example.start.values), parameters, learn=())
            marginals = crf.infer(*self.inputs(example), return_logits=False).marginals[0]
            labels = marginals.argmax(0).cpu().numpy()
        return self.score(example, example.start.values[labels])

    def look(self, example: Example) -> LabelScores:
        """Score an example as it was predicted, and keep its scores as it is refined with each start.

        Raises:
            RefusedError: If the model refuses it.
        """
        for key, parameters in self._starts.items():
            self._known[key][example.pair.stem] = self.refined(example, parameters)
        return self.unrefined(example)

    def score_of(self, pair: Pair, parameters: Parameters) -> LabelScores:
        """Score an example as it is refined, unless its score is known.

        Raises:
            RefusedError: If the model refuses it.
            InputError, OSError: If it cannot be read.
        """
        key = _key(parameters)
        if key not in self._known:
            kept = {*self._starts, self._best[1]}
            self._known = {each: scores for each, scores in self._known.items() if each in kept} | {key: {}}
        scores = self._known[key]
        if pair.stem not in scores:
            scores[pair.stem] = self.refined(self.examples[pair], parameters)
        return scores[pair.stem]

    def total(self, pairs: Sequence[Pair], parameters: Parameters) -> LabelScores:
        """Score examples together, as they are refined."""
        total = LabelScores.merged(self.score_of(pair, parameters) for pair in pairs)
        if total.mean_iou > self._best[0]:
            self._best = total.mean_iou, _key(parameters)
        return total

    def mean_iou(
        self, pairs: Sequence[Pair], parameters: Parameters, stop: Callable[[int, float], bool]
    ) -> float | None:
        """Return the mean IoU of examples together, unless it is stopped on the way.

        Args:
            pairs: Which.
            parameters: To refine with.
            stop: Called after each of some chunks with how many are done and the mean IoU so far, once there
                is one: the first images may have no pixel that counts. If it returns True, the rest is left
                out.

        Returns:
            The mean IoU; None if it was stopped.
        """
        ends = {len(pairs) * chunk // _CHUNKS for chunk in range(1, _CHUNKS)}
        scores: list[LabelScores] = []
        for done, pair in enumerate(pairs, 1):
            scores.append(self.score_of(pair, parameters))
            if done in ends:
                reached = LabelScores.merged(scores).mean_iou
                if not math.isnan(reached) and stop(done, reached):
                    return None
        return self.total(pairs, parameters).mean_iou


@contextmanager
def refusals(example: Example) -> Iterator[None]:
    """Report what the model refuses of an example.

    Raises:
        RefusedError: If the block raises a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise RefusedError(f"image {example.pair.image}: {error}") from error
