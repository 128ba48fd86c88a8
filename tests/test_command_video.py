"""`hdcrf video`: what it writes and prints, what it refuses, and that a failure leaves nothing behind."""

import inspect
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hdcrf
from hdcrf import array_files, machine, video_files
from hdcrf.commands import video as command_video
from hdcrf.commands.main import commands
from hdcrf.commands.running import progress_bar
from hdcrf.video_files import VideoWriter, read_video
from tests.calling import Command, member

COMMAND = Command("video")
invoke, succeed, refuse = COMMAND.invoke, COMMAND.succeed, COMMAND.refuse

FRAMES, HEIGHT, WIDTH = 10, 24, 32
FAST = ("--window", 4, "--overlap", 2, "--iterations", 3, "--appearance-sigma-xy", 10)


@pytest.fixture(scope="session")
def truth():
    """A square that crosses the picture from left to right."""
    labels = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=int)
    for frame in range(FRAMES):
        labels[frame, 6:18, 2 * frame : 2 * frame + 12] = 1
    return labels


@pytest.fixture(scope="session")
def clip(truth):
    """The same in colours, with noise."""
    colours = np.array([(40, 90, 160), (200, 160, 60)])
    noise = np.random.default_rng(0).normal(0, 4, (*truth.shape, 3))
    return np.clip(colours[truth] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def values(truth):
    """Probabilities that are wrong at one pixel of five."""
    rng = np.random.default_rng(1)
    said = np.where(rng.random(truth.shape) < 0.2, 1 - truth, truth)
    return np.where(np.arange(2) == said[..., None], 0.7, 0.3).astype(np.float32)


@pytest.fixture
def folder(tmp_path, clip, values, monkeypatch):
    """A working directory with frames and probabilities."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / "frames" / f"frame_{index}.png")
    np.save("p.npy", values)
    return tmp_path


def write_clip(name, frames, rate=25):
    with open(name, "wb") as file, VideoWriter(file, frames[0].shape[:2], rate) as writer:
        for frame in frames:
            writer.write(frame)


START = ("frames", "--probabilities", "p.npy", "-o", "out.mp4")
EVERY = ("--labels", "labels.npz", "--save-marginals", "marginals.npy")


class TestResult:
    def test_labels_follow_edges(self, folder, truth, values):
        result = succeed(*START, *FAST, *EVERY)
        labels = member("labels.npz", "labels")
        assert labels.dtype == np.uint8
        wrong = (values.argmax(3) != truth).mean()
        assert wrong > 0.15
        assert (labels != truth).mean() < wrong / 10
        assert f"{(labels != values.argmax(3)).mean():.1%} of the pixels changed" in result.stdout
        assert "2 of 2 labels found" in result.stdout
        assert "out.mp4 (10 frames of 32 x 24 pixels, 25 a second, lossy" in result.stdout
        assert "labels.npz (10 x 24 x 32 uint8" in result.stdout
        assert "marginals.npy (10 x 24 x 32 x 2 float32" in result.stdout
        assert result.stderr == ""

    def test_is_what_the_windows_give(self, folder, clip, values):
        succeed(*START, *FAST, *EVERY, "--appearance-sigma-t", 2, "--smoothness-weight", 1)
        crf = hdcrf.VideoCRF(
            2,
            iterations=3,
            appearance_sigma_xy=10.0,
            appearance_sigma_t=2.0,
            smoothness_weight=1.0,
            learn=(),
        )
        logits = hdcrf.logits_from_probabilities(torch.from_numpy(values), dim=3).permute(0, 3, 1, 2)
        guides = torch.from_numpy(clip).permute(0, 3, 1, 2)
        expected = hdcrf.video_in_windows(crf, zip(logits, guides, strict=True), window=4, overlap=2)
        marginals = np.load("marginals.npy")
        np.testing.assert_array_equal(marginals, torch.stack(list(expected)).permute(0, 2, 3, 1))
        np.testing.assert_allclose(marginals.sum(3), 1, atol=1e-6)
        np.testing.assert_array_equal(member("labels.npz", "labels"), marginals.argmax(3))

    def test_the_video_is_the_overlay(self, folder, clip):
        succeed(*START, *FAST, *EVERY, "--opacity", 1, "--rate", 12.5)
        film = read_video(folder / "out.mp4")
        assert (film.shape, film.rate, film.count) == ((HEIGHT, WIDTH), 12.5, FRAMES)
        colours = hdcrf.pictures.palette(2).astype(int)
        labels = member("labels.npz", "labels")
        for frame, each in zip(film, labels, strict=True):
            # Chroma is halved in H.264, so a pixel beside a border is a blend of both colours.
            nearest = np.abs(frame[:, :, None].astype(int) - colours).sum(3).argmin(2)
            assert (nearest != each).mean() < 0.02

    def test_a_file_and_a_folder_of_arrays(self, folder, clip, values):
        write_clip("clip.mp4", clip)
        (folder / "p").mkdir()
        for index, frame in enumerate(values):
            np.save(folder / "p" / f"{index}.npy", frame)
        succeed("clip.mp4", "--probabilities", "p", "-o", "out.mp4", *FAST, "--save-marginals", "a.npz")
        succeed("clip.mp4", *START[1:], *FAST, "--save-marginals", "b.npy")
        np.testing.assert_array_equal(member("a.npz", "marginals"), np.load("b.npy"))

    def test_no_more_than_a_window_is_held(self, folder, monkeypatch):
        held = []
        frames = command_video._frames

        def watch(source, given, place, waiting):
            for item in frames(source, given, place, waiting):
                held.append(len(waiting))
                yield item

        monkeypatch.setattr(command_video, "_frames", watch)
        succeed(*START, *FAST)
        assert len(held) == FRAMES
        assert max(held) == 4

    def test_many_labels_take_two_bytes(self, folder):
        values = torch.softmax(9 * torch.randn(FRAMES, HEIGHT, WIDTH, 300), 3).numpy()
        np.save("many.npy", values)
        succeed(
            "frames", "--probabilities", "many.npy", "-o", "o.mp4", "--iterations", 0, "--labels", "l.npy"
        )
        labels = np.load("l.npy")
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, values.argmax(3))

    def test_a_window_longer_than_the_video(self, folder, truth):
        succeed(*START, "--window", 64, "--iterations", 3, "--labels", "l.npy")
        assert (np.load("l.npy") != truth).mean() < 0.02

    def test_replaces_older_results_quietly(self, folder):
        (folder / "out.mp4").write_text("older")
        result = succeed(*START, *FAST, "--quiet")
        assert result.output == ""
        assert read_video(folder / "out.mp4").count == FRAMES

    def test_a_single_label_is_explained(self, folder):
        np.save("p.npy", np.full((FRAMES, HEIGHT, WIDTH, 2), (0.4, 0.6), np.float32))
        assert "all label 1, because that is the most probable" in succeed(*START, *FAST, "--quiet").stderr

    def test_options_have_the_layer_s_names_and_defaults(self):
        layer = inspect.signature(hdcrf.VideoCRF).parameters
        options = commands.commands["video"].make_context("video", [*START]).params
        kernels = {name for name in layer if name.startswith(("appearance", "smoothness"))}
        assert {name: options[name] for name in kernels} == {name: layer[name].default for name in kernels}


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    def test_a_video_that_ends_early(self, clip):
        write_clip("bad.mp4", clip[:7])
        message = refuse("bad.mp4", *START[1:], *FAST, *EVERY)
        assert "video bad.mp4 ends early: it has 7 frames, but probabilities p.npy are for 10" in message

    def test_a_video_that_goes_on(self, clip):
        write_clip("bad.mp4", [*clip, *clip])
        message = refuse("bad.mp4", *START[1:], *FAST, *EVERY)
        assert "probabilities p.npy are for 10 frames, but video bad.mp4 goes on after frame 9" in message

    def test_a_folder_of_another_length_before_any_work(self, folder, monkeypatch):
        np.save("bad.npy", np.load("p.npy")[:7])
        monkeypatch.setattr(hdcrf.VideoCRF, "infer", lambda *_, **__: pytest.fail("it should be refused"))
        message = refuse("frames", "--probabilities", "bad.npy", "-o", "out.mp4")
        assert "video frames has 10 frames, but probabilities bad.npy are for 7" in message

    def test_frames_of_different_sizes(self, folder, clip):
        (folder / "bad").mkdir()
        for index, frame in enumerate(clip):
            Image.fromarray(frame[: HEIGHT - (index == 5)]).save(folder / "bad" / f"{index}.png")
        message = refuse("bad", *START[1:], *FAST, *EVERY)
        assert "video bad changes its size: frame 5 is 32 x 23 pixels and the first is 32 x 24" in message

    def test_probabilities_of_another_size(self):
        np.save("bad.npy", np.full((FRAMES, WIDTH, HEIGHT, 2), 0.5, np.float32))
        message = refuse("frames", "--probabilities", "bad.npy", "-o", "out.mp4")
        assert "(T, H, W, K) = (T, 24, 32, K) to match the video, got (10, 32, 24, 2)" in message

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [((0.7, 0.7), "must sum to 1"), ((-0.5, 1.5), "must be 0 or greater"), (np.nan, "must be finite")],
    )
    def test_the_frame_of_wrong_probabilities_is_named(self, wrong, message, values):
        bad = values.copy()
        bad[6, 3, 4] = wrong
        np.save("bad.npy", bad)
        stderr = refuse("frames", "--probabilities", "bad.npy", "-o", "out.mp4", *FAST, *EVERY)
        assert "probabilities bad.npy of frame 6" in stderr
        assert message in stderr

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("-o", "out.avi"), "--output out.avi must end in .mp4"),
            (("-o", "out.mp4", "--labels", "l.png"), "must end in .npz or .npy"),
            (("-o", "out.mp4", "--save-marginals", "m.csv"), "must end in .npy or .npz"),
            (("-o", "out.mp4", "--save-marginals", "p.npy"), "is also the file of --probabilities"),
            (
                ("-o", "out.mp4", "--labels", "a.npy", "--save-marginals", "a.npy"),
                "also the file of --labels",
            ),
            (("-o", "out.mp4", "--window", 0), "not in the range"),
            (("-o", "out.mp4", "--window", 8, "--overlap", 5), "at most half of --window 8, got 5"),
            (("-o", "out.mp4", "--rate", 0), "not in the range"),
            (("-o", "out.mp4", "--rate", 9e-5), "not in the range 0.0001<=x<=1000"),
            (("-o", "out.mp4", "--appearance-sigma-rgb", "1e-9"), "is too small: pixel"),
            (("-o", "out.mp4", "--compatibility", "p.npy"), "compatibility"),
            (("-o", "out.mp4", "--gt-prob", 0.7), "No such option"),
        ],
    )
    def test_options(self, options, message):
        assert message in refuse("frames", "--probabilities", "p.npy", *options)

    def test_the_clip_as_output(self, clip):
        write_clip("bad.mp4", clip)
        message = refuse("bad.mp4", "--probabilities", "p.npy", "-o", "bad.mp4")
        assert "--output bad.mp4 is also the file of CLIP" in message

    def test_a_clip_that_is_too_slow(self, clip, monkeypatch):
        write_clip("bad.mp4", clip, 1e-3)
        monkeypatch.setattr(video_files, "SLOWEST", 1e-2)
        message = refuse("bad.mp4", *START[1:])
        assert "video bad.mp4: `rate` must be at least 0.01 frames a second, got 0.001" in message

    def test_no_video(self):
        assert "video missing.mp4 does not exist" in refuse("missing.mp4", *START[1:])
        assert "is not a video" in refuse("p.npy", "--probabilities", "frames/p.npy", "-o", "out.mp4")

    def test_beyond_the_memory(self, monkeypatch):
        monkeypatch.setattr(machine, "memory_of", lambda device: 1_000_000)
        message = refuse(*START)
        assert "16 frames of 32 x 24 pixels at a time: that takes at least" in message
        assert "make --window smaller" in message

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        assert 'writing .mp4 needs av: pip install "hdcrf[video]"' in refuse(*START)


@pytest.mark.usefixtures("unchanged")
class TestFailures:
    def test_interrupt(self, monkeypatch):
        infer = hdcrf.VideoCRF.infer
        calls = []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return infer(*arguments, **options)

        monkeypatch.setattr(hdcrf.VideoCRF, "infer", interrupted)
        assert "Interrupted; nothing was written" in refuse(*START, *FAST, *EVERY, code=130)

    def test_disk_full(self, monkeypatch):
        overlay = command_video.pictures.overlay
        calls = []

        def full(*arguments):
            calls.append(1)
            if len(calls) == 5:
                raise OSError(28, "No space left on device")
            return overlay(*arguments)

        monkeypatch.setattr(command_video.pictures, "overlay", full)
        message = refuse(*START, *FAST, *EVERY, code=1)
        assert "cannot write the results, and wrote none" in message
        assert "No space left" in message


class TestProgress:
    def test_a_terminal_shows_the_frames_a_second(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(sys, "stderr", Terminal())
        with progress_bar(4, "Refining", False, unit="frames") as progress:
            progress(1)
            progress(4)
        shown = sys.stderr.getvalue()
        assert "Refining" in shown
        assert "4/4" in shown
        assert "frames/s" in shown


class TestStreamedArrays:
    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_reads_back(self, suffix, tmp_path):
        array = np.arange(24, dtype=np.uint16).reshape(4, 3, 2)
        path = tmp_path / f"a{suffix}"
        with open(path, "wb") as file, array_files.stream_array(file, (4, 3, 2), "u2", "a", suffix) as add:
            for entry in array.astype(int):
                add(entry)
        back = array_files.read_array("array", path, "a")
        assert back.dtype == np.uint16
        np.testing.assert_array_equal(back, array)

    def test_wrong_entries(self):
        with array_files.stream_array(io.BytesIO(), (1, 3), "u1", "a") as add:
            with pytest.raises(ValueError, match=r"must have shape \(3,\)"):
                add(np.zeros(4))
            add(np.zeros(3))
            with pytest.raises(ValueError, match="as number 2"):
                add(np.zeros(3))
        with (
            pytest.raises(ValueError, match="2 entries were promised, and 0 were written"),
            array_files.stream_array(io.BytesIO(), (2, 3), "u1", "a"),
        ):
            pass
