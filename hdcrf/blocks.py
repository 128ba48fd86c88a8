"""Inputs larger than memory: in overlapping windows and blocks, whose marginals are blended.

Each part is refined on its own. Where two overlap, the share of each falls linearly to 0 at its own border,
where it has seen least of what lies around, and the shares sum to 1. A place lies in at most two parts along
each axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.crf_layer import CRFLayer
from hdcrf.layer_inputs import working_precision
from hdcrf.point_crf import PointCRF, lowest_corners
from hdcrf.video_crf import VideoCRF
from hdcrf.volume_crf import VolumeCRF
from voxel.checks import (
    check_batch_index,
    check_count,
    check_finite,
    check_matrix,
    check_number,
    check_positive,
    check_tensor,
)
from voxel.coordinate_index import unique_rows

__all__ = ["points_in_blocks", "video_in_windows", "volume_in_blocks"]


def video_in_windows(
    crf: VideoCRF,
    frames: Iterable[tuple[Tensor, Tensor]],
    *,
    window: int = 16,
    overlap: int = 8,
) -> Iterator[Tensor]:
    """Refine a video of any length, frame after frame, holding at most a window of it in memory.

    Args:
        crf: The layer. Windows are moved to its device, and the result comes back to that of the frame.
        frames: For each frame its logits (K, H, W) and guide (c, H, W); read as they are needed.
        window: Frames that are refined together.
        overlap: Frames that a window shares with the next, 0 to half of the window. About 2.5 σ_t leaves
            seams that cannot be seen.

    Yields:
        The (K, H, W) marginals of each frame, in order.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the overlap is too large, or a frame differs from the first in shape; the message says
            which. What `crf` refuses, it refuses window by window.
    """
    _check_layer(crf, VideoCRF)
    check_count("window", window, 1)
    check_count("overlap", overlap, 0, window // 2)
    if not isinstance(frames, Iterable):
        raise TypeError(f"`frames` must be iterable, got {type(frames).__name__}")
    return _video_in_windows(crf, frames, window, overlap)


def _video_in_windows(
    crf: VideoCRF, frames: Iterable[tuple[Tensor, Tensor]], window: int, overlap: int
) -> Iterator[Tensor]:
    source = enumerate(frames)
    held: list[tuple[Tensor, Tensor]] = []
    blended: list[Tensor] = []  # of the frames that the last window shares with the next, its own marginals
    first: tuple[Tensor, Tensor] | None = None
    device = next(crf.parameters()).device
    while True:
        fresh = []
        for number, frame in itertools.islice(source, window - len(held)):
            logits, guide = _frame(number, frame)
            first = first or (logits, guide)
            for name, part, other in (("logits", logits, first[0]), ("guide", guide, first[1])):
                if part.shape != other.shape or part.dtype != other.dtype:
                    raise ValueError(
                        f"`frames` must be of one size and dtype, but the {name} of frame {number} are "
                        f"{tuple(part.shape)} {part.dtype}, and of frame 0 {tuple(other.shape)} {other.dtype}"
                    )
            fresh.append((logits, guide))
        if not fresh:
            yield from blended
            return
        held += fresh
        origin = held[0][0].device
        logits, guide = (torch.stack(parts, 1)[None].to(device) for parts in zip(*held, strict=True))
        with torch.no_grad():
            result = crf.infer(logits, guide, return_logits=False).marginals
        marginals = list(result[0].to(origin).unbind(1))
        for place, earlier in enumerate(blended):
            marginals[place] = torch.lerp(earlier, marginals[place], (place + 1) / (overlap + 1))
        kept = overlap if len(held) == window else 0
        yield from marginals[: len(marginals) - kept]
        if not kept and len(held) < window:
            return
        held, blended = held[len(held) - kept :], marginals[len(marginals) - kept :]


def _frame(number: int, frame: object) -> tuple[Tensor, Tensor]:
    if not isinstance(frame, Sequence) or len(frame) != 2:
        raise TypeError(
            f"`frames` must yield pairs of logits (K, H, W) and a guide (c, H, W), but frame {number} is of "
            f"type {type(frame).__name__}"
        )
    logits, guide = frame
    for name, part, axes in (("logits", logits, "K"), ("guide", guide, "c")):
        check_tensor(f"{name} of frame {number}", part)
        if part.dim() != 3:
            raise ValueError(
                f"`frames` must yield {name} of shape ({axes}, H, W), but in frame {number} they have shape "
                f"{tuple(part.shape)}"
            )
    return logits, guide


def volume_in_blocks(
    crf: VolumeCRF,
    logits: Tensor,
    guide: Tensor,
    *,
    block: Sequence[int] = (64, 128, 128),
    overlap: Sequence[int] = (16, 32, 32),
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Refine a volume in overlapping blocks.

    Args:
        crf: The layer. Blocks are moved to its device, and the result comes back to that of the logits.
        logits: (K, D, H, W).
        guide: (c, D, H, W).
        block: Voxels along D, H and W that are refined together.
        overlap: Voxels that neighbouring blocks share along D, H and W, 0 to half of the block.
        progress: Called with the blocks done and their number, after each.

    Returns:
        (K, D, H, W) marginals.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes do not match or an overlap is too large, and what `crf` refuses.
    """
    _check_layer(crf, VolumeCRF)
    check_tensor("logits", logits)
    check_tensor("guide", guide)
    if logits.dim() != 4 or guide.dim() != 4 or guide.shape[1:] != logits.shape[1:]:
        raise ValueError(
            f"`logits` and `guide` must have shapes (K, D, H, W) and (c, D, H, W), got "
            f"{tuple(logits.shape)} and {tuple(guide.shape)}"
        )
    for name, lengths in (("block", block), ("overlap", overlap)):
        if not isinstance(lengths, Sequence) or len(lengths) != 3:
            raise ValueError(f"`{name}` must be three numbers of voxels, along D, H and W, got {lengths!r}")
    for axis in range(3):
        check_count(f"block[{axis}]", block[axis], 1)
        check_count(f"overlap[{axis}]", overlap[axis], 0, block[axis] // 2)
    parts = [
        _windows(length, *sizes) for length, *sizes in zip(logits.shape[1:], block, overlap, strict=True)
    ]
    _check_progress(progress)
    device = next(crf.parameters()).device
    marginals = torch.zeros_like(working_precision(logits))
    total = math.prod(map(len, parts))
    for done, windows in enumerate(itertools.product(*parts), 1):
        inside = (slice(None), *(part for part, _ in windows))
        with torch.no_grad():
            result = crf.infer(
                logits[inside][None].to(device), guide[inside][None].to(device), return_logits=False
            )
        share = result.marginals[0].to(marginals)
        for axis, (_, weights) in enumerate(windows):
            share = share * weights.to(share).view(-1, *[1] * (2 - axis))
        marginals[inside] += share
        if progress is not None:
            progress(done, total)
    return marginals.to(logits.dtype)


def _windows(length: int, size: int, overlap: int) -> list[tuple[slice, Tensor]]:
    """Cover an axis with windows that overlap; return each with its share at each of its places."""
    starts = list(range(0, max(1, length - overlap), size - overlap))
    ramp = torch.arange(1, overlap + 1, dtype=torch.float64) / (overlap + 1)
    windows = []
    for start in starts:
        stop = min(start + size, length)
        share = torch.ones(stop - start, dtype=torch.float64)
        if start > 0:
            share[:overlap] *= ramp
        if start != starts[-1]:
            share[size - overlap :] *= ramp.flip(0)
        windows.append((slice(start, stop), share))
    return windows


def points_in_blocks(
    crf: PointCRF,
    logits: Tensor,
    positions: Tensor,
    *,
    block: float,
    overlap: float,
    colours: Tensor | None = None,
    normals: Tensor | None = None,
    intensities: Tensor | None = None,
    batch: Tensor | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Refine a cloud in overlapping cubes.

    Args:
        crf: The layer. Blocks are moved to its device, and the result comes back to that of the logits.
        logits: (N, K).
        positions: (N, 3).
        block: Edge of a cube, in the unit of the positions.
        overlap: What neighbouring cubes share, 0 to half of the block.
        colours: (N, c), and the other attributes as `crf` takes them.
        normals: (N, 3).
        intensities: (N,) or (N, c).
        batch: (N,).
        progress: Called with the blocks done and their number, after each; cubes without points do not count.

    Returns:
        (N, K) marginals.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes do not match or the overlap is too large, and what `crf` refuses.
    """
    _check_layer(crf, PointCRF)
    check_matrix("positions", positions, "(N, 3)")
    if positions.shape[1] != 3:
        raise ValueError(f"`positions` must have shape (N, 3), got {tuple(positions.shape)}")
    check_finite("positions", positions)
    check_positive("block", block)
    if not 0 <= check_number("overlap", overlap) <= block / 2:
        raise ValueError(f"`overlap` must lie between 0 and half of the block, {block / 2}, got {overlap}")
    given = {"logits": logits, "colours": colours, "normals": normals, "intensities": intensities}
    attributes: dict[str, Any] = {"positions": positions}
    for name, value in given.items():
        if value is None:
            continue
        if check_tensor(name, value).dim() == 0 or len(value) != len(positions):
            raise ValueError(
                f"`{name}` must have {len(positions)} rows to match `positions`, got {tuple(value.shape)}"
            )
        attributes[name] = value
    if batch is not None:
        check_batch_index("batch", batch, len(positions), positions)
    _check_progress(progress)
    points, shares, sizes = _cubes(positions.detach(), block, overlap, batch)
    device = next(crf.parameters()).device
    marginals = torch.zeros_like(working_precision(logits))
    parts = zip(torch.split(points, sizes), torch.split(shares.to(marginals), sizes), strict=True)
    for done, (inside, share) in enumerate(parts, 1):
        with torch.no_grad():
            part = {name: value[inside].to(device) for name, value in attributes.items()}
            result = crf.infer(**part, return_logits=False).marginals.to(marginals)
        marginals.index_add_(0, inside, result * share[:, None])
        if progress is not None:
            progress(done, len(sizes))
    return marginals.to(logits.dtype)


def _cubes(
    positions: Tensor, block: float, overlap: float, batch: Tensor | None
) -> tuple[Tensor, Tensor, list[int]]:
    """Return the points of each cube, cube after cube, their shares, and how many there are in each."""
    step = block - overlap
    # In double precision, so that a point far from the origin falls on the right side of a border.
    positions = positions.double()
    # Each cloud of a batch begins with a cube of its own.
    item, lowest = lowest_corners(positions, batch)
    offset = positions - lowest[item]
    cube = torch.floor(offset / step)
    if len(cube) and float(cube.max()) >= 2**31:
        raise ValueError(
            f"`block` must be larger: the cloud is {float(cube.max()):.3g} blocks of {block} wide"
        )
    into = offset - cube * step
    # Within the overlap with the cube before, which there is none before the first.
    share = torch.where(cube > 0, into / overlap if overlap else 1.0, 1.0).clamp_(max=1)
    chosen, keys, weights = [], [], []
    for before in itertools.product((False, True), repeat=3):
        back = torch.tensor(before, device=positions.device)
        weight = torch.where(back, 1 - share, share).prod(1)
        some = torch.nonzero(weight > 0)[:, 0]
        key = (cube - back.to(cube)).to(torch.int64)[some]
        chosen.append(some)
        keys.append(torch.cat([item[some, None], key], 1))
        weights.append(weight[some])
    _, number = unique_rows(torch.cat(keys))
    order = torch.argsort(number, stable=True)
    return torch.cat(chosen)[order], torch.cat(weights)[order], torch.bincount(number).tolist()


def _check_progress(progress: object) -> None:
    if progress is not None and not callable(progress):
        raise TypeError(
            "`progress` must be a function of the blocks done and their number, or None, "
            f"got {type(progress).__name__}"
        )


def _check_layer(crf: object, kind: type[CRFLayer]) -> None:
    if not isinstance(crf, kind):
        raise TypeError(f"`crf` must be a {kind.__name__}, got {type(crf).__name__}")
