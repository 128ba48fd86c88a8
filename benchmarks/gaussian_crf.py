"""Time and memory of dense Gaussian CRFs, in the shape of tables 3.1 and 3.2 of Chandra 2018.

    python benchmarks/gaussian_crf.py                    every table, a few minutes
    python benchmarks/gaussian_crf.py --quick            fewer repetitions, smaller sizes
    python benchmarks/gaussian_crf.py --only dimensions  one: dimensions, sizes, methods, video or memory

Inference with general and with shared (Potts) embeddings, 21 labels, at an eighth of the image's resolution,
in float32, one image. Embeddings are normal random numbers with a spectrum that falls by powers (the k-th
dimension is drawn k^-½ times as large), scaled so that the largest eigenvalue of the terms is 9 λ for general
ones, and 0.9 λ for shared ones, whose eigenvalues must stay below λ. Every solution is checked before it is
timed: its residual, computed anew, is at most 1e-5. Runs of the two alternate; figures are medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from hdcrf.gaussian import LowRankTerms, Solution, VideoTerms, conjugate_gradient, solve

try:
    from benchmarks.inputs import alternate, machine_line
    from benchmarks.peak_memory import added_memory
except ModuleNotFoundError:  # run as a script
    from inputs import alternate, machine_line
    from peak_memory import added_memory

LABELS = 21
STRIDE = 8
TOLERANCE = 1e-6
TABLES = ("dimensions", "sizes", "methods", "video", "memory")

# Chandra 2018, GTX 1080: seconds of general and of Potts inference.
TABLE_3_1 = {
    32: (0.0094, 0.0017),
    64: (0.0163, 0.0019),
    128: (0.0286, 0.0037),
    256: (0.0301, 0.0039),
    512: (0.0404, 0.0043),
    1024: (0.0509, 0.0062),
    2048: (0.1008, 0.0121),
}
TABLE_3_2 = {
    256: (0.0148, 0.0024),
    512: (0.0328, 0.0051),
    1024: (0.1056, 0.0221),
    2048: (0.2703, 0.0457),
    4096: (0.8407, 0.1429),
}


def embeddings(dimensions: int, pixels: int, shared: bool) -> Tensor:
    """Return embeddings (1, D, [L,] h, w) with a falling spectrum, scaled as the head of this file says."""
    generator = torch.Generator().manual_seed(dimensions)
    shape = (1, dimensions, *(() if shared else (LABELS,)), pixels, pixels)
    drawn = torch.randn(shape, generator=generator)
    drawn *= torch.arange(1, dimensions + 1).pow(-0.5).view(-1, *[1] * (len(shape) - 2))
    return drawn.mul_((0.9 if shared else 9) ** 0.5 / largest_singular_value(drawn.flatten(2)[0]))


def largest_singular_value(matrix: Tensor) -> float:
    vector = torch.ones(matrix.shape[0])
    for _ in range(20):
        vector = matrix @ (vector @ matrix)
        vector /= vector.norm()
    return float((vector @ matrix).norm())


def unary(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def case(dimensions: int, side: int, shared: bool) -> tuple[LowRankTerms, Tensor]:
    pixels = -(-side // STRIDE)
    return LowRankTerms(embeddings(dimensions, pixels, shared)), unary(1, LABELS, pixels, pixels)


def checked(solution: Solution) -> Solution:
    """Return a solution, or stop if it is none."""
    worst = float(solution.residual.max())
    if not worst <= 10 * TOLERANCE:
        raise SystemExit(f"a solution has a relative residual of {worst:.2g}; no time of it is printed")
    return solution


def print_comparison(rows: dict[int, tuple[float, float]], first: str, make: Callable, rounds: int) -> None:
    """Print a row for each size: general and shared terms, by conjugate gradient and by the faster method."""
    print(f"| {first} | general, ms | Potts, ms | ratio | thesis's ratio | iterations | "
          "best general, ms | best Potts, ms | ratio |")  # fmt: skip
    print("|---" * 9 + "|")
    for size, (general, potts) in rows.items():
        cases = {"general": make(size, False), "Potts": make(size, True)}
        runs: dict[str, Callable[[], Solution]] = {}
        for name, (terms, b) in cases.items():
            for method in ("conjugate_gradient", "auto"):
                runs[f"{name} {method}"] = lambda terms=terms, b=b, method=method: solve(
                    terms, b, method=method, tolerance=TOLERANCE
                )
        with torch.inference_mode():
            iterations = [
                int(checked(run()).iterations[0]) for name, run in runs.items() if name.endswith("gradient")
            ]
            for run in runs.values():
                checked(run())
            times = alternate(runs, rounds)
        ms = {name: 1e3 * seconds for name, seconds in times.items()}
        slow, fast = ms["general conjugate_gradient"], ms["Potts conjugate_gradient"]
        best, best_potts = (min(ms[f"{name} {m}"] for m in ("conjugate_gradient", "auto")) for name in cases)
        print(
            f"| {size} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {general / potts:.1f} | "
            f"{iterations[0]}, {iterations[1]} | {best:.2f} | {best_potts:.2f} | {best / best_potts:.1f} |",
            flush=True,
        )


def print_dimensions(quick: bool) -> None:
    print("\nTable 3.1: dimensions of the embedding, image 321 x 321\n")
    rows = {size: TABLE_3_1[size] for size in ((32, 256) if quick else TABLE_3_1)}
    print_comparison(rows, "D", lambda size, shared: case(size, 321, shared), 3 if quick else 9)


def print_sizes(quick: bool) -> None:
    print("\nTable 3.2: side of the image, 128 dimensions\n")
    rows = {size: TABLE_3_2[size] for size in ((256, 512) if quick else TABLE_3_2)}
    print_comparison(rows, "side", lambda size, shared: case(128, size, shared), 3 if quick else 5)


def print_methods(quick: bool) -> None:
    print("\nConjugate gradient and the direct solution (Woodbury), image 321 x 321, milliseconds\n")
    print(
        "| D | general, by conjugate gradient | direct | Potts, by conjugate gradient | direct | auto takes |"
    )
    print("|---" * 6 + "|")
    for dimensions in (32, 512) if quick else (32, 64, 128, 256, 512, 1024):
        runs, chosen = {}, []
        for shared in (False, True):
            terms, b = case(dimensions, 321, shared)
            chosen.append("direct" if terms.prefers_direct() else "conjugate gradient")
            for method in ("conjugate_gradient", "direct"):
                runs[f"{shared} {method}"] = lambda terms=terms, b=b, method=method: solve(
                    terms, b, method=method, tolerance=TOLERANCE
                )
        with torch.inference_mode():
            for run in runs.values():
                checked(run())
            times = alternate(runs, 3 if quick else 7)
        figures = " | ".join(f"{1e3 * seconds:.2f}" for seconds in times.values())
        print(f"| {dimensions} | {figures} | {', '.join(chosen)} |", flush=True)


def print_video(quick: bool) -> None:
    """Print what the sum of all frames' products saves (eq. 4.7), with the sizes of section 4.2.4."""
    print("\nVideo, fully connected, 12 labels, 128 dimensions, image 321 x 321\n")
    print("| frames | uncached, ms | cached, ms | ratio | thesis's | solve, ms |")
    print("|---" * 6 + "|")
    pixels, labels, dimensions = -(-321 // STRIDE), 12, 16 if quick else 128
    for frames in (2, 4) if quick else (2, 3, 4):
        generator = torch.Generator().manual_seed(0)
        parts = torch.rand((2, frames, dimensions, labels * pixels**2), generator=generator)
        parts *= (9 / 2) ** 0.5 / largest_singular_value(parts[1].movedim(1, 0).flatten(1))
        shape = (1, dimensions, frames, labels, pixels, pixels)
        terms = VideoTerms(*(part.movedim(1, 0).reshape(shape).transpose(2, 3) for part in parts))
        b = unary(1, labels, frames, pixels, pixels)
        flat = b.transpose(1, 2).reshape(1, -1)
        shift = float(1 + terms.margin().max())

        def product(x: Tensor, cached: bool, parts: Tensor = parts, shift: float = shift) -> Tensor:
            vectors = x.view(parts.shape[1], -1)
            return (shift * vectors + video_product(*parts, vectors, cached)).view(x.shape)

        runs = {
            name: lambda cached=cached, product=product, flat=flat: conjugate_gradient(
                lambda x: product(x, cached), flat, tolerance=TOLERANCE
            )
            for name, cached in (("uncached", False), ("cached", True))
        }
        runs["solve"] = lambda terms=terms, b=b, shift=shift: solve(
            terms, b, regularization=shift, tolerance=TOLERANCE
        )
        with torch.inference_mode():
            by_pairs, by_sum, ours = (checked(run()).x for run in runs.values())
            ours = ours.transpose(1, 2).reshape(1, -1)
            for other in (by_pairs, ours):
                torch.testing.assert_close(other, by_sum, rtol=1e-3, atol=1e-4)
            times = alternate(runs, 3 if quick else 7)
        thesis = "0.080 / 0.061 = 1.31" if frames == 4 else "-"
        print(
            f"| {frames} | {1e3 * times['uncached']:.1f} | {1e3 * times['cached']:.1f} | "
            f"{times['uncached'] / times['cached']:.2f} | {thesis} | {1e3 * times['solve']:.1f} |",
            flush=True,
        )


def video_product(spatial: Tensor, temporal: Tensor, vectors: Tensor, cached: bool) -> Tensor:
    """Return A v for v (T, m): with each F_u v_u computed once (eq. 4.7), or anew for every pair (eq. 4.6).

    Both are written in one loop, so that they differ in nothing else.
    """
    frames = range(len(spatial))
    sums = [temporal[u] @ vectors[u] for u in frames] if cached else []
    total = sum(sums)
    blocks = []
    for t in frames:
        anew = [] if cached else [temporal[u] @ vectors[u] for u in frames if u != t]
        others = total - sums[t] if cached else sum(anew)
        blocks.append(spatial[t].T @ (spatial[t] @ vectors[t]) + temporal[t].T @ others)
    return torch.stack(blocks)


def print_memory(quick: bool) -> None:
    """Print by how much a call raises the peak memory, beside the embeddings, which it holds already."""
    print("\nPeak memory of a call beyond its inputs, general terms by conjugate gradient, MiB\n")
    print("| side | D | embeddings | call | call by unknowns n, bytes |")
    print("|---" * 5 + "|")
    for side, dimensions in (
        ((256, 32), (512, 32)) if quick else ((512, 128), (1024, 128), (2048, 128), (2048, 32))
    ):
        pixels = -(-side // STRIDE)
        unknowns = LABELS * pixels**2
        command = [sys.executable, __file__, "--memory-of", str(dimensions), str(side)]
        extra = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        held = unknowns * dimensions * 4 / 2**20
        print(
            f"| {side} | {dimensions} | {held:.0f} | {extra:.1f} | {extra * 2**20 / unknowns:.0f} |",
            flush=True,
        )


def print_memory_of(dimensions: int, side: int) -> None:
    terms, b = case(dimensions, side, False)
    with torch.inference_mode():
        solve(*case(8, 64, False), method="conjugate_gradient")  # imports, and the threads' own memory
        print(added_memory(lambda: solve(terms, b, method="conjugate_gradient", tolerance=TOLERANCE)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller sizes")
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--memory-of", nargs=2, type=int, metavar=("D", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory_of(*arguments.memory_of)
        return
    print(machine_line())
    for name in (arguments.only,) if arguments.only else TABLES:
        globals()[f"print_{name}"](arguments.quick)


if __name__ == "__main__":
    main()
