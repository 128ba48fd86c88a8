"""A folder of photos with predictions: `hdcrf batch` on two workers against a loop over pydensecrf.

    python benchmarks/folders.py                200 photos with 5 labels, three alternating runs, ten minutes
    python benchmarks/folders.py --labels 2     masks
    python benchmarks/folders.py --images 40 --rounds 1

The photos are crops of scikit-image's, the predictions a network's as `benchmarks/inputs.py` makes them from
known labels, and three of the files are damaged. Both read the same files, compute with the same parameters
(10 iterations; Gaussian sigma 3, weight 3; bilateral 80 and 13, weight 10; symmetric normalisation, self term
left in) and write the same kind of PNG. The loop is what users write, on one CPU; beside it stand two such
loops in two processes, half of the images each. Then a run is killed half-way and started again.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

try:
    from benchmarks.inputs import PHOTOS, blurred_probabilities, machine_line, photo, regions
except ModuleNotFoundError:  # run as a script
    from inputs import PHOTOS, blurred_probabilities, machine_line, photo, regions

ROOT = Path(__file__).parents[1]
SIZES = ((240, 320), (300, 400), (320, 480), (375, 500))
WHOLE = (480, 640)
DAMAGED = 3
MARGIN, NOISE = 4.0, 2.0  # of the logits: 9% of the pixels are wrong, with five labels
LEAST_AGREEMENT = 0.99


def make_inputs(folder: Path, count: int, labels: int) -> None:
    """Write images, predictions and ground truth of `count` crops, and those of three that are damaged."""
    for name in ("images", "predictions", "truth"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    for index in range(count + DAMAGED):
        name = PHOTOS[index % len(PHOTOS)]
        height, width = SIZES[index // len(PHOTOS) % len(SIZES)]
        top, left = (int(random.integers(0, most + 1)) for most in (WHOLE[0] - height, WHOLE[1] - width))
        crop = np.s_[top : top + height, left : left + width]
        truth = regions(name, *WHOLE, labels)[crop]
        stem = f"{name}_{index}"
        Image.fromarray(np.ascontiguousarray(photo(name, *WHOLE)[crop])).save(
            folder / "images" / f"{stem}.jpg", quality=95
        )
        predicted = blurred_probabilities(truth, labels, margin=MARGIN, noise=NOISE, seed=index)
        np.save(folder / "predictions" / f"{stem}.npy", predicted)
        Image.fromarray(truth.astype(np.uint8)).save(folder / "truth" / f"{stem}.png")
    stems = [f"{PHOTOS[index % len(PHOTOS)]}_{index}" for index in range(count, count + DAMAGED)]
    damage(folder, stems, labels)


def damage(folder: Path, stems: list[str], labels: int) -> None:
    """Cut an image and a prediction off, and save another in the wrong size."""
    for path in (folder / "images" / f"{stems[0]}.jpg", folder / "predictions" / f"{stems[1]}.npy"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    np.save(folder / "predictions" / f"{stems[2]}.npy", np.full((24, 32, labels), 1 / labels, np.float32))


def command(folder: Path, output: str, workers: int = 2) -> list[str]:
    words = f"batch images predictions -o {output} --workers {workers} --include-self --restart"
    return [sys.executable, "-m", "hdcrf", *words.split()]


def environment() -> dict[str, str]:
    """Return what a user's shell has, and where this project is."""
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return own | {"PYTHONPATH": os.pathsep.join(paths)}


