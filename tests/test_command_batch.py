"""`hdcrf batch`: a folder is refined, goes on where it stopped, and says what it could not do."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage import data

import hdcrf
from hdcrf import command_batch, image_files
from hdcrf.command_batch import batch
from hdcrf.command_line import commands
from hdcrf.folders import refinement, settings
from hdcrf.folders.manifest import MANIFEST, open_manifest
from hdcrf.folders.scores import LabelScores, score_labels

HEIGHT, WIDTH, LABELS, COUNT = 24, 36, 3, 6
STEMS = [f"a{index}" for index in range(COUNT)]


@pytest.fixture(scope="session")
def inputs():
    """Photos, labels of them, and probabilities that are often wrong."""
    random = np.random.default_rng(0)
    coffee = data.coffee()
    made = []
    for index in range(COUNT):
        photo = coffee[100 + 9 * index :: 4, 200::4][:HEIGHT, :WIDTH]
        truth = np.digitize(photo.mean(2), np.quantile(photo.mean(2), (1 / 3, 2 / 3)))
        logits = random.normal(size=(HEIGHT, WIDTH, LABELS)) + 2 * (truth[..., None] == np.arange(LABELS))
        made.append((photo, truth, torch.softmax(torch.from_numpy(logits).float(), 2).numpy()))
    return made


@pytest.fixture
def folders(tmp_path, inputs, monkeypatch):
    """A working directory with images, probabilities, labels as PNG, and ground truth."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "probabilities", "labels", "truth"):
        os.mkdir(name)
    for stem, (photo, truth, probabilities) in zip(STEMS, inputs, strict=True):
        Image.fromarray(photo).save(f"images/{stem}.png")
        np.save(f"probabilities/{stem}.npy", probabilities)
        Image.fromarray(probabilities.argmax(2).astype(np.uint8)).save(f"labels/{stem}.png")
        Image.fromarray(truth.astype(np.uint8)).save(f"truth/{stem}.png")
    return tmp_path


def invoke(*words, predictions="probabilities", output="out"):
    return CliRunner().invoke(commands, ["batch", "images", predictions, "-o", output, *map(str, words)])


def succeed(*words, code=0, **options):
    result = invoke(*words, **options)
    assert result.exit_code == code, result.output
    return result


def refuse(*words, **options):
    """Run what must be refused before any work, and return the message."""
    before = sorted(os.listdir())
    result = invoke(*words, **options)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert sorted(os.listdir()) == before
    return result.stderr


def labels(stem, output="out"):
    with Image.open(f"{output}/{stem}.png") as image:
        return np.asarray(image)


def mode(stem):
    with Image.open(f"out/{stem}.png") as image:
        return image.mode


def contents(output="out"):
    return {path.name: path.read_bytes() for path in Path(output).glob("*.png")}


def counts(result):
    """Return how many images were refined and kept, as the command says."""
    return tuple(map(int, re.search(r"(\d+) refined and (\d+) kept", result.stdout).groups()))


