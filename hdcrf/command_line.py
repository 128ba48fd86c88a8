"""The commands `hdcrf image` and `hdcrf info`.

Exit codes: 0 done, 1 something failed on the way, 2 wrong usage or input, 130 interrupted, 129 or 143 ended
by SIGHUP or SIGTERM.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
import numpy as np
import torch
from click.core import ParameterSource
from numpy.typing import NDArray
from torch import Tensor

import hdcrf
from hdcrf import image_files, pictures
from hdcrf.arrays import check_float32_range
from hdcrf.gaussian_filter import METHODS
from hdcrf.image_files import InputError
from hdcrf.mean_field import MeanFieldResult
from hdcrf.refine import MOST_ITERATIONS
from voxel.backend import BACKENDS, why_not
from voxel.blur import MOST_ROUNDS
from voxel.checks import MOST_RINGS
from voxel.filter_operator import NORMALIZATIONS

__all__ = ["commands"]

_BYTES_A_PIXEL = 470  # Peak memory with two labels, measured on photos of 4 and 9 megapixels.


class _FilePath(click.Path):
    """The path of a file, which may not be empty."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the option's text."""
        if value == "":
            self.fail("the name is empty; name a file", param, ctx)
        return super().convert(value, param, ctx)


_PATH = _FilePath()


class _Number(click.FloatRange):
    """A finite number, in a range if one is given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the option's text."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_NUMBER = _Number()
_POSITIVE = _Number(min=0, min_open=True)
_Command = TypeVar("_Command", bound=Callable[..., Any])

_MODEL_OPTIONS = [
    click.option(
        "--iterations",
        type=click.IntRange(min=0, max=MOST_ITERATIONS),
        default=10,
        show_default=True,
        help="Iterations of mean field; 0 applies none.",
    ),
    click.option(
        "--tolerance",
        type=_POSITIVE,
        help="Stop earlier, when no marginal changed by more than this in an iteration.",
    ),
    click.option(
        "--appearance-weight",
        type=_NUMBER,
        default=10.0,
        show_default=True,
        help="Weight of the kernel in position and colour; 0 leaves it out.",
    ),
    click.option(
        "--appearance-sigma-xy",
        type=_POSITIVE,
        default=80.0,
        show_default=True,
        help="Its standard deviation in position, in pixels.",
    ),
    click.option(
        "--appearance-sigma-rgb",
        type=_POSITIVE,
        default=13.0,
        show_default=True,
        help="Its standard deviation in colour, in steps of 0..255.",
    ),
    click.option(
        "--smoothness-weight",
        type=_NUMBER,
        default=3.0,
        show_default=True,
        help="Weight of the kernel in position alone; 0 leaves it out.",
    ),
    click.option(
        "--smoothness-sigma",
        type=_POSITIVE,
        default=3.0,
        show_default=True,
        help="Its standard deviation, in pixels.",
    ),
    click.option(
        "--compatibility",
        default="potts",
        show_default=True,
        metavar="potts|FILE",
        help="Cost of two labels on similar pixels: 'potts' (1 where they differ), or a .npy or .npz "
        "file with a matrix (K, K) of costs or a vector (K,) of rewards for agreement.",
    ),
    click.option(
        "--normalization",
        type=click.Choice(NORMALIZATIONS),
        default="symmetric",
        show_default=True,
        help="Of each kernel K, by D = diag(K 1): K, K/D, D\\K, or half on each side.",
    ),
    click.option(
        "--include-self/--exclude-self",
        default=False,
        show_default=True,
        help="Whether a pixel's message to itself counts, as it does in the reference code.",
    ),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="permutohedral",
        show_default=True,
        help="Of filtering; 'exact' takes time quadratic in the number of pixels.",
    ),
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="What computes: compiled kernels where they can run, or else PyTorch; or the one named.",
    ),
    click.option(
        "--order",
        type=click.IntRange(min=1, max=MOST_ROUNDS),
        default=1,
        show_default=True,
        help="Accuracy of the other methods: rounds of blur.",
    ),
    click.option(
        "--halo",
        type=click.IntRange(min=0, max=MOST_RINGS),
        default=0,
        show_default=True,
        help="Accuracy of the other methods: rings of empty vertices around the occupied ones.",
    ),
]


class _WrongInput(click.ClickException):
    """A message about what the user gave."""

    exit_code = 2


class _Commands(click.Group):
    """A group that turns what its commands may raise into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _clean_end_by_signals():
                return super().invoke(ctx)
        except InputError as error:
            raise _WrongInput(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted; nothing was written.", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(image_files.reason(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise click.ClickException(
                "out of memory, and nothing was written; scale the photo down, or use another --device"
            ) from error


