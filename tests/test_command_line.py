"""The command line: what it writes and prints, what it refuses, and that a failure leaves nothing behind."""

import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage import data

import hdcrf
from hdcrf import array_files, image_files
from hdcrf.commands import image as command_image
from hdcrf.commands import main as command_line
from hdcrf.commands import running as command_running
from hdcrf.commands.main import commands
from hdcrf.commands.running import progress_bar
from hdcrf.machine import cpu_count

HEIGHT, WIDTH = 48, 72
COLOURS = np.array([(70, 130, 220), (230, 140, 40), (245, 240, 230)], dtype=np.uint8)


@pytest.fixture(scope="session")
def photo():
    return np.asarray(Image.fromarray(data.rocket()).resize((WIDTH, HEIGHT)))


@pytest.fixture
def folder(tmp_path, photo, monkeypatch):
    """A working directory with a photo, an annotation and probabilities."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("photo.png")
    strokes = np.zeros((HEIGHT, WIDTH), dtype=int)
    strokes[3:6, 12:60] = strokes[12:30, 24:27] = 1
    strokes[44:46, 4:20] = strokes[10:30, 64:66] = 2
    strokes[16:42, 36] = 3
    annotation = np.concatenate([np.zeros((1, 3), np.uint8), COLOURS])[strokes]
    Image.fromarray(annotation).save("annotation.png")
    values = torch.softmax(2 * torch.randn(HEIGHT, WIDTH, 4), 2).numpy()
    np.save("probabilities.npy", values)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(commands, ["image", "photo.png", *map(str, arguments)])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(*arguments, code=2):
    """Run what must fail and return the message."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def python(*arguments, program=sys.executable, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONIOENC")}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(hdcrf.__file__))
    return subprocess.run(
        [program, *arguments],
        env=environment | options.pop("env", {}),
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=False,
        **({"capture_output": True} | options),
    )


ANNOTATION = ("--annotation", "annotation.png", "-o", "out.png")
PROBABILITIES = ("--probabilities", "probabilities.npy", "-o", "out.png")


