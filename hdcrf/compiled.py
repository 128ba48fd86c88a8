"""A CRF layer's forward pass as one operation, into which `torch.compile` does not look.

How many lattice vertices there are depends on the input, so a compiler could not follow the pass in any case.
The backward pass is an operation too, which runs the forward pass again: nothing but tensors of known shapes
goes from one to the other.
"""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from hdcrf.crf_layer import CRFLayer

__all__ = ["crf", "crf_backward"]


class _OnTensors(nn.Module):
    """A layer, called as the operation calls it."""

    def __init__(self, layer: CRFLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, logits: Tensor, guides: dict[str, Tensor]) -> Tensor:
        return self.layer._refine(logits, **guides)


@torch.library.custom_op("hdcrf::crf", mutates_args=())
def crf(
    logits: Tensor,
    guides: list[Tensor],
    parameters: list[Tensor],  # in the layer's order
    settings: str,  # the layer's name, the guides' names, and its other arguments, written as a dict
) -> Tensor:
    """Return what a layer with these parameters and settings returns, of the logits' shape."""
    return _forward(logits, guides, parameters, settings).clone(memory_format=torch.contiguous_format)


def _forward(logits: Tensor, guides: list[Tensor], parameters: list[Tensor], settings: str) -> Tensor:
    arguments: dict[str, Any] = ast.literal_eval(settings)
    kind, names = CRFLayer.registered[arguments.pop("layer")], arguments.pop("guides")
    layer = kind(**arguments, learn=())
    if len(parameters) > len(list(layer.parameters())):  # the compatibility's values come last
        layer = kind(**arguments, learn=(), compatibility=parameters[-1].detach())
    module = _OnTensors(layer)
    values = dict(zip((name for name, _ in module.named_parameters()), parameters, strict=True))
    given = dict(zip(names, guides, strict=True))
    result: Tensor = torch.func.functional_call(module, values, (logits, given))
    return result


@torch.library.custom_op("hdcrf::crf_backward", mutates_args=())
def crf_backward(
    gradient: Tensor,
    logits: Tensor,
    guides: list[Tensor],
    parameters: list[Tensor],
    settings: str,
    needed: list[bool],  # of logits, each guide, and each parameter
) -> list[Tensor]:
    """Return the gradients with respect to logits, guides and parameters, zeros where none is needed."""
    # Within an operation PyTorch records nothing to differentiate; in another thread it does.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_gradients, gradient, logits, guides, parameters, settings, needed).result()


def _gradients(
    gradient: Tensor,
    logits: Tensor,
    guides: list[Tensor],
    parameters: list[Tensor],
    settings: str,
    needed: list[bool],
) -> list[Tensor]:
    given = [logits, *guides, *parameters]
    inputs = [
        tensor.detach().requires_grad_() if need else tensor.detach()
        for tensor, need in zip(given, needed, strict=True)
    ]
    first = 1 + len(guides)
    result = _forward(inputs[0], inputs[1:first], inputs[first:], settings)
    sought = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, sought, gradient, allow_unused=True))
    gradients = [next(found) if need else None for need in needed]
    return [
        torch.zeros_like(tensor) if part is None else part.clone(memory_format=torch.contiguous_format)
        for tensor, part in zip(given, gradients, strict=True)
    ]


@crf.register_fake
def _(logits, guides, parameters, settings):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@crf_backward.register_fake
def _(gradient, logits, guides, parameters, settings, needed):  # type: ignore[no-untyped-def]
    given = (logits, *guides, *parameters)
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits, guides, parameters, ctx.settings = inputs
    ctx.guides = len(guides)
    ctx.save_for_backward(logits, *guides, *parameters)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    logits, *rest = ctx.saved_tensors
    guides, parameters = rest[: ctx.guides], rest[ctx.guides :]
    needed = [tensor.requires_grad for tensor in (logits, *rest)]
    of_logits, *of_rest = crf_backward(gradient, logits, guides, parameters, ctx.settings, needed)
    of_rest = [part if need else None for part, need in zip(of_rest, needed[1:], strict=True)]
    return of_logits, of_rest[: ctx.guides], of_rest[ctx.guides :], None


crf.register_autograd(_backward, setup_context=_setup_context)
