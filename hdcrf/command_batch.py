"""The command `hdcrf batch`."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from hdcrf.command_batch_results import (
    hints,
    output_writers,
    print_notes,
    summary,
)
from hdcrf.command_folders import IGNORE, UNKNOWN, check_predictions, has_png, print_failures
from hdcrf.command_image import BYTES_A_PIXEL
from hdcrf.command_options import (
    DEVICE,
    PATH,
    QUIET,
    gt_prob,
    model_files,
    photo_model_options,
)
from hdcrf.command_running import (
    find_device,
    layer_arguments,
    memory_of,
    note_taker,
    print_results,
    progress_bar,
)
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, check_outputs, many, reason, whole_files
from hdcrf.folders.manifest import Entry, Manifest, open_manifest
from hdcrf.folders.outcomes import Failure, Outcome, total_scores
from hdcrf.folders.pairs import Pair, find_pairs
from hdcrf.folders.refinement import Refinement, Result, run_in_threads
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
@click.option("--restart", is_flag=True, help="Do all again, also what an earlier run has finished.")
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
    _check_scored(ground_truth, ignore, scores)
    pairs = find_pairs(images, predictions, ground_truth, note=note)
    check_predictions(context, pairs)
    outputs = _named_outputs(scores, report)
    settings = Settings(layer_arguments(compatibility=compatibility, **model), gt_prob, unknown)
    folders = {"images": images, "predictions": predictions, "ground truth": ground_truth}
    with _folder(output, folders):
        check_outputs(outputs, model_files(compatibility))
    with open_manifest(output, restart=restart) as manifest:
        digest = settings.digest
        kept = {pair.stem: entry for pair in pairs if (entry := manifest.kept(pair, digest))}
        with _explained(context, kept, len(pairs)) as results:
            memory = memory_of(place)
            refinement = Refinement(
                settings,
                place,
                manifest.output,
                memory=None if memory is None else int(memory * _SHARE_OF_MEMORY),
                bytes_a_pixel=BYTES_A_PIXEL,
                ignore=ignore,
            )
            cpus = os.cpu_count() or 1
            workers = min(workers or cpus, len(pairs))
            threads = threads or max(1, cpus // workers)
            at_work = (workers, threads)
            _score_kept(pairs, kept, refinement, at_work, results, quiet)
            began = time.perf_counter()
            _refine_others(pairs, manifest, kept, refinement, at_work, results, quiet)
            seconds = time.perf_counter() - began

            in_order = [results[pair.stem] for pair in pairs]
            print_notes(in_order, note)
            entries = [result.entry for result in in_order if result.entry is not None]
            outcomes = _outcomes(in_order, manifest)
            failures = [
                Failure(result.pair.stem, result.failure) for result in in_order if result.failure is not None
            ]
            with as_input_error(f"ground truth {ground_truth}: "):
                total = total_scores(outcomes)
            said = _said({**model, "compatibility": compatibility}, gt_prob, unknown, pairs)
            writers = output_writers(outputs, outcomes, failures, total, said, unknown, output)
            # In memory first: what a kill could leave beside the files is there for a moment alone.
            made = {name: io.BytesIO() for name in outputs}
            contents = [writers[name](made[name], path) for name, (path, _) in outputs.items()]
            with whole_files([path for path, _ in outputs.values()]) as files:
                for buffer, file in zip(made.values(), files, strict=True):
                    file.write(buffer.getbuffer())
            new = len(entries) - len(kept)
            lines = [f"output: {output} ({many(len(entries), 'image')}, {new} refined and {len(kept)} kept)"]
            if new:
                lines.append(
                    f"{seconds:.1f} s, {new / seconds:.3g} images a second, by {many(workers, 'worker')} on "
                    f"{many(threads, 'thread')} each"
                )
            lines += summary(entries, total)
            print_results(
                outputs,
                contents,
                "\n".join(lines),
                "\n".join(hints(entries, total, ignore)) or None,
                quiet,
            )
            print_failures(failures, len(pairs))
    if failures:
        context.exit(1)


def _score_kept(
    pairs: Sequence[Pair],
    kept: Mapping[str, Entry],
    refinement: Refinement,
    at_work: tuple[int, int],
    results: dict[str, Result],
    quiet: bool,
) -> None:
    """Score the pairs that need not be done again, where there is ground truth.

    Args:
        pairs: All of them.
        kept: Those, from the record.
        refinement: What scores them.
        at_work: How many workers, and the threads of each.
        results: Gets the results, by their stems.
        quiet: Whether to show no progress.
    """
    of_kept = [pair for pair in pairs if pair.stem in kept]
    results |= {pair.stem: Result(pair, kept[pair.stem]) for pair in of_kept}
    tasks = [partial(refinement.score, pair, kept[pair.stem]) for pair in of_kept if pair.truth is not None]
    _run(
        tasks, "Scores", refinement, at_work, lambda result: results.update({result.pair.stem: result}), quiet
    )


def _refine_others(
    pairs: Sequence[Pair],
    manifest: Manifest,
    kept: Collection[str],
    refinement: Refinement,
    at_work: tuple[int, int],
    results: dict[str, Result],
    quiet: bool,
) -> None:
    """Refine the other pairs, and record each that is finished.

    They are by themselves, so that the rate and the time left are those of refining.
    """

    def finish(result: Result) -> None:
        if result.entry is not None:
            manifest.add(result.entry)
        results[result.pair.stem] = result

    tasks = [partial(refinement.refine, pair) for pair in pairs if pair.stem not in kept]
    _run(tasks, "Images", refinement, at_work, finish, quiet)


def _run(
    tasks: Sequence[Callable[[], Result]],
    label: str,
    refinement: Refinement,
    at_work: tuple[int, int],
    finish: Callable[[Result], object],
    quiet: bool,
) -> None:
    """Do tasks in threads, and show a bar."""
    if not tasks:
        return
    done = 0
    with progress_bar(len(tasks), label, quiet, unit="images") as progress:

        def count(result: Result) -> None:
            nonlocal done
            finish(result)
            done += 1
            if progress is not None:
                progress(done)

        run_in_threads(tasks, *at_work, count, refinement.stop)


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


@contextmanager
def _explained(context: click.Context, kept: Collection[str], total: int) -> Iterator[dict[str, Result]]:
    """Yield a dict for the results by their stems; if the block ends early, say how far it came."""
    results: dict[str, Result] = {}

    def finished() -> str:
        stems = {stem for stem, result in results.items() if result.entry is not None}.union(kept)
        return f"{len(stems)} of {total} images are finished, and the same command goes on with the rest"

    try:
        yield results
    except KeyboardInterrupt:
        click.echo(f"Interrupted; {finished()}.", err=True)
        context.exit(130)
    except SystemExit:  # by a signal
        click.echo(f"Ended; {finished()}.", err=True)
        raise
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"cannot write the results: {reason(error)}; {finished()}") from error


def _outcomes(results: Sequence[Result], manifest: Manifest) -> list[Outcome]:
    """Return what became of the images that are finished."""
    return [
        Outcome(
            result.pair,
            manifest.output(entry.stem),
            entry.changed / max(1, entry.known),
            result.before,
            result.after,
        )
        for result in results
        if (entry := result.entry) is not None
    ]


def _said(
    model: Mapping[str, Any], gt_prob: float, unknown: Sequence[int], pairs: Sequence[Pair]
) -> dict[str, str]:
    """Return the options that the results depend on as a page shows them."""
    said = dict(model)
    if has_png(pairs):
        said |= {"gt_prob": gt_prob, "unknown": ", ".join(map(str, unknown)) or None}
    return {name.replace("_", " "): str(value) for name, value in said.items() if value is not None}
