"""The command `hdcrf image`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click
import torch

import hdcrf
from hdcrf import image_files, pictures
from hdcrf.commands.image_labels import read_start, write_energy, write_labels, write_marginals, write_picture
from hdcrf.commands.options import (
    GT_PROB,
    OPACITY,
    PATH,
    check_start,
    given_outputs,
    model_files,
    photo_model_options,
    run_options,
)
from hdcrf.commands.running import (
    build_layer,
    find_device,
    most_pixels,
    note_taker,
    print_results,
    progress_bar,
    use_threads,
    version_of,
    write_all,
)
from hdcrf.commands.tally import PHOTO, Tally
from hdcrf.failures import as_input_error
from hdcrf.files import check_outputs

__all__ = ["image"]


@click.command()
@click.argument("photo", type=PATH)
@click.option(
    "--annotation",
    type=PATH,
    help="Picture of the photo's size in which each colour is a label, and black or transparent is unknown.",
)
@click.option(
    "--probabilities",
    type=PATH,
    help="Array (H, W, K) of each label's probability, floating-point: .npy, or .npz that holds it alone or "
    "as 'probabilities'.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="PNG for the refined labels: in the annotation's colours, or, from probabilities, a PNG whose pixel "
    "values are the labels (with a palette up to 256 labels, 16-bit grey above).",
)
@click.option("--overlay", type=PATH, help="Also write the labels over the photo: .png or .jpg.")
@OPACITY
@click.option("--energy-plot", type=PATH, help="Also plot the energy of each iteration: .png.")
@click.option(
    "--save-marginals", type=PATH, help="Also write the marginals, (H, W, K) float32: .npy or .npz."
)
@GT_PROB
@photo_model_options
@run_options
@click.pass_context
def image(
    context: click.Context,
    /,
    *,
    photo: Path,
    annotation: Path | None,
    probabilities: Path | None,
    output: Path,
    overlay: Path | None,
    opacity: float,
    energy_plot: Path | None,
    save_marginals: Path | None,
    gt_prob: float,
    compatibility: Path | str | list[Any],
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Refine the labels of PHOTO, so that they follow its edges.

    Start from a drawing (--annotation) or from a network's output (--probabilities). The files appear
    complete and together, or not at all.
    """
    check_start(context, annotation, probabilities)
    if energy_plot is not None and version_of("matplotlib") is None:
        raise click.UsageError('--energy-plot needs matplotlib: pip install "hdcrf[images]"')
    outputs = given_outputs(
        {
            "--output": (output, (".png",)),
            "--overlay": (overlay, (".png", ".jpg", ".jpeg")),
            "--energy-plot": (energy_plot, (".png",)),
            "--save-marginals": (save_marginals, (".npy", ".npz")),
        }
    )
    inputs = {"PHOTO": photo, "--annotation": annotation, "--probabilities": probabilities}
    check_outputs(outputs, inputs | model_files(compatibility))
    place = find_device(device)
    note = note_taker(quiet)
    use_threads(threads, note)

    pixels = image_files.read_photo(photo, most_pixels=most_pixels(place), note=note)
    start = read_start(annotation, probabilities, gt_prob, pixels.shape[:2], note)

    began = time.perf_counter()
    crf = build_layer(hdcrf.DenseCRF, len(start.colours), place, compatibility=compatibility, **model)
    guide = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(place)
    with as_input_error(), torch.no_grad(), progress_bar(crf.iterations, "Mean field", quiet) as progress:
        result = crf.infer(
            start.logits[None].to(place), guide, track=energy_plot is not None, progress=progress
        )
    marginals = result.marginals[0].permute(1, 2, 0).contiguous().cpu().numpy()
    labels = marginals.argmax(2)
    seconds = time.perf_counter() - began

    writers: dict[str, Callable[[BinaryIO, Path], str]] = {
        "--output": lambda file, _: write_labels(file, labels, start),
        "--overlay": lambda file, path: write_picture(
            file, path, pictures.overlay(pixels, labels, start.colours, opacity)
        ),
        "--energy-plot": lambda file, _: write_energy(file, result),
        "--save-marginals": lambda file, path: write_marginals(file, path, marginals),
    }
    contents = write_all(outputs, writers)
    tally = Tally(PHOTO, start.names)
    tally.add(start.labels, labels)
    lines = [f"{result.iterations} iterations in {seconds:.2f} s"]
    if result.energy is not None:
        first, last = float(result.energy[0]), float(result.energy[-1])
        lines.append(f"energy {first:.6g} before, {last:.6g} after")
    lines += tally.summary(annotated=start.annotated)
    print_results(outputs, contents, "\n".join(lines), tally.hint(annotated=start.annotated), quiet)
