"""Labelled frames of a video, from two folders of pictures: read, checked, cut and recoloured at random."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hdcrf.image_files import InputError, read_photo

UNKNOWN = 255
"""Written over the void label, and what no loss and no score sees."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Frames:
    """Frames and their labels."""

    images: Tensor  # (N, 3, H, W) float32, 0 to 255
    labels: Tensor  # (N, H, W) int64, UNKNOWN where not scored
    class_weights: Tensor  # (K,)
    fit: int  # how many come first, to train on

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_labels(self) -> int:
        return len(self.class_weights)

    def checksum(self) -> str:
        """Return what tells these frames and labels from others."""
        parts = (self.images, self.labels)
        return ",".join(hashlib.sha256(part.numpy().tobytes()).hexdigest()[:16] for part in parts)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, weight=self.class_weights, ignore_index=UNKNOWN)


def read_frames(images: Path, labels: Path, fit: int, void: int | None) -> Frames:
    """Read two folders of pictures with the same stems; a SystemExit says what is wrong with them."""
    pictures, annotations = pictures_by_stem(images, "--images"), pictures_by_stem(labels, "--labels")
    unpaired = sorted(pictures.keys() ^ annotations.keys())
    if unpaired:
        stem = unpaired[0]
        place = images if stem in pictures else labels
        raise SystemExit(
            f"{len(unpaired)} stems are in one folder only, such as {stem!r} in {place}; "
            "give each image a label picture of the same stem"
        )
    stems = sorted(pictures)
    if not 2 <= fit < len(stems):
        raise SystemExit(
            f"--fit must be from 2 to {len(stems) - 1}, to leave some of the {len(stems)} frames to check, "
            f"got {fit}"
        )
    values = np.stack(same_size([pictures[s] for s in stems], [read_image(pictures[s]) for s in stems]))
    truth = same_size([annotations[s] for s in stems], [read_labels(annotations[s]) for s in stems])
    if truth[0].shape != values[0].shape[:2]:
        raise SystemExit(
            f"{annotations[stems[0]]} is {size_of(truth[0])}, but its image is {size_of(values[0])}; "
            "labels must have the size of their images"
        )
    known = torch.from_numpy(np.stack(truth)).long()
    if void is not None:
        known[known == void] = UNKNOWN
    counts = known[:fit].flatten().bincount(minlength=256)[:UNKNOWN]
    if not counts.any():
        raise SystemExit(f"the first {fit} frames have no label other than void")
    largest = int(known[known != UNKNOWN].max())
    frequency = counts[: largest + 1] / counts.sum()
    # A class that hardly occurs must not drown the others: it counts as one pixel in a thousand.
    weights = frequency.clamp(min=1e-3) ** -0.5
    weights /= (weights * frequency).sum()
    return Frames(torch.from_numpy(values).permute(0, 3, 1, 2).float(), known, weights, fit)


def pictures_by_stem(folder: Path, option: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise SystemExit(f"{option} must be a folder, got {folder}, which is none")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    by_stem = {path.stem: path for path in paths}
    if not paths:
        raise SystemExit(f"{option} {folder} holds no picture ({', '.join(SUFFIXES)})")
    if len(by_stem) < len(paths):
        raise SystemExit(f"{option} {folder} holds two pictures of one stem; remove one of them")
    return by_stem


def read_image(path: Path) -> np.ndarray:
    try:
        return read_photo(path)
    except InputError as error:
        raise SystemExit(str(error)) from None


def read_labels(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise SystemExit(
                    f"{path} is a picture of kind {picture.mode!r}; save labels as 8-bit grey or palette "
                    "PNG, whose values are the classes"
                )
            return np.array(picture)
    except OSError as error:
        raise SystemExit(f"cannot read the labels {path}: {error}") from None


def same_size(paths: Sequence[Path], arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise SystemExit(
                f"{path} is {size_of(array)}, but {paths[0]} is {size_of(arrays[0])}; scale all to one size"
            )
    return arrays


def size_of(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]} pixels"


def enlarge(values: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(shape).uniform_(low, high)


def recoloured(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) with random contrast, tint and brightness, each its own."""
    count = len(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, tint = uniform(0.7, 1.3, count, 1, 1, 1), uniform(0.85, 1.15, count, 3, 1, 1)
    brightness = uniform(0.75, 1.25, count, 1, 1, 1)
    return (((images - mean) * contrast + mean) * tint * brightness).clamp(0, 255)


def random_crop(image: Tensor, labels: Tensor, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a crop of a frame (3, H, W), (H, W), scaled by 0.8 to 1.5 and mirrored at random."""
    scale = float(uniform(0.8, 1.5))
    size = [max(least, round(side * scale)) for least, side in zip(crop, labels.shape, strict=True)]
    top, left = (int(torch.randint(side - least + 1, ())) for side, least in zip(size, crop, strict=True))
    window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    image = enlarge(image[None], size)[0][window]
    labels = functional.interpolate(labels[None, None].float(), size, mode="nearest")[0, 0][window].long()
    return (image.flip(-1), labels.flip(-1)) if torch.rand(()) < 0.5 else (image, labels)


def windows(first: int, last: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, last)) for start in range(first, last, length)]


def random_frames(frames: Frames, count: int, video: bool) -> Tensor:
    """Return the indices of fit frames for a step: consecutive ones for a video."""
    count = min(count, frames.fit)
    if not video:
        return torch.randint(frames.fit, (count,))
    return torch.randint(frames.fit - count + 1, ()) + torch.arange(count)
