"""The command `hdcrf tune`."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import torch
from torch import Tensor

import hdcrf
from hdcrf.command_folders import IGNORE, UNKNOWN, check_predictions, print_failures, unseen_label
from hdcrf.command_image import BYTES_A_PIXEL
from hdcrf.command_options import (
    PATH,
    PHOTO_KERNELS,
    Number,
    given_outputs,
    gt_prob,
    model_files,
    model_options,
    run_options,
)
from hdcrf.command_running import (
    find_device,
    layer_arguments,
    memory_of,
    note_taker,
    print_results,
    progress_bar,
    use_threads,
    write_all,
)
from hdcrf.command_tune_results import Row, effort, gain, table, warning
from hdcrf.files import InputError, Note, check_outputs, import_extra, many, natural_order
from hdcrf.folders.outcomes import Failure
from hdcrf.folders.pairs import Pair, find_pairs
from hdcrf.folders.scores import LabelScores
from hdcrf.folders.settings import Settings
from hdcrf.params_file import write_params
from hdcrf.tuning.budget import Budget
from hdcrf.tuning.descent import descend
from hdcrf.tuning.examples import Example, Examples, content_digest, divide, shuffled
from hdcrf.tuning.objective import DEFAULTS, Objective
from hdcrf.tuning.reading import Reader
from hdcrf.tuning.search import search

__all__ = ["tune"]

_SHARE_OF_MEMORY = 0.25
_UNKNOWN_MEMORY = 2 << 30
_TRIALS = {"optuna": 100, "gradient": 20}
_NOUNS = {"optuna": "trial", "gradient": "epoch"}
_MOST_SHOWN = 10


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
    "--time", "seconds", type=Number(0, min_open=True), help="End the search after so many seconds."
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
    gained is measured on images that are held back from the search.

    Files that cannot be used are listed at the end, and the exit code is then 1.
    """
    if storage is not None and how != "optuna":
        raise click.UsageError(
            "--storage goes with --method optuna; 'gradient' does not go on where it ended"
        )
    outputs = given_outputs({"--output": (output, (".toml",)), "--storage": (storage, (".log",))})
    check_outputs(outputs, model_files(compatibility))
    import_extra("tomli_w", "writing parameters", "tune", package="tomli-w")
    if how == "optuna":
        import_extra("optuna", "hdcrf tune --method optuna", "tune")
    place = find_device(device)
    note = note_taker(quiet)
    use_threads(threads, note)

    arguments = layer_arguments(compatibility=compatibility, **model)
    start = {name: float(arguments.pop(name)) for name in DEFAULTS}
    settings = Settings(arguments, gt_prob, unknown)
    found_pairs = find_pairs(images, predictions, ground_truth, note=note)
    drawn = shuffled((pair for pair in found_pairs if pair.truth is not None), seed)
    check_predictions(context, drawn)
    if max_images is not None and len(drawn) > max_images:
        note(f"--max-images: {max_images} of {len(drawn)} labelled images are used")
        drawn = drawn[:max_images]

    memory = memory_of(place)
    reader = Reader(settings, None if memory is None else memory // BYTES_A_PIXEL)
    objective = Objective(Examples(reader, _room()), arguments, place, ignore)
    before, failures = _read_all(drawn, objective, reader, note, quiet)
    pairs = [pair for pair in drawn if pair.stem in before]
    trained, held = divide(pairs, hold_back)
    unrefined = Row(
        "unrefined",
        *(LabelScores.merged(before[pair.stem] for pair in part) for part in (trained, held)),
    )
    _check_labelled(unrefined)

    if trials is None and seconds is None:
        trials = _TRIALS[how]
    budget = Budget(trials, seconds)
    began = time.perf_counter()
    with _explained(context, storage), _bar(budget, quiet) as progress:
        if how == "gradient":
            found = descend(objective, trained, start, budget, seed=seed, progress=progress)
        else:
            said = {
                **_plain(arguments),
                **start,
                **{"seed": seed, "hold_back": hold_back, "ignore": ignore},
                **{"unknown": sorted(unknown), "gt_prob": gt_prob},
            }
            found = search(
                lambda parameters, stop: objective.mean_iou(trained, parameters, stop),
                [DEFAULTS] if start == DEFAULTS else [start, DEFAULTS],
                budget,
                seed=seed,
                storage=storage,
                settings=None if storage is None else _fingerprint(pairs, said),
                progress=progress,
                note=note,
            )
    taken = time.perf_counter() - began

    ways = {"defaults": DEFAULTS, "start": start, "tuned": found.parameters}
    if start == DEFAULTS:
        del ways["start"]
    rows = [
        unrefined,
        *(Row(way, *(objective.total(part, ways[way]) for part in (trained, held))) for way in ways),
    ]
    scores = table(rows, len(trained), len(held))
    values = {**found.parameters, **_to_write(arguments)}
    comments = [
        f"Made by hdcrf tune --method {how} --seed {seed}, of version {hdcrf.__version__}, from the images",
        f"{images}, the predictions {predictions} and the labels {ground_truth}: scores in percent after",
        f"{many(found.trials, _NOUNS[how])}, of which number {found.number} was the best.",
        *scores,
    ]

    def write(file: BinaryIO, _: Path) -> str:
        write_params(file, values, comments)
        return f"{len(values)} parameters"

    written = {"--output": outputs["--output"]}
    contents = write_all(written, {"--output": write})
    lines = [
        *scores,
        gain(rows),
        effort(found, _NOUNS[how], taken),
        *(f"{name} = {value:g}" for name, value in found.parameters.items()),
    ]
    print_results(written, contents, "\n".join(lines), warning(rows), quiet)
    print_failures(sorted(failures, key=lambda failure: natural_order(failure.stem)), len(drawn))
    if failures:
        context.exit(1)


def _room() -> int:
    """Return the bytes that examples may take in memory."""
    memory = memory_of(torch.device("cpu"))
    return _UNKNOWN_MEMORY if memory is None else int(memory * _SHARE_OF_MEMORY)


def _read_all(
    pairs: Sequence[Pair], objective: Objective, reader: Reader, note: Note, quiet: bool
) -> tuple[dict[str, LabelScores], list[Failure]]:
    """Read all examples once; say what is to be known of them.

    Returns:
        The scores of the predictions by their stems, and what is wrong with the files that cannot be used.

    Raises:
        InputError: If fewer than two can be.
    """
    before: dict[str, LabelScores] = {}
    offered: set[int] = set()

    def look(example: Example) -> None:
        before[example.pair.stem] = objective.unrefined(example)
        offered.update(example.start.values.tolist())

    with progress_bar(len(pairs), "Reading", quiet, unit="images") as progress:
        failures = objective.examples.look_through(pairs, look, progress)
    reader.print_notes(note)
    _check_enough(len(before), failures)
    unseen = unseen_label(LabelScores.merged(before.values()).pixels, offered)
    if unseen is not None:
        note(unseen)
    return before, failures


def _check_enough(count: int, failures: Sequence[Failure]) -> None:
    if count >= 2:
        return
    why = "".join(f"\n  {failure.stem}: {failure.message}" for failure in failures[:_MOST_SHOWN])
    images = "only 1 labelled image" if count else "no labelled image"
    raise InputError(
        f"{images} can be used, and tuning needs 2 at least, one to search on and one that is held back"
        + (f"; what is wrong with the others:{why}" if why else "; label more of them")
    )


def _check_labelled(row: Row) -> None:
    for part, scores in (("search on", row.trained), ("hold back", row.held)):
        if math.isnan(scores.accuracy):
            raise InputError(
                f"the ground truth of the images to {part} has no pixel that counts; see --ignore"
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
    """If the block is interrupted, say that trials are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if storage is None:
            raise
        click.echo(f"Interrupted; the trials are in {storage}, and the same command goes on.", err=True)
        context.exit(130)


def _fingerprint(pairs: Sequence[Pair], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what trials depend on: the content of the examples' files, and options."""
    options = {f"--{name.replace('_', '-')}": value for name, value in said.items()}
    return {"images": content_digest(pairs), **options, "version of hdcrf": hdcrf.__version__}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fixed options of the model, but for what computes it, as numbers and text."""
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in settings.items()
        if name != "backend"
    }


def _to_write(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the fixed options goes into the file: what is not the layer's default."""
    layer = inspect.signature(hdcrf.DenseCRF).parameters
    return {name: value for name, value in _plain(settings).items() if value != layer[name].default}
