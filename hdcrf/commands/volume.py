"""The command `hdcrf volume`."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import torch
from numpy.typing import NDArray

import hdcrf
from hdcrf import pictures
from hdcrf.array_files import check_probabilities, read_probabilities, write_array
from hdcrf.commands.options import (
    GT_PROB,
    OPACITY,
    PATH,
    check_start,
    given_outputs,
    model_files,
    model_options,
    run_options,
    sigma,
    weight,
)
from hdcrf.commands.running import (
    build_layer,
    check_memory,
    find_device,
    note_taker,
    print_results,
    progress_bar,
    use_threads,
    write_all,
)
from hdcrf.commands.tally import Tally, Wording
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, Note, check_outputs, ignore, import_extra
from hdcrf.image_files import write_picture
from hdcrf.starts import Start, start_from_annotation, start_from_probabilities
from hdcrf.volume_files import (
    Suffix,
    Volume,
    read_volume,
    write_volume_labels,
    write_volume_marginals,
)

__all__ = ["volume"]

_BYTES_A_VOXEL = 230  # of a block: peak memory with two labels, measured on a noisy block of 110³ voxels
_PERCENTILES = (1, 99)

VOLUME = Wording(
    places="voxels",
    guide_sigma="--appearance-sigma-intensity is in the wrong units or too large, so that edges do not "
    "count: intensities are scaled to 0..255 unless there are --raw-intensities",
    place_sigmas="--appearance-sigma-xyz or --smoothness-sigma is too large for the volume: they are in mm",
)


def _lengths(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, int, int] | None:
    """Read one whole number, or three with commas between them, along D, H and W."""
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or min(numbers) < 0:
        raise click.BadParameter(
            f"{value!r} is not three numbers of voxels along D, H and W, such as 64,128,128, or one for all"
        )
    depth, height, width = numbers * 3 if len(numbers) == 1 else numbers
    return depth, height, width


@click.command()
@click.argument("scan", type=PATH)
@click.option(
    "--annotation",
    type=PATH,
    help="Volume of the same place whose values are labels: .nii or .nii.gz.",
)
@click.option(
    "--unknown",
    type=int,
    multiple=True,
    help="Label of the annotation that says nothing, may be given several times; by default -1.",
)
@click.option(
    "--probabilities",
    type=PATH,
    help="Each label's probability, floating-point: a volume of the same place with a fourth axis for the "
    "labels, .nii or .nii.gz, or an array (D, H, W, K), .npy or .npz.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Volume of the refined labels, with the values that the annotation has: .nii or .nii.gz.",
)
@click.option(
    "--overlay", type=PATH, help="Also write slices with the labels over them, side by side: .png or .jpg."
)
@OPACITY
@click.option(
    "--save-marginals",
    type=PATH,
    help="Also write the marginals, float32: .nii or .nii.gz with a fourth axis for the labels, or .npy or "
    ".npz of (D, H, W, K).",
)
@GT_PROB
@click.option(
    "--raw-intensities",
    is_flag=True,
    help="Take intensities as they are; by default the 1st to 99th percentile of each channel is scaled to "
    "0..255.",
)
@click.option(
    "--block",
    callback=_lengths,
    default="64,128,128",
    show_default=True,
    metavar="D,H,W",
    help="Voxels that are refined together; a larger volume is refined in overlapping blocks.",
)
@click.option(
    "--overlap",
    callback=_lengths,
    metavar="D,H,W",
    help="Voxels that neighbouring blocks share, at most half of the block; by default 16,32,32, or that "
    "half.",
)
@model_options(
    "voxel",
    weight("appearance", 10.0, "position and intensity"),
    sigma("appearance-sigma-xyz", 20.0, "Its standard deviation in position, in mm."),
    sigma(
        "appearance-sigma-intensity",
        13.0,
        "Its standard deviation in intensity, in steps of 0..255, or with --raw-intensities in their unit.",
    ),
    weight("smoothness", 3.0, "position alone"),
    sigma("smoothness-sigma", 1.5, "Its standard deviation, in mm."),
)
@run_options
@click.pass_context
def volume(
    context: click.Context,
    /,
    *,
    scan: Path,
    annotation: Path | None,
    unknown: tuple[int, ...],
    probabilities: Path | None,
    output: Path,
    overlay: Path | None,
    opacity: float,
    save_marginals: Path | None,
    gt_prob: float,
    raw_intensities: bool,
    block: tuple[int, int, int],
    overlap: tuple[int, int, int] | None,
    compatibility: Path | str | list[Any],
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Refine the labels of SCAN, a volume in NIfTI format, so that they follow its edges.

    Start from labels (--annotation) or from a network's output (--probabilities). Distances are in mm: the
    spacing is read from SCAN. The files appear complete and together, or not at all.
    """
    check_start(context, annotation, probabilities)
    if unknown and annotation is None:
        raise click.UsageError("--unknown goes with --annotation; --probabilities say it themselves")
    if overlap is None:
        overlap = (min(16, block[0] // 2), min(32, block[1] // 2), min(32, block[2] // 2))
    _check_blocks(block, overlap)
    outputs = given_outputs(
        {
            "--output": (output, (".nii", ".nii.gz")),
            "--overlay": (overlay, (".png", ".jpg", ".jpeg")),
            "--save-marginals": (save_marginals, (".nii", ".nii.gz", ".npy", ".npz")),
        }
    )
    inputs = {"SCAN": scan, "--annotation": annotation, "--probabilities": probabilities}
    check_outputs(outputs, inputs | model_files(compatibility))
    import_extra("nibabel", "reading .nii", "volumes")
    place = find_device(device)
    note = note_taker(quiet)
    use_threads(threads, note)

    source = read_volume(scan, note=note)
    start = _start(source, annotation, unknown or (-1,), probabilities, gt_prob, note)
    guide = source.intensities if raw_intensities else _scaled(f"volume {scan}", source.intensities, note)
    largest = [min(length, most) for length, most in zip(source.shape, block, strict=True)]
    what = f"volume {scan}: {len(start.values)} labels at {_sizes(source.shape)} voxels"
    # Logits and marginals, in float32.
    check_memory(8 * start.logits.numel(), what, torch.device("cpu"), "crop the volume, or merge labels")
    needed = math.prod(largest) * _BYTES_A_VOXEL
    check_memory(needed, f"{what}, in blocks of {_sizes(largest)}", place, "make --block smaller")
    began = time.perf_counter()
    crf = build_layer(
        hdcrf.VolumeCRF,
        len(start.values),
        place,
        compatibility=compatibility,
        spacing=source.spacing,
        **model,
    )
    with _warnings_printed(), as_input_error(), progress_bar(1, "Blocks", quiet) as progress:
        marginals = hdcrf.volume_in_blocks(
            crf, start.logits, torch.from_numpy(guide), block=block, overlap=overlap, progress=progress
        ).numpy()
    refined = marginals.argmax(0)
    seconds = time.perf_counter() - began

    writers: dict[str, Callable[[BinaryIO, Path], str]] = {
        "--output": lambda file, path: _write_labels(file, path, start.values[refined], source),
        "--overlay": lambda file, path: _write_slices(file, path, guide[0], refined, start, source, opacity),
        "--save-marginals": lambda file, path: _write_marginals(file, path, marginals, start, source),
    }
    contents = write_all(outputs, writers)
    tally = Tally(VOLUME, start.names)
    tally.add(start.labels, refined)
    lines = [f"{refined.size} voxels in {seconds:.2f} s", *tally.summary(annotated=start.annotated)]
    print_results(outputs, contents, "\n".join(lines), tally.hint(annotated=start.annotated), quiet)


def _check_blocks(block: Sequence[int], overlap: Sequence[int]) -> None:
    for name, length, shared in zip(("D", "H", "W"), block, overlap, strict=True):
        if length < 1:
            raise click.BadParameter(f"must be at least 1 along {name}, got {length}", param_hint="--block")
        if shared > length // 2:
            raise click.BadParameter(
                f"must be at most half of --block {length} along {name}, got {shared}", param_hint="--overlap"
            )


def _start(
    source: Volume,
    annotation: Path | None,
    unknown: tuple[int, ...],
    probabilities: Path | None,
    gt_prob: float,
    note: Note,
) -> Start:
    if annotation is not None:
        given = read_volume(annotation, role="annotation", like=source, note=note).intensities
        name = f"annotation {annotation}"
        if len(given) > 1:
            raise InputError(f"{name} has {len(given)} values a voxel; save one label a voxel")
        fraction = given[0] != np.rint(given[0])
        if fraction.any():
            raise InputError(
                f"{name} must hold whole numbers, got {given[0][fraction][0]}; it is no labelling"
            )
        return start_from_annotation(name, given[0].astype(np.int64), unknown, gt_prob)
    if probabilities is None:
        raise RuntimeError("neither was given")
    name = f"probabilities {probabilities}"
    if probabilities.suffix.lower() in (".npy", ".npz"):
        values = read_probabilities(probabilities, source.shape, axes="D, H, W", owner="volume", note=note)
    else:
        channels = read_volume(probabilities, role="probabilities", like=source, note=ignore).intensities
        values = check_probabilities(
            name, np.moveaxis(channels, 0, -1), source.shape, axes="D, H, W", owner="volume", note=note
        )
    return start_from_probabilities(name, values)


def _scaled(name: str, intensities: NDArray[np.float32], note: Note) -> NDArray[np.float32]:
    """Scale each channel's 1st to 99th percentile to 0..255, or all of it where these are one."""
    scaled = np.empty_like(intensities)
    for channel, values in enumerate(intensities):
        low, high = (float(bound) for bound in np.percentile(values, _PERCENTILES))
        if low == high:
            low, high = float(values.min()), float(values.max())
        scaled[channel] = (values - low) * np.float32(255 / (high - low) if high > low else 0)
        which = f" of channel {channel}" if len(intensities) > 1 else ""
        note(
            f"{name}: intensities from {low:g} to {high:g}{which} scaled to 0..255; --raw-intensities leaves "
            "them as they are"
        )
    return scaled


@contextmanager
def _warnings_printed() -> Iterator[None]:
    """Print each warning of the layer once, as a sentence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("once")
        yield
    for warning in caught:
        click.echo(f"Warning: {warning.message}", err=True)


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _suffix(path: Path) -> Suffix:
    return ".nii.gz" if path.suffix.lower() == ".gz" else ".nii"


def _write_labels(file: BinaryIO, path: Path, labels: NDArray[np.int64], source: Volume) -> str:
    write_volume_labels(file, labels, source, _suffix(path))
    return f"{_sizes(labels.shape)} voxels"


def _write_marginals(
    file: BinaryIO, path: Path, marginals: NDArray[np.float32], start: Start, source: Volume
) -> str:
    if path.suffix.lower() in (".npy", ".npz"):
        last = np.ascontiguousarray(np.moveaxis(marginals, 0, -1))
        write_array(file, last, "marginals", path.suffix)
    else:
        write_volume_marginals(file, marginals, source, _suffix(path))
    return f"{_sizes((*source.shape, len(marginals)))} float32, {start.listed}"


def _write_slices(
    file: BinaryIO,
    path: Path,
    guide: NDArray[np.float32],
    labels: NDArray[np.int64],
    start: Start,
    source: Volume,
    opacity: float,
) -> str:
    [scaled] = _scaled("", guide[None], ignore)
    shown = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    picture = pictures.slices(
        shown, labels, pictures.palette(len(start.values)), opacity, spacing=source.spacing
    )
    write_picture(file, picture, path.suffix)
    return f"{picture.shape[1]} x {picture.shape[0]} pixels"
