"""What tuning gains: mean IoU unrefined, with the defaults, and tuned by either method.

    python benchmarks/tuning.py            three kinds of noise, three seeds, some minutes
    python benchmarks/tuning.py --quick    one seed and a few trials, half a minute

Makes folders of crops of scikit-image's photos, with labels and with predictions that are wrong in known
ways, and runs `hdcrf tune` on them. All crops of a photo are searched on, or all are held back; which photos
are, each seed draws anew. Needs the extras tune and bench.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image
from skimage import transform

from hdcrf.commands.main import commands

try:
    from benchmarks.inputs import machine_line, photo, regions
except ModuleNotFoundError:  # run as a script
    from inputs import machine_line, photo, regions

# Of things of all sizes, and in the wheel of scikit-image.
PHOTOS = (
    *("astronaut", "camera", "chelsea", "coffee"),
    *("coins", "immunohistochemistry", "retina", "rocket"),
)
HEIGHT, WIDTH, LABELS = 96, 128, 4
NOISES = ("pixels", "borders", "both")
ROWS = ("unrefined", "defaults", "tuned")


def photo_of(index: int) -> str:
    """Return the name of the photo that a crop is from: they come in turns."""
    return PHOTOS[index % len(PHOTOS)]


def crops(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return photos (H, W, 3) and labels (H, W) of as many crops."""
    random = np.random.default_rng(seed)
    made = []
    for name in map(photo_of, range(count)):
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
    """Write images, predictions and true labels, each named for its photo; return their folders."""
    random = np.random.default_rng(1000 + seed)
    images, predictions, truths = (folder / name for name in ("images", "predictions", "truth"))
    for path in (images, predictions, truths):
        path.mkdir(parents=True)
    for index, (picture, labels) in enumerate(crops(count, seed)):
        name = f"{photo_of(index)}_{index}"
        Image.fromarray(picture).save(images / f"{name}.png")
        Image.fromarray(labels.astype(np.uint8)).save(truths / f"{name}.png")
        np.save(predictions / f"{name}.npy", predicted(labels, noise, random))
    return images, predictions, truths


def scores_of(report: str) -> dict[str, list[float]]:
    """Return the mean IoU on the images searched and held back, in percent, of each row that was printed."""
    rows = re.findall(rf"^({'|'.join(ROWS)}) +([\d.]+) +[\d.]+ +([\d.]+) +[\d.]+$", report, re.MULTILINE)
    return {name: [float(searched), float(held)] for name, searched, held in rows}


def tuned(folders: tuple[Path, Path, Path], method: str, trials: int, seed: int) -> dict[str, list[float]]:
    """Return the scores that `hdcrf tune` prints."""
    images, predictions, truths = map(str, folders)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [images, predictions, "--ground-truth", truths, "-o", f"{folder}/params.toml"]
        arguments += ["--groups", "(.+)_", "--method", method, "--trials", str(trials), "--seed", str(seed)]
        result = CliRunner().invoke(commands, ["tune", *arguments, "--threads", "1"])
    if result.exit_code:
        raise RuntimeError(result.output)
    return scores_of(result.stdout)


def measured(
    noise: str, images: int, seeds: int, methods: Sequence[tuple[str, int, str]]
) -> Iterator[tuple[str, list[list[float]], list[float]]]:
    """Yield for each way its name, the scores of each seed's folder, and what is held back of the defaults.

    Args:
        noise: Of the predictions.
        images: How many a folder has.
        seeds: How many folders there are.
        methods: For each its name, how many trials, and what one is called.
    """
    found: list[list[dict[str, list[float]]]] = [[] for _ in methods]
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            folders = make_folders(Path(folder), images, noise, seed)
            for (method, trials, _), scores in zip(methods, found, strict=True):
                scores.append(tuned(folders, method, trials, seed))
    before = [each["defaults"][1] for each in found[0]]
    for row in ("unrefined", "defaults"):
        yield row, [each[row] for each in found[0]], before
    for (method, trials, noun), scores in zip(methods, found, strict=True):
        yield f"tuned, {method}, {trials} {noun}", [each["tuned"] for each in scores], before


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the sample standard deviation if there is one."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16, help="crops in a folder (16)")
    parser.add_argument("--seeds", type=int, default=3, help="folders of each kind of noise (3)")
    parser.add_argument("--trials", type=int, default=40, help="trials by Optuna (40)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of gradient descent (8)")
    parser.add_argument("--quick", action="store_true", help="a few trials on few images")
    given = parser.parse_args()
    if given.quick:
        given.images, given.seeds, given.trials, given.epochs = 8, 1, 15, 4
    began = time.perf_counter()
    print(machine_line())
    print(
        f"\nMean IoU in percent on the images searched and on those held back, mean and sample standard "
        f"deviation over {given.seeds} folders of {given.images} crops of {WIDTH} x {HEIGHT}\n"
    )
    print("| noise | | searched | held back | held back, above defaults, by folder |")
    print("|---|---|---|---|---|")
    methods = (("optuna", given.trials, "trials"), ("gradient", given.epochs, "epochs"))
    for noise in NOISES:
        for row, scores, before in measured(noise, given.images, given.seeds, methods):
            searched, held = zip(*scores, strict=True)
            gains = [f"{after - of_defaults:+.1f}" for after, of_defaults in zip(held, before, strict=True)]
            above = "" if row == "defaults" else ", ".join(gains)
            print(f"| {noise} | {row} | {spread(searched)} | {spread(held)} | {above} |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