class TestResult:
    def test_from_an_annotation(self, folder, photo):
        result = succeed(*ANNOTATION)
        labels, colours = hdcrf.labels_from_annotation(np.asarray(Image.open("annotation.png")))
        expected = hdcrf.refine(photo, labels=labels)
        np.testing.assert_array_equal(colours, COLOURS)
        np.testing.assert_array_equal(np.asarray(Image.open("out.png")), colours[expected])
        assert "output: out.png (72 x 48 pixels" in result.stdout
        assert "3 of 3 labels found" in result.stdout
        unknown = (labels < 0).mean()
        assert f"{unknown:.1%} of the pixels were unknown" in result.stdout
        changed = (labels != expected)[labels >= 0].mean()
        assert f"{changed:.1%} of the annotated pixels changed" in result.stdout
        assert result.stderr == ""

    def test_from_probabilities(self, folder, photo):
        result = succeed(*PROBABILITIES)
        values = np.load("probabilities.npy")
        expected = hdcrf.refine(photo, probabilities=values)
        with Image.open("out.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), expected)
        changed = (values.argmax(2) != expected).mean()
        assert f"{changed:.1%} of the pixels changed their label" in result.stdout

    def test_many_labels_are_sixteen_bit_grey(self, folder, photo):
        values = torch.softmax(9 * torch.randn(HEIGHT, WIDTH, 300), 2).numpy()
        np.savez("many.npz", probabilities=values)
        succeed("--probabilities", "many.npz", "-o", "out.png", "--iterations", 0, "--overlay", "o.png")
        np.testing.assert_array_equal(np.asarray(Image.open("out.png")), values.argmax(2))

    def test_all_outputs(self, folder, photo):
        result = succeed(
            *ANNOTATION,
            *("--overlay", "over.png", "--opacity", 1, "--energy-plot", "energy.png"),
            *("--save-marginals", "marginals.npy"),
        )
        refined = np.asarray(Image.open("out.png"))
        np.testing.assert_array_equal(np.asarray(Image.open("over.png")), refined)
        marginals = np.load("marginals.npy")
        assert marginals.dtype == np.float32
        assert marginals.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(marginals.sum(2), 1, atol=1e-5)
        np.testing.assert_array_equal(COLOURS[marginals.argmax(2)], refined)
        with Image.open("energy.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
        first, last = re.search(r"energy (\S+) before, (\S+) after", result.stdout).groups()
        assert float(last) < float(first)
        lines = result.stdout.splitlines()
        for line, name in zip(lines, ["out.png", "over.png", "energy.png", "marginals.npy"], strict=False):
            assert re.search(rf": {name} \(.* kB\)$", line)
        assert {path.name for path in folder.iterdir()} == {
            *("photo.png", "annotation.png", "probabilities.npy"),
            *("out.png", "over.png", "energy.png", "marginals.npy"),
        }

    def test_marginals_of_one_run_start_another(self, folder):
        succeed(*ANNOTATION, "--save-marginals", "m.npz")
        succeed("--probabilities", "m.npz", "-o", "again.png", "--iterations", 0)
        refined = COLOURS[np.asarray(Image.open("again.png"))]
        np.testing.assert_array_equal(refined, np.asarray(Image.open("out.png")))

    def test_options_reach_the_model(self, folder, photo):
        succeed(
            *PROBABILITIES,
            *("--iterations", 3, "--appearance-weight", 4, "--appearance-sigma-xy", 20),
            *("--appearance-sigma-rgb", 30, "--smoothness-weight", 1, "--smoothness-sigma", 2),
            *("--normalization", "after", "--include-self", "--method", "voxel", "--order", 2, "--halo", 1),
            *("--save-marginals", "m.npy"),
        )
        expected = hdcrf.refine(
            photo,
            probabilities=np.load("probabilities.npy"),
            iterations=3,
            appearance_weight=4.0,
            appearance_sigma_xy=20.0,
            appearance_sigma_rgb=30.0,
            smoothness_weight=1.0,
            smoothness_sigma=2.0,
            normalization="after",
            exclude_self=False,
            method="voxel",
            order=2,
            halo=1,
            return_marginals=True,
        )
        np.testing.assert_array_equal(np.load("m.npy"), expected)

    def test_trust_reaches_the_model(self, folder, photo):
        succeed(*ANNOTATION, "--gt-prob", 0.95, "--save-marginals", "m.npy")
        labels, _ = hdcrf.labels_from_annotation(np.asarray(Image.open("annotation.png")))
        expected = hdcrf.refine(photo, labels=labels, gt_prob=0.95, return_marginals=True)
        np.testing.assert_array_equal(np.load("m.npy"), expected)

    def test_tolerance_stops_early(self, folder):
        result = succeed(*ANNOTATION, "--iterations", 200, "--tolerance", 0.01)
        assert int(re.search(r"(\d+) iterations in", result.stdout)[1]) < 200

    @pytest.mark.parametrize(
        "matrix", [np.array([1.0, 2, 3, 4]), 1 - np.eye(4), 3 * (1 - np.eye(4, dtype=int))]
    )
    def test_compatibility_from_a_file(self, matrix, folder, photo):
        np.save("c.npy", matrix)
        succeed(*PROBABILITIES, "--compatibility", "c.npy", "--save-marginals", "m.npy")
        expected = hdcrf.refine(
            photo,
            probabilities=np.load("probabilities.npy"),
            compatibility=torch.tensor(matrix, dtype=torch.float32),
            return_marginals=True,
        )
        np.testing.assert_array_equal(np.load("m.npy"), expected)

    def test_replaces_an_older_result(self, folder):
        (folder / "out.png").write_text("older")
        succeed(*ANNOTATION)
        Image.open("out.png").load()

    def test_quiet_prints_nothing(self, folder):
        Image.open("photo.png").convert("L").save("grey.png")
        result = CliRunner().invoke(commands, ["image", "grey.png", *ANNOTATION, "--quiet"])
        assert (result.exit_code, result.output) == (0, "")

    def test_conversions_are_noted(self, folder):
        Image.open("photo.png").convert("L").save("grey.png")
        result = CliRunner().invoke(commands, ["image", "grey.png", *ANNOTATION])
        assert result.exit_code == 0
        assert result.stderr == "Note: photo grey.png: grey repeated in three channels\n"

    def test_threads(self, folder):
        before = torch.get_num_threads()
        try:
            succeed(*ANNOTATION, "--threads", 1)
            assert torch.get_num_threads() == 1
            result = succeed(*ANNOTATION, "--threads", 100_000)
            assert f"using {cpu_count()}" in result.stderr
            assert torch.get_num_threads() == cpu_count()
        finally:
            torch.set_num_threads(before)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_cuda(self, folder):
        succeed(*PROBABILITIES, "--save-marginals", "cpu.npy", "--energy-plot", "e.png")
        succeed(*PROBABILITIES, "--save-marginals", "gpu.npy", "--energy-plot", "e.png", "--device", "cuda")
        np.testing.assert_allclose(np.load("gpu.npy"), np.load("cpu.npy"), atol=1e-4)

    def test_defaults_are_those_of_refine(self):
        defaults = {
            name: parameter.default
            for callable_ in (hdcrf.DenseCRF, hdcrf.refine)  # the iterations are refine's
            for name, parameter in inspect.signature(callable_).parameters.items()
            if parameter.default is not parameter.empty
        }
        options = commands.commands["image"].make_context("image", ["photo.png", "-o", "out.png"]).params
        options["exclude_self"] = not options.pop("include_self")
        del defaults["output"]  # of forward; the option is a file
        shared = options.keys() & defaults.keys()
        assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}
        without = {"labels", "num_labels", "return_marginals", "progress", "learn"}
        assert defaults.keys() - shared <= without


class TestSingleLabel:
    def test_outvoted_labels_are_explained(self, folder):
        values = np.full((HEIGHT, WIDTH, 2), (0.6, 0.4), np.float32)
        values[20:24, 20:24] = (0.45, 0.55)
        np.save("p.npy", values)
        result = succeed("--probabilities", "p.npy", "-o", "out.png")
        assert "all label 0" in result.stderr
        for cause in ("--appearance-weight", "--appearance-sigma-rgb", "0..255", "--iterations 0"):
            assert cause in result.stderr

    def test_little_trust_is_a_cause_of_an_annotation(self, folder):
        drawn = np.full((HEIGHT, WIDTH, 3), COLOURS[0])
        drawn[20:22, 20:22] = COLOURS[1]
        Image.fromarray(drawn).save("a.png")
        result = succeed("--annotation", "a.png", "-o", "out.png", "--gt-prob", 0.51, "--quiet")
        assert "all label #4682dc" in result.stderr
        assert "--gt-prob" in result.stderr

    def test_the_input_had_one_label(self, folder):
        values = np.full((HEIGHT, WIDTH, 2), (0.4, 0.6), np.float32)
        np.save("p.npy", values)
        result = succeed("--probabilities", "p.npy", "-o", "out.png")
        assert "all label 1, because that is the most probable label at every pixel" in result.stderr

    def test_there_is_only_one(self, folder):
        drawn = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        drawn[5, 5] = COLOURS[0]
        Image.fromarray(drawn).save("a.png")
        assert "give at least two" in succeed("--annotation", "a.png", "-o", "out.png").stderr


@pytest.mark.usefixtures("unchanged")
class TestRefusals:
    def test_neither_or_both_inputs(self):
        assert "got neither" in refuse("-o", "out.png")
        assert "got both" in refuse(*ANNOTATION, "--probabilities", "probabilities.npy")

    def test_no_output(self):
        assert "'-o'" in refuse("--annotation", "annotation.png")

    def test_trust_without_an_annotation(self):
        assert "--gt-prob goes with --annotation" in refuse(*PROBABILITIES, "--gt-prob", 0.7)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--iterations", -1), "-1 is not in the range"),
            (("--iterations", 2.5), "not a valid integer"),
            (("--appearance-sigma-xy", 0), "not in the range"),
            (("--appearance-sigma-xy", "nan"), "nan is not a finite number"),
            (("--appearance-sigma-xy", "1e-50"), "`appearance_sigma_xy` must lie between"),
            (("--appearance-weight", "1e38"), "left the range of torch.float32"),
            (("--appearance-sigma-rgb", "1e-9"), "is too small: pixel"),
            (("--appearance-weight", "inf"), "inf is not a finite number"),
            (("--smoothness-sigma", -3), "not in the range"),
            (("--gt-prob", 1), "not in the range"),
            (("--gt-prob", 0.3), "`gt_prob` must lie between 1/3"),
            (("--tolerance", 0), "not in the range"),
            (("--normalization", "both"), "'both' is not one of"),
            (("--method", "fft"), "'fft' is not one of"),
            (("--order", 0), "not in the range"),
            (("--halo", -1), "not in the range"),
            (("--opacity", 2), "not in the range"),
            (("--opacity", "nan"), "nan is not a finite number"),
            (("--gt-prob", "nan"), "nan is not a finite number"),
            (("--order", 17), "not in the range"),
            (("--halo", 10**9), "1000000000 is not in the range 0<=x<=8"),
            (("--iterations", 10**9), "1000000000 is not in the range 0<=x<=1000000"),
            (("--threads", 0), "not in the range"),
            (("--device", "gpu"), "must be cpu, cuda"),
            (("--device", "meta"), "must be cpu, cuda"),
            (("--device", "cuda:99"), "cuda:99 was not found"),
            (("--no-such-option",), "No such option"),
        ],
    )
    def test_option(self, options, message):
        assert message in refuse(*ANNOTATION, *options)

    def test_missing_photo(self):
        result = CliRunner().invoke(commands, ["image", "missing.png", *ANNOTATION])
        assert result.exit_code == 2
        assert "photo missing.png does not exist" in result.stderr

    def test_folder_as_photo(self):
        result = CliRunner().invoke(commands, ["image", ".", *ANNOTATION])
        assert result.exit_code == 2
        assert "photo . is a folder" in result.stderr

    def test_photo_beyond_the_memory(self, monkeypatch):
        monkeypatch.setattr(command_running, "BYTES_A_PIXEL", 1 << 50)
        assert "72 x 48 = 0 megapixels, more than" in refuse(*ANNOTATION)

    def test_broken_annotation(self, folder):
        (folder / "bad.png").write_bytes((folder / "annotation.png").read_bytes()[:100])
        message = refuse("--annotation", "bad.png", "-o", "out.png")
        assert "annotation bad.png" in message
        assert "save it again" in message

    def test_annotation_of_another_size(self):
        Image.new("RGB", (10, 10), "red").save("bad.png")
        assert "10 x 10 pixels, but the photo is 72 x 48" in refuse(
            "--annotation", "bad.png", "-o", "out.png"
        )

    def test_anti_aliased_annotation(self, photo):
        Image.fromarray(photo).save("bad.png")
        assert "without anti-aliasing" in refuse("--annotation", "bad.png", "-o", "out.png")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.full((HEIGHT, WIDTH, 2), 0.7, np.float32), "must sum to 1 over the labels"),
            (np.full((HEIGHT, WIDTH, 2), (-0.5, 1.5), np.float32), "must be 0 or greater"),
            (np.full((HEIGHT, WIDTH, 2), np.nan, np.float32), "must be finite"),
            (np.full((HEIGHT, WIDTH, 2), 1e39), "must lie within"),
            (np.full((HEIGHT, WIDTH, 2), 1), "floating-point numbers, got int64"),
            (np.full((WIDTH, HEIGHT, 2), 0.5, np.float32), "must have shape"),
            (np.full((HEIGHT, WIDTH), 0.5, np.float32), "must have shape"),
        ],
    )
    def test_probabilities(self, values, message):
        np.save("bad.npy", values)
        stderr = refuse("--probabilities", "bad.npy", "-o", "out.png")
        assert message in stderr
        assert "probabilities bad.npy" in stderr

    def test_more_labels_than_a_png_holds(self, monkeypatch):
        monkeypatch.setattr(image_files, "MOST_LABELS", 3)
        assert "4 labels are more than the 3 that a PNG can hold" in refuse(*PROBABILITIES)

    def test_damaged_arrays(self, folder):
        np.savez("bad.npz", probabilities=np.zeros((HEIGHT, WIDTH, 2), np.float32))
        good = (folder / "bad.npz").read_bytes()
        local, central = good.index(b"PK\x03\x04"), good.index(b"PK\x01\x02")
        encrypted, packed = bytearray(good), bytearray(good)
        encrypted[local + 6] |= 1
        encrypted[central + 8] |= 1
        packed[local + 8] = packed[central + 10] = 99  # a compression that nobody knows
        np.save("bad.npy", np.zeros((HEIGHT, WIDTH, 2), np.float32))
        header = (folder / "bad.npy").read_bytes().replace(b"{'descr'", b"{(descr'")
        for name, content in (("bad_e.npz", encrypted), ("bad_c.npz", packed), ("bad_h.npy", header)):
            (folder / name).write_bytes(content)
            assert "cannot be read" in refuse("--probabilities", name, "-o", "out.png")

    def test_output_name_too_long(self):
        message = refuse(*ANNOTATION, "--overlay", "o" * 260 + ".png")
        assert "File name too long" in message
        assert not os.path.exists("out.png")

    def test_pickled_probabilities(self):
        np.save("bad.npy", np.array([{}], dtype=object), allow_pickle=True)
        assert "pickled objects are not loaded" in refuse("--probabilities", "bad.npy", "-o", "out.png")

    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (np.ones(3), r"(4,) or (4, 4), got (3,)"),
            (np.array(["a"]), "must hold numbers"),
            (np.full(4, 1e39), "compatibility bad.npy: `compatibility` must lie within"),
        ],
    )
    def test_compatibility(self, matrix, message):
        np.save("bad.npy", matrix)
        assert message in refuse(*PROBABILITIES, "--compatibility", "bad.npy")

    def test_unknown_compatibility(self):
        assert "compatibility pots does not exist" in refuse(*ANNOTATION, "--compatibility", "pots")

    @pytest.mark.parametrize(
        ("outputs", "message"),
        [
            (("-o", "out.jpg"), "JPEG is lossy"),
            (("-o", "out.gif"), "--output out.gif must end in .png"),
            (("-o", "out"), "--output out must end in .png, got no suffix"),
            (("-o", ""), "the name is empty; name a file"),
            (("-o", "out.png", "--overlay", ""), "the name is empty; name a file"),
            (("-o", "out.png", "--compatibility", ""), "the name is empty; name a file"),
            (("-o", "missing/out.png"), "does not exist; make it first"),
            (("-o", "photo.png/out.png"), "is not a folder"),
            (("-o", "photo.png"), "is also the file of PHOTO"),
            (("-o", "./annotation.png"), "is also the file of --annotation"),
            (("-o", "out.png", "--overlay", "out.png"), "--overlay out.png is also the file of --output"),
            (("-o", "out.png", "--overlay", "over.webp"), "must end in .png or .jpg or .jpeg"),
            (("-o", "out.png", "--energy-plot", "energy.svg"), "must end in .png"),
            (("-o", "out.png", "--save-marginals", "m.csv"), "must end in .npy or .npz"),
            (("-o", "out.png", "--save-marginals", "missing/m.npy"), "make it first"),
        ],
    )
    def test_outputs(self, outputs, message, monkeypatch):
        def infer(*_, **__):
            pytest.fail("it should have been refused before any work")

        monkeypatch.setattr(hdcrf.DenseCRF, "infer", infer)
        assert message in refuse("--annotation", "annotation.png", *outputs)

    def test_folder_as_output(self, folder):
        (folder / "bad.png").mkdir()
        assert "is a folder" in refuse("--annotation", "annotation.png", "-o", "bad.png")

    def test_plot_without_matplotlib(self, monkeypatch):
        versions = command_image.version_of
        monkeypatch.setattr(
            command_image, "version_of", lambda name: None if name == "matplotlib" else versions(name)
        )
        assert 'pip install "hdcrf[images]"' in refuse(*ANNOTATION, "--energy-plot", "energy.png")


