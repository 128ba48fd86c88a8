"""One script for pydensecrf, run with pydensecrf and with hdcrf.compat in its place, in one process.

    python benchmarks/drop_in.py            the table, some minutes
    python benchmarks/drop_in.py --quick    fewer repetitions, smaller inputs

Runs alternate, figures are medians. Before any time is printed, labels and marginals are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch

import hdcrf.compat.densecrf
import hdcrf.compat.utils

try:
    from benchmarks.inputs import alternate, machine_line, network_probabilities, photo, scanned_room
except ModuleNotFoundError:  # run as a script
    from inputs import alternate, machine_line, network_probabilities, photo, scanned_room

LEAST_AGREEMENT, MOST_APART, MOST_APART_ON_AVERAGE = 0.999, 1e-4, 1e-6

Script = Callable[[ModuleType, ModuleType], np.ndarray]


def picture(height: int, width: int, labels: int, iterations: int) -> Script:
    """Return the script of pydensecrf's own example, for a photo."""
    image = photo("astronaut", height, width)
    softmax = np.ascontiguousarray(
        network_probabilities("astronaut", height, width, labels).transpose(2, 0, 1)
    )

    def script(densecrf: ModuleType, utils: ModuleType) -> np.ndarray:
        crf = densecrf.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy(utils.unary_from_softmax(softmax))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
        return np.array(crf.inference(iterations))

    return script


def steps(height: int, width: int, labels: int, iterations: int) -> Script:
    """Return a script that goes step by step and looks at the divergence, with a compatibility matrix."""
    image = photo("astronaut", height, width)
    softmax = np.ascontiguousarray(
        network_probabilities("astronaut", height, width, labels).transpose(2, 0, 1)
    )
    costs = (1 - np.eye(labels, dtype=np.float32)) * 10

    def script(densecrf: ModuleType, utils: ModuleType) -> np.ndarray:
        crf = densecrf.DenseCRF(height * width, labels)
        crf.setUnaryEnergy(utils.unary_from_softmax(softmax))
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((3, 3), (height, width)), compat=3)
        features = utils.create_pairwise_bilateral((80, 80), (13, 13, 13), image, chdim=2)
        crf.addPairwiseEnergy(features, compat=costs)
        marginals, first, second = crf.startInference()
        for _ in range(iterations):
            crf.stepInference(marginals, first, second)
            crf.klDivergence(marginals)
        return np.array(marginals)

    return script


def points(count: int, labels: int, iterations: int) -> Script:
    """Return a script for the points of a scanned room, whose features have 6 dimensions."""
    features = np.ascontiguousarray(scanned_room(count).numpy().T)
    random = np.random.default_rng(0)
    unary = random.normal(0, 2, (labels, count)).astype(np.float32)

    def script(densecrf: ModuleType, utils: ModuleType) -> np.ndarray:
        crf = densecrf.DenseCRF(count, labels)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseEnergy(features, compat=10)
        return np.array(crf.inference(iterations))

    return script


def print_table(scripts: dict[str, Script], rounds: int) -> None:
    import pydensecrf.densecrf
    import pydensecrf.utils

    peer, own = (pydensecrf.densecrf, pydensecrf.utils), (hdcrf.compat.densecrf, hdcrf.compat.utils)
    print("\nThe same script, milliseconds, whole; marginals apart: the most, and on average\n")
    print("| script | threads | hdcrf.compat | pydensecrf | ratio | labels agree | marginals apart |")
    print("|---|---|---|---|---|---|---|")
    for name, script in scripts.items():
        expected, result = script(*peer), script(*own)
        agreement = float((expected.argmax(0) == result.argmax(0)).mean())
        apart = np.abs(expected - result)
        beyond = apart.max() > MOST_APART or apart.mean() > MOST_APART_ON_AVERAGE
        if agreement < LEAST_AGREEMENT or beyond:
            raise SystemExit(
                f"{name}: labels agree on {agreement:.2%}, marginals differ by {apart.max():.2g}, on average "
                f"by {apart.mean():.2g}"
            )
        for threads in (2, 1):
            torch.set_num_threads(threads)
            calls = {"own": lambda s=script: s(*own), "peer": lambda s=script: s(*peer)}
            ours, theirs = (1000 * seconds for seconds in alternate(calls, rounds).values())
            print(
                f"| {name} | {threads} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} | {agreement:.2%} | "
                f"{apart.max():.0e}, {apart.mean():.0e} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller inputs")
    arguments = parser.parse_args()
    try:
        import pydensecrf  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit('the peer is missing: pip install "hdcrf[bench]"') from None
    size, cloud = ((120, 160), 20_000) if arguments.quick else ((375, 500), 400_000)
    shown = f"{size[0]}x{size[1]}"
    print(machine_line())
    print_table(
        {f"{shown}, {labels} labels, 10 iterations": picture(*size, labels, 10) for labels in (21, 5, 2)}
        | {f"{shown}, 5 labels, 10 steps and divergences, a matrix": steps(*size, 5, 10)}
        | {f"room, {cloud:,} points, 13 labels, 5 iterations": points(cloud, 13, 5)},
        3 if arguments.quick else 7,
    )


if __name__ == "__main__":
    main()
