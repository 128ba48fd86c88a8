"""Which implementation runs: the plain PyTorch reference, or the compiled kernels that stand for it.

The kernels are missing where no compiler was found when the package was installed, and are not used where the
processor lacks what they were built for; `why_not` says so, and is empty otherwise.
"""

from __future__ import annotations

import importlib
import platform
from types import ModuleType

import torch
from torch import Tensor

from voxel.checks import check_choice

__all__ = ["BACKENDS", "kernels", "plain", "uses_native", "why_not"]

BACKENDS = ("auto", "reference", "native")


def _load() -> tuple[ModuleType | None, str]:
    # Elsewhere than on x86-64, the kernels need nothing special of the processor.
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if x86 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None, "the processor has no AVX2 and FMA"
    try:
        return importlib.import_module("voxel._native"), ""
    except ImportError as error:
        return None, f"they were not built when hdcrf was installed ({error})"


_native, why_not = _load()


def kernels() -> ModuleType:
    """Return the compiled kernels, where `uses_native` has said that there are."""
    if _native is None:
        raise RuntimeError(f"there are no compiled kernels: {why_not}")
    return _native


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor as kernels read it: row by row in memory, and without a gradient."""
    return tensor.detach().contiguous()


def uses_native(backend: str, tensor: Tensor) -> bool:
    """Return whether the compiled kernels are to run on a tensor.

    Args:
        backend: "auto" for the kernels where they can run, "reference" for PyTorch, "native" for the kernels.
        tensor: What they would run on.

    Raises:
        ValueError: If the backend is none of these, or "native" is asked for where it cannot run.
    """
    check_choice("backend", backend, BACKENDS)
    if backend != "native":
        # Tensors of other types may have no memory that a kernel could read.
        known = type(tensor) in (Tensor, torch.nn.Parameter)
        return backend == "auto" and _native is not None and tensor.device.type == "cpu" and known
    if _native is None:
        raise ValueError(
            f"`backend='native'` needs the compiled kernels, but {why_not}; use 'reference' or 'auto', or "
            "install hdcrf again with a C++ compiler"
        )
    if tensor.device.type != "cpu":
        raise ValueError(
            f"`backend='native'` runs on the CPU, got {tensor.device}; use 'reference' or 'auto'"
        )
    return True
