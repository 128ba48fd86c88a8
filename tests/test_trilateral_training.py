"""The 4D U-Net of the demos, the demo that trains it with a head, and the benchmark of what the head adds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demos.train_head import (
    CHANNELS,
    LABELS,
    LEARN_ALL,
    WithHead,
    class_iou,
    make_scenes,
    new_head,
    train,
)
from demos.unet_4d import SparseUNet
from demos.voxel_pictures import draw_voxels
from voxel import SparseTensor

ROOT = Path(__file__).parents[1]


def voxels(seed, dimension=4, channels=CHANNELS):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-6, 7, (150, dimension), generator=generator).unique(dim=0)
    return torch.nn.functional.pad(cells, (1, 0)), torch.rand(len(cells), channels, generator=generator)


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("dimension", [2, 4])
@pytest.mark.parametrize("shape", ["cross", "cube"])
def test_shapes(dimension, shape):
    net = SparseUNet(3, 5, width=4, dimension=dimension, shape=shape)
    tensor = SparseTensor(*voxels(0, dimension, 3))
    logits = net(tensor)
    assert logits.voxels is tensor.voxels
    assert logits.features.shape == (len(tensor), 5)
    logits.features.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_batch_equals_its_items():
    net = SparseUNet(CHANNELS, 5, width=4).double()
    (first, one), (second, other) = voxels(0), voxels(1)
    second[:, 0] = 1
    both = SparseTensor(torch.cat([first, second]), torch.cat([one, other]).double())
    net(both)  # so that the running statistics are not what they start as
    net.eval()
    second[:, 0] = 0
    apart = [net(SparseTensor(c, f.double())).features for c, f in ((first, one), (second, other))]
    torch.testing.assert_close(net(both).features, torch.cat(apart), rtol=1e-12, atol=1e-12)
    # In training it is the voxels of the whole batch that are normalised.
    net.train()
    alone = net(SparseTensor(first, one.double())).features
    assert not torch.allclose(net(both).features[: len(first)], alone)


def test_iou():
    class Says(torch.nn.Module):
        def forward(self, tensor):
            return tensor.replace(torch.nn.functional.one_hot(self.labels, LABELS).float())

    (scene,) = make_scenes(0, 1, 1)
    net = Says()
    net.labels = scene.labels
    torch.testing.assert_close(class_iou(net, [scene]), torch.ones(LABELS))
    net.labels = scene.labels.clone()
    net.labels[scene.labels == 5] = 4
    size = torch.bincount(scene.labels).float()
    expected = torch.tensor([1, 1, 1, 1, size[4] / (size[4] + size[5]), 0])
    torch.testing.assert_close(class_iou(net, [scene]), expected)


def test_held_out_scenes_are_others():
    seen, held_out = make_scenes(0, 2, 1), make_scenes(0, 2, 1, held_out=True)
    kinds = {scene.voxels.features.numpy().tobytes() for scene in (*seen, *held_out, *make_scenes(1, 2, 1))}
    assert len(kinds) == 6


def test_training_moves_backbone_and_head():
    scenes = make_scenes(0, 1, 2)
    net = WithHead(SparseUNet(CHANNELS, LABELS, width=4), new_head(**LEARN_ALL))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    losses = list(train(net, scenes, 6, {net.backbone: 1e-2, net.head: 5e-2}))
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_cubes_hide_what_is_behind():
    cells = np.array([(0, 0, 0), (0, 1, 0)])  # the eye is at low y
    red, blue = (255, 0, 0), (0, 0, 255)
    picture = draw_voxels(cells, np.array([red, blue]), 60, 90)
    assert picture.shape == (60, 90, 3)
    amounts = [(picture[..., c].astype(int) - picture[..., 2 - c] > 100).sum() for c in (0, 2)]
    assert amounts[0] > 1.3 * amounts[1] > 0


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "out"
    small = ["--scenes", "2", "--frames", "2", "--epochs", "3", "--joint-epochs", "2"]
    result = run("demos/train_head.py", "--out-dir", str(out), *small)
    assert result.returncode == 0, result.stderr
    assert set(os.listdir(out)) == {"compatibility.png", "scene.png", "training.png"}
    for name in os.listdir(out):
        assert str(out / name) in result.stdout
        assert np.asarray(Image.open(out / name).convert("RGB")).std() > 5
    assert re.search(r"^mean +\d+\.\d +\d+\.\d$", result.stdout, re.MULTILINE)


def test_demo_without_a_folder(tmp_path):
    (tmp_path / "file").touch()
    result = run("demos/train_head.py", "--out-dir", str(tmp_path / "file" / "out"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert "cannot make the folder" in result.stderr


@pytest.mark.slow
def test_benchmark():
    result = run("benchmarks/trilateral_head.py", "--quick", "--seeds", "2")
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| (")]
    assert len(rows) == 2 * 5
    number = r"\d+\.\d ± \d+\.\d"
    for row in rows[:5]:
        assert re.fullmatch(rf"\| \([a-e]\) [^|]+( \| {number}){{7}} \|", row), row
    for row in rows[5:]:
        assert re.fullmatch(r"\| \([a-e]\) [^|]+( \| \d+\.\d){2} \|", row), row


def test_benchmark_says_what_is_wrong():
    result = run("benchmarks/trilateral_head.py", "--seeds", "0")
    assert result.returncode == 2
    assert "--seeds must be 1 or more" in result.stderr
