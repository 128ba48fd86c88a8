"""The options of the command line: what they accept, and those of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hdcrf.gaussian_filter import METHODS
from hdcrf.refine import MOST_ITERATIONS
from voxel.backend import BACKENDS
from voxel.blur import MOST_ROUNDS
from voxel.checks import MOST_RINGS
from voxel.filter_operator import NORMALIZATIONS

__all__ = ["PATH", "Number", "model_options"]


class _FilePath(click.Path):
    """The path of a file, which may not be empty."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the option's text."""
        if value == "":
            self.fail("the name is empty; name a file", param, ctx)
        return super().convert(value, param, ctx)


PATH = _FilePath()


class Number(click.FloatRange):
    """A finite number, in a range if one is given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the option's text."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_NUMBER = Number()
_POSITIVE = Number(min=0, min_open=True)
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


def model_options(command: _Command) -> _Command:
    """Add the options of the model, which have the names and defaults of `hdcrf.refine`."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command
