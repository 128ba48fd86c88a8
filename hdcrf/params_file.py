"""Parameters of the layers in a TOML file: flat keys, with the names of the constructors' arguments."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hdcrf.crf_layer import CRFLayer, Options
from hdcrf.files import InputError, check_file, import_extra
from voxel.checks import check_count

__all__ = ["keys_of", "layer_params", "owners_of", "read_params", "write_params"]

_LARGEST = float(np.finfo(np.float32).max)
_MOST_BYTES = 1 << 26  # room for a compatibility of 2,000 labels; a larger file is something else

# Not of the model: what the layer is for, what computes it, and what belongs to the data.
_NOT_IN_FILES = ("num_labels", "learn", "output", "backend", "spacing", "voxel_size", "options")


def keys_of(layer: type[CRFLayer]) -> list[str]:
    """Return the keys that a layer takes from a file."""
    names = [*_arguments(layer), *Options.__annotations__]
    return [name for name in dict.fromkeys(names) if name not in _NOT_IN_FILES]


def _arguments(layer: type[CRFLayer]) -> list[str]:
    """Return the names of a layer's arguments; where it takes any, of what it is derived from too."""
    names = []
    for base in layer.__mro__:
        if not issubclass(base, CRFLayer) or inspect.isabstract(base):
            break
        given = inspect.signature(base).parameters.values()
        names += [each.name for each in given if each.kind is not each.VAR_KEYWORD]
        if all(each.kind is not each.VAR_KEYWORD for each in given):
            break
    return names


def owners_of(key: str) -> list[str]:
    """Return the names of the layers that take a key, without those that have it from one of these."""
    layers = [layer for layer in _layers() if key in keys_of(layer)]
    return sorted(layer.__name__ for layer in layers if not any(base in layers for base in layer.__mro__[1:]))


def _layers() -> list[type[CRFLayer]]:
    """Return all layers that can be made, those that a user has derived included."""
    return [layer for layer in CRFLayer.registered.values() if not inspect.isabstract(layer)]


def read_params(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the parameters that a file holds, for whichever layer.

    Args:
        path: A TOML file with flat keys, such as `appearance_sigma_xy = 40.0`. A compatibility is "potts", a
            vector (K,) or a matrix (K, K) of numbers in brackets.

    Returns:
        The values by key: float, int, bool, str, or nested lists. Their ranges are not checked.

    Raises:
        InputError: If the file cannot be read, a key belongs to no layer, or a value has the wrong type.
    """
    place = Path(path)
    check_file("params", place)
    if place.stat().st_size > _MOST_BYTES:
        raise InputError(f"params {path} has more than {_MOST_BYTES >> 20} MiB; it is no file of parameters")
    module = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    toml = import_extra(module, "reading parameters", "images")
    try:
        values = toml.loads(place.read_bytes().decode("utf-8-sig"))  # editors of Windows begin with a mark
    # A number of thousands of digits is a plain ValueError, as is text in another encoding.
    except (ValueError, RecursionError) as error:
        raise InputError(f"params {path} is not in TOML, a line for each `key = value`: {error}") from error
    return {key: _checked(f"params {path}: ", key, value) for key, value in values.items()}


def layer_params(
    path: str | os.PathLike[str],
    layer: type[CRFLayer],
    num_labels: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Read parameters as arguments of a layer with that many labels.

    Args:
        path: As of `read_params`.
        layer: Its class.
        num_labels: K.
        options: Arguments that win: what the file says of the same keys need not fit the layer.

    Returns:
        The arguments of the file, those of `options` left out.

    Raises:
        InputError: If `read_params` refuses the file, or the layer what it holds.
    """
    values = read_params(path)
    for key in values:
        if key not in keys_of(layer):
            raise InputError(
                f"params {path}: `{key}` is not a parameter of {layer.__name__}, but of "
                f"{' and '.join(owners_of(key))}; leave it out"
            )
    values = {key: value for key, value in values.items() if key not in options}
    if isinstance(values.get("compatibility"), list):
        values["compatibility"] = torch.tensor(values["compatibility"], dtype=torch.float32)
    check_count("num_labels", num_labels, 1)
    try:
        layer(num_labels, learn=(), **values)  # so that an error is the file's, and not of other options
    except ValueError as error:
        raise InputError(f"params {path}: {error}") from error
    return values


def _checked(prefix: str, key: str, value: Any) -> Any:
    """Return a value as its key's type, if there is such a key."""
    if not owners_of(key):
        raise InputError(prefix + _unknown(key, value))
    check, expected = _KINDS.get(key, _NUMBER)
    checked = check(value)
    if checked is None:
        raise InputError(f"{prefix}`{key}` must be {expected}, got {_shortened(value)}")
    if isinstance(checked, list):
        _check_range(f"{prefix}`{key}`", checked)
    return checked


def _check_range(name: str, costs: Any) -> None:
    """Raise unless float32 holds all numbers of nested lists."""
    numbers = np.array(costs, dtype=np.float64).ravel()
    wrong = numbers[~(np.abs(numbers) <= _LARGEST)]
    if len(wrong):
        raise InputError(f"{name} must hold finite numbers within ±{_LARGEST:.3g}, got {wrong[0]}")


def _unknown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"`[{key}]` is a table; write the keys without one"
    if key in _NOT_IN_FILES:
        return f"`{key}` is not a parameter of the model; leave it out"
    known = list(dict.fromkeys(name for layer in _layers() for name in keys_of(layer)))
    close = get_close_matches(key.replace("-", "_").lower(), known, 1)
    remedy = f"did you mean `{close[0]}`?" if close else f"they are {', '.join(known)}"
    return f"there is no parameter `{key}`; {remedy}"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _costs(value: Any) -> Any:
    """Return "potts", or a vector or square matrix of numbers in lists."""
    if value == "potts":
        return value
    try:
        array = np.array(value) if isinstance(value, list) else np.array(None)
    except ValueError:  # rows of different lengths
        return None
    square = array.ndim in (1, 2) and array.size > 0 and len(set(array.shape)) == 1
    return array.tolist() if array.dtype.kind in "iuf" and square else None


_NUMBER = (_number, "a number")
_WORD = (_word, "text in quotes")
_WHOLE = (_whole, "a whole number")
_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "iterations": _WHOLE,
    "order": _WHOLE,
    "halo": _WHOLE,
    "exclude_self": (_flag, "true or false"),
    "normalization": _WORD,
    "method": _WORD,
    "compatibility": (_costs, "'potts', or numbers: a vector [1.0, 2.0] or a square matrix [[0, 1], [1, 0]]"),
}


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_params(file: BinaryIO, values: Mapping[str, Any], comments: Sequence[str] = ()) -> None:
    """Write parameters as TOML.

    Args:
        file: Open for writing.
        values: By key, as `read_params` returns them.
        comments: Lines for the head of the file.

    Raises:
        InputError: If tomli-w is not installed.
    """
    toml = import_extra("tomli_w", "writing parameters", "tune", package="tomli-w")
    head = "".join(f"# {line}".rstrip() + "\n" for line in map(_printable, comments))
    file.write((head + ("\n" if head else "") + toml.dumps(dict(values))).encode("utf-8"))


def _printable(line: str) -> str:
    """Return a line that TOML takes as a comment: a file's name may hold a line break or worse."""
    return re.sub(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]", "?", line)
