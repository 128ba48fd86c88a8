"""The command `hdcrf video`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hdcrf
from hdcrf import pictures
from hdcrf.array_files import stream_array
from hdcrf.arrays import check_float32_range
from hdcrf.commands.failures import as_write_failure
from hdcrf.commands.options import (
    OPACITY,
    PATH,
    Number,
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
)
from hdcrf.commands.tally import Tally, Wording
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, check_outputs, import_extra, whole_files
from hdcrf.video_files import SLOWEST, Video, VideoWriter, read_video
from hdcrf.video_probabilities import (
    VideoProbabilities,
    frames_with_probabilities,
    read_video_probabilities,
)

__all__ = ["video"]

_BYTES_A_PIXEL = 280  # of a window: peak memory with two labels, measured on 16 noisy frames of 240 x 320

VIDEO = Wording(
    places="pixels",
    guide_sigma="--appearance-sigma-rgb is too large, so that edges do not count: it is in steps of 0..255, "
    "about 3 to 30",
    place_sigmas="--appearance-sigma-xy or --smoothness-sigma is too large for the video: they are in pixels",
)

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]  # a frame and the labels it starts from


@click.command()
@click.argument("clip", type=PATH)
@click.option(
    "--probabilities",
    type=PATH,
    required=True,
    help="Each label's probability, floating-point: an array (T, H, W, K) as .npy or .npz, or a folder with "
    "an array (H, W, K) for each frame.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Video of the labels over the frames: .mp4. It is lossy and for looking at; for exact labels add "
    "--labels.",
)
@click.option(
    "--labels",
    type=PATH,
    help="Also write the refined labels, (T, H, W) in the smallest unsigned type: .npz or .npy.",
)
@click.option(
    "--save-marginals",
    type=PATH,
    help="Also write the marginals, (T, H, W, K) float32: .npy, or .npz, which is smaller and slower.",
)
@OPACITY
@click.option(
    "--rate",
    type=Number(SLOWEST, 1000),
    help="Frames a second of the output; by default those of CLIP, or 25 where it does not say.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Frames that are refined together, and held in memory.",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    help="Frames that a window shares with the next, at most half of it; by default 8, or that half.",
)
@model_options(
    "pixel",
    weight("appearance", 10.0, "position, time and colour"),
    sigma("appearance-sigma-xy", 80.0, "Its standard deviation in position, in pixels."),
    sigma("appearance-sigma-t", 3.0, "Its standard deviation in time, in frames."),
    sigma("appearance-sigma-rgb", 13.0, "Its standard deviation in colour, in steps of 0..255."),
    weight("smoothness", 3.0, "position alone, within a frame"),
    sigma("smoothness-sigma", 3.0, "Its standard deviation, in pixels."),
)
@run_options
def video(
    *,
    clip: Path,
    probabilities: Path,
    output: Path,
    labels: Path | None,
    save_marginals: Path | None,
    opacity: float,
    rate: float | None,
    window: int,
    overlap: int | None,
    compatibility: Path | str | list[Any],
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Refine the labels of CLIP, a video file or a folder of frames, so that they follow its edges.

    Start from a network's output for each frame (--probabilities). No more than a window of frames is held
    in memory. The files appear complete and together, or not at all.
    """
    if overlap is None:
        overlap = min(8, window // 2)
    if overlap > window // 2:
        raise click.BadParameter(
            f"must be at most half of --window {window}, got {overlap}", param_hint="--overlap"
        )
    outputs = given_outputs(
        {
            "--output": (output, (".mp4",)),
            "--labels": (labels, (".npz", ".npy")),
            "--save-marginals": (save_marginals, (".npy", ".npz")),
        }
    )
    inputs: dict[str, Path | None] = {"CLIP": clip, "--probabilities": probabilities}
    check_outputs(outputs, inputs | model_files(compatibility))
    import_extra("av", "writing .mp4", "video")
    place = find_device(device)
    note = note_taker(quiet)
    use_threads(threads, note)

    source = read_video(clip, note=note)
    height, width = source.shape
    check_memory(
        window * height * width * _BYTES_A_PIXEL,
        f"video {clip}: {window} frames of {width} x {height} pixels at a time",
        place,
        "make --window smaller, or scale the video down",
    )
    given = read_video_probabilities(probabilities, source.shape, note=note)
    if clip.is_dir() and source.count != given.count:  # what a file says of its length is only a promise
        raise InputError(
            f"video {clip} has {source.count} frames, but probabilities {probabilities} are for "
            f"{given.count}; give one for each frame"
        )
    crf = build_layer(hdcrf.VideoCRF, given.labels, place, compatibility=compatibility, **model)

    began = time.perf_counter()
    frames_a_second = Fraction(rate) if rate is not None else source.rate or Fraction(25)
    sizes = (given.count, height, width)
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any], str]] = {
        "--labels": (sizes, np.min_scalar_type(given.labels - 1), "labels"),
        "--save-marginals": ((*sizes, given.labels), np.dtype(np.float32), "marginals"),
    }
    colours = pictures.palette(given.labels)
    tally = Tally(VIDEO, [str(label) for label in range(given.labels)])
    held: deque[Part] = deque()
    refined = hdcrf.video_in_windows(crf, _frames(source, given, place, held), window=window, overlap=overlap)
    with (
        as_write_failure(),
        whole_files([path for path, _ in outputs.values()]) as opened,
        ExitStack() as stack,
    ):
        files = dict(zip(outputs, opened, strict=True))
        with as_input_error(f"video {clip}: "):  # its rate may be too low
            writer = VideoWriter(files["--output"], source.shape, frames_a_second, note=note)
        film = stack.enter_context(writer)
        append = {
            name: stack.enter_context(stream_array(files[name], *array, outputs[name][0].suffix))
            for name, array in arrays.items()
            if name in outputs
        }
        progress = stack.enter_context(progress_bar(given.count, "Refining", quiet, unit="frames"))
        for done, marginals in enumerate(_refusals_as_input_errors(refined), 1):
            each = marginals.permute(1, 2, 0).contiguous().cpu().numpy()
            frame, before = held.popleft()
            after = each.argmax(2)
            tally.add(before, after)
            film.write(pictures.overlay(frame, after, colours, opacity))
            for name, entry in (("--labels", after), ("--save-marginals", each)):
                if name in append:
                    append[name](entry)
            if progress is not None:
                progress(done)
    seconds = time.perf_counter() - began

    contents = [
        f"{given.count} frames of {width} x {height} pixels, {float(frames_a_second):.4g} a second, lossy",
        *(f"{' x '.join(map(str, arrays[name][0]))} {arrays[name][1]}" for name in append),
    ]
    speed = f"{given.count} frames in {seconds:.2f} s, {given.count / seconds:.3g} a second"
    lines = "\n".join([speed, *tally.summary(annotated=False)])
    print_results(outputs, contents, lines, tally.hint(annotated=False), quiet)


def _frames(
    source: Video, given: VideoProbabilities, place: torch.device, held: deque[Part]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits and the guide of each frame; keep the frame and its labels in `held` until written."""
    for number, (frame, values) in enumerate(frames_with_probabilities(source, given)):
        with as_input_error(f"probabilities {given.path} of frame {number}: "):
            check_float32_range("probabilities", values)
            # A copy, as what is mapped from a file must stay as it is.
            logits = hdcrf.logits_from_probabilities(torch.from_numpy(values.astype(np.float32)), dim=2)
        held.append((frame, values.argmax(2)))
        yield logits.permute(2, 0, 1).to(place), torch.from_numpy(frame).permute(2, 0, 1).to(place)


def _refusals_as_input_errors(refined: Iterator[Tensor]) -> Iterator[Tensor]:
    with as_input_error():
        yield from refined
