"""How far the fast filters are from the exact Gaussian, and what that does to labels.

python benchmarks/accuracy.py            every table, some minutes
python benchmarks/accuracy.py --quick    the tables that the tests hold, under a minute
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable

import numpy as np
import torch

from hdcrf import ExactGaussian, TrilateralCRF, VideoCRF, build_filter, refine
from voxel import SparseTensor

try:
    from benchmarks.dense_oracle import DenseOracle
    from benchmarks.inputs import (
        PHOTOS,
        bilateral_cloud,
        machine_line,
        moving_window,
        network_probabilities,
        noisy_probabilities,
        photo,
    )
except ModuleNotFoundError:  # run as a script
    from dense_oracle import DenseOracle
    from inputs import (
        PHOTOS,
        bilateral_cloud,
        machine_line,
        moving_window,
        network_probabilities,
        noisy_probabilities,
        photo,
    )

DIALS = ((1, 0), (2, 2), (3, 3))
NORMALIZATIONS = ("none", "before", "after", "symmetric")
SIGMA_XY, SIGMA_RGB = 20.0, 13.0


def random_values(points: int, kind: str = "uniform") -> torch.Tensor:
    """Return (N, 4) values to filter: "uniform" in [0, 1], or "one-hot" random labels."""
    generator = torch.Generator().manual_seed(0)
    if kind == "uniform":
        return torch.rand(points, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (points,), generator=generator)
    return torch.nn.functional.one_hot(labels, 4).double()


def relative_errors(
    features: torch.Tensor, values: torch.Tensor, method: str, dials: Iterable[tuple[int, int]] = DIALS
) -> dict[tuple[int, int], dict[str, float]]:
    """Return the relative L2 error of each normalisation at each (order, halo)."""
    exact = ExactGaussian(features)
    expected = {name: exact.filter(values, normalization=name) for name in NORMALIZATIONS}
    errors = {}
    for order, halo in dials:
        operator = build_filter(features, method=method, order=order, halo=halo)
        errors[order, halo] = {
            name: float((operator.filter(values, normalization=name) - target).norm() / target.norm())
            for name, target in expected.items()
        }
    return errors


def uniform_cloud(points: int, dimension: int, width: float) -> torch.Tensor:
    """Return points uniform in a box `width` standard deviations wide, (N, d) float64."""
    generator = torch.Generator().manual_seed(dimension)
    return torch.rand(points, dimension, generator=generator, dtype=torch.float64) * width


def calibration_ratio(features: torch.Tensor, method: str, order: int = 1, halo: int = 0) -> float:
    """Return the sum of all entries of K, over its exact value."""
    operator = build_filter(features, method=method, order=order, halo=halo)
    return float(operator.degree().sum() / ExactGaussian(features).degree().sum())


def video_disagreement(
    num_labels: int, method: str, dials: Iterable[tuple[int, int]], stride: int
) -> list[float]:
    """Return the shares of a small video's pixels whose label is not that of exact mean field, d = 6."""
    frames, height, width = 8, 24, 32
    window = moving_window(frames, height, width)
    colours = torch.from_numpy(photo("astronaut", 2 * height, 2 * width))[window].float()
    size = 2 * height, 2 * width
    probabilities = network_probabilities("astronaut", *size, num_labels, stride=stride)[window]
    t, y, x = torch.meshgrid(*(torch.arange(n).float() for n in (frames, height, width)), indexing="ij")
    place = torch.stack([x, y, t], -1).flatten(0, 2)
    appearance = torch.cat([place / torch.tensor([20.0, 20.0, 3.0]), colours.view(-1, 3) / 13], 1)
    apart = 1000.0  # frames do not see each other
    oracle = DenseOracle([(10, appearance), (3, place * torch.tensor([1 / 1.5, 1 / 1.5, apart]))])
    expected = oracle.mean_field(probabilities, 10, True).argmax(-1)
    logits = torch.from_numpy(probabilities).log().movedim(3, 0)[None]
    shares = []
    for order, halo in dials:
        crf = VideoCRF(
            num_labels, iterations=10, appearance_sigma_xy=20.0, smoothness_sigma=1.5,
            method=method, order=order, halo=halo, learn=(),
        )  # fmt: skip
        labels = crf(logits, colours.movedim(3, 0)[None])[0].argmax(0).numpy()
        shares.append(float((labels != expected).mean()))
    return shares