@pytest.mark.usefixtures("unchanged")
class TestFailures:
    EVERY = ("--overlay", "over.png", "--energy-plot", "energy.png", "--save-marginals", "marginals.npy")

    def test_interrupt(self, monkeypatch):
        def infer(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(hdcrf.DenseCRF, "infer", infer)
        assert "Interrupted; nothing was written" in refuse(*ANNOTATION, *self.EVERY, code=130)

    @pytest.mark.parametrize(
        "error", [MemoryError(), RuntimeError("can't allocate memory: you tried to ...")]
    )
    def test_out_of_memory(self, error, monkeypatch):
        def infer(*_, **__):
            raise error

        monkeypatch.setattr(hdcrf.DenseCRF, "infer", infer)
        assert "out of memory" in refuse(*ANNOTATION, code=1)

    @pytest.mark.parametrize(
        ("module", "writer"), [(image_files, "write_picture"), (array_files, "write_array")]
    )
    def test_disk_full(self, module, writer, monkeypatch):
        def write(file, *_):
            file.write(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, writer, write)
        message = refuse(*ANNOTATION, *self.EVERY, code=1)
        assert "cannot write the results, and wrote none" in message
        assert "No space left" in message

    def test_a_real_write_that_fails(self):
        pytest.importorskip("resource")
        limited = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
            "from hdcrf.__main__ import main; main()"
        )
        result = python(
            *("-c", limited, "image", "photo.png"), *ANNOTATION, "--save-marginals", "marginals.npy"
        )
        assert result.returncode == 1
        assert "cannot write the results, and wrote none" in result.stderr
        assert "Traceback" not in result.stderr


