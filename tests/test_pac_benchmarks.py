"""The benchmarks of pixel-adaptive convolution run, and print what they are to."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_heads(scene):
    command = [
        sys.executable, BENCHMARKS / "pac_heads.py", "--images", scene / "images", "--labels",
        scene / "labels", "--fit", "6", "--quick", "--seeds", "1",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    scores = {row[0]: float(row[1]) for row in rows[1:]}
    windows = ["PAC-CRF, 32", "PAC-CRF, 16-64", "PAC-CRF, 2-8"]
    heads = ["Full-CRF", *windows]
    expected = {f"{head}{how}" for head in heads for how in (", best of a grid", "", ", jointly")}
    expected |= {"unary", "unary, trained as long", "PAC network", "PAC network, PAC-CRF, 16-64, jointly"}
    assert set(scores) == expected
    assert all(0 <= score <= 100 for score in scores.values())
    parameters = {row[0]: int(row[-2].replace(",", "")) for row in rows[1:]}
    # A scale; for each window 2 x 2 filters of 5 x 5, and a standard deviation for each of three channels.
    assert [parameters[window] for window in windows] == [1 + 103, 1 + 206, 1 + 206]
    # Swapped convolutions have the parameters that they had.
    assert parameters["PAC network"] == parameters["unary"]
    for found in (
        "PAC-CRF, 16-64, 3 iterations: ",
        "2 steps on the same frames: ",
        "processor milliseconds an image: Full-CRF ",
    ):
        assert found in result.stdout


@pytest.mark.slow
def test_layers_and_crfs():
    command = [sys.executable, BENCHMARKS / "pac.py", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    layers = [row for row in rows if row[0] == "64"]
    assert len(layers) == 2 * 2
    for row in layers:
        own, unfolded, share, difference = (float(row[index]) for index in (3, 4, 5, -1))
        assert 0 < own < unfolded
        assert share == pytest.approx(own / unfolded, abs=0.05)
        assert difference < 1e-5
    crfs = {row[0] for row in rows if row[0].startswith("PacCRF")}
    assert crfs == {f"PacCRF {name}{how}" for name in ("32", "16-64") for how in ("", ", factorised")}


@pytest.mark.slow
def test_peak_memory_is_at_most_a_third_of_unfolding():
    def added(name):
        case = [name, "forward and backward", "128", "1"]
        command = [sys.executable, BENCHMARKS / "pac.py", "--memory-of", *case]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # Measured: a thirtieth at 256 x 256. The unfolded values alone are 100 MiB at 128 x 128.
    assert added("unfolded") > 200
    assert added("ours") < added("unfolded") / 3
