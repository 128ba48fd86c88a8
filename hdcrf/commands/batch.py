"""The command `hdcrf batch`."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import click

from hdcrf import machine
from hdcrf.commands.batch_results import hints, output_writers, print_notes, summary
from hdcrf.commands.batch_run import Run
from hdcrf.commands.failures import as_early_end
from hdcrf.commands.folder_options import IGNORE, UNKNOWN, check_predictions, has_png, print_failures
from hdcrf.commands.options import (
    DEVICE,
    PATH,
    QUIET,
    gt_prob,
    model_files,
    photo_model_options,
)
from hdcrf.commands.running import (
    BYTES_A_PIXEL,
    find_device,
    fitting_threads,
    layer_arguments,
    note_taker,
    print_results,
)
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, check_outputs, many, whole_files
from hdcrf.folders.manifest import MANIFEST, open_manifest
from hdcrf.folders.outcomes import total_scores
from hdcrf.folders.pairs import Pair, find_pairs
from hdcrf.folders.refinement import Refinement
from hdcrf.folders.settings import Settings

__all__ = ["batch"]

_SHARE_OF_MEMORY = 0.8


@click.command()
@click.argument("images", type=PATH)
@click.argument("predictions", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Folder for the refined labels, made if it is missing: a PNG for each image, whose pixel values are "
    "the labels.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Images to work on at a time; by default as many as there are CPUs.",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Do all again, also what an earlier run has finished, and replace files that no run has made.",
)
@click.option(
    "--ground-truth",
    type=PATH,
    help="Folder of true labels, .png or .npy, to score the predictions and the results by.",
)
@IGNORE
@click.option(
    "--scores",
    type=PATH,
    multiple=True,
    help="Also write the agreement with the ground truth: .csv or .json. May be given twice, for both.",
)
@click.option("--report", type=PATH, help="Also write a page with the results to look at: .html.")
@UNKNOWN
@gt_prob("a prediction in PNG")
@photo_model_options
@DEVICE
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of each worker; by default the workers share the CPUs.",
)
@QUIET
@click.pass_context
def batch(
    context: click.Context,
    /,
    *,
    images: Path,
    predictions: Path,
    output: Path,
    workers: int | None,
    restart: bool,
    ground_truth: Path | None,
    ignore: int | None,
    scores: tuple[Path, ...],
    report: Path | None,
    unknown: tuple[int, ...],
    gt_prob: float,
    compatibility: Path | str | list[Any],
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Refine the labels of all images in the folder IMAGES, so that they follow the edges.

    PREDICTIONS is a folder with a file for each image, of the same name up to the suffix: labels as .png, or
    probabilities as .npy, .npz, .tif or .tiff.

    An image that is finished stays so: the same command goes on where it was interrupted, and does again what
    has changed. Files that cannot be used are listed at the end, and the exit code is then 1.
    """
    place = find_device(device)
    note = note_taker(quiet)
    threads = fitting_threads(threads, note)
    _check_scored(ground_truth, ignore, scores)
    pairs = find_pairs(images, predictions, ground_truth, note=note)
    check_predictions(context, pairs)
    outputs = _named_outputs(scores, report)
    settings = Settings(layer_arguments(compatibility=compatibility, **model), gt_prob, unknown)
    folders = {"images": images, "predictions": predictions, "ground truth": ground_truth}
    with _folder(output, folders):
        check_outputs(outputs, model_files(compatibility))
        _check_replaced(output, pairs, restart)
    memory = machine.memory_of(place)
    with open_manifest(output, restart=restart) as manifest:
        refinement = Refinement(
            settings,
            place,
            manifest.output,
            memory=None if memory is None else int(memory * _SHARE_OF_MEMORY),
            bytes_a_pixel=BYTES_A_PIXEL,
            ignore=ignore,
        )
        run = Run(pairs, manifest, refinement, workers=workers, threads=threads, quiet=quiet)
        with as_early_end(context, lambda: run.progress, "cannot write the results: "):
            run.score_kept()
            began = time.perf_counter()
            run.refine_others()
            seconds = time.perf_counter() - began
            print_notes(run.results, note)
            outcomes, failures = run.outcomes, run.failures
            with as_input_error(f"ground truth {ground_truth}: "):
                total = total_scores(outcomes)
            said = _said({**model, "compatibility": compatibility}, gt_prob, unknown, pairs)
            advice = hints(run.entries, total, ignore)
            writers = output_writers(
                outputs,
                outcomes,
                failures,
                total,
                settings=said,
                unknown=unknown,
                title=f"Labels refined in {output.absolute().name}",
                hints=advice,
            )
            lines = [*_effort(output, run, seconds), *summary(run.entries, total)]
            hint = "\n".join(f"Hint: {each}" for each in advice) or None
            try:
                contents = _written(outputs, writers)
            except OSError:  # of the report or the scores: the images are done
                print_results({}, [], "\n".join(lines), hint, quiet)
                print_failures(failures, len(pairs))
                raise
            print_results(outputs, contents, "\n".join(lines), hint, quiet)
            print_failures(failures, len(pairs))
    if failures:
        context.exit(1)


