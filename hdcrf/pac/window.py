"""A window that moves over a grid, as that of a convolution does: which pixel each tap meets.

At place j, which is an output pixel, tap t meets the grid's pixel s·j - p + δ·t, with stride s, padding p and
dilation δ. All that pixel-adaptive convolution does is a sum over these pairs (j, t). What the taps meet is a
view (…, *k, *O) of the padded grid, which takes no memory until it is computed with; that is done for a few
rows of places at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from voxel.checks import check_count

__all__ = ["Window", "per_axis"]

# Numbers of a tile: on a CPU what its nearest caches hold, on a GPU what keeps it busy.
_TILE_ON_CPU = 1 << 19
_TILE = 1 << 25
_MOST = 1 << 30  # of taps, strides, padding and dilation


def per_axis(name: str, value: object, axes: int, minimum: int) -> tuple[int, ...]:
    """Return a number for each axis: one for all, or a sequence of one for each."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (check_count(name, value, minimum, _MOST),) * axes
    if len(value) != axes:
        raise ValueError(f"`{name}` must be one integer or {axes}, one for each axis, got {len(value)}")
    return tuple(check_count(name, part, minimum, _MOST) for part in value)


@dataclass(frozen=True)
class Window:
    """How a window moves over a grid.

    Args:
        sizes: S, of the grid.
        kernel_size: k, taps along each axis.
        stride: s.
        padding: p, on both sides of each axis.
        dilation: δ.
        outputs: O, how many places the window takes along each axis.
    """

    sizes: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def over(
        cls,
        sizes: Sequence[int],
        kernel_size: object,
        stride: object = 1,
        padding: object = 0,
        dilation: object = 1,
        outputs: Sequence[int] | None = None,
    ) -> Window:
        """Return the window over a grid with these sizes, with as many places as there are in it, or fewer.

        Raises:
            TypeError: If an argument is no integer, nor integers.
            ValueError: If one is out of range, or the window is wider than the padded grid.
        """
        axes = len(sizes)
        k = per_axis("kernel_size", kernel_size, axes, 1)
        s = per_axis("stride", stride, axes, 1)
        p = per_axis("padding", padding, axes, 0)
        d = per_axis("dilation", dilation, axes, 1)
        spans = [(taps - 1) * step + 1 for taps, step in zip(k, d, strict=True)]
        room = [size + 2 * pad for size, pad in zip(sizes, p, strict=True)]
        if min(sizes) < 1 or any(a < b for a, b in zip(room, spans, strict=True)):
            raise ValueError(
                f"the window spans {_times(spans)} pixels, but the grid has {_times(sizes)}, with its "
                f"padding {_times(room)}; lower `kernel_size` or `dilation`, or raise `padding`"
            )
        most = [(a - b) // c + 1 for a, b, c in zip(room, spans, s, strict=True)]
        outputs = most if outputs is None else outputs
        if len(outputs) != axes or any(not 1 <= n <= limit for n, limit in zip(outputs, most, strict=True)):
            raise ValueError(
                f"the window has {_times(most)} places over {_times(sizes)} pixels, got {_times(outputs)}"
            )
        return cls(tuple(sizes), k, s, p, d, tuple(outputs))

    @classmethod
    def of_transposed(
        cls,
        places: Sequence[int],
        kernel_size: object,
        stride: object = 1,
        padding: object = 0,
        output_padding: object = 0,
        dilation: object = 1,
    ) -> Window:
        """Return the window over the output of a transposed convolution of so many places.

        Raises:
            TypeError: If an argument is no integer, nor integers.
            ValueError: If one is out of range, or nothing of the output is left.
        """
        axes = len(places)
        k = per_axis("kernel_size", kernel_size, axes, 1)
        s = per_axis("stride", stride, axes, 1)
        p = per_axis("padding", padding, axes, 0)
        d = per_axis("dilation", dilation, axes, 1)
        more = per_axis("output_padding", output_padding, axes, 0)
        for extra, step, spread in zip(more, s, d, strict=True):
            if extra >= max(step, spread):
                raise ValueError(
                    "`output_padding` must be less than the stride or the dilation, "
                    f"{step} and {spread}, got {extra}"
                )
        parts = zip(places, k, s, p, more, d, strict=True)
        sizes = [(n - 1) * c - 2 * b + e * (a - 1) + 1 + extra for n, a, c, b, extra, e in parts]
        if min(sizes) < 1:
            raise ValueError(
                f"`padding` of {_times(p)} leaves nothing of the output: its size would be {tuple(sizes)}; "
                "lower it"
            )
        return cls.over(sizes, k, s, p, d, places)

    def numbers(self) -> list[int]:
        """Return all numbers in a row, as an operation takes them; `of_numbers` is the way back."""
        return [n for part in astuple(self) for n in part]

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> Window:
        """Return the window whose `numbers` these are."""
        axes = len(numbers) // 6
        return cls(*(tuple(numbers[first : first + axes]) for first in range(0, len(numbers), axes)))

    @property
    def axes(self) -> int:
        """How many axes the grid has."""
        return len(self.sizes)

    @property
    def taps(self) -> int:
        """How many taps the window has."""
        return math.prod(self.kernel_size)

    @property
    def padded_sizes(self) -> list[int]:
        """The sizes of what the window meets, the grid and its margins."""
        parts = zip(self.outputs, self.stride, self.kernel_size, self.dilation, strict=True)
        return [(places - 1) * s + (k - 1) * d + 1 for places, s, k, d in parts]

    def pad(self, grid: Tensor, value: float = 0.0) -> Tensor:
        """Pad (B, C, *S) with zeros, or another value, to what the window meets, no less and no more."""
        return functional.pad(grid, self._margins(1), value=value).contiguous()

    def crop(self, padded: Tensor) -> Tensor:
        """Return the part of what `pad` made that lies in the grid: (B, C, *S)."""
        return functional.pad(padded, self._margins(-1)).contiguous()

    def unfold(self, padded: Tensor) -> Tensor:
        """Return the view (B, C, *k, *O) of what `pad` made."""
        items, channels, *steps = padded.stride()
        taps = [step * d for step, d in zip(steps, self.dilation, strict=True)]
        places = [step * s for step, s in zip(steps, self.stride, strict=True)]
        shape = (*padded.shape[:2], *self.kernel_size, *self.outputs)
        return padded.as_strided(shape, (items, channels, *taps, *places))

    def centre(self, grid: Tensor) -> Tensor:
        """Return (B, C, *O): the entries of (B, C, *S) at, or nearest to, the middle tap k // 2."""
        for axis, (size, k, s, p, d, places) in enumerate(
            zip(
                self.sizes,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.outputs,
                strict=True,
            )
        ):
            if s == 1 and p == d * (k // 2) and places == size:
                continue
            at = torch.arange(places, device=grid.device) * s - p + d * (k // 2)
            grid = grid.index_select(axis + 2, at.clamp(0, size - 1))
        return grid

    def tiles(self, numbers: int, device: torch.device) -> Iterator[slice]:
        """Cut places into rows along the first axis, so that a tile of so many numbers a place is small."""
        most = _TILE_ON_CPU if device.type == "cpu" else _TILE
        rows = max(1, most // max(1, numbers * math.prod(self.outputs[1:])))
        for first in range(0, self.outputs[0], rows):
            yield slice(first, min(first + rows, self.outputs[0]))

    def rows(self, rows: slice) -> tuple[slice, ...]:
        """Return the index of some rows of places in a tensor (…, *O)."""
        return (rows, *[slice(None)] * (self.axes - 1))

    def spread(self, tile: Tensor) -> Tensor:
        """Return a tile (C, *n) over places as one over taps and places, (C, 1, …, *n)."""
        return tile.view(tile.shape[0], *[1] * self.axes, *tile.shape[1:])

    def inside(self, device: torch.device) -> Tensor:
        """Return which pairs of tap and place meet the grid: (*k, *O) bool."""
        return self.unfold(self.pad(torch.ones((1, 1, *self.sizes), dtype=torch.bool, device=device)))[0, 0]

    def add_tile(self, padded: Tensor, rows: slice, tile: Tensor) -> None:
        """Add a tile (C, *k, R, *O[1:]) over some rows of places to the padded grid (C, …) that taps meet."""
        places = [(rows.start, rows.stop), *((0, size) for size in self.outputs[1:])]
        for tap in itertools.product(*map(range, self.kernel_size)):
            where: list[Any] = [
                slice(first * s + t * d, (last - 1) * s + t * d + 1, s)
                for (first, last), t, s, d in zip(places, tap, self.stride, self.dilation, strict=True)
            ]
            padded[(..., *where)] += tile[(slice(None), *tap)]  # type: ignore[index]

    def _margins(self, sign: int) -> list[int]:
        """Return what to add on both sides of each axis, the last axis first, as PyTorch's `pad` takes it."""
        margins: list[int] = []
        for size, padding, padded in zip(self.sizes, self.padding, self.padded_sizes, strict=True):
            margins = [sign * padding, sign * (padded - size - padding), *margins]
        return margins


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
