"""The command `hdcrf tune`."""

from __future__ import annotations

import errno
import inspect
import itertools
import math
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click
import torch
from torch import Tensor

import hdcrf
from hdcrf import machine
from hdcrf.commands.folder_options import IGNORE, UNKNOWN, check_predictions, print_failures, unseen_label
from hdcrf.commands.options import (
    PATH,
    PHOTO_KERNELS,
    Number,
    given_outputs,
    gt_prob,
    is_given,
    model_files,
    model_options,
    run_options,
)
from hdcrf.commands.running import (
    find_device,
    layer_arguments,
    most_pixels,
    note_taker,
    print_results,
    progress_bar,
    use_threads,
    write_all,
)
from hdcrf.commands.tune_results import Row, effort, fewer_labels, gain, table, warning
from hdcrf.failures import is_out_of_memory
from hdcrf.files import InputError, Note, check_outputs, import_extra, many, natural_order, reason
from hdcrf.folders.outcomes import Failure
from hdcrf.folders.pairs import Pair, find_pairs
from hdcrf.folders.scores import LabelScores
from hdcrf.folders.settings import Settings
from hdcrf.params_file import write_params
from hdcrf.tuning.budget import Budget, Found
from hdcrf.tuning.descent import descend
from hdcrf.tuning.examples import Example, Examples, content_digest, divide, grouped, shuffled
from hdcrf.tuning.objective import DEFAULTS, Objective, Parameters
from hdcrf.tuning.reading import Reader
from hdcrf.tuning.search import search
from hdcrf.tuning.storage import open_study

__all__ = ["tune"]

_SHARE_OF_MEMORY = 0.25
_UNKNOWN_MEMORY = 2 << 30
_TRIALS = {"optuna": 100, "gradient": 20}
_NOUNS = {"optuna": "trial", "gradient": "epoch"}
_MOST_SHOWN = 10
_NOT_IN_FILE = ("hold_back", "groups", "max_images", "ignore", "gt_prob", "unknown")


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise click.BadParameter(f"{text!r} is not a regular expression: {error}") from error


@dataclass(frozen=True)
class _Material:
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


