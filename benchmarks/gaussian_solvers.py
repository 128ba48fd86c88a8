"""Solvers of Gaussian CRFs: iterations (Chandra 2018, figure 2.3), and time against SciPy's.

    python benchmarks/gaussian_solvers.py                      both tables, a few minutes
    python benchmarks/gaussian_solvers.py --quick              fewer crops and repetitions
    python benchmarks/gaussian_solvers.py --only iterations    one table: iterations or time

The systems are made from crops of scikit-image's photos. Unary terms are the logarithms of the probabilities
of a classifier that is often wrong. Pairwise terms join 4 neighbours and depend on contrast, with
w_pq = strength · exp(-‖c_p - c_q‖² / 2σ²), c the colours and σ² the mean of ‖c_p - c_q‖²: those of a Potts
model penalise different labels by w_pq; the general ones, of 21 x 21 entries, also reward each like label by
(21 - 1) w_pq, so that in all they favour none. λ is 10, as in the thesis. Its learned terms are not public:
the strength is set so that Jacobi's method needs about as many iterations as there, and what the others need
follows from it. The diagonal is λ everywhere, so that to precondition by it changes nothing but rounding.

GMRES without restarts has the least residual of all x in the space that conjugate gradient looks in too, and
so cannot need more iterations: it pays by keeping a vector for each. Restarted after 5 it keeps as many
vectors as conjugate gradient does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from hdcrf.gaussian import GridTerms, conjugate_gradient, gauss_seidel, gmres, jacobi, solve

try:
    from benchmarks.inputs import PHOTOS, alternate, machine_line, noisy_probabilities, photo
except ModuleNotFoundError:  # run as a script
    from inputs import PHOTOS, alternate, machine_line, noisy_probabilities, photo

LABELS = 21
REGULARIZATION = 10.0
STRENGTH = 0.078
OFFSETS = ((0, 1), (1, 0))
THESIS = {"Jacobi": "24.8", "Gauss-Seidel": "16.4"}  # the text of the thesis lacks the other two


def crop(number: int, height: int, width: int) -> np.ndarray:
    """Return a crop of one of the photos, (height, width, 3) uint8."""
    image = photo(PHOTOS[number % len(PHOTOS)], 4 * height, 4 * width)
    random = np.random.default_rng(number)
    y, x = random.integers(0, 3 * height), random.integers(0, 3 * width)
    return image[y : y + height, x : x + width]


def shared_terms(image: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return the Potts terms of an image, (1, 2, H, W)."""
    colours = torch.from_numpy(image.astype(np.float64))
    height, width, _ = image.shape
    differences = torch.zeros((2, height, width), dtype=torch.float64)
    for e, (dy, dx) in enumerate(OFFSETS):
        pairs = colours[dy:, dx:] - colours[: height - dy, : width - dx]
        differences[e, : height - dy, : width - dx] = pairs.square().sum(2)
    return (STRENGTH * torch.exp(-0.5 * differences / differences.mean())).to(dtype)[None]


def for_each_pair(shared: Tensor, like: float) -> Tensor:
    """Return (1, 2, L, L, H, W) terms: the shared ones for different labels, `like` times them for like."""
    factors = 1 + (like - 1) * torch.eye(LABELS, dtype=shared.dtype)
    return (shared[:, :, None, None] * factors[:, :, None, None]).contiguous()


def unary_terms(image: np.ndarray, seed: int, dtype: torch.dtype) -> Tensor:
    """Return the unary terms of an image, (1, L, H, W)."""
    probabilities = noisy_probabilities(image, LABELS, seed)
    return torch.from_numpy(np.log(probabilities)).permute(2, 0, 1).contiguous()[None].to(dtype)


def assembled(weights: Tensor) -> scipy.sparse.csr_matrix:
    """Return A of general (1, 2, L, L, H, W) weights as a sparse matrix by rows."""
    entries = weights[0].numpy()
    labels, height, width = entries.shape[2:]
    pixels = height * width
    index = np.arange(labels)[:, None, None] * pixels + np.arange(pixels).reshape(height, width)
    rows, columns, values = [], [], []
    for e, (dy, dx) in enumerate(OFFSETS):
        block = entries[e, :, :, : height - dy, : width - dx]
        here = np.broadcast_to(index[:, None, : height - dy, : width - dx], block.shape).ravel()
        there = np.broadcast_to(index[None, :, dy:, dx:], block.shape).ravel()
        present = block.ravel() != 0
        rows += [here[present], there[present]]
        columns += [there[present], here[present]]
        values += [block.ravel()[present]] * 2
    places = np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32)
    size = labels * pixels
    return scipy.sparse.coo_matrix((np.concatenate(values), places), shape=(size, size)).tocsr()