@contextmanager
def _clean_end_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as an exception does, so that no temporary file stays behind."""

    def end(number: int, _: object) -> None:
        for each in taken:  # a second signal must not cut the clean-up short
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    present = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handler
    # One that is ignored, as under nohup, stays so.
    taken = [each for each in present if in_main and signal.getsignal(each) == signal.SIG_DFL]
    try:
        for each in taken:
            signal.signal(each, end)
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


def _model_options(command: _Command) -> _Command:
    """Add the options of the model, which have the names and defaults of `hdcrf.refine`."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hdcrf.__version__, prog_name="hdcrf")
def commands() -> None:
    """Dense CRFs by high-dimensional Gaussian filtering."""


@commands.command()
@click.argument("photo", type=_PATH)
@click.option(
    "--annotation",
    type=_PATH,
    help="Picture of the photo's size in which each colour is a label, and black or transparent is unknown.",
)
@click.option(
    "--probabilities",
    type=_PATH,
    help="Array (H, W, K) of each label's probability, floating-point: .npy, or .npz that holds it alone or "
    "as 'probabilities'.",
)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    required=True,
    help="PNG for the refined labels: in the annotation's colours, or, from probabilities, a PNG whose pixel "
    "values are the labels (with a palette up to 256 labels, 16-bit grey above).",
)
@click.option("--overlay", type=_PATH, help="Also write the labels over the photo: .png or .jpg.")
@click.option(
    "--opacity",
    type=_Number(0, 1),
    default=0.5,
    show_default=True,
    help="Of the labels in the overlay, from 0 to 1.",
)
@click.option("--energy-plot", type=_PATH, help="Also plot the energy of each iteration: .png.")
@click.option(
    "--save-marginals", type=_PATH, help="Also write the marginals, (H, W, K) float32: .npy or .npz."
)
@click.option(
    "--gt-prob",
    type=_Number(0, 1, min_open=True, max_open=True),
    default=0.7,
    show_default=True,
    help="How far to trust the annotation: the probability that a label in it is right.",
)
@_model_options
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
    read_start = _start_reader(annotation, probabilities, gt_prob)
    if annotation is None and context.get_parameter_source("gt_prob") != ParameterSource.DEFAULT:
        raise click.UsageError("--gt-prob goes with --annotation; --probabilities say it themselves")
    if energy_plot is not None and _version("matplotlib") is None:
        raise click.UsageError('--energy-plot needs matplotlib: pip install "hdcrf[images]"')
    matrix = None if compatibility == "potts" else _PATH.convert(compatibility, None, context)
    wanted: dict[str, tuple[Path | None, tuple[str, ...]]] = {
        "--output": (output, (".png",)),
        "--overlay": (overlay, (".png", ".jpg", ".jpeg")),
        "--energy-plot": (energy_plot, (".png",)),
        "--save-marginals": (save_marginals, (".npy", ".npz")),
    }
    outputs = {name: (path, suffixes) for name, (path, suffixes) in wanted.items() if path is not None}
    inputs = {"PHOTO": photo, "--annotation": annotation, "--probabilities": probabilities}
    image_files.check_outputs(outputs, inputs | {"--compatibility": matrix})
    place = _device(device)
    note = _ignore if quiet else _note
    if threads is not None:
        torch.set_num_threads(_possible_threads(threads, note))

    pixels = image_files.read_photo(photo, most_pixels=_most_pixels(place), note=note)
    start = read_start(pixels.shape[:2], note)

    began = time.perf_counter()
    with _as_input_error():
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
        "--output": lambda file, _: _write_labels(file, labels, start),
        "--overlay": lambda file, path: _write_picture(
            file, path, pictures.overlay(pixels, labels, start.colours, opacity)
        ),
        "--energy-plot": lambda file, _: _write_energy(file, result),
        "--save-marginals": lambda file, path: _write_marginals(file, path, marginals),
    }
    with _as_write_failure(), image_files.whole_files([path for path, _ in outputs.values()]) as files:
        contents = [
            writers[name](file, path) for (name, (path, _)), file in zip(outputs.items(), files, strict=True)
        ]
    with _as_print_failure():
        if not quiet:
            for (name, (path, _)), content in zip(outputs.items(), contents, strict=True):
                size = f"{path.stat().st_size / 1000:.1f} kB"
                click.echo(f"{name[2:]}: {click.format_filename(path)} ({content}, {size})")
            click.echo(_summary(labels, start, result, seconds))
        if labels.min() == labels.max():
            click.echo(_single_label_hint(int(labels.min()), start), err=True)


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


