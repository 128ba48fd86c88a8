"""`hdcrf volume`: what it writes and prints, what it refuses, and that a failure leaves nothing behind."""

import inspect
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hdcrf
from hdcrf import machine
from hdcrf.commands import volume as command_volume
from hdcrf.commands.main import commands
from hdcrf.pictures import palette, slices
from tests.calling import Command, member

COMMAND = Command("volume")
invoke, succeed, refuse = COMMAND.invoke, COMMAND.succeed, COMMAND.refuse

nibabel = pytest.importorskip("nibabel")

DEPTH, HEIGHT, WIDTH = 8, 20, 24
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
AFFINE[:3, 3] = -12, 5, 40
FAST = ("--iterations", 3, "--appearance-sigma-xyz", 5)


@pytest.fixture(scope="session")
def truth():
    """A ball, (D, H, W), in the spacing of the scan."""
    place = np.stack(np.mgrid[:DEPTH, :HEIGHT, :WIDTH], -1) * (3, 1, 1)
    return (np.linalg.norm(place - (12, 10, 12), axis=-1) < 7).astype(int)


@pytest.fixture(scope="session")
def scan(truth):
    """The same as a CT would see it, with noise."""
    return np.where(truth == 1, 300, -700) + np.random.default_rng(0).normal(0, 20, truth.shape)


@pytest.fixture(scope="session")
def said(truth):
    """Labels 3 and 40 that are wrong at one voxel of five, and unknown, -1, at as many."""
    chance = np.random.default_rng(1).random(truth.shape)
    return np.where(chance < 0.2, -1, np.where((chance < 0.4) ^ (truth == 0), 3, 40))


@pytest.fixture(scope="session")
def values(truth):
    """Probabilities (D, H, W, K) that are wrong at one voxel of five."""
    wrong = np.where(np.random.default_rng(2).random(truth.shape) < 0.2, 1 - truth, truth)
    return np.where(np.arange(2) == wrong[..., None], 0.7, 0.3).astype(np.float32)


def save(name, array, affine=AFFINE):
    """Write an array (D, H, W) or (D, H, W, c) as NIfTI has it, (x, y, z) or (x, y, z, c)."""
    image = nibabel.Nifti1Image(np.swapaxes(array, 0, 2), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, name)


def load(name):
    return np.swapaxes(np.asarray(nibabel.load(name).dataobj), 0, 2)


@pytest.fixture
def folder(tmp_path, scan, said, values, monkeypatch):
    """A working directory with a scan, labels and probabilities."""
    monkeypatch.chdir(tmp_path)
    save("scan.nii.gz", scan.astype(np.int16))
    save("labels.nii.gz", said.astype(np.int16))
    save("p.nii.gz", values)
    np.save("p.npy", values)
    return tmp_path


ANNOTATION = ("scan.nii.gz", "--annotation", "labels.nii.gz", "-o", "out.nii.gz")
PROBABILITIES = ("scan.nii.gz", "--probabilities", "p.npy", "-o", "out.nii.gz")


