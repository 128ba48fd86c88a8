"""The options that commands share: what they accept, those of the model, and those of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hdcrf.files import InputError
from hdcrf.gaussian_filter import METHODS
from hdcrf.params_file import owners_of, read_params
from hdcrf.refine import MOST_ITERATIONS
from voxel.backend import BACKENDS
from voxel.blur import MOST_ROUNDS
from voxel.checks import MOST_RINGS
from voxel.filter_operator import NORMALIZATIONS

__all__ = [
    "DEVICE",
    "EARLY_NOTES",
    "GT_PROB",
    "OPACITY",
    "PATH",
    "PHOTO_KERNELS",
    "QUIET",
    "Number",
    "check_start",
    "given_outputs",
    "gt_prob",
    "is_given",
    "model_files",
    "model_options",
    "photo_model_options",
    "run_options",
    "sigma",
    "weight",
]


class _FilePath(click.Path):
    """The path of a file, which may not be empty."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the option's text."""
        if value == "":
            self.fail("the name is empty; name a file", param, ctx)
        return super().convert(value, param, ctx)


class _Compatibility(_FilePath):
    """The name of a compatibility, or the path of a file with one; from --params, also its numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the option's text, or take numbers as they are."""
        return value if value == "potts" or isinstance(value, list) else super().convert(value, param, ctx)


PATH = _FilePath()


class Number(click.FloatRange):
    """A finite number, in a range if one is given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the option's text."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Describe the range in the help, where there is one."""
        return "" if self.min is None and self.max is None else super()._describe_range()


EARLY_NOTES = "hdcrf.early_notes"
"""Where a context keeps notes from before it is known whether they are to be printed."""

_PARAMS = "hdcrf.params"
_LENGTHS = {"appearance_sigma_xy", "appearance_sigma_xyz"}  # in pixels, and in the unit of points or voxels
_NUMBER = Number()
_POSITIVE = Number(min=0, min_open=True)
_Command = TypeVar("_Command", bound=Callable[..., Any])
_Option = Callable[[Any], Any]

OPACITY = click.option(
    "--opacity",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Of the labels in the overlay, from 0 to 1.",
)


def gt_prob(source: str) -> _Option:
    """Return the option of how far to trust labels; `source` is what holds them."""
    return click.option(
        "--gt-prob",
        type=Number(0, 1, min_open=True, max_open=True),
        default=0.7,
        show_default=True,
        help=f"How far to trust {source}: the probability that a label in it is right.",
    )


GT_PROB = gt_prob("the annotation")


def _all_of(*options: _Option) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options in that order."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def weight(kernel: str, default: float, features: str) -> _Option:
    """Return the option of a kernel's weight.

    Args:
        kernel: Its name.
        default: Of the weight.
        features: What the kernel compares, for the help.
    """
    return click.option(
        f"--{kernel}-weight",
        type=_NUMBER,
        default=default,
        show_default=True,
        help=f"Weight of the kernel in {features}; 0 leaves it out.",
    )


def sigma(name: str, default: float | None, description: str) -> _Option:
    """Return the option of a standard deviation."""
    return click.option(
        f"--{name}", type=_POSITIVE, default=default, show_default=default is not None, help=description
    )


def _use_params(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Let a file of parameters say what the options of the model are where they are not given."""
    if path is None or context.resilient_parsing:
        return
    options = {option.name: option for option in context.command.params}
    values: dict[str, Any] = {}
    foreign = []
    for key, value in read_params(path).items():
        name, given = ("include_self", not value) if key == "exclude_self" else (key, value)
        if name not in options:
            foreign.append(key)
            continue
        try:
            values[name] = options[name].type_cast_value(context, given)
        except click.BadParameter as error:
            raise InputError(f"params {path}: `{key}`: {error.message}") from error
    notes = []
    if foreign:
        said = ", ".join(f"`{key}` (of {', '.join(owners_of(key))})" for key in foreign)
        notes.append(f"params {path}: left out, as this command has no such option: {said}")
    if not _LENGTHS.isdisjoint(foreign) and values.pop("smoothness_sigma", None) is not None:
        notes.append(f"params {path}: `smoothness_sigma` is left out too, as it is in the unit of these")
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[_PARAMS] = path
    context.meta[EARLY_NOTES] = notes


def model_options(place: str, *kernels: _Option, method: str = "--method") -> Callable[[_Command], _Command]:
    """Return a decorator that adds the options of the model, which have the names of the layer's arguments.

    Args:
        place: What a point is called, for the help.
        *kernels: The options of its kernels.
        method: The option of the method of filtering, in a command where --method is another.
    """
    return _all_of(
        click.option(
            "--params",
            type=PATH,
            is_eager=True,
            expose_value=False,
            callback=_use_params,
            help="File of parameters, .toml, as `hdcrf tune` writes it: they replace the defaults of the "
            "options that follow, and those that are given win.",
        ),
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
        *kernels,
        click.option(
            "--compatibility",
            type=_Compatibility(),
            default="potts",
            show_default=True,
            metavar="potts|FILE",
            help=f"Cost of two labels on similar {place}s: 'potts' (1 where they differ), or a .npy or .npz "
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
            help=f"Whether a {place}'s message to itself counts, as it does in the reference code.",
        ),
        click.option(
            method,
            "method",
            type=click.Choice(METHODS),
            default="permutohedral",
            show_default=True,
            help=f"Of filtering; 'exact' takes time quadratic in the number of {place}s.",
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
    )


DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, or cuda:1 and so on.")

QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")

run_options = _all_of(
    DEVICE,
    click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads to use; by default PyTorch's choice."
    ),
    QUIET,
)

PHOTO_KERNELS = (
    weight("appearance", 10.0, "position and colour"),
    sigma("appearance-sigma-xy", 80.0, "Its standard deviation in position, in pixels."),
    sigma("appearance-sigma-rgb", 13.0, "Its standard deviation in colour, in steps of 0..255."),
    weight("smoothness", 3.0, "position alone"),
    sigma("smoothness-sigma", 3.0, "Its standard deviation, in pixels."),
)

photo_model_options = model_options("pixel", *PHOTO_KERNELS)


def check_start(context: click.Context, annotation: object, probabilities: object) -> None:
    """Check that labels start from one of the two, and that --gt-prob is given with an annotation only.

    Raises:
        click.UsageError: If not.
    """
    if bool(annotation) == bool(probabilities):
        came = "both" if annotation else "neither"
        raise click.UsageError(f"give either --annotation or --probabilities, got {came}")
    if not annotation and is_given(context, "gt_prob"):
        raise click.UsageError("--gt-prob goes with --annotation; --probabilities say it themselves")


def is_given(context: click.Context, name: str) -> bool:
    """Return whether an option was given in the call: its value is neither its default nor from --params."""
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def given_outputs(
    wanted: Mapping[str, tuple[Path | None, Sequence[str]]],
) -> dict[str, tuple[Path, Sequence[str]]]:
    """Return those outputs that have a path."""
    return {name: (path, suffixes) for name, (path, suffixes) in wanted.items() if path is not None}


def model_files(compatibility: Path | str | list[Any]) -> dict[str, Path | None]:
    """Return the files of --compatibility and --params, as inputs of the command that runs."""
    return {
        "--compatibility": compatibility if isinstance(compatibility, Path) else None,
        "--params": click.get_current_context().meta.get(_PARAMS),
    }