@dataclass(frozen=True)
class _Start:
    """Where a labelling starts from.

    Attributes:
        logits: (1, K, H, W) float32.
        labels: (H, W) the most probable labels, -1 where unknown.
        colours: (K, 3) uint8.
        drawn: Whether the colours are those of an annotation.
    """

    logits: Tensor
    labels: NDArray[np.int64]
    colours: NDArray[np.uint8]
    drawn: bool


def _start_reader(
    annotation: Path | None, probabilities: Path | None, gt_prob: float
) -> Callable[[tuple[int, int], image_files.Note], _Start]:
    """Return the function that reads whichever is given, once the photo's shape is known."""
    if annotation is not None and probabilities is None:
        return partial(_start_from_annotation, annotation, gt_prob)
    if probabilities is not None and annotation is None:
        return partial(_start_from_probabilities, probabilities)
    came = "neither" if annotation is None else "both"
    raise click.UsageError(f"give either --annotation or --probabilities, got {came}")


def _start_from_annotation(
    path: Path, gt_prob: float, shape: tuple[int, int], note: image_files.Note
) -> _Start:
    labels, colours = hdcrf.labels_from_annotation(image_files.read_annotation(path, shape, note=note))
    with _as_input_error():
        logits = hdcrf.logits_from_labels(torch.from_numpy(labels)[None], len(colours), gt_prob=gt_prob)
    return _Start(logits, labels, colours, drawn=True)


def _start_from_probabilities(path: Path, shape: tuple[int, int], note: image_files.Note) -> _Start:
    array = image_files.read_probabilities(path, shape, note=note)
    if array.shape[2] > image_files.MOST_LABELS:
        raise InputError(
            f"probabilities {path} have {array.shape[2]} labels, more than the {image_files.MOST_LABELS} "
            "that a PNG can hold; use hdcrf.refine in Python"
        )
    with _as_input_error(f"probabilities {path}: "):
        check_float32_range("probabilities", array)
        logits = hdcrf.logits_from_probabilities(torch.from_numpy(array).float(), dim=2)
    colours = pictures.palette(array.shape[2])
    return _Start(logits.permute(2, 0, 1)[None], array.argmax(2), colours, drawn=False)


def _compatibility(path: Path | None) -> str | Tensor:
    if path is None:
        return "potts"
    array = image_files.read_array("compatibility", path, "compatibility")
    if array.dtype.kind not in "iuf":
        raise InputError(f"compatibility {path} must hold numbers, got {array.dtype}")
    with _as_input_error(f"compatibility {path}: "):
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


def _possible_threads(threads: int, note: image_files.Note) -> int:
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


