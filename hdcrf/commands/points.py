"""The command `hdcrf points`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray

import hdcrf
from hdcrf import pictures
from hdcrf.array_files import read_probabilities, write_array
from hdcrf.commands.options import (
    GT_PROB,
    OPACITY,
    PATH,
    Number,
    check_start,
    given_outputs,
    is_given,
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
from hdcrf.files import InputError, Note, check_outputs
from hdcrf.image_files import write_picture
from hdcrf.point_files import SUFFIXES, Attribute, Cloud, check_packages, read_points, write_points
from hdcrf.starts import Start, start_from_annotation, start_from_probabilities

__all__ = ["points"]

_BYTES_A_POINT = 500  # peak memory with two labels, measured on 600,000 coloured points

_SIGMAS: dict[Attribute, str] = {
    "colours": "appearance_sigma_rgb",
    "normals": "appearance_sigma_normal",
    "intensities": "appearance_sigma_intensity",
}

POINTS = Wording(
    places="points",
    guide_sigma="--appearance-sigma-rgb, or that of normals or intensities, is in the wrong units or too "
    "large, so that edges do not count: that of colours is in steps of 0..255, about 3 to 30",
    place_sigmas="--appearance-sigma-xyz or --smoothness-sigma is too large for the cloud: they are in its "
    "unit, most often metres",
)


def _names(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[Attribute, ...] | None:
    """Read names of attributes with commas between them, or `none`."""
    if value is None:
        return None
    names = [] if value == "none" else [name.strip() for name in value.split(",")]
    if wrong := [name for name in names if name not in _SIGMAS]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(_SIGMAS)}, nor is it 'none'")
    return tuple(name for name in _SIGMAS if name in names)


@click.command()
@click.argument("cloud", type=PATH)
@click.option("--annotation", is_flag=True, help="Start from the labels that CLOUD has.")
@click.option(
    "--unknown",
    type=int,
    multiple=True,
    help="Label of the annotation that says nothing, may be given several times; by default -1, and in LAS "
    "and LAZ also 0, 'never classified'.",
)
@click.option(
    "--probabilities",
    type=PATH,
    help="Array (N, K) of each label's probability, floating-point: .npy, or .npz that holds it alone or as "
    "'probabilities'.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="The cloud with the refined labels, and in their colours: .ply, .pcd, .las, .laz or .npz.",
)
@click.option(
    "--keep-colours", is_flag=True, help="Leave the points of the output the colours that they have."
)
@click.option("--overlay", type=PATH, help="Also draw the labels over the points: .png or .jpg.")
@OPACITY
@click.option("--save-marginals", type=PATH, help="Also write the marginals, (N, K) float32: .npy or .npz.")
@GT_PROB
@click.option(
    "--use",
    callback=_names,
    metavar="NAMES",
    help="What else than the position counts: colours, normals, intensities, with commas between them, or "
    "none; by default the colours, if the cloud has any.",
)
@click.option(
    "--block",
    type=Number(0, min_open=True),
    help="Refine the cloud in overlapping cubes with such an edge, in the unit of the cloud, where it is too "
    "large for the memory.",
)
@click.option(
    "--overlap",
    type=Number(0),
    help="What neighbouring cubes share, at most half of the block; by default a quarter.",
)
@model_options(
    "point",
    weight("appearance", 10.0, "position and --use"),
    sigma("appearance-sigma-xyz", 0.3, "Its standard deviation in position, in the unit of the cloud."),
    sigma("appearance-sigma-rgb", 13.0, "Its standard deviation in colour, in steps of 0..255."),
    sigma(
        "appearance-sigma-normal",
        0.3,
        "Its standard deviation in the difference of normals, which is about their angle in radians.",
    ),
    sigma(
        "appearance-sigma-intensity",
        None,
        "Its standard deviation in intensity, in the unit of the cloud; to be given with --use intensities.",
    ),
    weight("smoothness", 3.0, "position alone"),
    sigma("smoothness-sigma", 0.1, "Its standard deviation, in the unit of the cloud."),
)
@run_options
@click.pass_context
def points(
    context: click.Context,
    /,
    *,
    cloud: Path,
    annotation: bool,
    unknown: tuple[int, ...],
    probabilities: Path | None,
    output: Path,
    keep_colours: bool,
    overlay: Path | None,
    opacity: float,
    save_marginals: Path | None,
    gt_prob: float,
    use: tuple[Attribute, ...] | None,
    block: float | None,
    overlap: float | None,
    compatibility: Path | str | list[Any],
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Refine the labels of the points of CLOUD, so that they follow its surfaces.

    CLOUD is a .las, .laz, .ply, .pcd or .npz file. Start from the labels in it (--annotation) or from a
    network's output (--probabilities). The files appear complete and together, or not at all.
    """
    check_start(context, annotation, probabilities)
    if unknown and not annotation:
        raise click.UsageError("--unknown goes with --annotation; --probabilities say it themselves")
    _check_overlap(block, overlap)
    outputs = given_outputs(
        {
            "--output": (output, SUFFIXES),
            "--overlay": (overlay, (".png", ".jpg", ".jpeg")),
            "--save-marginals": (save_marginals, (".npy", ".npz")),
        }
    )
    inputs = {"CLOUD": cloud, "--probabilities": probabilities}
    check_outputs(outputs, inputs | model_files(compatibility))
    check_packages(output.suffix, "writing")
    place = find_device(device)
    note = note_taker(quiet)
    use_threads(threads, note)

    required = (*(use or ()), *(("labels",) if annotation else ()))
    source = read_points(cloud, require=cast("Sequence[Attribute]", required), note=note)
    count = len(source.positions)
    if block is None:
        check_memory(count * _BYTES_A_POINT, f"points {cloud}: {count} at once", place, "give a --block")
    attributes = _attributes(context, cloud, source, use, model, note)
    start = _start(cloud, source, unknown, probabilities, gt_prob, note)
    _check_values(cloud, start, output, note)
    began = time.perf_counter()
    crf = build_layer(hdcrf.PointCRF, len(start.values), place, compatibility=compatibility, **model)
    marginals = _refine(crf, start, source, attributes, block, overlap, place, quiet)
    refined = marginals.argmax(1)
    seconds = time.perf_counter() - began

    colours = pictures.palette(len(start.values))[refined]
    writers: dict[str, Callable[[BinaryIO, Path], str]] = {
        "--output": lambda file, path: _write_cloud(
            file, path, source, start.values[refined], None if keep_colours else colours, note
        ),
        "--overlay": lambda file, path: _write_view(file, path, source, colours, opacity),
        "--save-marginals": lambda file, path: _write_marginals(file, path, marginals, start),
    }
    contents = write_all(outputs, writers)
    tally = Tally(POINTS, start.names)
    tally.add(start.labels, refined)
    lines = [f"{count} points in {seconds:.2f} s", *tally.summary(annotated=start.annotated)]
    print_results(outputs, contents, "\n".join(lines), tally.hint(annotated=start.annotated), quiet)


