"""The demos on photos run and write pictures, and say in a sentence when the network is not there."""

import importlib.util
import io
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import hdcrf

DEMO = Path(__file__).parents[1] / "demos" / "image_crf.py"
PICTURES = {"annotation.png", "energy.png", "labels.png", "overlay.png", "photo.png", "side_by_side.png"}


@pytest.fixture
def demo():
    specification = importlib.util.spec_from_file_location("image_crf", DEMO)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(*arguments, demo=DEMO, **environment):
    return subprocess.run(
        [sys.executable, demo, *arguments],
        env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(hdcrf.__file__))} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_demo(tmp_path):
    # A proxy that answers nobody: the photo must not be fetched.
    result = run("--out-dir", str(tmp_path / "out"), https_proxy="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert set(os.listdir(tmp_path / "out")) == PICTURES
    for name in PICTURES:
        assert str(tmp_path / "out" / name) in result.stdout
    photo, annotation, labels, overlay, together = (
        np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        for name in ("photo", "annotation", "labels", "overlay", "side_by_side")
    )
    assert photo.shape == annotation.shape == labels.shape == overlay.shape == (427, 640, 3)
    assert together.shape == (427, 3 * 640 + 2 * 8, 3)
    drawn = annotation.any(2)
    assert 0.02 < drawn.mean() < 0.2
    colours = np.unique(annotation[drawn], axis=0)
    assert len(colours) == 3
    np.testing.assert_array_equal(np.unique(labels.reshape(-1, 3), axis=0), colours)
    sky, tower, rocket = colours
    # Places that no stroke covers: open sky, a strut beside its tower's stroke, the rocket's body.
    for (row, column), colour in {(100, 300): sky, (8, 80): tower, (250, 327): rocket}.items():
        assert not drawn[row, column]
        np.testing.assert_array_equal(labels[row, column], colour)


def test_help():
    result = run("--help")
    assert result.returncode == 0
    assert "--reference" in result.stdout


def test_reference_without_a_network(tmp_path):
    result = run("--reference", "--out-dir", str(tmp_path), https_proxy="http://127.0.0.1:9")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "cannot fetch https://raw.githubusercontent.com/" in result.stderr
    assert os.listdir(tmp_path) == []


def test_reference(demo, tmp_path, monkeypatch):
    photo = np.random.default_rng(0).integers(0, 60, (20, 30, 3), dtype=np.uint8)
    photo[:, 15:] += 150
    annotation = np.zeros_like(photo)
    annotation[5:15, 3:6] = (255, 0, 0)
    annotation[5:15, 24:27] = (0, 255, 0)
    fetched = []

    def urlopen(url, timeout):
        assert timeout <= 30
        fetched.append(url)
        file = io.BytesIO()
        Image.fromarray(photo if url.endswith("im1.png") else annotation).save(file, format="PNG")
        file.seek(0)
        return file

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for _ in range(2):
        result = CliRunner().invoke(demo.main, ["--reference", "--out-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert fetched == [demo.REFERENCE + "im1.png", demo.REFERENCE + "anno1.png"]  # once
    assert set(os.listdir(tmp_path)) == PICTURES | {"im1.png", "anno1.png"}
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert (labels[:, :15] == (255, 0, 0)).all()
    assert (labels[:, 15:] == (0, 255, 0)).all()


def test_annotation_is_small():
    assert (DEMO.parent / "rocket_annotation.png").stat().st_size < 50_000


def test_bilateral_solver(tmp_path):
    # A proxy that answers nobody: the photos must not be fetched.
    result = run(
        "--shrink",
        "4",
        "--out-dir",
        str(tmp_path / "out"),
        demo=DEMO.with_name("bilateral_solver.py"),
        https_proxy="http://127.0.0.1:9",
    )
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path / "out") == ["depth.png"]
    assert str(tmp_path / "out" / "depth.png") in result.stdout
    picture = np.asarray(Image.open(tmp_path / "out" / "depth.png").convert("RGB"))
    assert picture.shape == (2 * (26 + 125) + 34, 3 * (185 + 10) + 10, 3)
    rows = re.findall(r"^(\S.*?) +([\d.]+) +[\d.]+ +[\d.]+ s$", result.stdout, re.MULTILINE)
    error = {name: float(rmse) for name, rmse in rows}
    assert len(error) == 5
    solved = error.pop("bilateral solver")
    # Measured: 1.59, against 2.46, 1.84, 1.77 and 1.66.
    assert solved < 0.98 * error.pop("joint bilateral filter")
    assert solved < 0.93 * min(error.values())


def test_joint_upsampling(tmp_path):
    # A proxy that answers nobody: the photo must not be fetched.
    result = run(
        "--shrink",
        "2",
        "--factor",
        "4",
        "--out-dir",
        str(tmp_path / "out"),
        demo=DEMO.with_name("joint_upsampling.py"),
        https_proxy="http://127.0.0.1:9",
    )
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path / "out") == ["joint_upsampling.png"]
    assert str(tmp_path / "out" / "joint_upsampling.png") in result.stdout
    rows = re.findall(r"^(\S.*?) +([\d.]+) +([\d.]+) +[\d.]+ s$", result.stdout, re.MULTILINE)
    rmse, mean = ({name: float(row[i]) for name, *row in rows} for i in (0, 1))
    assert set(rmse) == {"nearest", "bicubic", "joint bilateral"}
    # Measured: 1.58, 1.65 and 2.47; on average 0.33, 0.55 and 0.66.
    assert rmse["joint bilateral"] < rmse["bicubic"] < rmse["nearest"], rmse
    assert mean["joint bilateral"] < 0.7 * mean["bicubic"] < 0.7 * mean["nearest"], mean


def test_learned_filters_read_a_page(tmp_path):
    # A proxy that answers nobody: the page must not be fetched.
    result = run(
        "--steps",
        "80",
        "--out-dir",
        str(tmp_path / "out"),
        demo=DEMO.with_name("crf_grad.py"),
        https_proxy="http://127.0.0.1:9",
    )
    assert result.returncode == 0, result.stderr
    names = {"page.png", "filters.png", "convergence.png"}
    assert set(os.listdir(tmp_path / "out")) == names
    assert all(str(tmp_path / "out" / name) in result.stdout for name in names)
    found = dict(re.findall(r"^(\S.*?) +[\d.]+ +([\d.]+)$", result.stdout, re.MULTILINE))
    learned = float(found.pop("learned filters"))
    assert set(found) == {"each pixel alone", "the best Gaussian"}
    # Measured: 18.7, 45.1 and 48.8.
    assert learned > 2 + float(found["the best Gaussian"]) > 2 + 2 * float(found["each pixel alone"])


def test_batch_report(tmp_path):
    # A proxy that answers nobody: the photos must not be fetched.
    result = run(
        "--count",
        "4",
        "--size",
        "120",
        "--out-dir",
        str(tmp_path / "out"),
        demo=DEMO.with_name("batch_report.py"),
        https_proxy="http://127.0.0.1:9",
    )
    assert result.returncode == 0, result.stderr
    assert set(os.listdir(tmp_path / "out")) == {"photos", "predictions", "truth", "refined", "report.html"}
    assert len(os.listdir(tmp_path / "out" / "refined")) == 4
    assert str(tmp_path / "out" / "report.html") in result.stdout
    rows = re.findall(r"^(mean .*?) +([\d.]+) +([\d.]+) +\+", result.stdout, re.MULTILINE)
    gain = {name: float(after) - float(before) for name, before, after in rows}
    # Measured: 8.9 and 9.8 points.
    assert gain["mean IoU"] > 5
    assert gain["mean boundary F"] > 5
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text()
