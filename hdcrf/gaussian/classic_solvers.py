"""The solvers that conjugate gradient is compared with: Jacobi, Gauss-Seidel and GMRES.

Mean field of a Gaussian CRF is one of them: parallel updates are Jacobi's method, sequential ones that of
Gauss and Seidel (Chandra 2018, section 2.4.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hdcrf.gaussian.conjugate_gradient import (
    ConvergenceError,
    Product,
    Solution,
    checked_diagonal,
    checked_systems,
)
from hdcrf.layer_inputs import levels_to_user
from voxel.checks import check_count, check_finite, check_floating, check_same_kind

__all__ = ["gauss_seidel", "gmres", "jacobi"]

_DIVERGED = 1e4
"""Residuals that are so many times the first one's will not fall again."""


def jacobi(
    product: Product,
    diagonal: Tensor,
    right_hand_side: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Solve A x = b by x ← x + (b - A x) / diag(A), many systems at a time: parallel mean field.

    Converges for every start if the matrix is strictly diagonally dominant.

    Args:
        product: Maps x (*systems, n) to A x of the same shape.
        diagonal: (*systems, n), or what broadcasts to it, the diagonal of A, with no zero.
        right_hand_side: b, (*systems, n) float32 or float64.
        start: x to start from, (*systems, n); None starts from zero.
        tolerance: A system has converged when ‖b - A x‖ ≤ tolerance · ‖b‖; None takes 1e-6 in float32 and
            1e-10 in float64.
        max_iterations: None takes 10 n, at least 100.
        on_failure: "raise", or "warn" to return the iterate of least residual with a warning.

    Returns:
        The solution, with iterations, residual and convergence for each system.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        ConvergenceError: If the iterates diverge, or `max_iterations` did not suffice.

    Deterministic. Cost: one product an iteration.

    Reference: Golub and Van Loan, Matrix Computations; Chandra 2018, eq. 2.22.
    """
    product, b, limit, most = checked_systems(
        product, right_hand_side, start, tolerance, max_iterations, on_failure
    )
    diagonal = checked_diagonal(diagonal, b)
    if not bool(diagonal.all()):
        raise ValueError("`diagonal` must have no zero, by which Jacobi's method would divide")
    with torch.no_grad():
        inverse = diagonal.reciprocal()
        return _iterated(product, lambda x, r: x + inverse * r, b, start, limit, most, on_failure)


def gauss_seidel(
    matrix: Tensor,
    right_hand_side: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Solve A x = b by solving for one unknown after another, in their order: sequential mean field.

    A sweep over the unknowns is an iteration: x ← x + L⁻¹ (b - A x), L the lower triangle of A with its
    diagonal. Converges for every start if A is symmetric positive definite, or strictly diagonally dominant.

    Args:
        matrix: A, (n, n), the same for all systems: dense, which takes n² numbers, or sparse in the layout
            torch.sparse_csr, for which PyTorch must have been built with MKL on a CPU.
        right_hand_side: b, (*systems, n) of its dtype.
        start: As for `jacobi`.
        tolerance: As for `jacobi`.
        max_iterations: As for `jacobi`.
        on_failure: As for `jacobi`.

    Returns:
        The solution, with iterations, residual and convergence for each system.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        ConvergenceError: If the iterates diverge, or `max_iterations` did not suffice.

    Deterministic. Cost: one product and one solution of a triangular system an iteration.

    Reference: Golub and Van Loan, Matrix Computations; Chandra 2018, eq. 2.23.
    """
    product, sweep = _sweeps(matrix)
    product, b, limit, most = checked_systems(
        product, right_hand_side, start, tolerance, max_iterations, on_failure
    )
    check_same_kind("right_hand_side", b, "matrix", matrix)
    if b.shape[-1] != matrix.shape[0]:
        raise ValueError(
            f"`right_hand_side` must have shape (*systems, {matrix.shape[0]}), as `matrix` says, got "
            f"{tuple(b.shape)}"
        )
    with torch.no_grad():
        return _iterated(product, lambda x, r: x + sweep(r), b, start, limit, most, on_failure)


def _sweeps(matrix: Tensor) -> tuple[Product, Product]:
    """Return the product with a matrix, and that with the inverse of its lower triangle."""
    if not isinstance(matrix, Tensor) or matrix.layout not in (torch.strided, torch.sparse_csr):
        what = matrix.layout if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"`matrix` must be a tensor, dense or sparse by rows (torch.sparse_csr), got {what}")
    sparse = matrix.layout == torch.sparse_csr
    entries = check_floating("matrix", matrix.values() if sparse else matrix).detach()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or 0 in matrix.shape:
        raise ValueError(f"`matrix` must have shape (n, n) with n of at least 1, got {tuple(matrix.shape)}")
    check_finite("matrix", entries)
    if sparse:
        lower, diagonal = _lower_triangle(matrix.detach())
    else:
        lower, diagonal = entries.tril(), entries.diagonal()
    if not bool(diagonal.all()):
        raise ValueError("`matrix` must have no zero on its diagonal, by which each unknown is divided")

    def columns(function: Callable[[Tensor], Tensor]) -> Product:
        def of_vectors(vectors: Tensor) -> Tensor:
            flat = vectors.reshape(-1, vectors.shape[-1])
            return function(flat.T.contiguous()).T.reshape(vectors.shape)

        return of_vectors

    def solved(right: Tensor) -> Tensor:
        if sparse:  # which torch.linalg.solve_triangular does not take
            solution: Tensor = torch.triangular_solve(right, lower, upper=False).solution
        else:
            solution = torch.linalg.solve_triangular(lower, right, upper=False)
        return solution

    return columns(lambda v: matrix.detach() @ v), columns(solved)


