"""Videos of any length, in overlapping contexts whose scores are averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from hdcrf.gaussian.layers import VideoGaussianCRF
from voxel.checks import check_count, check_tensor

__all__ = ["video_in_contexts"]


def video_in_contexts(
    crf: VideoGaussianCRF, unary: Tensor, features: Tensor, *, context: int = 4, overlap: int = 2
) -> Tensor:
    """Return the scores of a video of any length, solved for a few frames at a time.

    The video is cut into contexts of the same number of frames, each sharing some with the next; the last is
    moved back to end with the video. Where contexts overlap, their scores are averaged.

    Args:
        crf: The layer.
        unary: (B, L, T, H, W), as the layer takes them.
        features: (B, C, T, H, W).
        context: V, the frames that are solved together.
        overlap: The frames that a context shares with the next, 0 to V - 1.

    Returns:
        (B, L, T, H, W).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the overlap is too large, or the layer refuses its part.

    Differentiable as the layer is.

    Reference: Chandra 2018, section 4.3.1.
    """
    if not isinstance(crf, VideoGaussianCRF):
        raise TypeError(f"`crf` must be a VideoGaussianCRF, got {type(crf).__name__}")
    check_count("context", context, 1)
    check_count("overlap", overlap, 0, context - 1)
    for name, value in (("unary", unary), ("features", features)):
        if check_tensor(name, value).dim() != 5 or 0 in value.shape:
            raise ValueError(
                f"`{name}` must have shape (B, channels, T, H, W) with no size of 0, got {tuple(value.shape)}"
            )
    frames = unary.shape[2]
    if features.shape[2] != frames:
        raise ValueError(f"`features` must have the {frames} frames of `unary`, got {features.shape[2]}")
    total = torch.zeros_like(unary, dtype=torch.promote_types(unary.dtype, torch.float32))
    times = [0] * frames
    for start in _starts(frames, context, context - overlap):
        part = slice(start, min(start + context, frames))
        scores = crf(unary[:, :, part], features[:, :, part])
        total[:, :, part] += scores
        for frame in range(part.start, part.stop):
            times[frame] += 1
    counts = torch.tensor(times, dtype=total.dtype, device=total.device)
    return (total / counts[:, None, None]).to(unary.dtype)


def _starts(frames: int, context: int, step: int) -> list[int]:
    """Return where contexts start, the last one so that it ends with the video."""
    last = max(0, frames - context)
    return sorted({*range(0, last, step), last})
