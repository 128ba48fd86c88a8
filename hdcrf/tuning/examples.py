"""Labelled examples to tune on: how they are read, kept in memory, and divided in two parts."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hdcrf.failures import is_out_of_memory
from hdcrf.files import InputError, reason
from hdcrf.folders.outcomes import Failure
from hdcrf.folders.pairs import Pair
from hdcrf.folders.predictions import Prediction

__all__ = ["Example", "Examples", "content_digest", "divide", "grouped", "shuffled"]


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
        """Read each once and look at it; return what is wrong with those that cannot be read or looked at."""
        failures = []
        for done, pair in enumerate(pairs, 1):
            try:
                look(self[pair])
            except (InputError, OSError) as error:
                failures.append(Failure(pair.stem, reason(error)))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failures.append(Failure(pair.stem, f"image {pair.image}: out of memory; scale it down"))
            if progress is not None:
                progress(done)
        return failures


def content_digest(pairs: Iterable[Pair]) -> str:
    """Return what tells examples apart by their names and the content of their files, in whichever order."""
    digest = hashlib.sha256()
    for pair in sorted(pairs, key=lambda pair: pair.stem):
        digest.update(hashlib.sha256(os.fsencode(pair.stem)).digest())  # who is held back follows from it
        for path in (pair.image, pair.prediction, pair.truth):
            if path is not None:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def shuffled(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    """Return pairs in an order that follows from each one's stem and the seed, whichever others there are."""
    return sorted(pairs, key=lambda pair: (_drawn(seed, pair.stem), pair.stem))


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}:{name}")).digest()


def grouped(pairs: Iterable[Pair], seed: int, expression: re.Pattern[str] | None = None) -> list[list[Pair]]:
    """Return pairs in groups of which each must be on one side, in an order that follows from the seed.

    Args:
        pairs: In any order.
        seed: Of the order.
        expression: Those whose stems begin with a match are of one group if its first group is the same, or
            the whole match where it has no group; those without a match are by themselves. None makes each
            pair a group.

    Raises:
        InputError: If the expression matches no stem, or there is but one group.
    """
    groups: dict[str, list[Pair]] = {}
    matches = 0
    for pair in pairs:
        match = expression.match(pair.stem) if expression is not None else None
        name = None if match is None else match.group(1 if match.re.groups else 0)
        matches += name is not None
        groups.setdefault(pair.stem if name is None else name, []).append(pair)
    if expression is not None:
        _check_groups(expression.pattern, groups, matches)
    return [groups[name] for name in sorted(groups, key=lambda name: (_drawn(seed, name), name))]


def _check_groups(pattern: str, groups: Mapping[str, Sequence[Pair]], matches: int) -> None:
    name, first = next(iter(groups.items()))
    if not matches:
        raise InputError(
            f"--groups {pattern!r} matches no name, such as {first[0].stem!r}; it must match from the "
            "beginning, and have what images of one scene share in its first group"
        )
    if len(groups) == 1:
        raise InputError(
            f"--groups {pattern!r}: all images are of one group, {name!r}, and a group is held back as a "
            "whole; let it take in more of the name"
        )


def divide(groups: Sequence[Sequence[Pair]], share: float) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs in a part to search on and one that is held back: the first groups, but not the largest.

    Args:
        groups: Two or more, as `grouped` returns them.
        share: Of the pairs that are held back, as nearly as whole groups allow; one group at least is on
            each side.
    """
    largest = max(range(len(groups)), key=lambda index: (len(groups[index]), index))
    order = [*groups[:largest], *groups[largest + 1 :], groups[largest]]
    counts = list(itertools.accumulate(map(len, order)))
    wanted = share * counts[-1]
    held = min(range(len(order) - 1, 0, -1), key=lambda number: abs(counts[number - 1] - wanted))
    return [*itertools.chain(*order[held:])], [*itertools.chain(*order[:held])]