def _effort(output: Path, run: Run, seconds: float) -> list[str]:
    """Return lines on how many images there are, and how long they took."""
    new = len(run.entries) - len(run.kept)
    lines = [f"output: {output} ({many(len(run.entries), 'image')}, {new} refined and {len(run.kept)} kept)"]
    if new:
        workers, threads = run.at_work(len(run.results) - len(run.kept))
        lines.append(
            f"{seconds:.1f} s, {new / seconds:.3g} images a second, by {many(workers, 'worker')} on "
            f"{many(threads, 'thread')} each"
        )
    return lines


def _written(
    outputs: Mapping[str, tuple[Path, Sequence[str]]],
    writers: Mapping[str, Callable[[BinaryIO, Path], str]],
) -> list[str]:
    """Write the outputs, all or none; return what each of them holds.

    In memory first: what a kill could leave beside the files is there for a moment alone.
    """
    made = {name: io.BytesIO() for name in outputs}
    contents = [writers[name](made[name], path) for name, (path, _) in outputs.items()]
    with whole_files([path for path, _ in outputs.values()]) as files:
        for buffer, file in zip(made.values(), files, strict=True):
            file.write(buffer.getbuffer())
    return contents


def _check_scored(ground_truth: Path | None, ignore: int | None, scores: tuple[Path, ...]) -> None:
    """Check that what needs ground truth comes with it, and that no kind of scores is asked for twice."""
    if ground_truth is None:
        for name, given in (("--ignore", ignore is not None), ("--scores", scores)):
            if given:
                raise click.UsageError(f"{name} goes with --ground-truth")
    suffixes = [path.suffix.lower() for path in scores]
    if len(set(suffixes)) < len(suffixes):
        raise click.UsageError("--scores may be given once for .csv and once for .json")


def _named_outputs(scores: tuple[Path, ...], report: Path | None) -> dict[str, tuple[Path, Sequence[str]]]:
    outputs: dict[str, tuple[Path, Sequence[str]]] = {}
    for index, path in enumerate(scores):
        outputs["--scores" if index == 0 else "--scores, also"] = path, (".csv", ".json")
    if report is not None:
        outputs["--report"] = report, (".html",)
    return outputs


@contextmanager
def _folder(output: Path, folders: Mapping[str, Path | None]) -> Iterator[None]:
    """Make the folder of the outputs if it is missing; take it away again if the block refuses something.

    Raises:
        InputError: If it cannot be one, or is one of the others.
    """
    place = os.path.realpath(output)
    for role, folder in folders.items():
        if folder is not None and os.path.realpath(folder) == place:
            raise InputError(f"--output {output} is the folder of the {role}; name another")
    if os.path.exists(place) and not os.path.isdir(place):
        raise InputError(f"--output {output} is a file; name a folder")
    made = not os.path.exists(place)
    if made:
        if not os.path.isdir(os.path.dirname(place)):
            raise InputError(
                f"--output {output}: the folder {os.path.dirname(place)} does not exist; make it first"
            )
        try:
            os.mkdir(place)
        except OSError as error:
            raise InputError(f"--output {output} cannot be made: {error.strerror}; name another") from error
    try:
        yield
    except BaseException:
        if made:
            with suppress(OSError):
                os.rmdir(place)
        raise


def _check_replaced(output: Path, pairs: Sequence[Pair], restart: bool) -> None:
    """Check that outputs would replace nothing but what this command has made, unless that is asked for.

    Raises:
        InputError: If one is a file of the inputs, through a link, or there is one and no record.
    """
    present = [path for pair in pairs if os.path.lexists(path := output / f"{pair.stem}.png")]
    if not present:
        return
    inputs: dict[tuple[int, int] | None, str] = {}
    for pair in pairs:
        roles = {"image": pair.image, "prediction": pair.prediction, "ground truth": pair.truth}
        inputs |= {_place(path): f"{role} {path}" for role, path in roles.items() if path is not None}
    inputs.pop(None, None)
    for path in present:
        if (same := inputs.get(_place(path))) is not None:
            raise InputError(f"--output: {path} is the same file as the {same}; name another folder")
    if not restart and not (output / MANIFEST).exists():
        raise InputError(
            f"--output {output} holds {many(len(present), 'file')} that would be replaced, such as "
            f"{present[0].name}, and no run of this command has made them; name another folder, or say "
            "--restart to replace them"
        )


def _place(path: Path) -> tuple[int, int] | None:
    """Return what is the same for all names of a file; None if there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _said(
    model: Mapping[str, Any], gt_prob: float, unknown: Sequence[int], pairs: Sequence[Pair]
) -> dict[str, str]:
    """Return the options that the results depend on as a page shows them."""
    said = dict(model)
    if has_png(pairs):
        said |= {"gt_prob": gt_prob, "unknown": ", ".join(map(str, unknown)) or None}
    return {name.replace("_", " "): str(value) for name, value in said.items() if value is not None}
