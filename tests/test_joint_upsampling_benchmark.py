"""The benchmark of joint upsampling runs, its scenes are as described, and its baselines well placed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.depth_scenes import scenes
from benchmarks.head_tables import count
from benchmarks.joint_upsampling import DJF, LARGE, LITE, SMALL, STANDARD, bicubic, network_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LIKE = {DJF: LITE, SMALL: LITE, LARGE: STANDARD}


def test_scenes():
    drawn = scenes(3, 32, seed=5)
    assert drawn.guides.shape == (3, 3, 32, 32)
    assert drawn.depths.shape == (3, 1, 32, 32)
    assert bool(((drawn.guides >= 0) & (drawn.guides <= 1)).all())
    assert bool(((drawn.depths > 20) & (drawn.depths <= 570)).all())  # the wall is 570 cm away
    again = scenes(2, 32, seed=5)
    assert torch.equal(again.guides, drawn.guides[:2])
    assert torch.equal(again.depths, drawn.depths[:2])
    others = scenes(1, 32, seed=6)
    assert not torch.equal(others.depths, drawn.depths[:1])


def test_some_edges_of_colour_are_none_of_depth_and_some_of_depth_hardly_show():
    drawn = scenes(12, 64, seed=0)
    steps = [values.diff(dim=3).abs().amax(1) for values in (drawn.guides, drawn.depths)]
    colour, depth = steps
    assert int(((colour > 0.15) & (depth < 5)).sum()) > 500
    assert int(((colour < 0.05) & (depth > 30)).sum()) > 50
    assert float(colour[depth > 30].mean()) > 2 * float(colour[depth < 5].mean())


@pytest.mark.parametrize("factor", [4, 8])
def test_bicubic_keeps_samples_and_planes(factor):
    y, x = torch.meshgrid(torch.arange(8 * factor), torch.arange(6 * factor), indexing="ij")
    plane = (3.0 * x - 2.0 * y)[None, None]
    low = plane[..., ::factor, ::factor]
    found = bicubic(low, factor)
    torch.testing.assert_close(found[..., ::factor, ::factor], low, atol=1e-3, rtol=0)
    inner = (..., slice(factor, 6 * factor), slice(factor, 4 * factor))  # away from the border
    torch.testing.assert_close(found[inner], plane[inner], atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("method", LIKE)
def test_concatenation_is_of_equal_size(method, factor):
    own, other = (count(network_of(name, factor)) for name in (method, LIKE[method]))
    assert own == pytest.approx(other, rel=0.02)
    found = network_of(method, factor)(torch.randn(1, 1, 2, 3), torch.randn(1, 3, 2 * factor, 3 * factor))
    assert found.shape == (1, 1, 2 * factor, 3 * factor)


@pytest.mark.slow
def test_table(tmp_path):
    command = [sys.executable, BENCHMARKS / "joint_upsampling.py", "--quick", "--networks", tmp_path / "kept"]
    command += ["--out-dir", tmp_path / "out"]

    def table():
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
        return {row[0]: row[1:] for row in rows[1:]}

    first = table()
    assert set(first) == {"bicubic", "joint bilateral", DJF, SMALL, LITE, LARGE, STANDARD}
    assert all(float(row[column]) > 0 for row in first.values() for column in (0, 3))
    assert [first[STANDARD][column] for column in (1, 4)] == ["183,489", "221,937"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "joint_upsampling_4x.png",
        "joint_upsampling_8x.png",
    }
    assert len(list((tmp_path / "kept").iterdir())) == 10
    assert table() == first  # the kept networks', with their seconds


@pytest.mark.slow
def test_rates():
    command = [sys.executable, BENCHMARKS / "joint_upsampling.py", "--quick", "--factors", "8"]
    command += ["--rates", "1e-3", "2e-3"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert rows[0][1:] == ["0.001", "0.002"]
    assert [row[0] for row in rows[1:]] == [f"{method}, 8x" for method in (DJF, SMALL, LITE, LARGE, STANDARD)]
    assert all(float(cell) > 0 for row in rows[1:] for cell in row[1:])
