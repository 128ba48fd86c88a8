"""The benchmarks of CRF-Grad run, and print and draw what they are to."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gradient_steps

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_heads(scene, tmp_path):
    command = [
        sys.executable, BENCHMARKS / "crf_grad_heads.py", "--images", scene / "images", "--labels",
        scene / "labels", "--fit", "6", "--quick", "--seeds", "1", "--out-dir", tmp_path / "out",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    scores = {row[0]: float(row[1]) for row in rows[1:]}
    models = [f"{what}, {how}" for what in ("spatial", "full") for how in ("Gaussian", "learned")]
    expected = {"unary", "unary, trained as long", *models, *(f"{model}, jointly" for model in models)}
    assert set(scores) == expected
    assert all(0 <= score <= 100 for score in scores.values())
    parameters = {row[0]: int(row[-2].replace(",", "")) for row in rows[1:]}
    # A scale alone; the unary weight and 2 x 2 filters of 3 x 3 too; and 63 taps of 2 x 2.
    assert [parameters[model] for model in models] == [1, 2 + 36, 1, 2 + 36 + 252]
    pictures = {"spatial_filters.png", "bilateral_taps.png", "convergence.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == pictures
    assert "mean IoU by steps: " in result.stdout


def test_steps(monkeypatch, capsys):
    monkeypatch.setattr(gradient_steps, "LABELS", 3)
    monkeypatch.setattr(gradient_steps, "SIZE", (24, 32))
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    asked = []
    gradient_steps.print_steps(1, lambda *case: asked.append(case) or 1.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    times = {row[0]: row[2:] for row in rows if row[1] == "2"}
    parts = {"spatial message", "bilateral message", "projection", "**a step**"}
    assert set(times) == parts | {"building the energy", "5 steps, all of it"}
    assert times["building the energy"][1] == ""
    assert all(cell.isdigit() for name in parts for cell in times[name])
    assert asked == [("crf-grad infer", 24, 32, 3), ("crf-grad train", 24, 32, 3)]