class TestResult:
    def test_from_an_annotation(self, folder, truth, said):
        result = succeed(*ANNOTATION, *FAST, "--save-marginals", "m.nii.gz")
        labels = load("out.nii.gz")
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) == {3, 40}
        assert ((labels == 40) == (truth == 1)).mean() > 0.99
        np.testing.assert_array_equal(nibabel.load("out.nii.gz").affine, AFFINE)
        marginals = load("m.nii.gz")
        assert marginals.shape == (DEPTH, HEIGHT, WIDTH, 2)
        np.testing.assert_allclose(marginals.sum(3), 1, atol=1e-6)
        np.testing.assert_array_equal(np.array([3, 40])[marginals.argmax(3)], labels)
        assert "out.nii.gz (8 x 20 x 24 voxels" in result.stdout
        assert "m.nii.gz (8 x 20 x 24 x 2 float32, of labels 3, 40" in result.stdout
        assert f"{(said < 0).mean():.1%} of the voxels were unknown" in result.stdout
        changed = (labels != said)[said >= 0].mean()
        assert f"{changed:.1%} of the annotated voxels changed" in result.stdout

    def test_is_what_the_layer_gives(self, folder, scan, values):
        options = ("--smoothness-weight", 1, "--save-marginals", "m.npy")
        result = succeed(*PROBABILITIES, *FAST, *options)
        whole = scan.astype(np.int16)
        low, high = np.percentile(whole, (1, 99))
        assert f"intensities from {low:g} to {high:g} scaled to 0..255" in result.stderr
        crf = hdcrf.VolumeCRF(
            2,
            iterations=3,
            appearance_sigma_xyz=5.0,
            smoothness_weight=1.0,
            spacing=(3.0, 1.0, 1.0),
            learn=(),
        )
        expected = crf(
            torch.from_numpy(values).movedim(-1, 0)[None].log(),
            torch.from_numpy((whole - low) / (high - low) * 255).float()[None, None],
        )
        # To the rounding of the scaling and the logarithm.
        found = np.load("m.npy")
        np.testing.assert_allclose(found, expected[0].movedim(0, -1).numpy(), atol=1e-4)

    def test_probabilities_in_either_format(self, folder):
        for probabilities, marginals in (("p.npy", "a.npz"), ("p.nii.gz", "b.npz")):
            options = ("--probabilities", probabilities, "-o", "out.nii", "--save-marginals", marginals)
            succeed("scan.nii.gz", *options, *FAST)
        first, second = member("a.npz", "marginals"), member("b.npz", "marginals")
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(load("out.nii"), second.argmax(3))

    def test_raw_intensities(self, folder, scan, values):
        save("unit.nii", (scan * 1e-4 + 0.1).astype(np.float32))
        result = succeed("unit.nii", *PROBABILITIES[1:], *FAST, "--raw-intensities", "--quiet")
        assert result.stderr.count("Warning: `guide` lies between") == 1
        result = succeed(
            *("unit.nii", *PROBABILITIES[1:], *FAST, "--raw-intensities"),
            *("--appearance-sigma-intensity", 0.005),
        )
        assert result.stderr == ""
        assert "2 of 2 labels found" in result.stdout

    def test_channels_are_scaled_each(self, folder, scan, truth):
        save("two.nii", np.stack([np.full(scan.shape, 7.0), scan], -1).astype(np.float32))
        result = succeed("two.nii", *PROBABILITIES[1:], *FAST)
        assert "from 7 to 7 of channel 0" in result.stderr
        assert "of channel 1 scaled" in result.stderr
        assert (load("out.nii.gz") == truth).mean() > 0.99

    def test_a_few_bright_voxels_on_black(self, folder, scan, truth, values):
        few = np.zeros_like(scan)
        few[4, 10, 10:13] = 1000
        save("few.nii", few.astype(np.float32))
        assert "from 0 to 1000 scaled" in succeed("few.nii", *PROBABILITIES[1:], *FAST).stderr

    def test_blocks(self, folder, truth):
        succeed(
            *PROBABILITIES, *FAST, "--block", "4,10,12", "--overlap", "2,4,4", "--save-marginals", "m.npy"
        )
        np.testing.assert_allclose(np.load("m.npy").sum(3), 1, atol=1e-5)
        assert (load("out.nii.gz") == truth).mean() > 0.99
        succeed(*PROBABILITIES, *FAST, "--block", 10)
        assert (load("out.nii.gz") == truth).mean() > 0.99

    def test_unknown_says_what_is(self, folder, said, truth):
        save("zero.nii", np.where(said < 0, 0, said).astype(np.uint8))
        result = succeed("scan.nii.gz", "--annotation", "zero.nii", "-o", "o.nii", *FAST, "--unknown", 0)
        assert "2 of 2 labels found" in result.stdout
        succeed(*ANNOTATION, *FAST)
        np.testing.assert_array_equal(load("o.nii"), load("out.nii.gz"))

    def test_overlay(self, folder, scan):
        succeed(*ANNOTATION, *FAST, "--overlay", "o.png", "--opacity", 1)
        picture = np.asarray(Image.open("o.png"))
        assert picture.shape == (3 * HEIGHT, 3 * WIDTH, 3)  # 8 slices in 3 x 3
        labels = load("out.nii.gz")
        np.testing.assert_array_equal(
            picture[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH], palette(2)[(labels[4] == 40).astype(int)][::-1]
        )
        assert (picture[2 * HEIGHT :, 2 * WIDTH :] == 0).all()

    def test_quiet_replaces_older_results(self, folder):
        (folder / "out.nii.gz").write_text("older")
        assert succeed(*ANNOTATION, *FAST, "--quiet").output == ""
        load("out.nii.gz")

    def test_a_single_label_is_explained(self, folder):
        few = np.full((DEPTH, HEIGHT, WIDTH, 2), (0.6, 0.4), np.float32)
        few[4, 5, 5] = 0.45, 0.55
        np.save("p.npy", few)
        result = succeed(*PROBABILITIES, "--quiet", "--appearance-sigma-intensity", 500)
        assert "all label 0: the others were outvoted" in result.stderr
        assert "they are in mm" in result.stderr

    def test_options_have_the_layer_s_names_and_defaults(self):
        layer = inspect.signature(hdcrf.VolumeCRF).parameters
        options = commands.commands["volume"].make_context("volume", [*PROBABILITIES]).params
        kernels = {name for name in layer if name.startswith(("appearance", "smoothness"))}
        assert {name: options[name] for name in kernels} == {name: layer[name].default for name in kernels}
        assert options["block"] == inspect.signature(hdcrf.volume_in_blocks).parameters["block"].default


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    def test_neither_or_both_inputs(self):
        assert "got neither" in refuse("scan.nii.gz", "-o", "out.nii")
        assert "got both" in refuse(*ANNOTATION, "--probabilities", "p.npy")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--gt-prob", 0.7), "--gt-prob goes with --annotation"),
            (("--unknown", 0), "--unknown goes with --annotation"),
            (("--block", "4,4"), "'4,4' is not three numbers of voxels"),
            (("--block", "a"), "'a' is not three numbers of voxels"),
            (("--block", "4,-4,4"), "is not three numbers of voxels"),
            (("--block", 0, "--overlap", 0), "must be at least 1 along D"),
            (("--overlap", "16,32,65"), "at most half of --block 128 along W, got 65"),
            (("--save-marginals", "m.csv"), "must end in .nii or .nii.gz or .npy or .npz"),
            (("--save-marginals", "m.gz"), "must end in .nii or .nii.gz or .npy or .npz, got '.gz'"),
            (("--save-marginals", "p.npy"), "is also the file of --probabilities"),
            (("--overlay", "o.nii"), "must end in .png"),
            (("--appearance-sigma-xyz", "1e-12"), "is too small: voxel"),
        ],
    )
    def test_options(self, options, message):
        assert message in refuse(*PROBABILITIES, *options)

    def test_output(self):
        assert "must end in .nii or .nii.gz" in refuse(*PROBABILITIES[:-1], "out.png")
        assert "is also the file of SCAN" in refuse(*PROBABILITIES[:-1], "scan.nii.gz")

    def test_annotation_elsewhere(self, said):
        save("bad.nii", said.astype(np.int16)[:, :, 1:])
        message = refuse("scan.nii.gz", "--annotation", "bad.nii", "-o", "out.nii")
        assert "annotation bad.nii has (D, H, W) = (8, 20, 23), but the volume has (8, 20, 24)" in message
        save("bad.nii", said.astype(np.int16), np.diag([1.0, 1, 2, 1]))
        message = refuse("scan.nii.gz", "--annotation", "bad.nii", "-o", "out.nii")
        assert "lies elsewhere than the volume" in message

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.full((DEPTH, HEIGHT, WIDTH), -1), "all labels are unknown, as there are only -1"),
            (
                np.arange(DEPTH * HEIGHT * WIDTH).reshape(DEPTH, HEIGHT, WIDTH),
                "has 3840 labels, from 0 to 3839",
            ),
            (np.full((DEPTH, HEIGHT, WIDTH), 0.5), "must hold whole numbers, got 0.5"),
            (np.zeros((DEPTH, HEIGHT, WIDTH, 2)), "has 2 values a voxel"),
        ],
    )
    def test_annotation(self, labels, message):
        save("bad.nii", labels.astype(np.float32))
        stderr = refuse("scan.nii.gz", "--annotation", "bad.nii", "-o", "out.nii", "--quiet")
        assert "annotation bad.nii" in stderr
        assert message in stderr

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((DEPTH, HEIGHT, WIDTH + 1, 2), "(D, H, W, K) = (8, 20, 24, K) to match the volume"),
            ((2, DEPTH, HEIGHT, WIDTH), "the labels come first here: save p.transpose(1, 2, 3, 0)"),
        ],
    )
    def test_probabilities_of_another_size(self, shape, message):
        np.save("bad.npy", np.full(shape, 0.5, np.float32))
        assert message in refuse("scan.nii.gz", "--probabilities", "bad.npy", "-o", "out.nii")

    @pytest.mark.parametrize(
        ("wrong", "message"), [((0.7, 0.7), "must sum to 1"), ((-0.5, 1.5), "must be 0 or greater")]
    )
    def test_probabilities(self, wrong, message, values):
        bad = values.copy()
        bad[3, 4, 5] = wrong
        save("bad.nii", bad)
        stderr = refuse("scan.nii.gz", "--probabilities", "bad.nii", "-o", "out.nii")
        assert "probabilities bad.nii" in stderr
        assert message in stderr

    def test_a_damaged_scan(self, folder):
        (folder / "bad.nii.gz").write_bytes((folder / "scan.nii.gz").read_bytes()[:2000])
        assert "volume bad.nii.gz cannot be read" in refuse("bad.nii.gz", *PROBABILITIES[1:])

    @pytest.mark.parametrize(
        ("memory", "message"),
        [
            (20_000, "2 labels at 8 x 20 x 24 voxels: that takes at least 6.14e-05 GB"),
            (100_000, "in blocks of 8 x 20 x 24: that takes at least 0.000883 GB"),
        ],
    )
    def test_beyond_the_memory(self, memory, message, monkeypatch):
        monkeypatch.setattr(machine, "memory_of", lambda device: memory)
        assert message in refuse(*PROBABILITIES, "--quiet")

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "nibabel", None)
        assert 'needs nibabel: pip install "hdcrf[volumes]"' in refuse(*PROBABILITIES)