def voxel_disagreement(
    num_labels: int, method: str, dials: Iterable[tuple[int, int]], stride: int
) -> list[float]:
    """Return the shares of space-time voxels whose label is not that of exact mean field, d = 7."""
    frames, height, width = 8, 24, 32
    window = moving_window(frames, height, width)
    colours = torch.from_numpy(photo("astronaut", 2 * height, 2 * width))[window].float().view(-1, 3)
    size = 2 * height, 2 * width
    probabilities = network_probabilities("astronaut", *size, num_labels, stride=stride)[window]
    probabilities = probabilities.reshape(-1, num_labels)
    t, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, height, width)), indexing="ij")
    place = torch.stack([x, y, (x + y + 3 * t) // 4, t], -1).flatten(0, 2)  # a tilted plane that moves
    appearance = torch.cat([place / torch.tensor([20.0, 20.0, 20.0, 3.0]), colours / 13], 1)
    expected = DenseOracle([(10, appearance)]).mean_field(probabilities, 10, True).argmax(-1)
    voxels = SparseTensor(torch.nn.functional.pad(place, (1, 0)), colours)
    logits = voxels.replace(torch.from_numpy(probabilities).log())
    shares = []
    for order, halo in dials:
        crf = TrilateralCRF(
            num_labels, iterations=10, sigma_xyz=20.0, sigma_t=3.0, sigma_rgb=13.0,
            method=method, order=order, halo=halo, learn=(),
        )  # fmt: skip
        labels = crf(logits, voxels).features.argmax(1).numpy()
        shares.append(float((labels != expected).mean()))
    return shares


UNARIES = {
    "network, confident": lambda name, k: network_probabilities(name, 120, 160, k, stride=4, margin=10),
    "network, less confident": lambda name, k: network_probabilities(name, 120, 160, k, stride=4, margin=6),
    "network, coarse": lambda name, k: network_probabilities(name, 120, 160, k, stride=8, margin=8),
    "noise in each pixel": lambda name, k: noisy_probabilities(photo(name, 120, 160), k),
}


def label_disagreement(
    oracle: DenseOracle,
    image: np.ndarray,
    probabilities: np.ndarray,
    dials: Iterable[tuple[int, int]],
    *,
    exclude_self: bool,
    method: str = "permutohedral",
) -> list[float]:
    """Return the shares of pixels whose label after ten iterations is not that of exact mean field."""
    expected = oracle.mean_field(probabilities, 10, exclude_self).argmax(2)
    options = {"probabilities": probabilities, "exclude_self": exclude_self, "method": method}
    return [
        float((refine(image, order=order, halo=halo, **options) != expected).mean()) for order, halo in dials
    ]


def print_photo_table(quick: bool) -> None:
    print(f"\nRelative L2 error on photos at 96x128, d = 5, sigmas {SIGMA_XY:g} px and {SIGMA_RGB:g}/255\n")
    print("| photo | values | method | order, halo | vertices | none | before | after | symmetric |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in PHOTOS[:1] if quick else PHOTOS:
        features = bilateral_cloud(name, 96, 128, SIGMA_XY, SIGMA_RGB)
        for kind in ("uniform",) if quick else ("uniform", "one-hot"):
            values = random_values(len(features), kind)
            for method in ("permutohedral", "voxel"):
                for (order, halo), error in relative_errors(features, values, method).items():
                    operator = build_filter(features, method=method, order=order, halo=halo)
                    errors = " | ".join(f"{error[n]:.4f}" for n in NORMALIZATIONS)
                    vertices = f"{operator.num_vertices:,}"
                    print(
                        f"| {name} | {kind} | {method} | {order}, {halo} | {vertices} | {errors} |",
                        flush=True,
                    )


def print_dimension_table() -> None:
    print("\nUniform clouds of 3,000 points, 4 standard deviations wide, in d dimensions")
    print("(ratio: sum of all entries of K over its exact value; error: relative L2, uniform values)\n")
    print("| d | method | order, halo | vertices | ratio | none | after | symmetric |")
    print("|---|---|---|---|---|---|---|---|")
    for dimension in (1, 2, 3, 5, 7, 9, 12):
        features = uniform_cloud(3000, dimension, 4.0)
        values = random_values(len(features))
        for method in ("permutohedral", "voxel"):
            nearest = method == "voxel" and dimension > 6
            dials = ((1, 0), (2, 0), (3, 0)) if nearest else ((1, 0), (1, 1), (2, 1))
            for order, halo in dials:
                if halo and dimension > 7:
                    continue
                error = relative_errors(features, values, method, [(order, halo)])[order, halo]
                operator = build_filter(features, method=method, order=order, halo=halo)
                ratio = calibration_ratio(features, method, order, halo)
                print(
                    f"| {dimension} | {method} | {order}, {halo} | {operator.num_vertices:,} | {ratio:.3f} | "
                    f"{error['none']:.4f} | {error['after']:.4f} | {error['symmetric']:.4f} |",
                    flush=True,
                )


def print_calibration_table() -> None:
    print("\nCalibration: sum of all entries of K over its exact value, order 1, halo 0, 4,000 points\n")
    print("| d | box 1σ wide | 2σ | 4σ | 6σ |")
    print("|---|---|---|---|---|")
    for dimension in (1, 2, 3, 5):
        ratios = [
            calibration_ratio(uniform_cloud(4000, dimension, width), "permutohedral")
            for width in (1.0, 2.0, 4.0, 6.0)
        ]
        print(f"| {dimension} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |", flush=True)


def print_label_table(quick: bool) -> None:
    print("\nPixels whose label differs from mean field on the exact dense matrix")
    print("(120x160, 10 iterations, default parameters; columns: order, halo)\n")
    print("| photo | probabilities | labels | method | self term | 1, 0 | 2, 2 | 3, 3 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in PHOTOS[:1]:
        image = photo(name, 120, 160)
        oracle = DenseOracle.of_photo(image)
        for kind, make in list(UNARIES.items())[: 1 if quick else None]:
            for num_labels in (2, 5):
                probabilities = make(name, num_labels)
                for method in ("permutohedral",) if quick else ("permutohedral", "voxel"):
                    for out in (True, False) if quick or method == "permutohedral" else (True,):
                        shares = label_disagreement(
                            oracle, image, probabilities, DIALS, exclude_self=out, method=method
                        )
                        cells = " | ".join(f"{share:.3%}" for share in shares)
                        term = "out" if out else "in"
                        print(f"| {name} | {kind} | {num_labels} | {method} | {term} | {cells} |", flush=True)


def print_higher_table() -> None:
    print("\nThe same in 6 and 7 dimensions: a window that moves over the photo, 8 frames of 24x32")
    print(
        "(sigmas 20 px, 3 frames, 13/255; in 6D also smoothness within frames, 1.5 px; columns: order, halo;"
    )
    print("nearest cubes, beyond 6 dimensions, take no halo)\n")
    print("| input | network's stride | labels | method | 1, 0 | 2, 2 | 3, 3 |")
    print("|---|---|---|---|---|---|---|")
    for name, disagreement in (("video, 6D", video_disagreement), ("voxels, 7D", voxel_disagreement)):
        for stride, num_labels in itertools.product((2, 4), (2, 5)):
            for method in ("permutohedral", "voxel"):
                nearest = method == "voxel" and disagreement is voxel_disagreement
                dials = [(order, 0 if nearest else halo) for order, halo in DIALS]
                shares = disagreement(num_labels, method, dials, stride)
                cells = " | ".join(f"{share:.3%}" for share in shares)
                print(f"| {name} | {stride} | {num_labels} | {method} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the tables that the tests hold")
    quick = parser.parse_args().quick
    print(machine_line())
    print_photo_table(quick)
    print_calibration_table()
    if not quick:
        print_dimension_table()
    print_label_table(quick)
    print_higher_table()


if __name__ == "__main__":
    main()