class TestProcess:
    def test_module_runs(self, folder):
        result = python("-m", "hdcrf", "image", "photo.png", *ANNOTATION, env={"PYTHONIOENCODING": "ascii"})
        assert (result.returncode, result.stderr) == (0, "")
        assert "output: out.png" in result.stdout

    def test_wrong_input_exits_with_two(self, folder):
        result = python("-m", "hdcrf", "image", "missing.png", *ANNOTATION)
        assert result.returncode == 2
        assert result.stderr == "Error: photo missing.png does not exist; check the path\n"

    @pytest.mark.parametrize(
        ("blocked", "named"),
        [(["click"], "click"), (["PIL"], "pillow"), (["click", "PIL"], "click and pillow")],
    )
    def test_missing_extra(self, blocked, named):
        program = (
            f"import sys; sys.modules.update(dict.fromkeys({blocked})); import hdcrf.__main__ as m; m.main()"
        )
        result = python("-c", program, "info")
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr == f'hdcrf\'s command line needs {named}: pip install "hdcrf[images]"\n'

    def test_interrupt_on_a_terminal_that_shows_a_bar(self, folder):
        pty = pytest.importorskip("pty")
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "hdcrf", "image", "photo.png", *ANNOTATION, "--iterations", "1000000"],
            env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(hdcrf.__file__))},
            stdin=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        seen, shown = bytearray(), threading.Event()

        def read():  # to the end, or else the process would wait for room to write
            with suppress(OSError):  # which is how the end shows
                while content := os.read(controller, 1024):
                    seen.extend(content)
                    if b"Mean field" in seen:
                        shown.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert shown.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
            process.wait()
            reader.join(60)
            os.close(controller)
        assert b"Interrupted; nothing was written." in seen
        assert sorted(os.listdir()) == ["annotation.png", "photo.png", "probabilities.npy"]

    @pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
    @pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
    def test_closed_streams(self, closed, folder):
        def shell(*arguments):
            command = shlex.join([sys.executable, "-m", "hdcrf", *arguments])
            return python("-c", f"{command} {closed}", program="sh").returncode

        assert shell("image", "photo.png", *ANNOTATION) == 0
        Image.open("out.png").load()
        assert shell("image", "missing.png", *ANNOTATION) == 2

    def test_closed_stderr_shows_no_bar(self, folder, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        with progress_bar(3, "Mean field", quiet=False) as progress:
            assert progress is None

    @pytest.mark.parametrize("columns", [40, 80, 200])
    def test_a_bar_is_no_wider_than_the_terminal(self, columns, folder, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stderr", Terminal())
        with progress_bar(1000, "Images", quiet=False, unit="images") as progress:
            for done in (1, 500, 1000):
                progress(done)
        shown = sys.stderr.getvalue()
        frames = [click.unstyle(frame).rstrip("\n") for frame in shown.split("\r")]
        assert max(map(len, frames)) <= columns
        assert "1000/1000" in shown
        assert ("images/s" in shown) == (columns > 40)

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_full_disk_behind_stdout(self, folder):
        with open("/dev/full", "w") as full:
            options = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
            result = python("-m", "hdcrf", "image", "photo.png", *ANNOTATION, **options)
            information = python("-m", "hdcrf", "info", **options)
        assert (result.returncode, information.returncode) == (1, 1)
        assert result.stderr.startswith("Error: the results are written, but not all was printed: ")
        assert information.stderr == "Error: [Errno 28] No space left on device\n"
        assert result.stderr.count("\n") == 1
        Image.open("out.png").load()

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
    def test_signals_leave_nothing_half_written(self, name, folder, unchanged):
        if not hasattr(signal, name):
            pytest.skip(f"no {name} here")
        program = (
            "import os, signal; from hdcrf import image_files; from hdcrf.__main__ import main\n"
            "def write(file, *_):\n"
            "    file.write(b'half of it')\n"
            f"    os.kill(os.getpid(), signal.{name})\n"
            "image_files.write_picture = write\n"
            "main()"
        )
        result = python("-c", program, "image", "photo.png", *ANNOTATION)
        assert result.returncode == 128 + getattr(signal, name)
        assert "Traceback" not in result.stderr

    def test_signals_are_given_back(self, folder):
        before = signal.getsignal(signal.SIGTERM)
        succeed(*ANNOTATION)
        assert signal.getsignal(signal.SIGTERM) == before

    def test_another_thread_has_no_signals(self, folder):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(succeed, *ANNOTATION).result()


class TestInfo:
    def test_info(self):
        result = CliRunner().invoke(commands, ["info"])
        assert result.exit_code == 0
        for text in (
            hdcrf.__version__,
            torch.__version__,
            np.__version__,
            *("pillow", "av", "nibabel", "laspy", "open3d"),
            "threads",
            "cpu",
            "PyTorch",
        ):
            assert text in result.stdout

    def test_what_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(command_line, "version_of", lambda name: None)
        assert "matplotlib  not installed" in CliRunner().invoke(commands, ["info"]).stdout

    def test_cuda_devices(self, monkeypatch):
        class Properties:
            name, total_memory = "A card", 24 << 30

        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
        stdout = CliRunner().invoke(commands, ["info"]).stdout
        assert "cuda:0: A card, 24.0 GiB" in stdout
        assert "cuda:1: A card" in stdout

    def test_version_and_help(self):
        assert hdcrf.__version__ in CliRunner().invoke(commands, ["--version"]).stdout
        help_text = CliRunner().invoke(commands, ["image", "-h"]).stdout
        assert "in pixels" in help_text
        assert "0..255" in help_text
        help_text.encode("ascii")
