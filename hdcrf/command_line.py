"""The commands `hdcrf image` and `hdcrf info`.

Exit codes: 0 done, 1 something failed on the way, 2 wrong usage or input, 130 interrupted, 129 or 143 ended
by SIGHUP or SIGTERM.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import torch
from click.core import ParameterSource
from torch import Tensor

import hdcrf
from hdcrf import image_files, pictures
from hdcrf.array_files import read_array
from hdcrf.arrays import check_float32_range
from hdcrf.command_failures import Commands, as_input_error, as_print_failure, as_write_failure
from hdcrf.command_labels import (
    single_label_hint,
    start_reader,
    summary,
    write_energy,
    write_labels,
    write_marginals,
    write_picture,
)
from hdcrf.command_options import PATH, Number, model_options
from hdcrf.files import InputError, Note, check_outputs, whole_files
from voxel.backend import why_not

__all__ = ["commands"]

_BYTES_A_PIXEL = 470  # Peak memory with two labels, measured on photos of 4 and 9 megapixels.


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hdcrf.__version__, prog_name="hdcrf")
def commands() -> None:
    """Dense CRFs by high-dimensional Gaussian filtering."""


@commands.command()
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
@click.option(
    "--opacity",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Of the labels in the overlay, from 0 to 1.",
)
@click.option("--energy-plot", type=PATH, help="Also plot the energy of each iteration: .png.")
@click.option(
    "--save-marginals", type=PATH, help="Also write the marginals, (H, W, K) float32: .npy or .npz."
)
@click.option(
    "--gt-prob",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.7,
    show_default=True,
    help="How far to trust the annotation: the probability that a label in it is right.",
)
@model_options
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, or cuda:1 and so on.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads to use; by default PyTorch's choice."
)
@click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
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
    compatibility: str,
    include_self: bool,
    device: str,
    threads: int | None,
    quiet: bool,
    **model: Any,
) -> None:
    """Refine the labels of PHOTO, so that they follow its edges.

    Start from a drawing (--annotation) or from a network's output (--probabilities). The files appear
    complete and together, or not at all.
    """
    read_start = start_reader(annotation, probabilities, gt_prob)
    if annotation is None and context.get_parameter_source("gt_prob") != ParameterSource.DEFAULT:
        raise click.UsageError("--gt-prob goes with --annotation; --probabilities say it themselves")
    if energy_plot is not None and _version("matplotlib") is None:
        raise click.UsageError('--energy-plot needs matplotlib: pip install "hdcrf[images]"')
    matrix = None if compatibility == "potts" else PATH.convert(compatibility, None, context)
    wanted: dict[str, tuple[Path | None, tuple[str, ...]]] = {
        "--output": (output, (".png",)),
        "--overlay": (overlay, (".png", ".jpg", ".jpeg")),
        "--energy-plot": (energy_plot, (".png",)),
        "--save-marginals": (save_marginals, (".npy", ".npz")),
    }
    outputs = {name: (path, suffixes) for name, (path, suffixes) in wanted.items() if path is not None}
    inputs = {"PHOTO": photo, "--annotation": annotation, "--probabilities": probabilities}
    check_outputs(outputs, inputs | {"--compatibility": matrix})
    place = _device(device)
    note = _ignore if quiet else _note
    if threads is not None:
        torch.set_num_threads(_possible_threads(threads, note))

    pixels = image_files.read_photo(photo, most_pixels=_most_pixels(place), note=note)
    start = read_start(pixels.shape[:2], note)

    began = time.perf_counter()
    with as_input_error():
        crf = hdcrf.DenseCRF(
            len(start.colours),
            compatibility=_compatibility(matrix),
            exclude_self=not include_self,
            learn=(),
            **model,
        ).to(place)
        guide = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(place)
        with torch.no_grad(), _progress(crf.iterations, quiet) as progress:
            result = crf.infer(
                start.logits.to(place), guide, track=energy_plot is not None, progress=progress
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
    with as_write_failure(), whole_files([path for path, _ in outputs.values()]) as files:
        contents = [
            writers[name](file, path) for (name, (path, _)), file in zip(outputs.items(), files, strict=True)
        ]
    with as_print_failure():
        if not quiet:
            for (name, (path, _)), content in zip(outputs.items(), contents, strict=True):
                size = f"{path.stat().st_size / 1000:.1f} kB"
                click.echo(f"{name[2:]}: {click.format_filename(path)} ({content}, {size})")
            click.echo(summary(labels, start, result, seconds))
        if labels.min() == labels.max():
            click.echo(single_label_hint(int(labels.min()), start), err=True)


@commands.command()
def info() -> None:
    """Print versions, devices and back ends, for a report of a problem."""
    click.echo(f"hdcrf       {hdcrf.__version__}")
    click.echo(f"python      {platform.python_version()} ({platform.python_implementation()})")
    for package in ("torch", "numpy", "pillow", "click", "matplotlib"):
        click.echo(f"{package:<12}{_version(package) or 'not installed'}")
    click.echo(f"platform    {platform.platform()}")
    click.echo(f"threads     {torch.get_num_threads()} of {os.cpu_count()} CPUs")
    click.echo(f"device      cpu: {platform.processor() or platform.machine()}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        click.echo(
            f"device      cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
            f"CUDA {torch.version.cuda or torch.version.hip}"
        )
    if not torch.cuda.device_count():
        click.echo("device      no CUDA device found")
    click.echo("back end    PyTorch, on every device")
    click.echo(f"back end    compiled kernels, on the CPU: {f'not used, {why_not}' if why_not else 'yes'}")


def _compatibility(path: Path | None) -> str | Tensor:
    if path is None:
        return "potts"
    array = read_array("compatibility", path, "compatibility")
    if array.dtype.kind not in "iuf":
        raise InputError(f"compatibility {path} must hold numbers, got {array.dtype}")
    with as_input_error(f"compatibility {path}: "):
        check_float32_range("compatibility", array)
    return torch.from_numpy(array.astype(np.float32))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise click.BadParameter(
            f"must be cpu, cuda, or cuda:1 and so on, got {name!r}", param_hint="--device"
        )
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise click.BadParameter(
            f"{name} was not found, PyTorch sees {count} CUDA devices; use cpu, or look at `hdcrf info`",
            param_hint="--device",
        )
    return device


def _possible_threads(threads: int, note: Note) -> int:
    """Return how many threads to use: more than there are CPUs only wait for each other."""
    most = os.cpu_count() or 1
    if threads > most:
        note(f"--threads {threads} is more than the CPUs; using {most}")
    return min(threads, most)


def _most_pixels(device: torch.device) -> int | None:
    """Return how large a photo the device's whole memory could hold; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // _BYTES_A_PIXEL
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _BYTES_A_PIXEL


@contextmanager
def _progress(iterations: int, quiet: bool) -> Iterator[Callable[[int], object] | None]:
    """Show a bar on stderr where that is a terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=iterations, label="Mean field", file=sys.stderr) as bar:
        yield lambda _: bar.update(1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _note(message: str) -> None:
    click.echo(f"Note: {message}", err=True)


def _ignore(message: str) -> None:
    pass
