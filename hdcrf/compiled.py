"""DenseCRF's forward pass as one operation, into which `torch.compile` does not look.

How many lattice vertices there are depends on the image, so a compiler could not follow the pass in any case.
The backward pass is an operation too, which runs the forward pass again: nothing but tensors of known shapes
goes from one to the other.
"""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from hdcrf.dense_crf import DenseCRF

__all__ = ["dense_crf", "dense_crf_backward"]

_PARAMETERS = (
    "appearance_weight",
    "smoothness_weight",
    "log_appearance_sigma_xy",
    "log_appearance_sigma_rgb",
    "log_smoothness_sigma",
    "compatibility.values",
)


@torch.library.custom_op("hdcrf::dense_crf", mutates_args=())
def dense_crf(
    logits: Tensor,  # (B, K, H, W)
    guide: Tensor,  # (B, c, H, W)
    parameters: list[Tensor],  # in the order above; the compatibility's, if it has values
    settings: str,  # DenseCRF's other arguments, written as a dict
) -> Tensor:
    """Return what a DenseCRF with these parameters and settings returns, (B, K, H, W)."""
    return _forward(logits, guide, parameters, settings).clone(memory_format=torch.contiguous_format)


def _forward(logits: Tensor, guide: Tensor, parameters: list[Tensor], settings: str) -> Tensor:
    arguments: dict[str, Any] = ast.literal_eval(settings)
    values = dict(zip(_PARAMETERS, parameters, strict=False))
    if "compatibility.values" in values:
        arguments["compatibility"] = values["compatibility.values"].detach()
    crf = DenseCRF(**arguments, learn=())
    result: Tensor = torch.func.functional_call(crf, values, (logits, guide))
    return result


@torch.library.custom_op("hdcrf::dense_crf_backward", mutates_args=())
def dense_crf_backward(
    gradient: Tensor,
    logits: Tensor,
    guide: Tensor,
    parameters: list[Tensor],
    settings: str,
    needed: list[bool],  # of logits, guide, and each parameter
) -> list[Tensor]:
    """Return the gradients with respect to logits, guide and parameters, zeros where none is needed."""
    # Within an operation PyTorch records nothing to differentiate; in another thread it does.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_gradients, gradient, [logits, guide, *parameters], settings, needed).result()


def _gradients(gradient: Tensor, given: list[Tensor], settings: str, needed: list[bool]) -> list[Tensor]:
    inputs = [
        tensor.detach().requires_grad_() if need else tensor.detach()
        for tensor, need in zip(given, needed, strict=True)
    ]
    result = _forward(inputs[0], inputs[1], inputs[2:], settings)
    sought = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, sought, gradient, allow_unused=True))
    gradients = [next(found) if need else None for need in needed]
    return [
        torch.zeros_like(tensor) if part is None else part.clone(memory_format=torch.contiguous_format)
        for tensor, part in zip(given, gradients, strict=True)
    ]


@dense_crf.register_fake
def _(logits, guide, parameters, settings):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@dense_crf_backward.register_fake
def _(gradient, logits, guide, parameters, settings, needed):  # type: ignore[no-untyped-def]
    given = (logits, guide, *parameters)
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits, guide, parameters, ctx.settings = inputs
    ctx.save_for_backward(logits, guide, *parameters)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    logits, guide, *parameters = ctx.saved_tensors
    needed = [tensor.requires_grad for tensor in (logits, guide, *parameters)]
    of_logits, of_guide, *of_parameters = dense_crf_backward(
        gradient, logits, guide, parameters, ctx.settings, needed
    )
    return of_logits, of_guide if needed[1] else None, of_parameters, None


dense_crf.register_autograd(_backward, setup_context=_setup_context)
