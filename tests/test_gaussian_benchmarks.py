"""The benchmarks of Gaussian CRFs run, and print what they are to print."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rows(script, *arguments):
    """Return the cells of the tables that a script prints."""
    result = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments], capture_output=True, text=True, check=True
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("only", ["dimensions", "sizes", "methods", "video", "memory"])
def test_dense(only):
    table = rows("gaussian_crf.py", "--quick", "--only", only)
    assert len(table) == 3
    assert all(float(cell.split(",")[0]) > 0 for row in table[1:] for cell in row[:3])


@pytest.mark.slow
def test_conjugate_gradient_needs_the_fewest_iterations():
    table = rows("gaussian_solvers.py", "--quick", "--only", "iterations")
    mean = {row[0]: float(row[1]) for row in table[1:]}
    fewest = mean["conjugate gradient"]
    # GMRES without restarts has the least residual of all, and keeps a vector for each iteration.
    assert fewest <= mean["GMRES"] + 0.5
    assert fewest < min(mean[name] for name in ("Jacobi", "Gauss-Seidel", "GMRES, restarted after 5"))
