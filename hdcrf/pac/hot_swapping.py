"""Convolutions of a network that exists, replaced by pixel-adaptive ones with the same weights.

Reference: Su et al., Pixel-Adaptive Convolutional Neural Networks, 2019, section 6.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hdcrf.pac.adapting_kernel import AdaptingKernel
from hdcrf.pac.layers import PacConv2d, PacConv3d
from voxel.checks import check_number

__all__ = ["swap_in_pac"]

_Model = TypeVar("_Model", bound=nn.Module)


class _Captured:
    """The output of a layer, from when it has run until the model's forward pass ends, in each thread."""

    def __init__(self, name: str, scale: float) -> None:
        self.name, self.scale = name, scale
        self.here = threading.local()

    def keep(self, layer: nn.Module, arguments: object, output: object) -> None:
        """As a forward hook: keep the output times the scale, a tensor that what follows does not change."""
        self.here.output = output * self.scale if isinstance(output, Tensor) else output

    def forget(self, model: nn.Module, arguments: object, output: object) -> None:
        """As a forward hook of the model: let the output go, and what autograd keeps with it."""
        self.here.output = None

    def output(self, swapped: str) -> Tensor:
        """Return the output, for a swapped layer of that name."""
        output = getattr(self.here, "output", None)
        if output is None:
            raise RuntimeError(
                f"{swapped!r} is guided by {self.name!r}, which has not run before it in this forward pass "
                "of the model; choose a guide layer that comes earlier"
            )
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{swapped!r} is guided by {self.name!r}, whose output must be a tensor, got "
                f"{type(output).__name__}; choose a layer that returns one"
            )
        return output

    def __getstate__(self) -> dict[str, Any]:  # what copies and pickles hold
        return {"name": self.name, "scale": self.scale}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Guided(nn.Module):
    """What makes a layer take its guide from another one."""

    name: str
    captured: _Captured

    def forward(self, values: Tensor) -> Tensor:
        """Convolve, adapted by what the guide layer has returned, scaled and resized."""
        guide = self.captured.output(self.name)
        if guide.dim() != values.dim() or len(guide) != len(values):
            raise ValueError(
                f"{self.name!r} is guided by {self.captured.name!r}, whose output must have {values.dim()} "
                f"dimensions and a batch of {len(values)}, got {tuple(guide.shape)}"
            )
        guide = _resized(guide, values.shape[2:])
        result: Tensor = super().forward(values, guide)
        return result

    def extra_repr(self) -> str:
        """Describe the layer in `repr`."""
        return f"{super().extra_repr()}, guided by {self.captured.name!r} times {self.captured.scale:g}"


class _GuidedConv2d(_Guided, PacConv2d):  # type: ignore[misc]
    pass


class _GuidedConv3d(_Guided, PacConv3d):  # type: ignore[misc]
    pass


_SWAPPED: dict[type[nn.Module], type[Any]] = {nn.Conv2d: _GuidedConv2d, nn.Conv3d: _GuidedConv3d}