@pytest.mark.usefixtures("unchanged")
class TestFailures:
    EVERY = ("--overlay", "o.png", "--save-marginals", "m.nii")

    def test_interrupt(self, monkeypatch):
        def infer(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(hdcrf.VolumeCRF, "infer", infer)
        assert "Interrupted; nothing was written" in refuse(*ANNOTATION, *self.EVERY, code=130)

    @pytest.mark.parametrize("writer", ["write_volume_labels", "write_picture", "write_volume_marginals"])
    def test_disk_full(self, writer, monkeypatch):
        def write(file, *_, **__):
            file.write(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(command_volume, writer, write)
        message = refuse(*ANNOTATION, *FAST, *self.EVERY, code=1)
        assert "cannot write the results, and wrote none" in message


class TestSlices:
    def test_even_steps_upright_and_as_wide_as_they_are(self):
        volume = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
        unknown = np.full(volume.shape, -1)
        picture = slices(volume, unknown, palette(1), spacing=(9, 1, 2), most=2)
        assert picture.shape == (2, 2 * 6, 3)
        np.testing.assert_array_equal(picture[:, :6, 0], np.repeat(volume[1][::-1], 2, axis=1))
        np.testing.assert_array_equal(picture[:, 6:, 0], np.repeat(volume[3][::-1], 2, axis=1))

    def test_extreme_spacing_is_cut(self):
        volume = np.zeros((1, 5, 5), np.uint8)
        assert slices(volume, volume.astype(int), palette(1), spacing=(1, 1, 1e9)).shape == (5, 50, 3)

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match="must have one shape"):
            slices(np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 3), int), palette(1))