class TestResults:
    def test_probabilities(self, folders, inputs):
        result = succeed()
        changed = 0
        for stem, (photo, _, probabilities) in zip(STEMS, inputs, strict=True):
            expected = hdcrf.refine(photo, probabilities=probabilities)
            np.testing.assert_array_equal(labels(stem), expected)
            assert mode(stem) == "P"
            changed += (expected != probabilities.argmax(2)).sum()
        assert sorted(os.listdir("out")) == [*(f"{stem}.png" for stem in STEMS), MANIFEST]
        assert counts(result) == (6, 0)
        assert f"{changed / COUNT / HEIGHT / WIDTH:.1%} of the pixels changed their label" in result.stdout
        assert result.stderr == ""

    def test_labels_keep_their_values_and_palette(self, folders, inputs):
        values, palette = np.array([7, 0, 255]), np.arange(768).astype(np.uint8)
        given = values[inputs[0][2].argmax(2)].astype(np.uint8)
        picture = Image.fromarray(given)
        picture.putpalette(palette.tobytes())
        picture.save("labels/a0.png")
        Image.fromarray(given.astype(np.uint16) * 100).save("labels/a1.png")
        succeed("--gt-prob", 0.6, predictions="labels")
        numbers = np.searchsorted(np.sort(values), given)
        expected = np.sort(values)[hdcrf.refine(inputs[0][0], labels=numbers, gt_prob=0.6)]
        with Image.open("out/a0.png") as refined:
            np.testing.assert_array_equal(np.asarray(refined), expected)
            assert refined.getpalette() == list(palette)
        expected = np.sort(values)[hdcrf.refine(inputs[1][0], labels=numbers, gt_prob=0.6)] * 100
        np.testing.assert_array_equal(labels("a1"), expected)
        assert mode("a1").startswith("I")
        assert mode("a2") == "L"

    def test_unknown_pixels_get_a_label(self, folders, inputs):
        given = inputs[0][2].argmax(2)
        Image.fromarray(np.where(given == 2, 9, given).astype(np.uint8)).save("labels/a0.png")
        for stem in STEMS[1:]:
            os.remove(f"labels/{stem}.png")
        result = succeed("--unknown", 9, "--unknown", 11, predictions="labels")
        expected = hdcrf.refine(inputs[0][0], labels=np.where(given == 2, -1, given), num_labels=2)
        np.testing.assert_array_equal(labels("a0"), expected)
        assert f"{(given == 2).mean():.1%} of the pixels were unknown and got a label" in result.stdout
        changed = (expected != given)[given != 2].mean()
        assert f"{changed:.1%} of the labelled pixels changed their label" in result.stdout

    def test_a_result_does_not_depend_on_the_others(self, folders):
        succeed(predictions="labels")
        for stem in STEMS[1:]:
            os.remove(f"images/{stem}.png")
        succeed(predictions="labels", output="alone")
        assert contents("alone")["a0.png"] == contents()["a0.png"]

    def test_one_label_comes_out_as_it_is(self, folders):
        Image.fromarray(np.full((HEIGHT, WIDTH), 200, np.uint8)).save("labels/a0.png")
        result = succeed(predictions="labels")
        assert (labels("a0") == 200).all()
        assert result.stderr == ""

    def test_matrix_says_how_many_labels(self, folders, inputs):
        costs = np.array([[0, 2, 1, 1], [2, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]], np.float32)
        np.save("costs.npy", costs)
        two = np.minimum(inputs[0][2].argmax(2), 1)
        Image.fromarray(two.astype(np.uint8)).save("labels/a0.png")
        Image.fromarray(np.full((HEIGHT, WIDTH), 4, np.uint8)).save("labels/a1.png")
        result = succeed("--compatibility", "costs.npy", predictions="labels", code=1)
        expected = hdcrf.refine(inputs[0][0], labels=two, num_labels=4, compatibility=costs)
        np.testing.assert_array_equal(labels("a0"), expected)
        assert (
            "a1: prediction labels/a1.png has label 4, but there are 4 labels, from 0 to 3" in result.stderr
        )

    def test_options_of_the_model(self, folders, inputs):
        options = {
            "iterations": 3,
            "appearance_weight": 4.0,
            "smoothness_sigma": 2.0,
            "normalization": "none",
        }
        words = [
            str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)
        ]
        succeed(*words, "--include-self")
        expected = hdcrf.refine(inputs[2][0], probabilities=inputs[2][2], exclude_self=False, **options)
        np.testing.assert_array_equal(labels("a2"), expected)

    def test_params(self, folders, inputs):
        Path("p.toml").write_text("iterations = 2\nappearance_weight = 5.0\n")
        succeed("--params", "p.toml")
        expected = hdcrf.refine(inputs[2][0], probabilities=inputs[2][2], iterations=2, appearance_weight=5.0)
        np.testing.assert_array_equal(labels("a2"), expected)

    def test_workers_do_not_change_results(self, folders):
        succeed("--workers", 1, "--threads", 1, output="one")
        succeed("--workers", 4, "--threads", 1, output="four")
        assert contents("one") == contents("four")

    def test_notes_of_many_files_are_one(self, folders):
        for stem in STEMS:
            values = np.load(f"probabilities/{stem}.npy")
            np.save(f"probabilities/{stem}.npy", values.astype(np.float16))
        result = succeed()
        note = "Note: prediction probabilities/a0.npy: float16 converted to float32"
        assert result.stderr == f"{note} (and 5 other files like it)\n"
        assert succeed("--restart", "--quiet").output == ""

    def test_warnings_become_notes(self, folders, monkeypatch):
        read = image_files.read_photo

        def warn(path, **options):
            if path.stem in ("a0", "a3"):
                warnings.warn("odd", stacklevel=1)
            return read(path, **options)

        monkeypatch.setattr(image_files, "read_photo", warn)
        result = succeed()
        assert result.stderr == "Note: image images/a0.png: odd (and 1 other file like it)\n"


