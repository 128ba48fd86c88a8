"""`hdcrf points`: what it writes and prints, what it refuses, and that a failure leaves nothing behind."""

import inspect
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hdcrf
from hdcrf import machine
from hdcrf.commands import points as command_points
from hdcrf.commands.main import commands
from hdcrf.files import ignore
from hdcrf.pictures import palette
from hdcrf.point_files import read_points, write_points
from tests.calling import Command, member

COMMAND = Command("points")
invoke, succeed, refuse = COMMAND.invoke, COMMAND.succeed, COMMAND.refuse

FAST = ("--iterations", 3, "--appearance-sigma-xyz", 0.3, "--smoothness-sigma", 0.1)


def corner(count=1200, seed=0):
    """Return the points of a floor and a wall that meet, with normals and colours, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    positions = rng.random((count, 3)) * 2
    positions[labels == 0, 2] = 0
    positions[labels == 1, 0] = 0
    normals = np.where(labels[:, None] == 0, (0.0, 0, 1), (1.0, 0, 0))
    colours = np.where(labels[:, None] == 0, (130, 100, 70), (220, 220, 210)) + rng.normal(0, 4, (count, 3))
    return {
        "positions": positions,
        "normals": normals,
        "colours": np.clip(colours, 0, 255).astype(np.uint8),
        "intensities": np.where(labels == 0, 300.0, 900.0),
    }, labels


@pytest.fixture(scope="session")
def truth():
    return corner()[1]


@pytest.fixture(scope="session")
def said(truth):
    """Labels 2 and 6 that are wrong at one point of five, and unknown, -1, at as many."""
    chance = np.random.default_rng(1).random(len(truth))
    return np.where(chance < 0.2, -1, np.where((chance < 0.4) ^ (truth == 0), 2, 6))


@pytest.fixture
def folder(tmp_path, truth, said, monkeypatch):
    """A working directory with a cloud and probabilities."""
    monkeypatch.chdir(tmp_path)
    np.savez("cloud.npz", **corner()[0], labels=said)
    rng = np.random.default_rng(2)
    wrong = np.where(rng.random(len(truth)) < 0.2, 1 - truth, truth)
    np.save("p.npy", np.where(np.arange(2) == wrong[:, None], 0.7, 0.3).astype(np.float32))
    return tmp_path


ANNOTATION = ("cloud.npz", "--annotation", "-o", "out.npz")
PROBABILITIES = ("cloud.npz", "--probabilities", "p.npy", "-o", "out.npz")


class TestResult:
    def test_from_an_annotation(self, folder, truth, said):
        result = succeed(*ANNOTATION, *FAST, "--save-marginals", "m.npz")
        labels = member("out.npz", "labels")
        assert set(np.unique(labels)) == {2, 6}
        assert ((labels == 6) == (truth == 1)).mean() > 0.99
        marginals = member("m.npz", "marginals")
        np.testing.assert_allclose(marginals.sum(1), 1, atol=1e-6)
        np.testing.assert_array_equal(np.array([2, 6])[marginals.argmax(1)], labels)
        np.testing.assert_array_equal(member("out.npz", "colours"), palette(2)[marginals.argmax(1)])
        assert "m.npz (1200 x 2 float32, of labels 2, 6" in result.stdout
        assert f"{(said < 0).mean():.1%} of the points were unknown" in result.stdout
        changed = (labels != said)[said >= 0].mean()
        assert f"{changed:.1%} of the annotated points changed" in result.stdout
        assert result.stderr == ""

    def test_is_what_the_layer_gives(self, folder):
        succeed(*PROBABILITIES, *FAST, "--smoothness-weight", 1, "--save-marginals", "m.npy")
        cloud, _ = corner()
        crf = hdcrf.PointCRF(2, iterations=3, smoothness_weight=1.0, learn=())
        positions = cloud["positions"]
        positions = positions - (positions.min(0) + positions.max(0)) / 2
        expected = crf(
            torch.from_numpy(np.load("p.npy")).log(),
            torch.from_numpy(positions).float(),
            colours=torch.from_numpy(cloud["colours"]),
        )
        # To the rounding of the logarithm.
        np.testing.assert_allclose(np.load("m.npy"), expected.numpy(), atol=1e-5)

    @pytest.mark.parametrize(
        "use",
        [
            ("--use", "normals"),
            ("--use", "intensities", "--appearance-sigma-intensity", 50),
            ("--use", "colours,normals"),
        ],
    )
    def test_attributes(self, use, folder, truth):
        succeed(*PROBABILITIES, *FAST, *use)
        assert (member("out.npz", "labels") == truth).mean() > 0.99

    def test_positions_alone_do_not_tell_the_edge(self, folder, truth):
        succeed(*PROBABILITIES, *FAST, "--use", "none")
        alone = (member("out.npz", "labels") == truth).mean()
        succeed(*PROBABILITIES, *FAST)
        assert (member("out.npz", "labels") == truth).mean() > alone

    def test_a_cloud_without_colours_is_noted(self, folder):
        cloud, _ = corner()
        np.savez("plain.npz", positions=cloud["positions"])
        result = succeed("plain.npz", *PROBABILITIES[1:], *FAST)
        assert "have no colours: only their positions count" in result.stderr

    @pytest.mark.parametrize("suffix", [".ply", ".pcd", ".las", ".laz"])
    def test_formats(self, suffix, folder, said):
        pytest.importorskip("laspy")
        source = read_points(folder / "cloud.npz")
        with open(f"in{suffix}", "wb") as file:
            write_points(file, source, np.maximum(said, 0), suffix, note=ignore)
        succeed(f"in{suffix}", "--annotation", "--unknown", 0, "-o", f"out{suffix}", *FAST, "--quiet")
        succeed(*ANNOTATION, *FAST)
        # Positions are rounded a little in LAS.
        expected = read_points(folder / "out.npz")
        found = read_points(folder / f"out{suffix}", note=ignore)
        assert (found.labels == expected.labels).mean() > 0.995
        np.testing.assert_array_equal(found.colours, palette(2)[np.where(found.labels == 6, 1, 0)])
        np.testing.assert_allclose(found.positions, expected.positions, atol=1e-6)

    def test_zero_is_unknown_in_las_and_that_is_said(self, folder, said):
        pytest.importorskip("laspy")
        source = read_points(folder / "cloud.npz")
        with open("in.las", "wb") as file:
            write_points(file, source, np.maximum(said, 0), ".las", note=ignore)
        result = succeed("in.las", "--annotation", "-o", "out.las", *FAST)
        assert "label 0, never classified, is unknown" in result.stderr
        assert "2 of 2 labels found" in result.stdout
        result = succeed("in.las", "--annotation", "--unknown", -1, "-o", "out.las", *FAST)
        assert "never classified, is unknown" not in result.stderr
        assert "in LAS, label 0 means never classified; read it back with --unknown -1" in result.stderr
        assert "of 3 labels found" in result.stdout

    def test_what_las_has_no_place_for_is_said(self, folder):
        pytest.importorskip("laspy")
        result = succeed(*ANNOTATION[:-1], "out.las", *FAST)
        assert result.stderr == (
            "Note: --output out.las: normals left out, for which .las files have no place\n"
        )
        assert succeed(*ANNOTATION[:-1], "out.las", *FAST, "--quiet").stderr == ""

    def test_colours_are_kept(self, folder):
        succeed(*ANNOTATION, *FAST, "--keep-colours")
        np.testing.assert_array_equal(member("out.npz", "colours"), corner()[0]["colours"])

    def test_far_from_the_origin(self, folder):
        cloud, _ = corner()
        # 2**-10 apart, so that moving them rounds nothing in double precision.
        cloud["positions"] = np.rint(cloud["positions"] * 1024) / 1024
        np.savez("near.npz", **cloud)
        cloud["positions"] = cloud["positions"] + (600_000, 5_400_000, 300)
        np.savez("far.npz", **cloud)
        for name in ("near", "far"):
            succeed(f"{name}.npz", *PROBABILITIES[1:], *FAST, "--save-marginals", f"{name}_m.npy")
        np.testing.assert_array_equal(np.load("near_m.npy"), np.load("far_m.npy"))

    def test_blocks_with_an_empty_one_between(self, folder, truth):
        cloud, _ = corner()
        apart = np.where(np.arange(len(truth)) < 600, 0.0, 50.0)
        cloud["positions"] = cloud["positions"] + apart[:, None] * (1, 0, 0)
        np.savez("apart.npz", **cloud)
        succeed("apart.npz", *PROBABILITIES[1:], *FAST, "--save-marginals", "whole.npy")
        result = succeed(
            *("apart.npz", *PROBABILITIES[1:], *FAST, "--save-marginals", "blocks.npy"),
            *("--block", 3, "--overlap", 1),
        )
        assert "1200 points in" in result.stdout
        blocks = np.load("blocks.npy")
        np.testing.assert_allclose(blocks.sum(1), 1, atol=1e-5)
        assert (blocks.argmax(1) == np.load("whole.npy").argmax(1)).mean() > 0.99

    def test_duplicate_points(self, folder):
        np.savez("same.npz", positions=np.zeros((8, 3)), labels=np.array([0, 1, 1, 1, 1, 1, -1, -1]))
        succeed("same.npz", "--annotation", "-o", "out.npz", "--overlay", "o.png", "--quiet")
        assert (member("out.npz", "labels") == 1).all()

    def test_overlay_shows_the_colours_of_labels(self, folder):
        succeed(*ANNOTATION, *FAST, "--overlay", "o.png", "--opacity", 1)
        picture = np.asarray(Image.open("o.png")).reshape(-1, 3).astype(int)
        drawn = picture[(picture != 255).any(1)]
        assert len(drawn) > 1000
        hue = drawn / drawn.max(1, keepdims=True)  # edges are darkened
        colours = palette(2) / palette(2).max(1, keepdims=True)
        distance = np.abs(hue[:, None] - colours).max(2)
        assert (distance.min(1) < 0.05).mean() > 0.95
        assert set(distance.argmin(1)) == {0, 1}

    def test_quiet_replaces_older_results(self, folder):
        (folder / "out.npz").write_text("older")
        assert succeed(*ANNOTATION, *FAST, "--quiet").output == ""
        assert set(member("out.npz", "labels")) == {2, 6}

    def test_a_single_label_is_explained(self, folder):
        few = np.full((1200, 2), (0.6, 0.4), np.float32)
        few[:10] = 0.45, 0.55
        np.save("p.npy", few)
        result = succeed(*PROBABILITIES, "--quiet", "--appearance-sigma-rgb", 500)
        assert "all label 0: the others were outvoted" in result.stderr
        assert "--appearance-sigma-xyz or --smoothness-sigma is too large for the cloud" in result.stderr

    def test_options_have_the_layer_s_names_and_defaults(self):
        layer = inspect.signature(hdcrf.PointCRF).parameters
        options = commands.commands["points"].make_context("points", [*PROBABILITIES]).params
        kernels = {name for name in layer if name.startswith(("appearance", "smoothness"))}
        assert kernels <= options.keys()
        # The layer has no normals unless they are asked for; the command asks by --use.
        same = kernels - {"appearance_sigma_normal"}
        assert {name: options[name] for name in same} == {name: layer[name].default for name in same}


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    def test_neither_or_both_inputs(self):
        assert "got neither" in refuse("cloud.npz", "-o", "out.npz")
        assert "got both" in refuse(*ANNOTATION, "--probabilities", "p.npy")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--gt-prob", 0.7), "--gt-prob goes with --annotation"),
            (("--unknown", 0), "--unknown goes with --annotation"),
            (("--overlap", 1), "--overlap goes with --block"),
            (("--block", 2, "--overlap", 1.5), "at most half of --block 2, got 1.5"),
            (("--block", 0), "not in the range"),
            (("--use", "colors"), "'colors' is not one of colours, normals, intensities"),
            (("--appearance-sigma-normal", 0.1), "--appearance-sigma-normal goes with normals"),
            (("--use", "none", "--appearance-sigma-rgb", 9), "--appearance-sigma-rgb goes with colours"),
            (("--use", "intensities"), "they run from 300 to 900"),
            (("--save-marginals", "m.ply"), "must end in .npy or .npz"),
            (("--save-marginals", "p.npy"), "is also the file of --probabilities"),
            (("--overlay", "o.gif"), "must end in .png"),
            (("--appearance-sigma-xyz", "1e-12"), "is too small: point"),
        ],
    )
    def test_options(self, options, message):
        assert message in refuse(*PROBABILITIES, *options)

    def test_output(self):
        assert "must end in .las or .laz" in refuse(*PROBABILITIES[:-1], "out.xyz")
        assert "is also the file of CLOUD" in refuse(*PROBABILITIES[:-1], "cloud.npz")

    def test_no_such_attribute(self):
        np.savez("bad.npz", positions=corner()[0]["positions"])
        for use in ("colours", "normals", "intensities"):
            assert f"have no {use}, which are needed here" in refuse(
                "bad.npz", *PROBABILITIES[1:], "--use", use, "--quiet"
            )
        assert "have no labels" in refuse("bad.npz", *ANNOTATION[1:])

    def test_positions_that_are_not_finite(self):
        cloud, _ = corner()
        cloud["positions"][7, 1] = np.nan
        np.savez("bad.npz", **cloud)
        message = refuse("bad.npz", *PROBABILITIES[1:])
        assert "positions must be finite" in message
        assert "at point 7" in message

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.full((7, 2), 0.5, np.float32), "(N, K) = (1200, K) to match the cloud, got (7, 2)"),
            (np.full((2, 1200), 0.5, np.float32), "the labels come first here: save p.transpose(1, 0)"),
            (np.full((1200, 2), 0.7, np.float32), "must sum to 1"),
            (np.full((1200, 2), np.nan, np.float32), "must be finite"),
            (np.ones((1200, 2), int), "must hold floating-point numbers"),
        ],
    )
    def test_probabilities(self, values, message):
        np.save("bad.npy", values)
        stderr = refuse("cloud.npz", "--probabilities", "bad.npy", "-o", "out.npz")
        assert "probabilities bad.npy" in stderr
        assert message in stderr

    @pytest.mark.parametrize(
        ("labels", "options", "message"),
        [
            (np.full(1200, -1), (), "all labels are unknown, as there are only -1"),
            (np.arange(1200), (), "has 1200 labels, from 0 to 1199; at most 256"),
            (np.arange(1200) % 3 - 3, (), "must be 0 or greater, got -3; say --unknown -3"),
            (np.arange(1200) % 3, ("--gt-prob", 0.3), "`gt_prob` must lie between 1/3"),
        ],
    )
    def test_annotation(self, labels, options, message):
        np.savez("bad.npz", **corner()[0], labels=labels)
        assert message in refuse("bad.npz", *ANNOTATION[1:], *options)

    def test_labels_beyond_las(self):
        pytest.importorskip("laspy")
        np.savez("bad.npz", **corner()[0], labels=np.arange(1200) % 2 * 300)
        assert "a .laz file holds labels up to 255" in refuse("bad.npz", "--annotation", "-o", "out.laz")

    def test_beyond_the_memory(self, monkeypatch):
        monkeypatch.setattr(machine, "memory_of", lambda device: 100_000)
        message = refuse(*PROBABILITIES)
        assert "1200 at once: that takes at least 0.0006 GB" in message
        assert "give a --block" in message

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "laspy", None)
        assert 'needs laspy: pip install "hdcrf[points]"' in refuse(*PROBABILITIES[:-1], "out.las")


@pytest.mark.usefixtures("unchanged")
class TestFailures:
    EVERY = ("--overlay", "o.png", "--save-marginals", "m.npy")

    def test_interrupt(self, monkeypatch):
        def infer(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(hdcrf.PointCRF, "infer", infer)
        assert "Interrupted; nothing was written" in refuse(*ANNOTATION, *self.EVERY, code=130)

    @pytest.mark.parametrize("writer", ["write_points", "write_picture", "write_array"])
    def test_disk_full(self, writer, monkeypatch):
        def write(file, *_, **__):
            file.write(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(command_points, writer, write)
        message = refuse(*ANNOTATION, *FAST, *self.EVERY, code=1)
        assert "cannot write the results, and wrote none" in message