def timed(words: list[str], folder: Path, code: int) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed."""
    began = time.perf_counter()
    result = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if result.returncode != code:
        raise SystemExit(f"exit code {result.returncode} instead of {code} of {words}:\n{result.stderr}")
    return seconds, result.stdout


def ours(folder: Path, workers: int) -> tuple[float, float]:
    """Return the seconds of the command, and those of them from the first image on."""
    whole, printed = timed(command(folder, f"ours{workers}", workers), folder, 1)
    found = re.search(r"^([0-9.]+) s,", printed, re.MULTILINE)
    if found is None:
        raise SystemExit(f"no time in:\n{printed}")
    return whole, float(found[1])


def theirs(folder: Path, processes: int = 1) -> tuple[float, float]:
    """Return the seconds of a loop over pydensecrf, or of several over a part of the images each.

    That is the seconds whole, and without start-up.
    """
    (folder / "theirs").mkdir(exist_ok=True)
    words = [sys.executable, str(ROOT / "benchmarks" / "peer.py"), "images", "predictions", "theirs"]
    began = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        parts = [
            pool.submit(timed, [*words, str(part), str(processes)], folder, 0) for part in range(processes)
        ]
        loops = [float(part.result()[1].split()[1]) for part in parts]
    return time.perf_counter() - began, max(loops)


def compare(folder: Path, count: int) -> float:
    """Return the share of all pixels on whose label the two agree."""
    same, pixels = 0, 0
    paths = sorted((folder / "theirs").iterdir())
    if [path.name for path in paths] != sorted(path.name for path in (folder / "ours2").glob("*.png")):
        raise SystemExit("the two did not do the same images")
    if len(paths) != count:
        raise SystemExit(f"{len(paths)} images came through, of {count}")
    for path in paths:
        own, other = (np.asarray(Image.open(each)) for each in (folder / "ours2" / path.name, path))
        same += int((own == other).sum())
        pixels += own.size
    return same / pixels


def print_speed(folder: Path, count: int, labels: int, rounds: int) -> None:
    peers = ("pydensecrf", "pydensecrf, two processes")
    runs: dict[str, list[tuple[float, float]]] = {"two workers": [], "one worker": []}
    runs |= {name: [] for name in peers}
    for _ in range(rounds):
        runs["two workers"].append(ours(folder, 2))
        runs[peers[0]].append(theirs(folder))
        runs["one worker"].append(ours(folder, 1))
        runs[peers[1]].append(theirs(folder, 2))
    agreement = compare(folder, count)
    if agreement < LEAST_AGREEMENT:
        raise SystemExit(f"labels agree on {agreement:.2%} only; no times for a wrong result")
    rates = {
        name: [count / statistics.median(run[part] for run in of) for part in (0, 1)]
        for name, of in runs.items()
    }
    print(f"\n{count} photos, {labels} labels, {rounds} alternating runs, medians; images a second\n")
    print("| | whole command | without start-up |\n|---|---|---|")
    for name, (whole, loop) in rates.items():
        print(f"| {name} | {whole:.2f} | {loop:.2f} |")
    for name in (*peers, "one worker"):
        ratios = [rates["two workers"][part] / rates[name][part] for part in (0, 1)]
        print(f"| two workers / {name} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"\nLabels agree on {agreement:.3%} of the pixels.", flush=True)


def print_resumed(folder: Path, count: int) -> None:
    """Kill a run half-way, start it again, and check what is there."""
    output = folder / "killed"
    words = [word for word in command(folder, "killed") if word != "--restart"]
    process = subprocess.Popen(
        words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    manifest = output / "hdcrf-batch.jsonl"
    while process.poll() is None and (not manifest.exists() or finished(manifest) < count // 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = finished(manifest)
    for path in output.glob("*.png"):
        Image.open(path).load()  # raises if it is broken
    _, printed = timed(words, folder, 1)
    whole = {path.name: path.read_bytes() for path in (folder / "ours2").glob("*.png")}
    resumed = {path.name: path.read_bytes() for path in output.glob("*.png")}
    left = [path.name for path in output.iterdir() if path.name.startswith(".")]
    print(f"\nKilled after {kept} of {count} photos. Then: {printed.splitlines()[0].split(': ')[1]}.")
    checks = {
        "it was killed half-way": count // 2 <= kept < count,
        "what was finished is kept": f" and {kept} kept" in printed,
        "all images are there, the same as from a run without interruption": resumed == whole,
        "no temporary file is left": not left,
    }
    for check, passed in checks.items():
        print(f"- {check}: {'yes' if passed else 'NO'}")
    if not all(checks.values()):
        raise SystemExit("a check failed")


def finished(manifest: Path) -> int:
    return manifest.read_bytes().count(b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="how many photos")
    parser.add_argument("--labels", type=int, default=5, help="how many labels")
    parser.add_argument("--rounds", type=int, default=3, help="how many alternating runs")
    arguments = parser.parse_args()
    try:
        import pydensecrf  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit('the peer is missing: pip install "hdcrf[bench]"') from None
    print(machine_line())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, arguments.images, arguments.labels)
        print_speed(folder, arguments.images, arguments.labels, arguments.rounds)
        print_resumed(folder, arguments.images)


if __name__ == "__main__":
    main()
