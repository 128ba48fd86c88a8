"""Computing in the dtype that came in, whatever mixed precision is switched on around."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["full_precision"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def full_precision(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Run a function with `torch.autocast` switched off.

    Half precision holds three digits: too few for lattice coordinates, and for sums over many points.
    """

    @wraps(function)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run
