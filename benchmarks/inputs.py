"""What benchmarks and tests share: photos from scikit-image's wheel, what we make of them, and a clock."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from skimage import data, transform

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@cache
def photo(name: str, height: int, width: int) -> np.ndarray:
    """Return one of scikit-image's photos at another size, (H, W, 3) uint8; a grey one three times."""
    resized = transform.resize(getattr(data, name)(), (height, width), anti_aliasing=True)
    picture = np.round(resized * 255).astype(np.uint8)
    return np.repeat(picture[:, :, None], 3, 2) if picture.ndim == 2 else picture


def bilateral_cloud(name: str, height: int, width: int, sigma_xy: float, sigma_rgb: float) -> torch.Tensor:
    """Return the 5D bilateral features of a photo, (H·W, 5) float64; sigma_rgb on the scale 0 to 255."""
    from hdcrf import bilateral_features

    image = torch.from_numpy(photo(name, height, width).astype(np.float64)).permute(2, 0, 1)
    return bilateral_features(image[None], sigma_xy, sigma_rgb)


def noisy_probabilities(image: np.ndarray, num_labels: int, seed: int = 0) -> np.ndarray:
    """Return probabilities (H, W, K) float32 of a classifier that is often wrong.

    The true label of a pixel is the band of brightness that it falls in, after a little smoothing; the
    classifier sees its logit raised by 2, under standard normal noise in each label.
    """
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    brightness = gaussian_filter(image.mean(2), 2)
    bands = np.quantile(brightness, np.linspace(0, 1, num_labels + 1)[1:-1])
    truth = np.digitize(brightness, bands)
    logits = random.standard_normal((*truth.shape, num_labels), dtype=np.float32)
    logits += 2 * (truth[:, :, None] == np.arange(num_labels))
    exponentials = np.exp(logits - logits.max(2, keepdims=True))
    return exponentials / exponentials.sum(2, keepdims=True)


@cache
def regions(name: str, height: int, width: int, num_labels: int) -> np.ndarray:
    """Return a labelling (H, W) of a photo into regions of like colour: k-means over superpixels."""
    from skimage import segmentation

    image = photo(name, height, width)
    superpixel = segmentation.slic(image, n_segments=60, compactness=10, start_label=0)
    colours = np.stack([image[superpixel == s].mean(0) for s in range(superpixel.max() + 1)])
    centres = colours[np.linspace(0, len(colours) - 1, num_labels).astype(int)]
    for _ in range(20):
        nearest = ((colours[:, None] - centres) ** 2).sum(2).argmin(1)
        chosen = [colours[nearest == k] for k in range(num_labels)]
        centres = np.stack([c.mean(0) if len(c) else old for c, old in zip(chosen, centres, strict=True)])
    return nearest[superpixel]


def network_probabilities(
    name: str,
    height: int,
    width: int,
    num_labels: int,
    *,
    stride: int = 4,
    margin: float = 10.0,
    noise: float = 1.0,
) -> np.ndarray:
    """Return probabilities (H, W, K) float32 as a segmentation network might give them for a photo.

    The regions of the photo at 1/stride of the resolution, as logits `margin` above the others, under normal
    noise, and interpolated to full resolution: right inside, blurred and displaced along the borders.
    """
    truth = regions(name, height, width, num_labels)
    return blurred_probabilities(truth, num_labels, stride=stride, margin=margin, noise=noise)


def blurred_probabilities(
    truth: np.ndarray,
    num_labels: int,
    *,
    stride: int = 4,
    margin: float = 10.0,
    noise: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Return what `network_probabilities` does, for labels (H, W)."""
    height, width = truth.shape
    one_hot = (truth[:, :, None] == np.arange(num_labels)).astype(np.float64)
    low = transform.resize(one_hot, (height // stride, width // stride, num_labels), anti_aliasing=True)
    random = np.random.default_rng(seed)
    logits = transform.resize(
        margin * low + noise * random.standard_normal(low.shape), one_hot.shape, order=1
    )
    exponentials = np.exp(logits - logits.max(2, keepdims=True))
    return (exponentials / exponentials.sum(2, keepdims=True)).astype(np.float32)


def moving_window(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and columns (frames, H, W) of a window that moves over a picture (2H, 2W)."""
    t, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, height, width)), indexing="ij")
    return y + t * height // frames, x + t * width // frames


def moving_crop(frames: int, height: int, width: int, *, depth: bool) -> torch.Tensor:
    """Return the features of a video, a window that moves over a photo: (frames·H·W, 6), or 7 with a depth.

    Position with sigma 20 pixels, time with 5 frames, colour with 13 of 255; the depth is a tilted plane.
    """
    still = torch.from_numpy(photo("astronaut", 2 * height, 2 * width).astype(np.float32))
    t, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, height, width)), indexing="ij")
    colour = still[moving_window(frames, height, width)] / 13
    axes = [x / 20, y / 20, t / 5, *colour.unbind(3)]
    if depth:
        axes.insert(3, (x + y + 3 * t) / 40)
    # One contiguous row a feature, as the lifts make them.
    return torch.stack([axis.float().flatten() for axis in axes]).T


def scanned_room(points: int) -> torch.Tensor:
    """Return the features (N, 6) of a point cloud: walls, floor and boxes of a room, with noisy colours.

    Position with sigma 8 cm, colour with 13 of 255; some 700,000 lattice vertices for 400,000 points.
    """
    random = np.random.default_rng(0)
    surfaces = []
    room = np.array([6.0, 4.0, 2.5])
    boxes = [(np.zeros(3), room)]
    for _ in range(12):
        size = random.uniform(0.3, 1.2, 3)
        corner = random.uniform(0, 1, 3) * (room - size) * (1, 1, 0)
        boxes.append((corner, size))
    areas = np.array([size[[1, 2, 0]] * size[[2, 0, 1]] for _, size in boxes])
    counts = random.multinomial(points, (areas / areas.sum()).ravel()).reshape(areas.shape)
    for (corner, size), of_axes in zip(boxes, counts, strict=True):
        colour = random.uniform(40, 215, 3)
        for axis, count in enumerate(of_axes):
            place = random.uniform(0, 1, (count, 3))
            place[:, axis] = random.integers(0, 2, count)
            position = corner + place * size + random.normal(0, 0.005, (count, 3))
            shade = colour * (0.7 + 0.15 * axis) + random.normal(0, 7, (count, 3))
            surfaces.append(np.hstack([position / 0.08, shade / 13]))
    features = torch.from_numpy(np.concatenate(surfaces).astype(np.float32))
    return features.T.contiguous().T


def machine_line() -> str:
    """Describe the machine that the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        processor = names[0] if names else processor
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"{processor}, {os.cpu_count()} cores; {platform.system()} {platform.machine()}; "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
        + "".join(f"; {d}" for d in devices)
    )


def alternate(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each function, run in turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