class TestAtWork:
    def test_workers_work_at_once(self, folders, monkeypatch):
        met = threading.Barrier(3)
        read = image_files.read_photo

        def read_together(*arguments, **options):
            met.wait(timeout=60)  # raises unless three are here
            return read(*arguments, **options)

        monkeypatch.setattr(image_files, "read_photo", read_together)
        assert "by 3 workers on" in succeed("--workers", 3).stdout

    @pytest.mark.parametrize(
        ("words", "images", "expected"),
        [((), 6, (4, 1)), ((), 2, (2, 2)), (("--workers", 1), 6, (1, 4)), (("--threads", 3), 1, (1, 3))],
    )
    def test_cpus_are_shared(self, words, images, expected, folders, monkeypatch):
        monkeypatch.setattr(command_batch.os, "cpu_count", lambda: 4)
        for stem in STEMS[images:]:
            os.remove(f"images/{stem}.png")
        seen = []
        likely = refinement.most_likely
        monkeypatch.setattr(
            refinement,
            "most_likely",
            lambda *given: (seen.append(torch.get_num_threads()), likely(*given))[1],
        )
        own = torch.get_num_threads()
        result = succeed(*words)
        workers, threads = expected
        assert set(seen) == {threads}
        assert f"by {workers} worker{'s' * (workers > 1)} on {threads} thread" in result.stdout
        after = []
        thread = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), after) == (own, [own])

    def test_large_images_wait_for_each_other(self):
        budget = refinement._Budget(100)
        seen, most = [], []

        def take(needed):
            with budget.of(needed):
                seen.append(needed)
                most.append(sum(seen))
                time.sleep(0.01)
                seen.remove(needed)

        threads = [threading.Thread(target=take, args=(needed,)) for needed in (60, 60, 500, 30, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) == 5
        assert max(total for total in most if total < 500) <= 100
        assert 500 in most  # alone

    def test_images_wait_for_memory(self, folders, monkeypatch):
        """Each takes 490 kB, for its pixels and its probabilities, of 700 kB."""
        monkeypatch.setattr(command_batch, "memory_of", lambda device: 875_000)
        read = settings.read_prediction
        at_work, most = [], []

        def read_slowly(path, *arguments, **options):
            at_work.append(path)
            most.append(len(at_work))
            time.sleep(0.02)
            at_work.remove(path)
            return read(path, *arguments, **options)

        monkeypatch.setattr(settings, "read_prediction", read_slowly)
        succeed("--workers", 4)
        assert most == [1] * COUNT

    def test_progress(self, folders, monkeypatch):
        shown = []

        class Terminal:
            def isatty(self):
                return True

            def write(self, text):
                shown.append(text)

            def flush(self):
                pass

        monkeypatch.setattr("sys.stderr", Terminal())
        batch.main(["images", "probabilities", "-o", "out"], standalone_mode=False)
        text = "".join(shown)
        assert "6/6" in text
        assert "images/s" in text


class TestResumed:
    def test_nothing_is_done_twice(self, folders):
        succeed()
        first = contents()
        stamps = {name: os.stat(f"out/{name}").st_mtime_ns for name in first}
        result = succeed()
        assert counts(result) == (0, 6)
        assert "pixels changed their label" in result.stdout
        assert {name: os.stat(f"out/{name}").st_mtime_ns for name in first} == stamps
        assert counts(succeed("--restart")) == (6, 0)
        assert contents() == first
        assert counts(succeed()) == (0, 6)

    @pytest.mark.parametrize(
        "change",
        [
            lambda: os.utime("images/a1.png", ns=(1, 1)),
            lambda: Path("probabilities/a1.npy").write_bytes(Path("probabilities/a0.npy").read_bytes()),
            lambda: os.remove("out/a1.png"),
            lambda: Path("out/a1.png").write_bytes(Path("out/a1.png").read_bytes()[:-9]),
            lambda: Path("out/a1.png").write_bytes(Path("out/a2.png").read_bytes()),
            lambda: os.rename("images/a1.png", "images/a1.PNG"),
            lambda: Path("out", MANIFEST).write_text(
                re.sub('.*"a1".*\n', "", Path("out", MANIFEST).read_text())
            ),
        ],
        ids=["image", "prediction", "no output", "cut output", "other output", "renamed", "no record"],
    )
    def test_what_has_changed_is_done_again(self, change, folders):
        succeed()
        change()
        assert counts(succeed()) == (1, 5)
        for stem in STEMS:
            labels(stem)
        assert counts(succeed()) == (0, 6)

    def test_other_settings_do_all_again(self, folders, monkeypatch):
        np.save("costs.npy", 1 - np.eye(3, dtype=np.float32))
        for words in ((), ("--iterations", 3), ("--include-self",), ("--compatibility", "costs.npy")):
            assert counts(succeed(*words)) == (6, 0), words
            assert counts(succeed(*words, "--workers", 1, "--threads", 1)) == (0, 6)
        np.save("costs.npy", 2 - 2 * np.eye(3, dtype=np.float32))
        assert counts(succeed("--compatibility", "costs.npy")) == (6, 0)
        monkeypatch.setattr(hdcrf, "__version__", "another")
        assert counts(succeed("--compatibility", "costs.npy")) == (6, 0)
        for words in ((), ("--gt-prob", 0.8), ("--gt-prob", 0.8, "--unknown", 7)):
            assert counts(succeed(*words, predictions="labels")) == (6, 0), words

    def test_images_may_be_added(self, folders):
        os.rename("images/a3.png", "later.png")
        assert counts(succeed()) == (5, 0)
        os.rename("later.png", "images/a3.png")
        assert counts(succeed()) == (1, 5)

    def test_failed_images_are_tried_again(self, folders, inputs):
        np.save("probabilities/a2.npy", np.zeros((3, 3)))
        assert counts(succeed(code=1)) == (5, 0)
        assert counts(succeed(code=1)) == (0, 5)
        np.save("probabilities/a2.npy", inputs[2][2])
        assert counts(succeed()) == (1, 5)


def start(*words, output="out"):
    """Start a run in a process of its own that takes a while, and wait until a few images are finished."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(hdcrf.__file__))}
    process = subprocess.Popen(
        [sys.executable, "-m", "hdcrf", "batch", "images", "probabilities", "-o", output, *words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 100
    while process.poll() is None and finished(output) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    return process


def finished(output="out"):
    manifest = Path(output, MANIFEST)
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


class TestInterrupted:
    MANY = 60
    SLOW = ("--iterations", "1000", "--workers", "2", "--threads", "1")  # some 4 s, without start-up

    @pytest.fixture
    def many(self, folders):
        for index in range(COUNT, self.MANY):
            for folder, suffix in (("images", "png"), ("probabilities", "npy")):
                source = Path(folder, f"a{index % COUNT}.{suffix}")
                Path(folder, f"a{index}.{suffix}").write_bytes(source.read_bytes())
        Path("images/a7.png").write_bytes(b"damaged")

    def check(self, kept):
        """Go on with the run, and check that all is there in the end."""
        result = succeed(*self.SLOW, code=1)
        assert counts(result) == (self.MANY - 1 - kept, kept)
        assert result.stderr.startswith(f"1 of {self.MANY} images failed:\n  a7: image images/a7.png is not")
        names = {f"a{index}.png" for index in range(self.MANY)} - {"a7.png"}
        assert set(os.listdir("out")) == names | {MANIFEST}
        expected = {index: contents()[f"a{index}.png"] for index in range(COUNT)}
        assert all(contents()[f"a{i}.png"] == expected[i % COUNT] for i in range(self.MANY) if i != 7)

    def test_killed(self, many):
        process = start(*self.SLOW)
        process.kill()
        process.communicate()
        kept = finished()
        assert 3 <= kept < self.MANY - 1
        for name in contents():
            labels(name.removesuffix(".png"))  # raises if it is broken
        # What a kill at a worse moment leaves.
        Path("out/.hdcrf-0123456789abcdef.part").write_bytes(b"half of a pic")
        with open(Path("out", MANIFEST), "a") as manifest:
            manifest.write('{"stem": "a59", "sett')
        self.check(kept)

    @pytest.mark.parametrize(
        ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (15, 143, "Ended")]
    )
    def test_by_a_signal(self, number, code, word, many):
        process = start(*self.SLOW)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert output == ""
        kept = finished()
        far = f"{kept} of {self.MANY} images are finished, and the same command goes on with the rest"
        assert errors == f"{word}; {far}.\n"
        assert 3 <= kept < self.MANY - 1
        assert set(os.listdir("out")) == {*contents(), MANIFEST}
        self.check(kept)

    def test_another_run_is_at_work(self, many):
        process = start(*self.SLOW)
        try:
            result = invoke()
        finally:
            process.kill()
            process.communicate()
        assert result.exit_code == 2
        assert "--output out is in use by another run of this command" in result.stderr
        succeed("--iterations", 0, code=1)  # the lock died with the process

    def test_the_lock_ends_with_the_block(self, folders):
        os.mkdir("out")
        with open_manifest(Path("out")):
            assert "is in use by another run" in invoke().stderr
        succeed()


class TestFailures:
    def test_damaged_files(self, folders):
        Path("images/a0.png").write_bytes(Path("images/a0.png").read_bytes()[:200])
        Path("probabilities/a2.npy").write_bytes(Path("probabilities/a2.npy").read_bytes()[:500])
        np.save("probabilities/a4.npy", np.full((HEIGHT, WIDTH, LABELS), 0.9))
        result = succeed(code=1)
        assert counts(result) == (3, 0)
        assert set(contents()) == {"a1.png", "a3.png", "a5.png"}
        first, *lines = result.stderr.splitlines()
        assert first == "3 of 6 images failed:"
        assert [line.split(":")[0] for line in lines] == ["  a0", "  a2", "  a4"]
        assert "image images/a0.png cannot be read: " in lines[0]
        assert "prediction probabilities/a2.npy cannot be read: it is damaged" in lines[1]
        assert "prediction probabilities/a4.npy: `probabilities` must sum to 1" in lines[2]

    def test_all_damaged(self, folders):
        for stem in STEMS:
            Path(f"images/{stem}.png").write_bytes(b"")
        outputs = ("--scores", "s.csv", "--scores", "s.json", "--report", "r.html")
        result = succeed("--ground-truth", "truth", *outputs, code=1)
        assert "6 of 6 images failed" in result.stderr
        assert len(json.loads(Path("s.json").read_text())["failures"]) == 6
        assert contents() == {}

    def test_damaged_truth_costs_the_score_alone(self, folders):
        Path("truth/a3.png").write_bytes(b"no picture")
        result = succeed("--ground-truth", "truth", "--scores", "s.json", code=1)
        assert counts(result) == (6, 0)
        assert "  a3: ground truth truth/a3.png is not a picture" in result.stderr
        assert counts(succeed("--ground-truth", "truth", code=1)) == (0, 6)

    def test_a_kept_image_that_cannot_be_scored_is_kept(self, folders, monkeypatch):
        succeed()
        read = settings.read_prediction

        def fail(path, *arguments, **options):
            if path.stem == "a1":
                raise MemoryError
            return read(path, *arguments, **options)

        monkeypatch.setattr(settings, "read_prediction", fail)
        result = succeed("--ground-truth", "truth", code=1)
        assert counts(result) == (0, 6)
        assert "a1: image images/a1.png: out of memory" in result.stderr

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (MemoryError(), "a1: image images/a1.png: out of memory; scale it down, or use fewer --workers"),
            (
                RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
                "a1: image images/a1.png: out of m",
            ),
            (KeyError("odd"), "a1: image images/a1.png: KeyError: 'odd'"),
        ],
    )
    def test_whatever_befalls_an_image_is_its_own(self, error, message, folders, monkeypatch):
        read = settings.read_prediction

        def fail(path, *arguments, **options):
            if path.stem == "a1":
                raise error
            return read(path, *arguments, **options)

        monkeypatch.setattr(settings, "read_prediction", fail)
        result = succeed(code=1)
        assert message in result.stderr
        assert counts(result) == (5, 0)

    def test_no_space_ends_it_all(self, folders, monkeypatch):
        write = refinement.whole_files

        def fail(paths):
            if paths[0].stem == "a3":
                raise OSError(28, "No space left on device", str(paths[0]))
            return write(paths)

        monkeypatch.setattr(refinement, "whole_files", fail)
        result = invoke("--workers", 1)
        assert result.exit_code == 1
        assert "cannot write the results: [Errno 28] No space left on device: 'out/a3.png'; " in result.stderr
        kept = finished()
        assert f"{kept} of 6 images are finished, and the same command goes on with the rest" in result.stderr
        assert set(os.listdir("out")) == {*contents(), MANIFEST}
        monkeypatch.undo()
        os.chdir(folders)
        assert counts(succeed()) == (6 - kept, kept)

    def test_too_large_for_the_memory(self, folders, monkeypatch):
        monkeypatch.setattr(command_batch, "memory_of", lambda device: 470 * 500)
        result = succeed(code=1)
        assert "has 36 x 24 = 0 megapixels, more than the 0.0004 that can be handled" in result.stderr


class TestScores:
    def total(self, inputs, output="out", ignore=None):
        parts = [
            (
                score_labels(p.argmax(2), t, ignore=ignore),
                score_labels(labels(stem, output), t, ignore=ignore),
            )
            for stem, (_, t, p) in zip(STEMS, inputs, strict=True)
        ]
        return [LabelScores.merged(each) for each in zip(*parts, strict=True)]

    def test_before_and_after(self, folders, inputs):
        words = ("--scores", "s.csv", "--scores", "s.json", "--report", "r.html")
        result = succeed("--ground-truth", "truth", *words)
        before, after = self.total(inputs)
        found = json.loads(Path("s.json").read_text())
        assert found["mean_iou"]["before"] == pytest.approx(before.mean_iou)
        assert found["mean_iou"]["after"] == pytest.approx(after.mean_iou)
        assert found["mean_boundary_f"]["after"] == pytest.approx(after.mean_boundary_f)
        assert after.mean_iou != before.mean_iou
        assert len(found["images"]) == 6
        lines = Path("s.csv").read_text().splitlines()
        assert len(lines) == 1 + LABELS + 1
        assert f"{100 * after.mean_iou:.1f}" in result.stdout
        page = Path("r.html").read_text()
        assert "a5" in page
        assert "appearance weight" in page

    @pytest.mark.parametrize("predictions", ["probabilities", "labels"])
    def test_kept_outputs_are_scored_from_their_files(self, predictions, folders):
        words = ("--ground-truth", "truth", "--scores", "s.json")
        succeed(*words, predictions=predictions)
        fresh = Path("s.json").read_bytes()
        Path("s.json").unlink()
        assert counts(succeed(*words, predictions=predictions)) == (0, 6)
        assert Path("s.json").read_bytes() == fresh

    def test_void_of_probabilities(self, folders, inputs):
        for stem, (_, truth, _) in zip(STEMS, inputs, strict=True):
            marked = truth.copy()
            marked[:4] = 255
            Image.fromarray(marked.astype(np.uint8)).save(f"truth/{stem}.png")
        found = {}
        for words in ((), ("--ignore", 255), ("--ignore", 1)):
            result = succeed("--ground-truth", "truth", "--scores", "s.json", *words)
            found[words] = json.loads(Path("s.json").read_text())
        assert found[()] == found["--ignore", 255]
        assert [label["label"] for label in found[()]["labels"]] == [0, 1, 2]
        assert [label["label"] for label in found["--ignore", 1]["labels"]] == [0, 2, 255]
        assert "Hint" not in result.stderr
        result = succeed("--ground-truth", "truth", predictions="labels", output="png")
        share = 4 / HEIGHT
        assert (
            f"Hint: label 255 has {share:.1%} of the ground truth, and no prediction has it" in result.stderr
        )
        assert "say --ignore 255" in result.stderr

    def test_masks_of_0_and_255(self, folders, inputs):
        for stem, (_, truth, probabilities) in zip(STEMS, inputs, strict=True):
            for folder, numbers in (("truth", truth), ("labels", probabilities.argmax(2))):
                Image.fromarray(np.where(numbers > 0, 255, 0).astype(np.uint8)).save(f"{folder}/{stem}.png")
        result = succeed("--ground-truth", "truth", "--scores", "s.json", predictions="labels")
        found = json.loads(Path("s.json").read_text())
        assert [label["label"] for label in found["labels"]] == [0, 255]
        assert result.stderr == ""

    def test_truth_of_some(self, folders):
        for stem in STEMS[2:]:
            os.remove(f"truth/{stem}.png")
        result = succeed("--ground-truth", "truth", "--scores", "s.json")
        assert "4 of 6 images have no ground truth and are not scored" in result.stderr
        images = json.loads(Path("s.json").read_text())["images"]
        assert [image["mean_iou"] is None for image in images] == [False] * 2 + [True] * 4


class TestHints:
    def test_nearly_all_are_one_label(self, folders):
        strong = ("--appearance-weight", 1e3, "--appearance-sigma-xy", 1e3, "--appearance-sigma-rgb", 1e3)
        result = succeed(*strong)
        assert "Hint: 6 of 6 results are a single label: the others were outvoted" in result.stderr
        assert "lower --appearance-weight" in result.stderr
        assert "Hint" in succeed(*strong, "--quiet").stderr
        assert "Hint" not in succeed().stderr


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--scores", "s.csv"), "--scores goes with --ground-truth"),
            (("--ignore", "0"), "--ignore goes with --ground-truth"),
            (("--gt-prob", "0.9"), "--gt-prob goes with predictions in PNG"),
            (("--unknown", "9"), "--unknown goes with predictions in PNG"),
            (("--ground-truth", "no"), "ground truth no does not exist"),
            (("--ground-truth", "images"), "is also the folder of the images"),
            (("--ground-truth", "truth", "--scores", "s.txt"), "must end in .csv or .json"),
            (("--ground-truth", "truth", "--scores", "a.csv", "--scores", "b.csv"), "once for .csv and once"),
            (("--report", "r.pdf"), "--report r.pdf must end in .html"),
            (("--report", "no/r.html"), "does not exist; make it first"),
            (("--compatibility", "no.npy"), "compatibility no.npy does not exist"),
            (("--device", "tpu"), "must be cpu, cuda"),
            (("--workers", "0"), "0 is not in the range"),
            (("--iterations", "-1"), "-1 is not in the range"),
        ],
    )
    def test_options(self, words, message, folders):
        assert message in refuse(*words)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("images", "--output images is the folder of the images; name another"),
            ("probabilities/../probabilities", "is the folder of the predictions; name another"),
            ("truth", "is the folder of the ground truth"),
            ("no/out", "does not exist; make it first"),
            ("images/a0.png", "is a file; name a folder"),
            ("", "the name is empty"),
            ("o" * 300, "cannot be made"),
        ],
    )
    def test_outputs(self, output, message, folders):
        assert message in refuse("--ground-truth", "truth", output=output)

    def test_folders(self, folders):
        assert "predictions no does not exist" in refuse(predictions="no")
        assert "is also the folder of the images" in refuse(predictions="images")
        os.mkdir("none")
        assert "predictions none is empty" in refuse(predictions="none")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_no_permission(self, folders):
        os.mkdir("out", 0o500)
        assert "nothing can be written in it" in refuse()

    def test_record_that_is_none(self, folders):
        os.makedirs(f"out/{MANIFEST}")
        assert "--output out: nothing can be written in it" in refuse()

    def test_a_report_in_the_output_folder(self, folders):
        succeed("--report", "out/r.html", "--ground-truth", "truth", "--scores", "out/s.json")
        assert counts(succeed()) == (0, 6)


def test_every_option_is_documented():
    page = Path(__file__).parents[1].joinpath("docs", "command_line.md").read_text(encoding="utf-8")
    section = page.split("\n## hdcrf batch\n")[1].split("\n## ")[0]
    shared = page.split("\n## hdcrf image\n")[1].split("\n## ")[0]
    own = {"--output", "--workers", "--restart", "--ground-truth", "--ignore", "--scores", "--report"}
    own |= {"--unknown", "--gt-prob", "--threads", "--device", "--quiet"}
    for option in batch.params:
        if option.param_type_name == "option":
            name = option.opts[0] if option.opts[0].startswith("--") else option.opts[1]
            assert f"`{name}" in (section if name in own else section + shared), name
