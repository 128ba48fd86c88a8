"""What every command does around its work: notes, devices, threads, memory, progress, the model's matrix."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
import numpy as np
import torch
from torch import Tensor

from hdcrf import machine
from hdcrf.array_files import read_array
from hdcrf.arrays import check_float32_range
from hdcrf.commands.failures import as_print_failure, as_write_failure
from hdcrf.commands.options import EARLY_NOTES, model_files
from hdcrf.crf_layer import CRFLayer
from hdcrf.failures import as_input_error
from hdcrf.files import InputError, Note, ignore, printable, whole_files

__all__ = [
    "BYTES_A_PIXEL",
    "build_layer",
    "check_memory",
    "find_device",
    "fitting_threads",
    "layer_arguments",
    "most_pixels",
    "note_taker",
    "print_results",
    "progress_bar",
    "source_of_costs",
    "use_threads",
    "version_of",
    "write_all",
]

_Layer = TypeVar("_Layer", bound=CRFLayer)

BYTES_A_PIXEL = 470
"""Peak memory of a photo's with two labels, measured on photos of 4 and 9 megapixels."""

_ROOM_FOR_SPEED = 72  # columns, below which a bar has its count and the time left alone


def build_layer(layer: type[_Layer], num_labels: int, device: torch.device, **model: Any) -> _Layer:
    """Return the layer that the options describe.

    Args:
        layer: Its class.
        num_labels: K.
        device: Where it goes.
        **model: The options, as of `layer_arguments`.

    Raises:
        InputError: If the layer refuses something, or the file does not hold numbers.
    """
    arguments = layer_arguments(**model)
    try:
        return layer(num_labels, learn=(), **arguments).to(device)
    except ValueError as error:
        of_costs = str(error).startswith("`compatibility`")
        source = source_of_costs(model["compatibility"]) if of_costs else ""
        raise InputError(source + str(error)) from error


def source_of_costs(compatibility: Path | str | list[Any]) -> str:
    """Return what begins a message on a compatibility that does not fit: the file that it is from."""
    if isinstance(compatibility, str):
        return ""
    name = "--params" if isinstance(compatibility, list) else "--compatibility"
    return f"{name[2:]} {model_files(compatibility)[name]}: "


def layer_arguments(
    *, compatibility: Path | str | list[Any], include_self: bool, **model: Any
) -> dict[str, Any]:
    """Return the options of the model as arguments of a layer.

    Args:
        compatibility: A name, the file that holds a matrix, or the numbers of one.
        include_self: Whether a point's message to itself counts.
        **model: What else the layer takes.

    Raises:
        InputError: If the file does not hold numbers.
    """
    return {**model, "compatibility": _read_compatibility(compatibility), "exclude_self": not include_self}


def _read_compatibility(given: Path | str | list[Any]) -> str | Tensor:
    if isinstance(given, str):
        return given
    if isinstance(given, list):
        return torch.tensor(given, dtype=torch.float32)
    array = read_array("compatibility", given, "compatibility")
    if array.dtype.kind not in "iuf":
        raise InputError(f"compatibility {given} must hold numbers, got {array.dtype}")
    with as_input_error(f"compatibility {given}: "):
        check_float32_range("compatibility", array)
    return torch.from_numpy(array.astype(np.float32))


def find_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        click.BadParameter: If there is none.
    """
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


def use_threads(threads: int | None, note: Note) -> None:
    """Compute on so many threads, but on no more than there are CPUs: more only wait for each other."""
    fitting = fitting_threads(threads, note)
    if fitting is not None:
        torch.set_num_threads(fitting)


def fitting_threads(threads: int | None, note: Note) -> int | None:
    """Return so many threads, or as many as there are CPUs, if there are fewer; None for None."""
    most = machine.cpu_count()
    if threads is not None and threads > most:
        note(f"--threads {threads} is more than the CPUs; using {most}")
        return most
    return threads


def most_pixels(device: torch.device) -> int | None:
    """Return how many pixels a photo may have to be refined on a device; None where that is not known."""
    memory = machine.memory_of(device)
    return None if memory is None else memory // BYTES_A_PIXEL


def check_memory(needed: int, what: str, device: torch.device, advice: str) -> None:
    """Check that a device's whole memory could hold what is known to be needed.

    Raises:
        InputError: If not; `what` is what needs it, and `advice` what to do.
    """
    memory = machine.memory_of(device)
    if memory is not None and needed > memory:
        raise InputError(
            f"{what}: that takes at least {needed / 1e9:.3g} GB of memory, and there are "
            f"{memory / 1e9:.3g} GB; {advice}"
        )


@contextmanager
def progress_bar(
    length: int, label: str, quiet: bool, *, unit: str | None = None
) -> Iterator[Callable[..., object] | None]:
    """Show a bar on stderr where that is a terminal.

    Args:
        length: How much is to be done.
        label: What is being done.
        quiet: Whether to show none.
        unit: What is counted, to show how many of them a second.

    Yields:
        A function that takes how much is done, if it is another than at first the length, and what to show in
        place of how many a second; None where there is no bar.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    began = time.monotonic()

    roomy = shutil.get_terminal_size().columns >= _ROOM_FOR_SPEED

    def speed(done: int) -> str | None:
        seconds = time.monotonic() - began
        return f"{done / seconds:.3g} {unit}/s" if done and unit and seconds and roomy else None

    with click.progressbar(
        length=length,
        label=label,
        width=0,  # what the rest leaves of the terminal: a line that wraps is printed again and again
        file=sys.stderr,
        show_pos=unit is not None,
        item_show_func=lambda shown: shown,
    ) as bar:

        def update(done: int, length: int = length, shown: str | None = None) -> None:
            bar.length = length
            bar.update(done - bar.pos, shown or speed(done))

        yield update


def write_all(
    outputs: Mapping[str, tuple[Path, object]], writers: Mapping[str, Callable[[BinaryIO, Path], str]]
) -> list[str]:
    """Write the outputs, all or none; return what each of them holds."""
    with as_write_failure(), whole_files([path for path, _ in outputs.values()]) as files:
        return [
            writers[name](file, path) for (name, (path, _)), file in zip(outputs.items(), files, strict=True)
        ]


def print_results(
    outputs: Mapping[str, tuple[Path, object]],
    contents: Sequence[str],
    summary: str,
    hint: str | None,
    quiet: bool,
) -> None:
    """Say what was written.

    Args:
        outputs: For each output's option, its path first.
        contents: What each of them holds.
        summary: Lines that follow.
        hint: What may have gone wrong, on stderr even where quiet.
        quiet: Whether to print nothing else.
    """
    with as_print_failure():
        if not quiet:
            for (name, (path, _)), content in zip(outputs.items(), contents, strict=True):
                size = f"{path.stat().st_size / 1000:.1f} kB"
                click.echo(f"{name[2:]}: {click.format_filename(path)} ({content}, {size})")
            click.echo(summary)
        if hint is not None:
            click.echo(hint, err=True)


def version_of(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def note_taker(quiet: bool) -> Note:
    """Return what takes notes: it prints them, unless quiet; first those made before this was known."""
    note = ignore if quiet else _print_note
    context = click.get_current_context(silent=True)
    for message in context.meta.pop(EARLY_NOTES, ()) if context is not None else ():
        note(message)
    return note


def _print_note(message: str) -> None:
    click.echo(f"Note: {printable(message)}", err=True)