def swap_in_pac(
    model: _Model,
    swaps: Mapping[str, str],
    *,
    guide_scale: float = 1e-4,
    kernel: str = "gaussian",
) -> _Model:
    """Replace convolutions of a model by pixel-adaptive ones that are guided by its other layers.

    A swapped layer keeps its parameters, the very same, and their names: optimizers go on, and `state_dict`
    neither grows nor changes. With a small `guide_scale` the model behaves as before, and learns to use the
    guides when it is trained further.

    Args:
        model: Changed in place.
        swaps: For each `torch.nn.Conv2d` or `torch.nn.Conv3d` to replace, the layer whose output guides it,
            both named as in `model.named_modules()`. In each forward pass of the model a guide layer runs
            before those that it guides. Its output is averaged, or interpolated, to the size of what they
            convolve.
        guide_scale: What guides are multiplied by. At 0 the model does what it did.
        kernel: The adapting kernel, by its name: "gaussian" or "laplacian", which are 1 for equal features.

    Returns:
        The model.

    Raises:
        TypeError: If an argument has the wrong type, or a layer is not one of these two.
        ValueError: If there is no layer of a name, or one has options or hooks that a swapped one has not.
            Nothing is changed then.

    Copies, pickles, several threads and mixed precision work as before; batches must not be empty. A guide is
    let go when the model's forward pass ends, so `torch.utils.checkpoint` around a swapped layer needs the
    guide layer inside, too; where parts of the model are called by themselves, the last guide stays.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> swap_in_pac(network, {"2": "0"})(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 8, 14, 14])

    Reference: Su et al. 2019, section 6.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(swaps, Mapping) or not all(
        isinstance(name, str) for pair in swaps.items() for name in pair
    ):
        raise TypeError(f"`swaps` must map names of layers to names of guide layers, got {swaps!r}")
    scale = check_number("guide_scale", guide_scale)
    if kernel not in ("gaussian", "laplacian"):
        raise ValueError(f"`kernel` must be 'gaussian' or 'laplacian', got {kernel!r}")
    layers = dict(model.named_modules(remove_duplicate=False))
    captured: dict[str, _Captured] = {}
    built: dict[str, Any] = {}
    for name, guide in swaps.items():
        for wanted in (name, guide):
            if not wanted or wanted not in layers:
                raise ValueError(
                    f"`swaps` names a layer {wanted!r}, but `model` has none of that name; see "
                    f"model.named_modules(), such as {_similar(wanted, list(layers))}"
                )
        if guide == name:
            raise ValueError(f"`swaps` has {name!r} guided by itself; choose a layer that comes earlier")
        source = captured.setdefault(guide, _Captured(guide, scale))
        built[name] = _swapped(name, layers[name], source, kernel)
    # A module may have several names.
    in_place_of = {layers[name]: layer for name, layer in built.items()}
    for name, layer in layers.items():
        if layer in in_place_of:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, in_place_of[layer])
    for name, source in captured.items():
        model.get_submodule(name).register_forward_hook(source.keep)
        model.register_forward_hook(source.forget, always_call=True)
    return model


def _swapped(name: str, layer: nn.Module, captured: _Captured, kernel: str) -> Any:
    """Return what takes the place of a convolution."""
    kind = _SWAPPED.get(type(layer))
    if kind is None or not isinstance(layer, nn.Conv2d | nn.Conv3d):
        raise TypeError(
            f"`swaps` names {name!r}, which must be a torch.nn.Conv2d or Conv3d, got {type(layer).__name__}"
        )
    if layer.padding_mode != "zeros":
        raise ValueError(f"{name!r} has padding_mode={layer.padding_mode!r}; only 'zeros' can be swapped")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, hook) for hook in hooks):
        raise ValueError(f"{name!r} has hooks, which would be lost; remove them before it is swapped")
    with torch.device("meta"):  # its own parameters are never used
        swapped = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            _padding(name, layer),
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            kernel=AdaptingKernel(kernel),
        )
    swapped.weight, swapped.bias = layer.weight, layer.bias
    swapped.name, swapped.captured = name, captured
    return swapped.train(layer.training)


def _padding(name: str, layer: nn.Conv2d | nn.Conv3d) -> Sequence[int]:
    """Return the padding in numbers."""
    if not isinstance(layer.padding, str):
        return layer.padding
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise ValueError(
            f"{name!r} has padding='same' with a window of even width, which pads one side more than the "
            "other; this cannot be swapped"
        )
    return tuple(span // 2 for span in spans)


def _resized(guide: Tensor, sizes: Sequence[int]) -> Tensor:
    """Average a guide down to sizes, or interpolate it up."""
    if guide.shape[2:] == sizes:
        return guide
    if all(have >= want for have, want in zip(guide.shape[2:], sizes, strict=True)):
        return functional.interpolate(guide, size=tuple(sizes), mode="area")
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    return functional.interpolate(guide, size=tuple(sizes), mode=mode, align_corners=False)


def _similar(name: str, names: Sequence[str]) -> str:
    import difflib

    found = difflib.get_close_matches(name, names, 3, 0) or names[:3]
    return ", ".join(map(repr, found))