def _check_overlap(block: float | None, overlap: float | None) -> None:
    if overlap is None:
        return
    if block is None:
        raise click.UsageError("--overlap goes with --block")
    if overlap > block / 2:
        raise click.BadParameter(
            f"must be at most half of --block {block:g}, got {overlap:g}", param_hint="--overlap"
        )


def _attributes(
    context: click.Context,
    path: Path,
    cloud: Cloud,
    use: tuple[Attribute, ...] | None,
    model: dict[str, Any],
    note: Note,
) -> dict[str, torch.Tensor]:
    """Return what counts beside the position, and leave the other sigmas out of the model."""
    used: tuple[Attribute, ...] = ("colours",) if use is None else use
    if use is None and cloud.colours is None:
        used = ()
        note(f"points {path} have no colours: only their positions count, unless --use says what else")
    for name, bandwidth in _SIGMAS.items():
        option = "--" + bandwidth.replace("_", "-")
        if name not in used:
            if is_given(context, bandwidth):
                raise click.UsageError(f"{option} goes with {name}, which are not used; see --use")
            model[bandwidth] = None
        elif model[bandwidth] is None and cloud.intensities is not None:
            low, high = cloud.intensities.min(), cloud.intensities.max()
            raise click.UsageError(
                f"--use {name} needs {option}, in the unit of the cloud: they run from {low:g} to {high:g}"
            )
    found = {name: getattr(cloud, name) for name in used}
    if "normals" in found:
        lengths = np.linalg.norm(found["normals"], axis=1, keepdims=True)
        found["normals"] = found["normals"] / np.where(lengths > 0, lengths, 1)
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _start(
    path: Path,
    cloud: Cloud,
    unknown: tuple[int, ...],
    probabilities: Path | None,
    gt_prob: float,
    note: Note,
) -> Start:
    if probabilities is not None:
        shape = (len(cloud.positions),)
        values = read_probabilities(probabilities, shape, axes="N", owner="cloud", note=note)
        return start_from_probabilities(f"probabilities {probabilities}", values)
    if cloud.labels is None:
        raise RuntimeError("labels were required")
    if not unknown:
        unknown = (-1,)
        if path.suffix.lower() in (".las", ".laz"):
            unknown = (-1, 0)
            if (cloud.labels == 0).any():
                note(f"points {path}: label 0, never classified, is unknown; --unknown says otherwise")
    return start_from_annotation(f"points {path}", cloud.labels, unknown, gt_prob)


