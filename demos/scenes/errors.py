"""What a mediocre network, or a hurried person, would say of known labels."""

from __future__ import annotations

import numpy as np

from .noise import Array, interpolation, smooth_noise


def network_output(
    labels: Array,
    num_classes: int,
    seed: int = 0,
    *,
    stride: int = 8,
    margin: float = 5.0,
    noise: float = 1.3,
    confusion: float = 0.12,
) -> Array:
    """Return probabilities (..., K) float32 as a mediocre network would give them, one frame at a time.

    They are known at 1/stride of the resolution; borders are displaced by some pixels; in blobs that cover a
    share of about `confusion` of the picture another class that is in it wins. Half of all that stays from
    frame to frame, and half flickers.

    Args:
        labels: (H, W) or (T, H, W), 0 … K-1.
        num_classes: K.
        seed: Of the errors.
        stride: Pixels to a cell of the network's output.
        margin: Of the true class's logit, where it fills a cell.
        noise: Standard deviation of the logits.
        confusion: Share of the picture in which a blob may hide the true class.
    """
    random = np.random.default_rng(seed)
    frames = labels.reshape(-1, *labels.shape[-2:])
    height, width = frames.shape[1:]
    rows, columns = -(-height // stride), -(-width // stride)
    row, column = np.ogrid[:height, :width]
    high, wide = rows * stride, columns * stride
    shape = (num_classes, rows, columns)
    lasting = random.standard_normal(shape)
    shift = [smooth_noise(random, height, width, 3 * stride, 2) for _ in range(2)]
    blobs = smooth_noise(random, rows, columns, 4, 2)
    present = np.unique(frames)
    other = random.choice(present, len(frames) + 1)
    result = np.empty((*frames.shape, num_classes), np.float32)
    for frame, truth in enumerate(frames):
        moved = [
            np.rint(
                0.4 * stride * (0.7 * kept + 0.7 * smooth_noise(random, height, width, 3 * stride, 2))
            ).astype(int)
            for kept in shift
        ]
        seen = truth[(row + moved[0]).clip(0, height - 1), (column + moved[1]).clip(0, width - 1)]
        seen = np.pad(seen, ((0, high - height), (0, wide - width)), mode="edge")
        cells = (seen == np.arange(num_classes)[:, None, None]).reshape(
            num_classes, rows, stride, columns, stride
        )
        logits = margin * cells.mean((2, 4))
        logits += noise * (0.7 * lasting + 0.7 * random.standard_normal(shape))
        for blob, wrong in ((blobs, other[-1]), (smooth_noise(random, rows, columns, 4, 2), other[frame])):
            logits[wrong] += margin * 1.1 * (blob > np.quantile(blob, 1 - confusion / 2))
        # A cell's value lies at its middle: half a cell more on every side, to be cut off again.
        logits = np.pad(logits, ((0, 0), (1, 1), (1, 1)), mode="edge")
        down = interpolation((rows + 1) * stride + 1, rows + 2)[(stride + 1) // 2 :][:height]
        across = interpolation((columns + 1) * stride + 1, columns + 2)[(stride + 1) // 2 :][:width]
        fine = np.moveaxis(down @ logits @ across.T, 0, -1)
        fine = np.exp(fine - fine.max(-1, keepdims=True))
        result[frame] = fine / fine.sum(-1, keepdims=True)
    return result.reshape(*labels.shape, num_classes)


def damaged_labels(labels: Array, flipped: float = 0.2, unknown: float = 0.5, seed: int = 0) -> Array:
    """Return the labels with a share unknown, -1, and a share of the others flipped to any other class.

    Args:
        labels: Any shape, 0 … K-1; K is one more than the largest.
        flipped: Share of the known labels that are wrong.
        unknown: Share of all labels that are -1.
        seed: Of the damage.
    """
    random = np.random.default_rng(seed)
    classes = int(labels.max(initial=0)) + 1
    wrong = (labels + random.integers(1, max(classes, 2), labels.shape)) % classes
    result = np.where(random.random(labels.shape) < flipped, wrong, labels)
    return np.where(random.random(labels.shape) < unknown, -1, result)
