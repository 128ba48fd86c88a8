"""Time against pydensecrf: the whole call, building the filter and ten iterations, in one process.

    python benchmarks/speed.py            every table, some minutes
    python benchmarks/speed.py --quick    fewer repetitions, smaller images

Both see the same photo, the same probabilities and the same parameters (Gaussian sigma 3, weight 3;
bilateral 80 and 13, weight 10; symmetric normalisation). pydensecrf leaves the self term in, so the
comparison does too; a row of its own shows what taking it out costs. Runs alternate, figures are medians.
Before any time is printed, the labels of both are compared.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import hdcrf

try:
    from benchmarks.inputs import machine_line, network_probabilities, photo
except ModuleNotFoundError:  # run as a script
    from inputs import machine_line, network_probabilities, photo

LEAST_AGREEMENT = 0.99


def ours(
    image: np.ndarray, probabilities: np.ndarray, iterations: int, exclude_self: bool = False
) -> np.ndarray:
    return hdcrf.refine(image, probabilities=probabilities, iterations=iterations, exclude_self=exclude_self)


def theirs(image: np.ndarray, probabilities: np.ndarray, iterations: int) -> np.ndarray:
    import pydensecrf.densecrf as densecrf

    height, width, labels = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    unary = -np.log(np.maximum(probabilities, 1e-6)).transpose(2, 0, 1).reshape(labels, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    marginals = np.array(crf.inference(iterations))
    return marginals.argmax(0).reshape(height, width)


def alternate(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each function, run in turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_memory(call: str, height: int, width: int, labels: int) -> float:
    """Return by how many MiB a call raises the peak memory of a fresh process that holds its inputs."""
    command = [sys.executable, __file__, "--memory-of", call, str(height), str(width), str(labels)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory_of(call: str, height: int, width: int, labels: int) -> None:
    image = photo("astronaut", height, width)
    probabilities = network_probabilities("astronaut", height, width, labels)
    small = photo("astronaut", 32, 32)
    function = ours if call == "ours" else theirs
    function(small, network_probabilities("astronaut", 32, 32, 2), 1)  # imports, and the threads' own memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The peak so far was reached while the inputs were made: fill up to it, so that any growth shows.
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize() // 1024
    filler = np.ones(max(0, before - resident) * 1024, dtype=np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function(image, probabilities, 10)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 1024)
    del filler


def print_comparison(rounds: int, memory: bool) -> None:
    print("\n375x500, 10 iterations, milliseconds\n")
    print("| labels | threads | whole call, ours | pydensecrf | ratio | build, ours | build, pydensecrf | "
          "ours without self term | labels agree |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    image = photo("astronaut", 375, 500)
    for labels in (21, 5, 2):
        probabilities = network_probabilities("astronaut", 375, 500, labels)
        agreement = (ours(image, probabilities, 10) == theirs(image, probabilities, 10)).mean()
        if agreement < LEAST_AGREEMENT:
            raise SystemExit(f"labels agree on {agreement:.2%} only; no times for a wrong result")
        for threads in (2, 1):
            torch.set_num_threads(threads)
            seconds = alternate(
                {
                    "ours": lambda p=probabilities: ours(image, p, 10),
                    "theirs": lambda p=probabilities: theirs(image, p, 10),
                    "our build": lambda p=probabilities: ours(image, p, 0),
                    "their build": lambda p=probabilities: theirs(image, p, 0),
                    "no self": lambda p=probabilities: ours(image, p, 10, exclude_self=True),
                },
                rounds,
            )
            own, peer, build, peer_build, no_self = (1000 * value for value in seconds.values())
            print(
                f"| {labels} | {threads} | {own:.0f} | {peer:.0f} | {peer / own:.2f} | {build:.0f} | "
                f"{peer_build:.0f} | {no_self:.0f} | {agreement:.2%} |",
                flush=True,
            )
    if memory:
        print("\nPeak memory of a call at 375x500, 10 iterations, MiB, inputs not counted\n")
        print("| labels | marginals (N, K) | ours | pydensecrf |")
        print("|---|---|---|---|")
        for labels in (21, 2):
            size = 375 * 500 * labels * 4 / 2**20
            own, peer = (peak_memory(call, 375, 500, labels) for call in ("ours", "theirs"))
            print(f"| {labels} | {size:.1f} | {own:.0f} | {peer:.0f} |", flush=True)


def print_growth(megapixels: list[float], rounds: int) -> None:
    torch.set_num_threads(2)
    print("\nGrowth with the image, 5 labels, 10 iterations, two threads, seconds\n")
    print("| megapixels | size | vertices | ours | pydensecrf | ratio |")
    print("|---|---|---|---|---|---|")
    points, times = [], []
    for size in megapixels:
        height = round(math.sqrt(size * 1e6 * 3 / 4))
        width = round(size * 1e6 / height)
        image = photo("astronaut", height, width)
        probabilities = network_probabilities("astronaut", height, width, 5)
        guide = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        lattice = hdcrf.build_filter(hdcrf.bilateral_features(guide, 80.0, 13.0))
        vertices = lattice.num_vertices
        del lattice
        seconds = alternate(
            {
                "ours": lambda i=image, p=probabilities: ours(i, p, 10),
                "theirs": lambda i=image, p=probabilities: theirs(i, p, 10),
            },
            rounds if size < 2 else 1,
        )
        points.append(height * width)
        own, peer = seconds["ours"], seconds["theirs"]
        times.append(own)
        print(
            f"| {size:g} | {height}x{width} | {vertices:,} | {own:.2f} | {peer:.2f} | {peer / own:.2f} |",
            flush=True,
        )
    exponent = np.polyfit(np.log(points), np.log(times), 1)[0]
    print(f"\nTime grows as pixels to the power of {exponent:.2f}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller images, no memory")
    parser.add_argument("--memory-of", nargs=4, metavar=("CALL", "H", "W", "K"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        call, *sizes = arguments.memory_of
        print_memory_of(call, *map(int, sizes))
        return
    try:
        import pydensecrf  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit('the peer is missing: pip install "hdcrf[bench]"') from None
    print(machine_line())
    print_comparison(3 if arguments.quick else 9, not arguments.quick)
    print_growth(
        [0.1, 0.5, 1] if arguments.quick else [0.1, 0.25, 0.5, 1, 2, 4, 8], 2 if arguments.quick else 5
    )


if __name__ == "__main__":
    main()
