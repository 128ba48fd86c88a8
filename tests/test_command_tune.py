"""The command `hdcrf tune`: what it writes and says, goes on with, leaves out and refuses."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import Command
from PIL import Image

import hdcrf
from benchmarks.tuning import LABELS, crops, predicted, scores_of
from hdcrf import machine
from hdcrf.commands import tune as command_tune
from hdcrf.files import InputError
from hdcrf.folders.pairs import find_pairs
from hdcrf.params_file import read_params
from hdcrf.tuning.budget import Found
from hdcrf.tuning.examples import divide, grouped
from hdcrf.tuning.objective import DEFAULTS, Objective
from hdcrf.tuning.storage import open_study

tune = Command("tune")
COUNT = 6
FOLDERS = ("images", "predictions", "--ground-truth", "truth")
ARGUMENTS = (*FOLDERS, "-o", "params.toml")
FEW = ("--trials", 8, "--iterations", 2)  # enough for a gain: nothing is warned of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with folders of small images, predictions and true labels."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("images", "predictions", "truth"):
        (tmp_path / name).mkdir()
    for index, (photo, truth) in enumerate(crops(COUNT, 0)):
        photo, truth = photo[::2, ::2], truth[::2, ::2]
        Image.fromarray(photo).save(f"images/{index}.png")
        Image.fromarray(truth.astype(np.uint8)).save(f"truth/{index}.png")
        np.save(f"predictions/{index}.npy", predicted(truth, "both", random))
    return tmp_path


def held_back(expression=None):
    """Return the names of the images that are held back with seed 0."""
    pairs = find_pairs(Path("images"), Path("predictions"), Path("truth"))
    _, held = divide(grouped(pairs, 0, expression and re.compile(expression)), 0.3)
    return {pair.stem for pair in held}


@pytest.fixture
def found(monkeypatch):
    """Return a function that sets what the search finds."""

    def set_to(parameters):
        monkeypatch.setattr(command_tune, "search", lambda *_, **__: Found(parameters, 0.5, 1, 3))

    return set_to


class TestResult:
    @pytest.mark.parametrize("method", ["optuna", "gradient"])
    def test_tunes(self, method):
        result = tune.succeed(*ARGUMENTS, *FEW, "--method", method)
        scores = scores_of(result.stdout)
        assert list(scores) == ["unrefined", "defaults", "tuned"]
        assert scores["tuned"][0] >= scores["defaults"][0]
        assert result.stdout.startswith("output: params.toml (6 parameters")
        assert "4 images searched    2 images held back" in result.stdout
        params = read_params("params.toml")
        assert set(params) == {*DEFAULTS, "iterations"}
        assert params["iterations"] == 2
        for name in DEFAULTS:
            assert f"{name} = {params[name]:g}\n" in result.stdout

    def test_what_it_says_is_what_others_get(self):
        """The scores of both parts, by refining each image with the file."""
        stdout = tune.succeed(*ARGUMENTS, *FEW).stdout
        confusion = np.zeros((2, LABELS, LABELS), int)
        for index, held in ((index, f"{index}" in held_back()) for index in range(COUNT)):
            crf = hdcrf.DenseCRF.from_params("params.toml", LABELS, learn=())
            values = torch.from_numpy(np.load(f"predictions/{index}.npy"))
            logits = hdcrf.logits_from_probabilities(values, dim=2).permute(2, 0, 1)[None]
            photo = torch.from_numpy(np.array(Image.open(f"images/{index}.png")))
            labels = crf(logits, photo.permute(2, 0, 1)[None])[0].argmax(0).numpy()
            np.add.at(confusion[int(held)], (np.array(Image.open(f"truth/{index}.png")), labels), 1)
        for table, score in zip(confusion, scores_of(stdout)["tuned"], strict=True):
            both = table.diagonal()
            iou = both / (table.sum(0) + table.sum(1) - both)
            assert score == pytest.approx(100 * iou.mean(), abs=0.005)

    def test_the_head_of_the_file(self):
        stdout = tune.succeed(*ARGUMENTS, *FEW, "--seed", 4).stdout
        head = [line[2:] for line in Path("params.toml").read_text().splitlines() if line.startswith("#")]
        assert " ".join(head[:3]).startswith(
            f"Made by hdcrf tune --method optuna --seed 4, of version {hdcrf.__version__}, from the images "
            "images, the predictions predictions and the labels truth: scores in percent after 8 trials, "
        )
        assert head[3:] == [
            *stdout.splitlines()[1:6],
            "Sigmas in position are in pixels: for images and videos, not for points and volumes.",
        ]

    def test_the_head_names_what_the_file_cannot_hold(self):
        for index in range(COUNT):
            labels = np.load(f"predictions/{index}.npy").argmax(2).astype(np.uint8)
            os.remove(f"predictions/{index}.npy")
            Image.fromarray(labels).save(f"predictions/{index}.png")
        options = ("--gt-prob", 0.6, "--unknown", 99, "--unknown", 98, "--ignore", 77, "--hold-back", 0.5)
        tune.succeed(*ARGUMENTS, *FEW, *options, "--groups", "(.)", "--max-images", 5)
        head = Path("params.toml").read_text().replace("\n# ", " ")
        assert (
            "--seed 0 --hold-back 0.5 --groups '(.)' --max-images 5 --ignore 77 --gt-prob 0.6 --unknown 99 "
            "--unknown 98, of version "
        ) in head
        assert " The predictions were read with --gt-prob 0.6 --unknown 99 --unknown 98: say so to" in head

    def test_is_reproducible(self):
        tune.succeed(*ARGUMENTS, *FEW)
        first = Path("params.toml").read_bytes()
        tune.succeed(*ARGUMENTS, *FEW)
        assert Path("params.toml").read_bytes() == first

    def test_every_command_takes_the_file(self):
        tune.succeed(*ARGUMENTS, *FEW)
        arguments = ("images/0.png", "--probabilities", "predictions/0.npy", "-o", "labels.png")
        Command("image").succeed(*arguments, "--params", "params.toml")
        expected = hdcrf.refine(
            np.array(Image.open("images/0.png")),
            probabilities=np.load("predictions/0.npy"),
            **read_params("params.toml"),
        )
        np.testing.assert_array_equal(np.array(Image.open("labels.png")), expected)

    def test_other_options_of_the_model_are_kept(self):
        np.save("costs.npy", 2 * (1 - np.eye(LABELS)))
        options = (
            "--filter-method",
            "voxel",
            "--include-self",
            "--tolerance",
            0.01,
            "--backend",
            "reference",
        )
        tune.succeed(*ARGUMENTS, *FEW, *options, "--compatibility", "costs.npy")
        params = read_params("params.toml")
        rest = {name: value for name, value in params.items() if name not in DEFAULTS}
        assert rest == {
            "iterations": 2,
            "method": "voxel",
            "exclude_self": False,
            "tolerance": 0.01,
            "compatibility": (2 * (1 - np.eye(LABELS))).tolist(),
        }
        tune.succeed(*FOLDERS, "-o", "again.toml", *FEW, "--params", "params.toml")
        assert {name: read_params("again.toml")[name] for name in rest} == rest

    def test_the_search_starts_where_it_is_told(self):
        stdout = tune.succeed(
            *ARGUMENTS, "--trials", 1, "--appearance-weight", 1, "--smoothness-weight", 0
        ).stdout
        scores = scores_of(stdout.replace("start", "unrefined"))
        assert "start  " in stdout
        assert read_params("params.toml")["appearance_weight"] == 1
        assert scores["tuned"] == scores["unrefined"]

    def test_labels_in_pngs(self):
        """Of other values than 0 to K-1, some unknown, with pixels of the truth that do not count."""
        for index in range(COUNT):
            labels = np.load(f"predictions/{index}.npy").argmax(2).astype(np.uint8) + 5
            labels[:2] = 99
            os.remove(f"predictions/{index}.npy")
            Image.fromarray(labels).save(f"predictions/{index}.png")
            truth = np.array(Image.open(f"truth/{index}.png")) + 5
            truth[:, :2] = 77
            Image.fromarray(truth.astype(np.uint8)).save(f"truth/{index}.png")
        result = tune.succeed(*ARGUMENTS, *FEW, "--unknown", 99, "--gt-prob", 0.6)
        assert "label 77 has 3.1% of the ground truth, and no prediction has it" in result.stderr
        assert "say --ignore 77" in result.stderr
        better = tune.succeed(*ARGUMENTS, *FEW, "--unknown", 99, "--gt-prob", 0.6, "--ignore", 77)
        assert better.stderr == ""
        for name, (searched, held) in scores_of(result.stdout).items():
            # One label of five has an IoU of 0, and its pixels count to others.
            assert searched < 0.81 * scores_of(better.stdout)[name][0]
            assert held < 0.81 * scores_of(better.stdout)[name][1]

    def test_groups_are_on_one_side(self, folder):
        """Two of a scene each: what is held back is what its names say."""
        for path in [
            path for name in ("images", "predictions", "truth") for path in (folder / name).iterdir()
        ]:
            path.rename(path.with_stem(f"scene{int(path.stem) // 2}_{path.stem}"))
        result = tune.succeed(*ARGUMENTS, *FEW, "--groups", "(.+)_")
        assert result.stderr.startswith("Note: --groups: 6 images in 3 groups\n")
        assert "4 images searched    2 images held back" in result.stdout
        (scene,) = {stem[:6] for stem in held_back("(.+)_")}
        assert len({stem[:6] for stem in held_back()}) == 2
        expected = np.zeros((LABELS, LABELS), int)
        for path in (folder / "truth").glob(f"{scene}_*.png"):
            given = np.load(f"predictions/{path.stem}.npy").argmax(2)
            np.add.at(expected, (np.array(Image.open(path)), given), 1)
        accuracy = f"{100 * expected.trace() / expected.sum():.2f}"
        assert result.stdout.splitlines()[3].split()[-1] == accuracy

    def test_fewer_images(self):
        result = tune.succeed(*ARGUMENTS, *FEW, "--max-images", 3, "--hold-back", 0.6)
        assert result.stderr.startswith("Note: --max-images: 3 of 6 labelled images are used\n")
        assert "1 image searched    2 images held back" in result.stdout

    def test_quiet(self):
        assert tune.succeed(*ARGUMENTS, *FEW, "--quiet").output == ""

    def test_no_gain_is_said(self, found):
        """What is found is written all the same, with a warning even where quiet."""
        found({**DEFAULTS, "appearance_weight": 30.0, "smoothness_sigma": 10.0})
        result = tune.succeed(*ARGUMENTS, *FEW, "--quiet")
        scores = scores_of(Path("params.toml").read_text().replace("# ", ""))
        best = max(("unrefined", "defaults"), key=lambda name: scores[name][1])
        assert result.stdout == ""
        assert re.fullmatch(
            rf"Warning: on the images held back, what was tuned is no better than {best}: mean IoU "
            rf"{scores['tuned'][1]:.2f} % against {scores[best][1]:.2f} %.*\n",
            result.stderr,
        )
        assert read_params("params.toml")["appearance_weight"] == 30

    def test_the_same_is_no_gain(self, found):
        found(DEFAULTS)
        assert "no better than" in tune.succeed(*ARGUMENTS, *FEW).stderr

    def test_nothing_is_computed_twice(self, monkeypatch):
        """The starts while examples are read, and then each trial; of the best what is held back alone."""
        computed = []
        refined = Objective.refined

        def count(objective, example, parameters):
            computed.append((example.pair.stem, *parameters.values()))
            return refined(objective, example, parameters)

        monkeypatch.setattr(Objective, "refined", count)
        stdout = tune.succeed(*ARGUMENTS, *FEW, "--appearance-weight", 4, "--seed", 2).stdout
        assert int(stdout.split("the best is number ")[1].split()[0]) > 2
        assert len(set(computed)) == len(computed)
        assert len(computed) == 2 * 6 + 6 * 4 + 2

    def test_what_is_searched_on_has_the_memory_first(self, monkeypatch):
        """Each image is read once, and those held back, which have no room, once more at the end."""
        example_bytes = 48 * 64 * (4 * LABELS + 3 + 8 + 8)
        monkeypatch.setattr(command_tune, "_room", lambda: 4 * example_bytes)
        read = []
        of_pair = command_tune.Reader.__call__

        def count(reader, pair):
            read.append(pair.stem)
            return of_pair(reader, pair)

        monkeypatch.setattr(command_tune.Reader, "__call__", count)
        tune.succeed(*ARGUMENTS, *FEW)
        assert len(read) == 6 + 2
        assert set(read[6:]) == held_back()

    def test_labels_that_vanish_are_no_gain(self, found):
        """A label that predictions have in a few pixels, the ground truth never, and the CRF takes away."""
        for index in range(COUNT):
            values = np.load(f"predictions/{index}.npy")
            values = np.concatenate([0.9 * values, np.full((48, 64, 1), 0.1, np.float32)], 2)
            values[0, 0] = (0.15, 0.15, 0.15, 0.15, 0.4)
            np.save(f"predictions/{index}.npy", values)
        found({**DEFAULTS, "appearance_sigma_xy": 20.0, "smoothness_sigma": 1.0})
        result = tune.succeed(*ARGUMENTS, *FEW, "--quiet")
        assert re.search(
            "Hint: the mean IoU of unrefined on the images held back is over 5 labels, and that of what was "
            "tuned over 4: label 4 is not in the ground truth, .* is a part of what it gained\n",
            result.stderr,
        )

    def test_first_images_without_a_pixel_that_counts(self, folder):
        """The search has nothing to compare trials by there, and goes on."""
        pairs = find_pairs(Path("images"), Path("predictions"), Path("truth"))
        first = divide(grouped(pairs, 0), 0.3)[0][0]
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(first.truth)
        tune.succeed(*ARGUMENTS, "--trials", 16, "--iterations", 2, "--storage", "s.log")
        with open_study(Path("s.log"), self.settings()) as study:
            finished = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        assert len(finished) > 11

    def settings(self):
        """Return the settings in the storage of a call."""
        lines = map(json.loads, Path("s.log").read_text().splitlines())
        return next(
            line["user_attr"]["settings"] for line in lines if "settings" in line.get("user_attr", {})
        )

    def test_little_memory(self, monkeypatch):
        stdout = tune.succeed(*ARGUMENTS, *FEW).stdout
        monkeypatch.setattr(command_tune, "_SHARE_OF_MEMORY", 0)
        assert scores_of(tune.succeed(*ARGUMENTS, *FEW).stdout) == scores_of(stdout)

    def test_notes_of_files_are_said_once(self, monkeypatch):
        """Also where files are read again in each trial; ten of them, and how many more there are."""
        for index in range(COUNT):
            np.save(f"predictions/{index}.npy", np.load(f"predictions/{index}.npy").astype(np.float16))
            Image.open(f"images/{index}.png").convert("L").save(f"images/{index}.png")
        monkeypatch.setattr(command_tune, "_SHARE_OF_MEMORY", 0)
        *notes, last = tune.succeed(*ARGUMENTS, *FEW).stderr.splitlines()
        assert len(set(notes)) == len(notes) == 10
        assert {note.split(": ")[2] for note in notes} == {
            "grey repeated in three channels",
            "float16 converted to float32",
        }
        assert last == "Note: and 2 more of the kind"

    def test_images_too_large_for_the_memory(self, monkeypatch):
        monkeypatch.setattr(machine, "memory_of", lambda device: 470 * 500)
        assert "more than the 0.0005 that can be handled" in tune.refuse(*ARGUMENTS, *FEW)

    def test_time_alone_is_a_budget(self):
        stdout = tune.succeed(*ARGUMENTS, "--time", 0.5, "--iterations", 1).stdout
        assert int(re.search(r"(\d+) trials in", stdout)[1]) > 1

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    @pytest.mark.parametrize("method", ["optuna", "gradient"])
    def test_cuda(self, method):
        stdout = tune.succeed(*ARGUMENTS, *FEW, "--method", method, "--device", "cuda").stdout
        scores = scores_of(stdout)
        assert scores["tuned"][0] >= scores["defaults"][0]


class TestStorage:
    def test_goes_on(self):
        once = tune.succeed(*ARGUMENTS, *FEW)
        tune.succeed(*ARGUMENTS, "--trials", 3, "--iterations", 2, "--storage", "s.log")
        result = tune.succeed(*ARGUMENTS, *FEW, "--storage", "s.log")
        assert result.stderr == "Note: storage s.log: going on after 3 trials\n"
        assert "5 trials in" in result.stdout
        assert "after 3 trials of earlier calls" in result.stdout
        assert result.stdout.splitlines()[-5:] == once.stdout.splitlines()[-5:]

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (("--iterations", 3), "--iterations"),
            (("--seed", 3), "--seed"),
            (("--hold-back", 0.5, "--appearance-weight", 2), "--appearance-weight, --hold-back"),
            (("--max-images", 4), "images"),
            (("--ignore", 1), "--ignore"),
            (("--groups", "(.)"), "--groups"),
            (("--filter-method", "voxel"), "--filter-method"),
            (("--include-self",), "--include-self"),
        ],
    )
    def test_of_other_settings(self, options, named):
        tune.succeed(*ARGUMENTS, *FEW, "--storage", "s.log")
        message = tune.refuse(*ARGUMENTS, *FEW, *options, "--storage", "s.log")
        assert f"storage s.log is of a search with other {named}; name a new file" in message

    def test_of_other_images(self):
        tune.succeed(*ARGUMENTS, *FEW, "--storage", "s.log")
        Image.fromarray(np.zeros((48, 64), np.uint8)).save("truth/3.png")
        assert "with other images; name" in tune.refuse(*ARGUMENTS, *FEW, "--storage", "s.log")

    def test_of_renamed_images(self, folder):
        """Who is held back follows from the names."""
        tune.succeed(*ARGUMENTS, *FEW, "--storage", "s.log")
        for name in ("images", "predictions", "truth"):
            for path in list((folder / name).iterdir()):
                path.rename(path.with_stem(f"a{path.stem}"))
        assert "with other images; name" in tune.refuse(*ARGUMENTS, *FEW, "--storage", "s.log")

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (KeyboardInterrupt(), 130, "Interrupted; {}."),
            (SystemExit(143), 143, "Ended; {}."),
            (OSError(28, "No space left on device"), 1, "Error: [Errno 28] No space left on device; {}"),
            (MemoryError(), 1, "Error: out of memory; {}"),
            (InputError("image 3.png cannot be read"), 2, "Error: image 3.png cannot be read; {}"),
        ],
    )
    def test_ends_early(self, error, code, message, monkeypatch):
        """And says where the trials are, from which the next call goes on."""
        calls = []
        refined = Objective.refined

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == 6 + 4 + 3:  # in the third trial of four images
                raise error
            return refined(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Objective, "refined", interrupted)
            said = tune.refuse(*ARGUMENTS, *FEW, "--storage", "s.log", code=code)
        assert said == message.format("the trials so far are in s.log, and the same command goes on") + "\n"
        assert not Path("params.toml").exists()
        result = tune.succeed(*ARGUMENTS, *FEW, "--storage", "s.log")
        assert result.stderr == "Note: storage s.log: going on after 2 trials\n"

    def test_a_file_that_can_no_longer_be_read(self, folder, monkeypatch):
        """It ends the search: a trial without it would be stopped for good."""
        monkeypatch.setattr(command_tune, "_SHARE_OF_MEMORY", 0)
        truth = (folder / "truth" / "0.png").read_bytes()
        read = command_tune.Reader.__call__
        count = itertools.count()

        def remove(reader, pair):
            if next(count) == 6 + 4 + 1:
                (folder / "truth" / "0.png").unlink()
                (folder / "truth" / "5.png").unlink()
            return read(reader, pair)

        content = (folder / "truth" / "5.png").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(command_tune.Reader, "__call__", remove)
            message = tune.refuse(*ARGUMENTS, *FEW, "--storage", "s.log")
        assert re.fullmatch(
            r"Error: ground truth truth/[05]\.png does not exist.*; the trials so far.*\n", message
        )
        (folder / "truth" / "0.png").write_bytes(truth)
        (folder / "truth" / "5.png").write_bytes(content)
        again = tune.succeed(*ARGUMENTS, *FEW, "--storage", "s.log")
        assert again.stdout.splitlines()[-5:] == tune.succeed(*ARGUMENTS, *FEW).stdout.splitlines()[-5:]

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
    def test_killed(self, folder):
        many = ("--trials", 12, "--iterations", 2)
        once = tune.succeed(*ARGUMENTS, *many).stdout
        os.remove("params.toml")
        command = [sys.executable, "-m", "hdcrf", "tune", *ARGUMENTS, "--storage", "s.log", *map(str, many)]
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(hdcrf.__file__))}
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            if Path("s.log").exists() and Path("s.log").read_bytes().count(b'"op_code":6') >= 3:
                process.kill()
        assert process.wait(60) == -signal.SIGKILL
        assert not Path("params.toml").exists()
        result = tune.succeed(*ARGUMENTS, *many, "--storage", "s.log")
        assert "going on after" in result.stderr
        assert result.stdout.splitlines()[-5:] == once.splitlines()[-5:]


class TestDamage:
    def test_is_left_out(self, folder):
        (folder / "images" / "3.png").write_bytes((folder / "images" / "3.png").read_bytes()[:500])
        (folder / "predictions" / "1.npy").write_bytes(b"x")
        os.remove(folder / "truth" / "5.png")
        result = tune.invoke(*ARGUMENTS, *FEW)
        assert result.exit_code == 1
        assert "2 images searched     1 image held back" in result.stdout
        note, heading, first, second = result.stderr.splitlines()
        assert note == "Note: 1 of 6 images has no ground truth and is not scored: 5.png"
        assert heading == "2 of 5 images failed:"
        assert first.startswith("  1: prediction predictions/1.npy")
        assert second.startswith("  3: image images/3.png cannot be read")
        assert set(read_params("params.toml")) == {*DEFAULTS, "iterations"}

    def test_nothing_is_left(self, folder):
        for path in (folder / "predictions").iterdir():
            path.write_bytes(b"x")
        message = tune.refuse(*ARGUMENTS, *FEW)
        assert "no labelled image can be used, and tuning needs 2 at least" in message
        assert "prediction predictions/" in message
        assert not Path("params.toml").exists()

    @pytest.mark.parametrize("count", [(LABELS + 1, LABELS + 1), ()])
    def test_costs_that_do_not_fit(self, count):
        np.save("bad.npy", np.ones(count))
        message = tune.refuse(*ARGUMENTS, *FEW, "--compatibility", "bad.npy")
        assert "image images/0.png: compatibility bad.npy: `compatibility` must have shape (4,)" in message
        Path("bad.toml").write_text("compatibility = [1, 2, 3]")
        message = tune.refuse(*ARGUMENTS, *FEW, "--params", "bad.toml")
        assert "image images/0.png: params bad.toml: `compatibility` must have shape (4,)" in message

    @pytest.mark.parametrize("method", ["optuna", "gradient"])
    def test_one_image_that_costs_do_not_fit(self, method):
        """It is left out, and the rest goes on."""
        np.save("costs.npy", 1 - np.eye(LABELS))
        np.save("predictions/2.npy", np.full((48, 64, 3), 1 / 3, np.float32))
        options = ("--compatibility", "costs.npy", "--method", method, "--trials", 3)
        result = tune.invoke(*ARGUMENTS, *options)
        assert result.exit_code == 1
        assert result.stderr == (
            "1 of 6 images failed:\n"
            "  2: image images/2.png: compatibility costs.npy: `compatibility` must have shape (3,) or "
            "(3, 3), got (4, 4)\n"
        )
        assert "3 images searched    2 images held back" in result.stdout
        assert Path("params.toml").exists()


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--trials", 0), "0 is not in the range"),
            (("--time", 0), "not in the range"),
            (("--time", "nan"), "not a finite number"),
            (("--hold-back", 0), "not in the range"),
            (("--hold-back", 1), "not in the range"),
            (("--max-images", 1), "not in the range"),
            (("--seed", -1), "not in the range"),
            (("--method", "voxel"), "'voxel' is not one of 'optuna', 'gradient'"),
            (("--unknown", 3), "--unknown goes with predictions in PNG"),
            (("--gt-prob", 0.5), "--gt-prob goes with predictions in PNG"),
            (("--storage", "s.log", "--method", "gradient"), "--storage goes with --method optuna"),
            (("--storage", "s.db"), "--storage s.db must end in .log"),
            (("--storage", "missing/s.log"), "make it first"),
            (("--device", "cuda:99"), "cuda:99 was not found"),
            (("--params", "missing.toml"), "params missing.toml does not exist"),
            (("--appearance-sigma-rgb", 1e-9), "is too small: pixel"),
            (("--iterations", 0), "--iterations 0 refines nothing, so that there is nothing to tune"),
            (("--iterations", 0, "--method", "gradient"), "--iterations 0 refines nothing"),
            (("--groups", "("), "'(' is not a regular expression: missing )"),
            (("--groups", "x(.)"), "--groups 'x(.)' matches no name, such as "),
            (("--groups", "(.*?)"), "all images are of one group, '', and a group is held back as a whole"),
            (("-o", "params.json"), "--output params.json must end in .toml"),
            (("-o", "missing/params.toml"), "make it first"),
        ],
    )
    def test_option(self, options, message):
        assert message in tune.refuse(*ARGUMENTS, *FEW, *options)

    def test_ground_truth_is_needed(self):
        assert "Missing option '--ground-truth'" in tune.refuse("images", "predictions", "-o", "params.toml")

    def test_folders(self):
        assert "ground truth missing does not exist" in tune.refuse(
            "images", "predictions", "--ground-truth", "missing", "-o", "params.toml"
        )

    def test_parameters_are_no_output(self):
        Path("bad.toml").write_text("iterations = 3")
        assert "is also the file of --params" in tune.refuse(
            *FOLDERS, "-o", "bad.toml", "--params", "bad.toml"
        )

    def test_one_image_is_not_enough(self):
        Path("bad").mkdir()
        Path("bad/0.png").write_bytes(Path("truth/0.png").read_bytes())
        message = tune.refuse("images", "predictions", "--ground-truth", "bad", "-o", "params.toml", *FEW)
        assert "only 1 labelled image can be used" in message
        assert "label more of them" in message

    def test_nothing_that_counts(self):
        Path("bad").mkdir()
        for index in range(COUNT):
            Image.fromarray(np.full((48, 64), 255, np.uint8)).save(f"bad/{index}.png")
        message = tune.refuse("images", "predictions", "--ground-truth", "bad", "-o", "params.toml", *FEW)
        assert "has no pixel that counts; see --ignore" in message

    @pytest.mark.parametrize(("module", "named"), [("optuna", "optuna"), ("tomli_w", "tomli-w")])
    def test_missing_extra(self, module, named, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        assert f'needs {named}: pip install "hdcrf[tune]"' in tune.refuse(*ARGUMENTS, *FEW)


def test_gradient_needs_no_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    tune.succeed(*ARGUMENTS, "--method", "gradient", "--trials", 2, "--iterations", 1)
