"""The labelled examples that `hdcrf tune` searches on and holds back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hdcrf.commands.folder_options import unseen_label
from hdcrf.commands.running import progress_bar
from hdcrf.files import InputError, Note, natural_order
from hdcrf.folders.outcomes import Failure
from hdcrf.folders.pairs import Pair
from hdcrf.folders.scores import LabelScores
from hdcrf.tuning.examples import Example, shuffled
from hdcrf.tuning.objective import Objective
from hdcrf.tuning.reading import Reader

__all__ = ["Material", "drawn_pairs", "read_material"]

_MOST_SHOWN = 10


@dataclass(frozen=True)
class Material:
    """What there is to tune on.

    Attributes:
        objective: The examples, and what refines them.
        searched: Those that are searched on.
        held: Those that are held back.
        before: The scores of the predictions, by stem.
        failures: What is wrong with the others.
    """

    objective: Objective
    searched: list[Pair]
    held: list[Pair]
    before: Mapping[str, LabelScores]
    failures: list[Failure]

    def unrefined(self, part: Sequence[Pair]) -> LabelScores:
        """Return the scores of the predictions for a part together."""
        return LabelScores.merged(self.before[pair.stem] for pair in part)


def drawn_pairs(pairs: Sequence[Pair], seed: int, most: int | None, note: Note) -> list[Pair]:
    """Return the pairs with ground truth, or as many of them as are wanted, in an order drawn by the seed.

    Raises:
        InputError: If there are too few.
    """
    drawn = shuffled((pair for pair in pairs if pair.truth is not None), seed)
    _check_enough(len(drawn), [])
    if most is None or len(drawn) <= most:
        return drawn
    note(f"--max-images: {most} of {len(drawn)} labelled images are used")
    return drawn[:most]


def read_material(
    pairs: Sequence[Pair],
    objective: Objective,
    reader: Reader,
    divided: Callable[[Sequence[Pair]], tuple[list[Pair], list[Pair]]],
    note: Note,
    quiet: bool,
) -> Material:
    """Read all examples once, refine them with the starts, and say what is to be known of them.

    Raises:
        InputError: If too few can be used.
    """
    before: dict[str, LabelScores] = {}
    offered: set[int] = set()

    def look(example: Example) -> None:
        before[example.pair.stem] = objective.look(example)
        offered.update(example.start.values.tolist())

    searched, held = divided(pairs)
    with progress_bar(len(pairs), "Reading", quiet, unit="images") as progress:
        # Those that are searched on first, since they are what should stay in memory.
        failures = objective.examples.look_through([*searched, *held], look, progress)
    reader.print_notes(note)
    _check_enough(len(before), failures)
    unseen = unseen_label(LabelScores.merged(before.values()).pixels, offered)
    if unseen is not None:
        note(unseen)
    if failures:
        searched, held = divided([pair for pair in pairs if pair.stem in before])
    material = Material(objective, searched, held, before, _in_order(failures))
    _check_labelled(material)
    return material


def _in_order(failures: Sequence[Failure]) -> list[Failure]:
    return sorted(failures, key=lambda failure: natural_order(failure.stem))


def _check_enough(count: int, failures: Sequence[Failure]) -> None:
    if count >= 2:
        return
    why = "".join(f"\n  {failure.stem}: {failure.message}" for failure in failures[:_MOST_SHOWN])
    images = "only 1 labelled image" if count else "no labelled image"
    raise InputError(
        f"{images} can be used, and tuning needs 2 at least, one to search on and one that is held back"
        + (f"; what is wrong with the others:{why}" if why else "; label more of them")
    )


def _check_labelled(material: Material) -> None:
    for action, part in (("search on", material.searched), ("hold back", material.held)):
        if math.isnan(material.unrefined(part).accuracy):
            raise InputError(
                f"the ground truth of the images to {action} has no pixel that counts; see --ignore"
            )
