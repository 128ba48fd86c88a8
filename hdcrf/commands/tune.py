"""The command `hdcrf tune`."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import torch

import hdcrf
from hdcrf import machine
from hdcrf.commands.failures import as_early_end
from hdcrf.commands.folder_options import IGNORE, UNKNOWN, check_predictions, print_failures
from hdcrf.commands.options import (
    PATH,
    PHOTO_KERNELS,
    Number,
    given_outputs,
    gt_prob,
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
    source_of_costs,
    use_threads,
    write_all,
)
from hdcrf.commands.tune_file import head, params_writer, plain, to_write
from hdcrf.commands.tune_material import Material, drawn_pairs, read_material
from hdcrf.commands.tune_results import Row, effort, fewer, gain, table, warning
from hdcrf.failures import is_out_of_memory
from hdcrf.files import InputError, Note, check_outputs, import_extra
from hdcrf.folders.pairs import find_pairs
from hdcrf.folders.scores import LabelScores
from hdcrf.folders.settings import Settings
from hdcrf.tuning.budget import Budget, Found
from hdcrf.tuning.descent import descend
from hdcrf.tuning.examples import Examples, content_digest, divide, grouped
from hdcrf.tuning.objective import DEFAULTS, Objective, Parameters
from hdcrf.tuning.reading import Reader
from hdcrf.tuning.search import search
from hdcrf.tuning.storage import open_study

__all__ = ["tune"]

_SHARE_OF_MEMORY = 0.25
_UNKNOWN_MEMORY = 2 << 30
_TRIALS = {"optuna": 100, "gradient": 20}


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise click.BadParameter(f"{text!r} is not a regular expression: {error}") from error


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
    drawn = drawn_pairs(find_pairs(images, predictions, ground_truth, note=note), seed, max_images, note)
    check_predictions(context, drawn)
    reader = Reader(Settings(arguments, gt_prob, unknown), most_pixels(place))
    objective = Objective(
        Examples(reader, _room()),
        arguments,
        place,
        ignore,
        starts=starts,
        source=source_of_costs(compatibility),
    )
    if groups is not None:
        note(f"--groups: {len(drawn)} images in {len(grouped(drawn, seed, groups))} groups")
    began = time.perf_counter()
    material = read_material(
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
        values = {**found.parameters, **to_write(arguments)}
        written = {"--output": outputs["--output"]}
        contents = write_all(written, {"--output": params_writer(values, head(context, how, found, scores))})
    lines = [*scores, gain(rows), effort(found, how, taken)]
    lines += [f"{name} = {value:g}" for name, value in found.parameters.items()]
    hints = [*warning(rows), *fewer(rows)]
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


def _room() -> int:
    """Return the bytes that examples may take in memory."""
    memory = machine.memory_of(torch.device("cpu"))
    return _UNKNOWN_MEMORY if memory is None else int(memory * _SHARE_OF_MEMORY)


def _study(
    how: str, storage: Path | None, material: Material, said: Mapping[str, Any], note: Note
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
    options = {others.get(name, f"--{name.replace('_', '-')}"): value for name, value in plain(said).items()}
    return {"images": images, **options, "version of hdcrf": hdcrf.__version__}


def _search(
    material: Material, study: Any, starts: Sequence[Parameters], budget: Budget, seed: int, quiet: bool
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

        def show(trials: int, best: float) -> None:
            done = min(int(time.monotonic() - began) if by_time else trials, length)
            update(done, shown=f"best {100 * best:.2f}")

        yield show


@contextmanager
def _explained(context: click.Context, storage: Path | None) -> Iterator[None]:
    """If the block ends early, say that trials are kept, where they are."""
    if storage is None:
        yield
        return
    kept = f"the trials so far are in {storage}, and the same command goes on"
    try:
        with as_early_end(context, lambda: kept):
            yield
    except InputError as error:
        raise InputError(f"{error}; {kept}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise click.ClickException(f"out of memory; {kept}") from error


def _scored(material: Material, ways: Mapping[str, Parameters], quiet: bool) -> list[Row]:
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