def _lower_triangle(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower triangle of a sparse matrix by rows, with its diagonal, and that alone."""
    if matrix.device.type == "cpu" and not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        raise ValueError(
            "`matrix` must be dense where PyTorch was built without MKL, got torch.sparse_csr; convert it "
            "with .to_dense()"
        )
    pointers, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    size = matrix.shape[0]
    rows = torch.repeat_interleave(pointers.diff().long(), output_size=columns.numel())
    kept = columns <= rows
    counts = torch.bincount(rows[kept], minlength=size)
    starts = torch.zeros_like(pointers)
    starts[1:] = counts.cumsum(0)
    diagonal = values.new_zeros(size)
    on_diagonal = columns == rows
    diagonal[rows[on_diagonal]] = values[on_diagonal]
    lower = torch.sparse_csr_tensor(starts, columns[kept], values[kept], matrix.shape, check_invariants=False)
    return lower, diagonal


def gmres(
    product: Product,
    right_hand_side: Tensor,
    *,
    restart: int = 50,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Solve A x = b by the x of least residual in the space of b, A b, A² b, …, many systems at a time.

    A need not be symmetric. Orthogonalises by modified Gram-Schmidt, and updates a QR decomposition of the
    small least-squares problem by Givens rotations.

    Args:
        product: Maps x (*systems, n) to A x of the same shape.
        right_hand_side: b, (*systems, n) float32 or float64.
        restart: After so many iterations begin anew from the x found: restart + 1 vectors are kept.
        start: As for `jacobi`.
        tolerance: As for `jacobi`.
        max_iterations: As for `jacobi`.
        on_failure: As for `jacobi`.

    Returns:
        The solution, with iterations (products), residual and convergence for each system.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument has the wrong shape, device or content.
        ConvergenceError: If a restart brings no progress, or `max_iterations` did not suffice.

    Deterministic. Cost: one product an iteration, and 4 j passes over (*systems, n) in the j-th since the
    last restart.

    Reference: Saad and Schultz, GMRES: a generalized minimal residual algorithm, 1986.
    """
    product, b, limit, most = checked_systems(
        product, right_hand_side, start, tolerance, max_iterations, on_failure
    )
    check_count("restart", restart, 1)
    with torch.no_grad():
        run = _Run(product, b, start, limit)
        left = most
        while left > 0 and bool(run.active.any()):
            x, counts, solved = _arnoldi(run, min(restart, left))
            before = run.norm
            run.move(x, counts)
            # Where a whole cycle does not help, the next one, from the same x, would not either.
            run.rest(solved, ~(run.norm < before))
            left -= min(restart, left)
            if on_failure == "raise" and bool(run.failed.any()):
                break
        return run.solution("make no progress", on_failure)


def _arnoldi(run: _Run, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x after a cycle of GMRES, how many iterations that took, and which systems it solved."""
    systems = run.x.shape[:-1]
    active = run.active
    basis = [run.r / torch.where(run.norm > 0, run.norm, 1)[..., None]]  # orthonormal, (*systems, n)
    triangle = run.r.new_zeros((*systems, most, most))  # R of the decomposition QR of A in the basis
    remainder = run.norm  # the last entry of Qᵀ r, which no coefficient reaches: ± the residual's norm
    projections = []  # the entries before
    rotations: list[tuple[Tensor, Tensor]] = []
    counts = torch.zeros_like(run.iterations)
    for j in range(most):
        vector = run.product(basis[j])
        column = []
        for other in basis:
            column.append(torch.linalg.vecdot(other, vector))
            vector = vector - column[-1][..., None] * other
        length = _norm(vector)
        for i, (cosine, sine) in enumerate(rotations):
            column[i], column[i + 1] = (
                cosine * column[i] + sine * column[i + 1],
                cosine * column[i + 1] - sine * column[i],
            )
        radius = torch.hypot(column[j], length)
        # A system at rest, or one whose A v brings nothing, takes no v: its coefficient is 0 / 1.
        takes = active & ~(radius == 0)
        divisor = torch.where(takes, radius, 1)
        cosine, sine = torch.where(takes, column[j] / divisor, 0), torch.where(takes, length / divisor, 1)
        rotations.append((cosine, sine))
        triangle[..., : j + 1, j] = torch.where(takes[..., None], torch.stack(column, -1), 0)
        triangle[..., j, j] = divisor
        projections.append(cosine * remainder)
        remainder = torch.where(takes, -sine * remainder, remainder)
        counts += active
        active = active & ~(remainder.abs() <= run.goal)
        if not bool(active.any()):
            break
        basis.append(vector / torch.where(length > 0, length, 1)[..., None])
    used = len(projections)
    coefficients = torch.linalg.solve_triangular(
        triangle[..., :used, :used], torch.stack(projections, -1)[..., None], upper=True
    )
    x = run.x + (torch.stack(basis[:used], -1) @ coefficients)[..., 0]
    return x, counts, run.active & ~active


def _iterated(
    product: Product,
    step: Callable[[Tensor, Tensor], Tensor],
    b: Tensor,
    start: Tensor | None,
    tolerance: float,
    most: int,
    on_failure: str,
) -> Solution:
    """Repeat x ← step(x, b - A x), each system until it has converged."""
    run = _Run(product, b, start, tolerance)
    highest = _DIVERGED * run.norm.maximum(run.scale)
    for _ in range(most):
        if not bool(run.active.any()):
            break
        run.move(step(run.x, run.r), run.active)
        run.rest(run.norm <= run.goal, ~(run.norm <= highest))  # or NaN
        if on_failure == "raise" and bool(run.failed.any()):
            break
    return run.solution("diverge", on_failure)


class _Run:
    """Systems that a solver works on: their iterates, and which are still to be solved."""

    def __init__(self, product: Product, b: Tensor, start: Tensor | None, tolerance: float) -> None:
        self.product, self.b, self.tolerance = product, b, tolerance
        self.scale = _norm(b)
        self.goal = tolerance * self.scale
        self.x = torch.zeros_like(b) if start is None else start.detach().clone()
        self.r = b.clone() if start is None else b - product(self.x)
        self.norm = _norm(self.r)
        self.best, self.best_norm = self.x, self.norm
        self.active = ~(self.norm <= self.goal)  # or NaN
        self.failed = torch.zeros_like(self.active)
        self.iterations = torch.zeros(b.shape[:-1], dtype=torch.int64, device=b.device)

    def move(self, x: Tensor, counts: Tensor) -> None:
        """Take new iterates of the systems still to be solved, that took so many iterations."""
        self.x = torch.where(self.active[..., None], x, self.x)
        self.r = self.b - self.product(self.x)
        self.norm = _norm(self.r)
        self.iterations += counts
        better = self.norm < self.best_norm
        self.best = torch.where(better[..., None], self.x, self.best)
        self.best_norm = torch.where(better, self.norm, self.best_norm)

    def rest(self, solved: Tensor, failed: Tensor) -> None:
        """Let those systems be that are solved, or that will never be."""
        self.failed |= self.active & failed & ~solved
        self.active = self.active & ~solved & ~failed

    def solution(self, failure: str, on_failure: str) -> Solution:
        """Return what was found, or raise or warn if that is no solution."""
        converged = ~(self.active | self.failed)
        if not bool(converged.all()):
            which = self.failed if bool(self.failed.any()) else self.active
            system = int(which.flatten().nonzero()[0])
            text = (
                f"the iterates of system {system} {failure if which is self.failed else 'do not converge'}: "
                f"the relative residual is {float((self.norm / self.scale).flatten()[system]):.2g} after "
                f"{int(self.iterations.flatten()[system])} iterations, where {self.tolerance:.2g} was asked "
                "for; increase `max_iterations`, `tolerance` or the regularization, or use "
                "`conjugate_gradient`"
            )
            if on_failure == "raise":
                raise ConvergenceError(text)
            warnings.warn(f"{text}; the iterate of least residual is returned", stacklevel=levels_to_user())
        x = torch.where(converged[..., None], self.x, self.best)
        residual = _norm(self.b - self.product(x)) / torch.where(self.scale > 0, self.scale, 1)
        return Solution(x, self.iterations, residual, converged)


def _norm(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms
