"""What tuning gains: mean IoU unrefined, with the defaults, and tuned by either method.

Makes folders of crops of scikit-image's photos, with labels and with predictions that are wrong in known
ways, and runs `hdcrf tune` on them. Needs the extras tune and bench.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from inputs import PHOTOS, machine_line, photo, regions
from PIL import Image
from skimage import transform

HEIGHT, WIDTH, LABELS = 96, 128, 4
NOISES = ("pixels", "borders", "both")


def crops(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return photos (H, W, 3) and labels (H, W) of as many crops, in turns of each photo."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        name = PHOTOS[index % len(PHOTOS)]
        height, width = 2 * HEIGHT, 2 * WIDTH
        picture, labels = photo(name, height, width), regions(name, height, width, LABELS)
        top, left = random.integers(height - HEIGHT + 1), random.integers(width - WIDTH + 1)
        part = np.s_[top : top + HEIGHT, left : left + WIDTH]
        made.append((picture[part], labels[part]))
    return made


def predicted(labels: np.ndarray, noise: str, random: np.random.Generator) -> np.ndarray:
    """Return probabilities (H, W, K) float32 of a network that is wrong in pixels, at borders, or in both.

    At borders: the labels at an eighth of the resolution under noise, interpolated. In pixels: normal noise
    in each logit.
    """
    shape = (*labels.shape, LABELS)
    one_hot = (labels[:, :, None] == np.arange(LABELS)).astype(np.float64)
    logits = np.zeros(shape)
    if noise in ("borders", "both"):
        low = transform.resize(one_hot, (shape[0] // 8, shape[1] // 8, LABELS), anti_aliasing=True)
        logits += transform.resize(4 * low + random.standard_normal(low.shape), shape, order=1)
    else:
        logits += 1.5 * one_hot
    if noise in ("pixels", "both"):
        logits += random.standard_normal(shape)
    exponentials = np.exp(logits - logits.max(2, keepdims=True))
    return (exponentials / exponentials.sum(2, keepdims=True)).astype(np.float32)


def make_folders(folder: Path, count: int, noise: str, seed: int) -> tuple[Path, Path, Path]:
    """Write images, predictions and true labels; return their folders."""
    random = np.random.default_rng(1000 + seed)
    images, predictions, truths = (folder / name for name in ("images", "predictions", "truth"))
    for path in (images, predictions, truths):
        path.mkdir(parents=True)
    for index, (picture, labels) in enumerate(crops(count, seed)):
        Image.fromarray(picture).save(images / f"{index:03}.png")
        Image.fromarray(labels.astype(np.uint8)).save(truths / f"{index:03}.png")
        np.save(predictions / f"{index:03}.npy", predicted(labels, noise, random))
    return images, predictions, truths
