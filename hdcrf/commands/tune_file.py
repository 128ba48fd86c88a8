"""The file that `hdcrf tune` writes: the parameters, and at its head what they come from."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
from torch import Tensor

import hdcrf
from hdcrf.commands.options import is_given
from hdcrf.commands.tune_results import NOUNS
from hdcrf.files import many
from hdcrf.params_file import write_params
from hdcrf.tuning.budget import Found

__all__ = ["head", "params_writer", "plain", "to_write"]

_NOT_IN_FILE = ("hold_back", "groups", "max_images", "ignore", "gt_prob", "unknown")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, but for what computes the model, as numbers and text."""
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in settings.items()
        if name != "backend"
    }


def to_write(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the fixed options goes into the file: what is not the layer's default."""
    layer = inspect.signature(hdcrf.DenseCRF).parameters
    return {name: value for name, value in plain(settings).items() if value != layer[name].default}


def params_writer(values: Mapping[str, Any], comments: Sequence[str]) -> Callable[[BinaryIO, Path], str]:
    """Return what writes the file of parameters."""

    def write(file: BinaryIO, _: Path) -> str:
        write_params(file, values, comments)
        return f"{len(values)} parameters"

    return write


def head(context: click.Context, how: str, found: Found, scores: Sequence[str]) -> list[str]:
    """Return the comments at the head of the file."""
    given = context.params
    made = (
        f"Made by hdcrf tune --method {how} --seed {given['seed']}{_said(context, _NOT_IN_FILE)}, of version "
        f"{hdcrf.__version__}, from the images {given['images']}, the predictions {given['predictions']} and "
        f"the labels {given['ground_truth']}: scores in percent after {many(found.trials, NOUNS[how])}, of "
        f"which number {found.number} was the best."
    )
    lines = [
        *textwrap.wrap(made, 88),
        *scores,
        "Sigmas in position are in pixels: for images and videos, not for points and volumes.",
    ]
    if reading := _said(context, ("gt_prob", "unknown")):
        lines.append(f"The predictions were read with{reading}: say so to hdcrf batch, too.")
    return lines


def _said(context: click.Context, names: Sequence[str]) -> str:
    """Return those of some options that were given, as they can be given again."""
    words = []
    for name in names:
        value = context.params[name]
        for each in value if isinstance(value, tuple) else (value,):
            text = each.pattern if isinstance(each, re.Pattern) else str(each)
            if is_given(context, name):
                words.append(f" --{name.replace('_', '-')} {shlex.quote(text)}")
    return "".join(words)
