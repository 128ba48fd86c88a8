"""How far the fast filters are from the exact Gaussian, and what that does to labels.

python benchmarks/accuracy.py            every table, some minutes
python benchmarks/accuracy.py --quick    the tables that the tests hold, under a minute
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np
import torch

from hdcrf import ExactGaussian, build_filter, refine

try:
    from benchmarks.dense_oracle import DenseOracle
    from benchmarks.inputs import (
        PHOTOS,
        bilateral_cloud,
        machine_line,
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
        oracle = DenseOracle(image)
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


if __name__ == "__main__":
    main()