@click.command()
@click.argument("images", type=PATH)
@click.argument("predictions", type=PATH)
@click.option(
    "--ground-truth",
    type=PATH,
    required=True,
    help="Folder of true labels: a .png or .npy for each image, of the same name up to the suffix.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="File for the parameters, .toml, which every command takes as --params.",
)
@click.option(
    "--method",
    "how",
    type=click.Choice(tuple(_TRIALS)),
    default="optuna",
    show_default=True,
    help="Of the search: by trials that Optuna chooses, or by gradient descent through the CRF.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="End after so many trials, those in --storage included; one of 'gradient' is an epoch. By default "
    "100, or 20 epochs, or any number where there is --time.",
)
@click.option(
    "--time",
    "seconds",
    type=Number(0, min_open=True),
    help="End the search after so many seconds, when the trial at work is finished; reading and scoring come "
    "on top.",
)
@click.option(
    "--storage",
    type=PATH,
    help="File that keeps the trials of 'optuna', .log: the same command goes on where it was interrupted.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=(1 << 31) - 1),
    default=0,
    show_default=True,
    help="Of the search, and of which images are held back.",
)
@click.option(
    "--hold-back",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.3,
    show_default=True,
    help="Share of the images that is not searched on, so that the gain on it is an honest one.",
)
@click.option(
    "--groups",
    type=_expression,
    metavar="REGEX",
    help="Images of one scene are all searched on or all held back: those whose names, from the beginning, "
    "match alike in the first group of this expression, such as '(.+)_' for all up to the last underscore.",
)
@click.option(
    "--max-images", type=click.IntRange(min=2), help="Use no more images than these, drawn at random."
)
@IGNORE
@UNKNOWN
@gt_prob("a prediction in PNG")
@model_options("pixel", *PHOTO_KERNELS, method="--filter-method")
@run_options
@click.pass_context
def tune(
    context: click.Context,
    /,
    *,
    images: Path,
    predictions: Path,
    ground_truth: Path,
    output: Path,
    how: str,
    trials: int | None,
    seconds: float | None,
    storage: Path | None,
    seed: int,
    hold_back: float,
    groups: re.Pattern[str] | None,
    max_images: int | None,
    ignore: int | None,
    unknown: tuple[int, ...],
    gt_prob: float,
    compatibility: Path | str | list[Any],
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Find weights and bandwidths that suit labelled examples, by the mean IoU of what is refined with them.

    IMAGES and PREDICTIONS are folders as of `hdcrf batch`. The weights and bandwidths that are given, or
    their defaults, are where the search starts; the other options of the model stay as they are. What is
    gained is measured on images that are held back from the search; with several images of one scene, say
    --groups, or the gain is no honest one.

    Files that cannot be used are listed at the end, and the exit code is then 1.
    """
    _check_method(how, storage, model["iterations"])
    outputs = given_outputs({"--output": (output, (".toml",)), "--storage": (storage, (".log",))})
    check_outputs(outputs, model_files(compatibility))
    place = find_device(device)
    note = note_taker(quiet)
    use_threads(threads, note)

    arguments = layer_arguments(compatibility=compatibility, **model)
    start = {name: float(arguments.pop(name)) for name in DEFAULTS}
    ways = {"defaults": DEFAULTS} if start == DEFAULTS else {"defaults": DEFAULTS, "start": start}
    starts = list(reversed(ways.values()))
    drawn = _drawn(find_pairs(images, predictions, ground_truth, note=note), seed, max_images, note)
    check_predictions(context, drawn)
    reader = Reader(Settings(arguments, gt_prob, unknown), most_pixels(place))
    objective = Objective(
        Examples(reader, _room()),
        arguments,
        place,
        ignore,
        starts=starts,
        source=_source_of_costs(compatibility),
    )
    if groups is not None:
        note(f"--groups: {len(drawn)} images in {len(grouped(drawn, seed, groups))} groups")
    began = time.perf_counter()
    material = _read_all(
        drawn, objective, reader, lambda pairs: divide(grouped(pairs, seed, groups), hold_back), note, quiet
    )

    if trials is None and seconds is None:
        trials = _TRIALS[how]
    said = {
        **{**arguments, **start, "seed": seed, "hold_back": hold_back, "ignore": ignore},
        **{"groups": groups and groups.pattern, "unknown": sorted(unknown), "gt_prob": gt_prob},
    }
    with _study(how, storage, material, said, note) as study, _explained(context, storage):
        found = _search(material, study, starts, Budget(trials, seconds), seed, quiet)
        rows = _scored(material, {**ways, "tuned": found.parameters}, quiet)
        taken = time.perf_counter() - began
        scores = table(rows, len(material.searched), len(material.held))
        values = {**found.parameters, **_to_write(arguments)}
        written = {"--output": outputs["--output"]}
        contents = write_all(written, {"--output": _writer(values, _head(context, how, found, scores))})
    lines = [*scores, gain(rows), effort(found, _NOUNS[how], taken)]
    lines += [f"{name} = {value:g}" for name, value in found.parameters.items()]
    hints = [*warning(rows), *fewer_labels(rows)]
    print_results(written, contents, "\n".join(lines), "\n".join(hints) or None, quiet)
    print_failures(material.failures, len(drawn))
    if material.failures:
        context.exit(1)


def _check_method(how: str, storage: Path | None, iterations: int) -> None:
    """Check that what the method needs is there.

    Raises:
        click.UsageError, InputError: If not.
    """
    if storage is not None and how != "optuna":
        raise click.UsageError(
            "--storage goes with --method optuna; 'gradient' does not go on where it ended"
        )
    if iterations == 0:
        raise click.UsageError(
            "--iterations 0 refines nothing, so that there is nothing to tune; give 1 or more"
        )
    import_extra("tomli_w", "writing parameters", "tune", package="tomli-w")
    if how == "optuna":
        import_extra("optuna", "hdcrf tune --method optuna", "tune")


def _drawn(pairs: Sequence[Pair], seed: int, most: int | None, note: Note) -> list[Pair]:
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


def _room() -> int:
    """Return the bytes that examples may take in memory."""
    memory = machine.memory_of(torch.device("cpu"))
    return _UNKNOWN_MEMORY if memory is None else int(memory * _SHARE_OF_MEMORY)


def _source_of_costs(compatibility: Path | str | list[Any]) -> str:
    """Return what begins a message on a compatibility that does not fit: the file that it is from."""
    if isinstance(compatibility, str):
        return ""
    name = "--params" if isinstance(compatibility, list) else "--compatibility"
    return f"{name[2:]} {model_files(compatibility)[name]}: "


def _read_all(
    pairs: Sequence[Pair],
    objective: Objective,
    reader: Reader,
    divided: Callable[[Sequence[Pair]], tuple[list[Pair], list[Pair]]],
    note: Note,
    quiet: bool,
) -> _Material:
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
    material = _Material(objective, searched, held, before, _in_order(failures))
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


def _check_labelled(material: _Material) -> None:
    for action, part in (("search on", material.searched), ("hold back", material.held)):
        if math.isnan(material.unrefined(part).accuracy):
            raise InputError(
                f"the ground truth of the images to {action} has no pixel that counts; see --ignore"
            )


def _study(
    how: str, storage: Path | None, material: _Material, said: Mapping[str, Any], note: Note
) -> AbstractContextManager[Any]:
    """Return what opens the study that the trials go to; with None in it where none is needed."""
    if how == "gradient":
        return nullcontext()
    if storage is None:
        return open_study()
    digest = content_digest([*material.searched, *material.held])
    return open_study(storage, _fingerprint(digest, said), note)


def _fingerprint(images: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what trials depend on: the digest of the examples, and options."""
    others = {"method": "--filter-method", "exclude_self": "--include-self"}
    options = {others.get(name, f"--{name.replace('_', '-')}"): value for name, value in _plain(said).items()}
    return {"images": images, **options, "version of hdcrf": hdcrf.__version__}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, but for what computes the model, as numbers and text."""
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in settings.items()
        if name != "backend"
    }


def _search(
    material: _Material, study: Any, starts: Sequence[Parameters], budget: Budget, seed: int, quiet: bool
) -> Found:
    """Search with a study of Optuna, or by gradient descent where there is none."""
    with _bar(budget, quiet) as progress:
        if study is None:
            return descend(
                material.objective, material.searched, starts[0], budget, seed=seed, progress=progress
            )
        return search(
            study,
            lambda parameters, stop: material.objective.mean_iou(material.searched, parameters, stop),
            starts,
            budget,
            seed=seed,
            progress=progress,
        )


@contextmanager
def _bar(budget: Budget, quiet: bool) -> Iterator[Callable[[int, float], object] | None]:
    """Show a bar of the trials, or of the time where any number of them is allowed."""
    began = time.monotonic()
    by_time = budget.trials is None
    length = math.ceil(budget.seconds or 1) if budget.trials is None else budget.trials
    with progress_bar(length, "Tuning", quiet, unit=None if by_time else "trials") as update:
        if update is None:
            yield None
            return

        def show(trials: int, _: float) -> None:
            update(min(int(time.monotonic() - began) if by_time else trials, length))

        yield show


@contextmanager
def _explained(context: click.Context, storage: Path | None) -> Iterator[None]:
    """If the block ends early, say that trials are kept, where they are."""
    if storage is None:
        yield
        return
    kept = f"the trials so far are in {storage}, and the same command goes on"
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted; {kept}.", err=True)
        context.exit(130)
    except SystemExit:  # by a signal
        click.echo(f"Ended; {kept}.", err=True)
        raise
    except InputError as error:
        raise InputError(f"{error}; {kept}") from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"{reason(error)}; {kept}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise click.ClickException(f"out of memory; {kept}") from error


def _scored(material: _Material, ways: Mapping[str, Parameters], quiet: bool) -> list[Row]:
    """Return the scores of the predictions, and of each way to refine them, of which the last is new."""
    *_, new = ways.values()
    parts, score_of = (material.searched, material.held), material.objective.score_of
    with progress_bar(len(material.before), "Scoring", quiet, unit="images") as progress:
        for done, pair in enumerate(itertools.chain(*parts), 1):
            score_of(pair, new)
            if progress is not None:
                progress(done)
    rows = [Row("unrefined", *(material.unrefined(part) for part in parts))]
    for way, parameters in ways.items():
        scores = (LabelScores.merged(score_of(pair, parameters) for pair in part) for part in parts)
        rows.append(Row(way, *scores))
    return rows


def _to_write(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the fixed options goes into the file: what is not the layer's default."""
    layer = inspect.signature(hdcrf.DenseCRF).parameters
    return {name: value for name, value in _plain(settings).items() if value != layer[name].default}


def _writer(values: Mapping[str, Any], comments: Sequence[str]) -> Callable[[BinaryIO, Path], str]:
    """Return what writes the file of parameters."""

    def write(file: BinaryIO, _: Path) -> str:
        write_params(file, values, comments)
        return f"{len(values)} parameters"

    return write


def _head(context: click.Context, how: str, found: Found, scores: Sequence[str]) -> list[str]:
    """Return the comments at the head of the file."""
    given = context.params
    made = (
        f"Made by hdcrf tune --method {how} --seed {given['seed']}{_said(context, _NOT_IN_FILE)}, of version "
        f"{hdcrf.__version__}, from the images {given['images']}, the predictions {given['predictions']} and "
        f"the labels {given['ground_truth']}: scores in percent after {many(found.trials, _NOUNS[how])}, of "
        f"which number {found.number} was the best."
    )
    lines = [
        *textwrap.wrap(made, 88),
        *scores,
        "Sigmas in position are in pixels: for images and videos, not for points and volumes.",
    ]
    if reading := _said(context, ("gt_prob", "unknown")):
        lines.append(f"The predictions were read with{reading}: say so to hdcrf batch, too.")
    return lines


def _said(context: click.Context, names: Sequence[str]) -> str:
    """Return those of some options that were given, as they can be given again."""
    words = []
    for name in names:
        value = context.params[name]
        for each in value if isinstance(value, tuple) else (value,):
            text = each.pattern if isinstance(each, re.Pattern) else str(each)
            if is_given(context, name):
                words.append(f" --{name.replace('_', '-')} {shlex.quote(text)}")
    return "".join(words)
