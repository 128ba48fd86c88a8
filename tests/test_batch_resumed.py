"""`hdcrf batch` goes on where it stopped, however it was stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from batch_folder import (
    COUNT,
    STEMS,
    contents,
    counts,
    finished,
    invoke,
    labels,
    succeed,
)

import hdcrf
from hdcrf.folders.manifest import MANIFEST, open_manifest


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
        first = succeed("--ground-truth", "truth")
        assert counts(first) == (5, 0)
        assert "images a second" in first.stdout
        os.rename("later.png", "images/a3.png")
        second = succeed("--ground-truth", "truth")
        assert counts(second) == (1, 5)
        assert "images a second" in second.stdout

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


class TestInterrupted:
    MANY = 30
    SLOW = ("--iterations", "1000", "--workers", "2", "--threads", "1")  # some 2 s, without start-up

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
            manifest.write('{"stem": "a29", "sett')
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
