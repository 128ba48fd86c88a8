"""The benchmark of learned heads runs on a folder of small pictures, and says what is wrong with others."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import head_tables, learned_heads, street_frames

SCRIPT = Path(learned_heads.__file__)
FRAMES, HEIGHT, WIDTH = 9, 48, 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A disc that moves over a ground, under noise; a strip of void, and a class that leaves."""
    root = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for frame in range(FRAMES):
        labels = (np.hypot(y - 20, x - 10 - 5 * frame) < 12).astype(np.uint8)
        if frame < 5:
            labels[35:] = 2
        colours = np.array([[60, 90, 60], [200, 80, 60], [60, 80, 190]])[labels]
        image = colours + random.normal(0, 20, colours.shape)
        labels[:3] = 9
        for name, array in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", labels)):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / name / f"{frame:03}.png")
    return root / "images", root / "labels"


@pytest.mark.slow
def test_tables(folders):
    images, labels = map(str, folders)
    result = subprocess.run(
        [
            *(sys.executable, SCRIPT, "--images", images, "--labels", labels, "--void", "9", "--fit", "6"),
            *("--seeds", "2", "--jobs", "2", "--video", "--quick"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    losses = re.findall(r"(.+): loss ([\d.]+) -> ([\d.]+)", result.stderr)
    assert len(losses) == 2 * (
        1 + 2 + 1 + 2 * 2
    )  # a network, two blocks', further; for each CRF, head and joint
    for name, first, last in losses:
        if "further" not in name and "jointly" not in name:  # those go on from what is trained
            assert float(last) < float(first), name
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == 2 * [
        "method",
        "unary",
        "fixed CRF, defaults",
        "fixed CRF, best of a grid",
        "learned CRF",
        "unary, trained as long",
        "the same, fixed CRF, best of a grid",
        "the same, learned CRF",
        "jointly trained",
    ]
    for row in rows:
        if row[0] == "method":
            assert row[1:] == ["mean IoU", "class 0", "class 1", "class 2", "parameters", "seconds"]
            continue
        assert row[4] == "-"  # class 2 is in no frame to check
        mean = (float(row[2]) + float(row[3])) / 2
        assert float(row[1].split(" ± ")[0]) == pytest.approx(mean, abs=0.11)  # all are rounded to 0.1
    learned = {row[0]: row[5] for row in rows}
    # DenseCRF: a scale, two weights, three bandwidths, nine compatibilities. VideoCRF: a bandwidth more.
    assert [row[5] for row in rows if row[0] == "learned CRF"] == ["15", "16"]
    assert learned["fixed CRF, best of a grid"] == "0"


@pytest.mark.slow
def test_table_of_gaussian_heads(folders, tmp_path):
    images, labels = map(str, folders)
    command = [sys.executable, SCRIPT.with_name("gaussian_heads.py"), "--images", images, "--labels", labels]
    options = ["--void", "9", "--fit", "6", "--seeds", "1", "--quick", "--networks", str(tmp_path)]
    results = [
        subprocess.run([*command, *options], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    first, again = (
        [line.split(" | ")[:2] for line in result.stdout.splitlines() if line.startswith("| ")]
        for result in results
    )
    assert len(first) == 1 + 2 + 2 * 7  # a head, the network twice, seven methods alone and jointly
    assert first == again  # with the networks that were kept
    assert "network without frames" in results[0].stderr
    assert "network without frames" not in results[1].stderr


def test_scores(folders):
    frames = street_frames.read_frames(*folders, 6, 9)
    assert frames.num_labels == 3
    assert (frames.labels[:, :3] == street_frames.UNKNOWN).all()
    truth = frames.labels.clone()
    truth[frames.labels == street_frames.UNKNOWN] = 0
    logits = torch.nn.functional.one_hot(truth, 3).movedim(3, 1).float()
    everything = [slice(0, FRAMES)]
    torch.testing.assert_close(head_tables.score(None, frames, logits, everything), torch.ones(3))
    # All ground: its IoU is its share of what is scored.
    share = (frames.labels == 0).sum() / (frames.labels != street_frames.UNKNOWN).sum()
    logits = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(FRAMES, 3, HEIGHT, WIDTH)
    iou = head_tables.score(None, frames, logits, everything)
    torch.testing.assert_close(iou, torch.tensor([float(share), 0.0, 0.0]))
    iou = head_tables.score(None, frames, logits, street_frames.windows(6, FRAMES, 2))
    assert iou.isnan().tolist() == [False, False, True]
    assert head_tables.mean_iou(iou) == pytest.approx(float(iou[0] / 2))


def test_a_video_is_cut_into_windows():
    assert street_frames.windows(6, 11, 2) == [slice(6, 8), slice(8, 10), slice(10, 11)]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("no folder", "--labels must be a folder"),
        ("empty", "holds no picture"),
        ("stem", "'extra'"),
        ("twice", "two pictures of one stem"),
        ("size", "scale all to one size"),
        ("size of labels", "labels must have the size of their images"),
        ("colours", "8-bit grey or palette"),
        ("no picture", "cannot read the labels"),
        ("void", "no label other than void"),
        ("fit", "--fit must be from 2 to 2"),
    ],
)
def test_what_is_wrong(broken, message, tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        folder.mkdir()
    for frame in range(3):
        Image.new("RGB", (8, 6)).save(images / f"{frame}.png")
        Image.new("L", (8, 6), 1).save(labels / f"{frame}.png")
    if broken == "no folder":
        labels = tmp_path / "none"
    elif broken == "empty":
        for path in labels.iterdir():
            path.unlink()
    elif broken == "stem":
        Image.new("L", (8, 6)).save(labels / "extra.png")
    elif broken == "twice":
        Image.new("L", (8, 6)).save(labels / "0.bmp")
    elif broken == "size":
        Image.new("RGB", (9, 6)).save(images / "2.png")
    elif broken == "size of labels":
        for frame in range(3):
            Image.new("L", (8, 7)).save(labels / f"{frame}.png")
    elif broken == "colours":
        Image.new("RGB", (8, 6)).save(labels / "1.png")
    elif broken == "no picture":
        (labels / "1.png").write_text("labels")
    with pytest.raises(SystemExit, match=re.escape(message)):
        street_frames.read_frames(images, labels, 3 if broken == "fit" else 2, 1 if broken == "void" else 9)