def _check_values(path: Path, start: Start, output: Path, note: Note) -> None:
    """Check before any work that the output can hold the labels."""
    low, high = int(start.values.min()), int(start.values.max())
    if low < 0:
        raise InputError(
            f"points {path}: labels must be 0 or greater, got {low}; say --unknown {low} if it says nothing"
        )
    most = 255 if output.suffix.lower() in (".las", ".laz") else np.iinfo(np.int32).max
    if high > most:
        raise InputError(
            f"--output {output}: a {output.suffix} file holds labels up to {most}, and there are some up to "
            f"{high}" + ("; write .ply or .npz" if most == 255 else "")
        )
    if most == 255 and low == 0:
        note(f"--output {output}: in LAS, label 0 means never classified; read it back with --unknown -1")


def _refine(
    crf: hdcrf.PointCRF,
    start: Start,
    cloud: Cloud,
    attributes: dict[str, torch.Tensor],
    block: float | None,
    overlap: float | None,
    place: torch.device,
    quiet: bool,
) -> NDArray[np.float32]:
    """Return the marginals (N, K)."""
    # Positions far from the origin, as of maps, would lose their digits in single precision.
    middle = (cloud.positions.min(0) + cloud.positions.max(0)) / 2
    positions = torch.from_numpy((cloud.positions - middle).astype(np.float32))
    logits = start.logits.T.contiguous()
    if block is not None:
        with as_input_error(), progress_bar(1, "Blocks", quiet) as progress:
            return hdcrf.points_in_blocks(
                crf,
                logits,
                positions,
                block=block,
                overlap=block / 4 if overlap is None else overlap,
                progress=progress,
                **attributes,
            ).numpy()
    given: dict[str, Any] = {name: values.to(place) for name, values in attributes.items()}
    with as_input_error(), torch.no_grad(), progress_bar(crf.iterations, "Mean field", quiet) as progress:
        result = crf.infer(
            logits.to(place), positions.to(place), **given, return_logits=False, progress=progress
        )
    return result.marginals.cpu().numpy()


def _write_cloud(
    file: BinaryIO,
    path: Path,
    cloud: Cloud,
    labels: NDArray[np.int64],
    colours: NDArray[np.uint8] | None,
    note: Note,
) -> str:
    write_points(
        file, cloud, labels, path.suffix, colours=colours, note=lambda said: note(f"--output {path}: {said}")
    )
    return f"{len(labels)} points"


def _write_view(file: BinaryIO, path: Path, cloud: Cloud, colours: NDArray[np.uint8], opacity: float) -> str:
    """Draw the cloud from above and aside."""
    low, high = np.percentile(cloud.positions, (1, 99), axis=0)
    middle, extent = (low + high) / 2, float(np.linalg.norm(high - low)) or 1.0
    own = np.full(colours.shape, 200.0) if cloud.colours is None else cloud.colours
    picture = pictures.render_points(
        cloud.positions - middle,
        own * (1 - opacity) + colours * opacity,
        eye=extent * np.array((-0.55, -0.75, 0.6)),
        target=(0, 0, 0),
        radius=2.0,
    )
    write_picture(file, picture, path.suffix)
    return f"{picture.shape[1]} x {picture.shape[0]} pixels"


def _write_marginals(file: BinaryIO, path: Path, marginals: NDArray[np.float32], start: Start) -> str:
    write_array(file, marginals, "marginals", path.suffix)
    return f"{' x '.join(map(str, marginals.shape))} float32, {start.listed}"