def shifted(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    identity = scipy.sparse.identity(matrix.shape[0], dtype=matrix.dtype, format="csr")
    return (matrix + REGULARIZATION * identity).tocsr()


def print_iterations(crops: int) -> None:
    print(f"\nIterations to a relative residual of 1e-6, mean and range over {crops} crops of 41x41 pixels, "
          f"{LABELS} labels, float64\n")  # fmt: skip
    print("| solver | iterations | least | most | thesis |")
    print("|---|---|---|---|---|")
    counts: dict[str, list[int]] = {}
    for number in range(crops):
        image = crop(number, 41, 41)
        weights = for_each_pair(shared_terms(image, torch.float64), 1.0 - LABELS)
        multiply = GridTerms(weights).prepared()
        b = unary_terms(image, number, torch.float64).flatten()[None]
        matrix = shifted(assembled(weights))
        arrays = [torch.from_numpy(array) for array in (matrix.indptr, matrix.indices, matrix.data)]
        sparse = torch.sparse_csr_tensor(*arrays, matrix.shape, check_invariants=False)
        diagonal = torch.full((1, 1), REGULARIZATION, dtype=torch.float64)

        def product(v: Tensor, multiply=multiply) -> Tensor:
            return multiply(v[:, None])[:, 0] + REGULARIZATION * v

        solutions = {
            "Jacobi": jacobi(product, diagonal, b, tolerance=1e-6),
            "Gauss-Seidel": gauss_seidel(sparse, b, tolerance=1e-6),
            "GMRES, restarted after 5": gmres(product, b, restart=5, tolerance=1e-6),
            "GMRES": gmres(product, b, tolerance=1e-6),
            "conjugate gradient": conjugate_gradient(product, b, tolerance=1e-6),
            "conjugate gradient, Jacobi preconditioning": conjugate_gradient(
                product, b, diagonal=diagonal, tolerance=1e-6
            ),
        }
        for name, solution in solutions.items():
            if float(solution.residual) > 1.001e-6:
                raise SystemExit(
                    f"{name} left a residual of {float(solution.residual):.2g}; nothing is counted"
                )
            counts.setdefault(name, []).append(int(solution.iterations))
    for name, values in counts.items():
        mean = sum(values) / len(values)
        print(f"| {name} | {mean:.1f} | {min(values)} | {max(values)} | {THESIS.get(name, '')} |")


def by_scipy(matrix: scipy.sparse.csr_matrix, b: np.ndarray) -> np.ndarray:
    x, failed = scipy.sparse.linalg.cg(matrix, b, rtol=1e-6)
    if failed:
        raise SystemExit("SciPy's conjugate gradient did not converge; no times are given")
    return x


def print_time(rounds: int) -> None:
    print(f"\nTime of `solve` and of scipy.sparse.linalg.cg on the matrix assembled before, {LABELS} labels, "
          "relative residual 1e-6, milliseconds.\nOf a Potts model SciPy solves the whole system, or one for "
          f"the sum and {LABELS} for the labels, as `solve` does\n")  # fmt: skip
    print("| system | pixels | dtype | threads | ours | SciPy | ratio |")
    print("|---|---|---|---|---|---|---|")
    for height, width in ((41, 41), (109, 85)):
        for dtype in (torch.float32, torch.float64):
            image = crop(0, height, width)
            shared = shared_terms(image, dtype)
            unary = unary_terms(image, 0, dtype)
            general = for_each_pair(shared, 1.0 - LABELS)
            of_general = shifted(assembled(general))
            of_potts = shifted(assembled(for_each_pair(shared, 0.0)))
            psi = assembled(shared[:, :, None, None])
            of_sum, of_label = shifted((LABELS - 1) * psi), shifted(-psi)
            b = unary.numpy().ravel()

            def in_parts(b=b, of_sum=of_sum, of_label=of_label, psi=psi) -> np.ndarray:
                parts = b.reshape(LABELS, -1)
                common = psi @ by_scipy(of_sum, parts.sum(0))
                return np.concatenate([by_scipy(of_label, part - common) for part in parts])

            cases: dict[str, tuple[Tensor, Callable[[], np.ndarray]]] = {
                "general": (general, lambda m=of_general, b=b: by_scipy(m, b)),
                "Potts, SciPy on the whole": (shared, lambda m=of_potts, b=b: by_scipy(m, b)),
                "Potts, SciPy in parts": (shared, in_parts),
            }
            for name, (weights, peer) in cases.items():
                terms = GridTerms(weights)

                def ours(terms=terms, unary=unary) -> Tensor:
                    return solve(terms, unary, regularization=REGULARIZATION, tolerance=1e-6).x

                difference = np.linalg.norm(ours().numpy().ravel() - peer()) / np.linalg.norm(peer())
                if difference > 1e-5:
                    raise SystemExit(f"solutions differ by {difference:.2g}; no times for a wrong result")
                for threads in (2, 1):
                    torch.set_num_threads(threads)
                    seconds = alternate({"ours": ours, "SciPy": peer}, rounds)
                    own, other = (1000 * value for value in seconds.values())
                    kind = str(dtype).removeprefix("torch.")
                    print(
                        f"| {name} | {height}x{width} | {kind} | {threads} | {own:.1f} | {other:.1f} | "
                        f"{other / own:.2f} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer crops and repetitions")
    parser.add_argument("--only", choices=("iterations", "time"), help="print this table")
    arguments = parser.parse_args()
    print(machine_line())
    if arguments.only != "time":
        print_iterations(5 if arguments.quick else 25)
    if arguments.only != "iterations":
        print_time(3 if arguments.quick else 9)


if __name__ == "__main__":
    main()
