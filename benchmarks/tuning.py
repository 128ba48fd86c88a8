"""What tuning gains: mean IoU unrefined, with the defaults, and tuned by either method.

    python benchmarks/tuning.py            three kinds of noise, three seeds, some minutes
    python benchmarks/tuning.py --quick    one seed and a few trials, half a minute

Makes folders of crops of scikit-image's photos, with labels and with predictions that are wrong in known
ways, and runs `hdcrf tune` on them. Needs the extras tune and bench.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import transform

try:
    from benchmarks.inputs import PHOTOS, machine_line, photo, regions
except ModuleNotFoundError:  # run as a script
    from inputs import PHOTOS, machine_line, photo, regions

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


def scores_of(report: str) -> dict[str, list[float]]:
    """Return the mean IoU on the images searched and held back, in percent, of each row that was printed."""
    rows = re.findall(
        r"^(unrefined|defaults|tuned) +([\d.]+) +[\d.]+ +([\d.]+) +[\d.]+$", report, re.MULTILINE
    )
    return {name: [float(searched), float(held)] for name, searched, held in rows}


def tuned(folder: Path, folders: tuple[Path, Path, Path], method: str, trials: int) -> tuple[str, float]:
    """Return what `hdcrf tune` prints, and the seconds that it took."""
    images, predictions, truths = map(str, folders)
    began = time.perf_counter()
    arguments = [images, predictions, "--ground-truth", truths, "-o", str(folder / "params.toml")]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "hdcrf", "tune", *arguments),
            *("--method", method, "--trials", str(trials), "--threads", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12, help="crops in a folder (12)")
    parser.add_argument("--seeds", type=int, default=3, help="folders of each kind of noise (3)")
    parser.add_argument("--trials", type=int, default=40, help="trials by Optuna (40)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of gradient descent (8)")
    parser.add_argument("--quick", action="store_true", help="a few trials on few images")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.seeds, arguments.trials, arguments.epochs = 8, 1, 15, 4
    print(machine_line())
    print(
        f"\nMean IoU in percent on the images searched and on those held back, mean and sample standard "
        f"deviation over {arguments.seeds} folders of {arguments.images} crops of {WIDTH} x {HEIGHT}\n"
    )
    print("| noise | | searched | held back | held back, above defaults, by folder | seconds |")
    print("|---|---|---|---|---|---|")
    for noise in NOISES:
        found: dict[str, list[list[float]]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                folders = make_folders(folder, arguments.images, noise, seed)
                for method, trials in (("optuna", arguments.trials), ("gradient", arguments.epochs)):
                    report, taken = tuned(folder, folders, method, trials)
                    scores = scores_of(report)
                    tuned_name = f"tuned, {method}, {trials} {'trials' if method == 'optuna' else 'epochs'}"
                    seconds.setdefault(tuned_name, []).append(taken)
                    found.setdefault(tuned_name, []).append(scores["tuned"])
                    if method == "optuna":
                        for row in ("unrefined", "defaults"):
                            found.setdefault(row, []).append(scores[row])
        for row in sorted(found, key=lambda row: (row.startswith("tuned"), row == "defaults")):
            searched, held = zip(*found[row], strict=True)
            gains = [b - a for (_, a), (_, b) in zip(found["defaults"], found[row], strict=True)]
            above = ", ".join(f"{gain:+.1f}" for gain in gains) if row != "defaults" else ""
            taken = f"{statistics.fmean(seconds[row]):.0f}" if row in seconds else ""
            print(
                f"| {noise} | {row} | {spread(searched)} | {spread(held)} | {above} | {taken} |", flush=True
            )


def spread(values: tuple[float, ...]) -> str:
    """Return the mean, and the sample standard deviation if there is one."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