@contextmanager
def _as_input_error(prefix: str = "") -> Iterator[None]:
    """Report what the model refuses as the user's input."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(prefix + str(error)) from error


@contextmanager
def _as_write_failure() -> Iterator[None]:
    try:
        yield
    except image_files.NotPutBackError as error:
        raise click.ClickException(f"cannot write the results: {error}") from error
    except OSError as error:
        raise click.ClickException(f"cannot write the results, and wrote none: {error}") from error


@contextmanager
def _as_print_failure() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"the results are written, but not all was printed: {error}") from error


def _write_labels(file: BinaryIO, labels: NDArray[np.int64], start: _Start) -> str:
    height, width = labels.shape
    if start.drawn:
        image_files.write_picture(file, start.colours[labels])
        kind = "the annotation's colours"
    else:
        image_files.write_labels(file, labels, start.colours)
        kind = "pixel values are labels"
    return f"{width} x {height} pixels, {kind}"


def _write_picture(file: BinaryIO, path: Path, picture: NDArray[np.uint8]) -> str:
    image_files.write_picture(file, picture, path.suffix)
    return f"{picture.shape[1]} x {picture.shape[0]} pixels"


def _write_energy(file: BinaryIO, result: MeanFieldResult) -> str:
    if result.energy is None or result.kl is None:
        raise RuntimeError("the energy was not tracked")
    figure = pictures.energy_plot(result.energy.cpu().numpy(), result.kl.cpu().numpy())
    figure.savefig(file, format="png")
    width, height = figure.get_size_inches() * figure.dpi
    return f"{width:.0f} x {height:.0f} pixels"


def _write_marginals(file: BinaryIO, path: Path, marginals: NDArray[np.float32]) -> str:
    image_files.write_array(file, marginals, "marginals", path.suffix)
    return f"{' x '.join(str(length) for length in marginals.shape)} {marginals.dtype}"


def _summary(labels: NDArray[np.int64], start: _Start, result: MeanFieldResult, seconds: float) -> str:
    known = start.labels >= 0
    changed = (labels != start.labels)[known].mean() if known.any() else 0.0
    lines = [f"{result.iterations} iterations in {seconds:.2f} s"]
    if result.energy is not None:
        first, last = float(result.energy[0]), float(result.energy[-1])
        lines.append(f"energy {first:.6g} before, {last:.6g} after")
    lines.append(f"{len(np.unique(labels))} of {len(start.colours)} labels found")
    if start.drawn:
        lines.append(f"{1 - known.mean():.1%} of the pixels were unknown and got a label")
        lines.append(f"{changed:.1%} of the annotated pixels changed theirs")
    else:
        lines.append(f"{changed:.1%} of the pixels changed their label")
    return "\n".join(lines)


def _single_label_hint(label: int, start: _Start) -> str:
    count = len(start.colours)
    name = "#" + bytes(start.colours[label]).hex() if start.drawn else str(label)
    if count == 1:
        return f"Hint: the result is all one label, because there is only one, {name}; give at least two."
    if (start.labels == label).all():
        return (
            f"Hint: the result is all label {name}, because that is the most probable label at every pixel "
            "of the input; look at the probabilities."
        )
    trust = (
        "\n  - the annotation is trusted too little: raise --gt-prob, or draw more of the other labels"
        if start.drawn
        else "\n  - the probabilities are hardly above those of this label: look at them without the CRF "
        "(--iterations 0)"
    )
    return (
        f"Hint: the result is all label {name}: the others were outvoted. Likely causes:\n"
        "  - the weights are too strong: lower --appearance-weight and --smoothness-weight\n"
        "  - --appearance-sigma-rgb is in the wrong units or too large, so that edges do not count: it is in "
        "steps of 0..255, about 3 to 30\n"
        "  - --appearance-sigma-xy or --smoothness-sigma is too large for the photo: they are in pixels"
        + trust
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_out_of_memory(error: BaseException) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)


def _note(message: str) -> None:
    click.echo(f"Note: {message}", err=True)


def _ignore(message: str) -> None:
    pass
