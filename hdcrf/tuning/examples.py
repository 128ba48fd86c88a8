"""Labelled examples to tune on: how they are read, kept in memory, and divided in two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hdcrf.files import InputError
from hdcrf.folders.outcomes import Failure
from hdcrf.folders.pairs import Pair
from hdcrf.folders.predictions import Prediction

__all__ = ["Example", "Examples", "content_digest", "divide", "shuffled"]


@dataclass(frozen=True)
class Example:
    """An image, what was predicted for it, and what is true.

    Attributes:
        pair: Its files.
        photo: (H, W, 3) uint8.
        start: The logits (K, H, W), and the values of the K labels.
        truth: (H, W), values of labels.
    """

    pair: Pair
    photo: NDArray[np.uint8]
    start: Prediction
    truth: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        logits = self.start.logits.numel() * self.start.logits.element_size()
        return logits + self.photo.nbytes + self.start.labels.nbytes + self.truth.nbytes


class Examples:
    """Examples by their pairs of files, of which as many stay in memory as there is room for.

    Those that do not are read again each time: all of them are gone through in turn, so that those used last
    are the last to be needed again, and it is the first that are kept.

    Args:
        read: Reads one.
        most_bytes: What they may take together.
    """

    def __init__(self, read: Callable[[Pair], Example], most_bytes: int) -> None:
        self._read, self._room = read, most_bytes
        self._kept: dict[str, Example] = {}

    def __getitem__(self, pair: Pair) -> Example:
        kept = self._kept.get(pair.stem)
        if kept is not None:
            return kept
        example = self._read(pair)
        if example.num_bytes <= self._room:
            self._room -= example.num_bytes
            self._kept[pair.stem] = example
        return example

    def look_through(
        self,
        pairs: Iterable[Pair],
        look: Callable[[Example], object],
        progress: Callable[[int], object] | None = None,
    ) -> list[Failure]:
        """Read each once and look at it; return what is wrong with those that cannot be read."""
        failures = []
        for done, pair in enumerate(pairs, 1):
            try:
                look(self[pair])
            except (InputError, OSError) as error:
                failures.append(Failure(pair.stem, str(error)))
            if progress is not None:
                progress(done)
        return failures


def content_digest(pairs: Iterable[Pair]) -> str:
    """Return what tells the content of examples' files apart, in whichever order these are."""
    digest = hashlib.sha256()
    for pair in sorted(pairs, key=lambda pair: pair.stem):
        for path in (pair.image, pair.prediction, pair.truth):
            if path is not None:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def shuffled(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    """Return pairs in an order that follows from each one's stem and the seed, whichever others there are."""
    return sorted(
        pairs, key=lambda pair: (hashlib.sha256(f"{seed}:{pair.stem}".encode()).digest(), pair.stem)
    )


def divide(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs, two or more, in a part to train on and one that is held back: the first ones.

    Args:
        pairs: As `shuffled` returns them.
        share: Of the part that is held back; at least one pair is left on each side.
    """
    held = min(max(round(share * len(pairs)), 1), len(pairs) - 1)
    return list(pairs[held:]), list(pairs[:held])
