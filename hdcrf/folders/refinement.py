"""Refining the pairs of a folder, on several threads of one process.

Threads suffice: decoding, PyTorch and the compiled kernels let go of Python's lock while they work. PyTorch
is imported once, and the memory is shared.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import hdcrf
from hdcrf import image_files, pictures
from hdcrf.failures import as_input_error, is_out_of_memory
from hdcrf.files import InputError, check_file, ignore, reason, whole_files
from hdcrf.folders.manifest import Entry, digest, stamp
from hdcrf.folders.pairs import Pair
from hdcrf.folders.predictions import Prediction, array_bytes, read_labels
from hdcrf.folders.scores import LabelScores, score_labels
from hdcrf.folders.settings import Settings
from hdcrf.refine import most_likely
from hdcrf.thread_warnings import collected_warnings

__all__ = ["Refinement", "Result", "run_in_threads"]

_palette = lru_cache(pictures.palette)
# Peak memory, measured on a photo of a megapixel with 2 to 150 labels in PNG and in .npy.
_BYTES_A_LABEL = 17  # and pixel, beyond two labels: logits, marginals of two iterations, and what was read
_TIMES_THE_ARRAY = 4  # while probabilities are read
_POLL = 0.5  # seconds; on Windows a wait without end cannot be interrupted


@dataclass(frozen=True)
class Result:
    """What became of a pair.

    Attributes:
        pair: The files.
        entry: For the record; None if it failed.
        before: The scores of the prediction; None without ground truth.
        after: Those of the refined labels.
        failure: Why it, or its ground truth, could not be used; None if all is well.
        notes: What is to be known of its files.
    """

    pair: Pair
    entry: Entry | None = None
    before: LabelScores | None = None
    after: LabelScores | None = None
    failure: str | None = None
    notes: list[str] = field(default_factory=list)


class Refinement:
    """Refines pairs, each in the thread that asks for it.

    Args:
        settings: Of the model.
        device: Where to compute.
        output: Returns where the output for a stem goes.
        memory: Bytes that all threads together may use; None where that is not known.
        bytes_a_pixel: What a photo takes of these.
        ignore: The value of the ground truth that does not count; None leaves it to the prediction.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        output: Callable[[str], Path],
        *,
        memory: int | None,
        bytes_a_pixel: int,
        ignore: int | None,
    ) -> None:
        self._settings = settings
        self.digest = settings.digest  # of what results depend on besides the files
        self._device = device
        self._output = output
        self._memory = memory
        self._bytes_a_pixel = bytes_a_pixel
        self._budget = _Budget(memory)
        self._ignore = ignore
        self._own = threading.local()  # .layers of a thread, by the number of labels
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the threads give up what they are at."""
        self._stopped.set()

    def refine(self, pair: Pair) -> Result:
        """Refine a pair, write the output, and score it if there is ground truth.

        Raises:
            OSError: If the output cannot be written.
        """
        notes: list[str] = []
        with _failures(pair, notes) as failures:
            check_file("image", pair.image)
            check_file("prediction", pair.prediction)
            stamps = stamp(pair.image), stamp(pair.prediction)
            start, labels = self._compute(pair, notes)
            content = _encoded(start, labels)
        if failures:
            return failures[0]
        with whole_files([self._output(pair.stem)]) as (file,):
            file.write(content)
        known = start.labels >= 0
        entry = Entry(
            pair.stem,
            self.digest,
            *stamps,
            output=digest(content),
            pixels=labels.size,
            known=int(known.sum()),
            changed=int((known & (start.labels != labels)).sum()),
            labels_before=_count(start.labels[known]),
            labels_after=_count(labels),
        )
        return self._scored(pair, entry, start, lambda: start.values[labels], notes)

    def score(self, pair: Pair, entry: Entry) -> Result:
        """Score an output that was kept, if there is ground truth."""
        if pair.truth is None:
            return Result(pair, entry)
        notes: list[str] = []
        output = self._output(pair.stem)
        with _failures(pair, notes, entry) as failures:
            shape, _ = image_files.picture_size_and_palette(output, role="output")
            start = self._settings.read(pair, shape, ignore)
            refined = read_labels("output", output, shape)
        return failures[0] if failures else self._scored(pair, entry, start, lambda: refined, notes)

    def _compute(self, pair: Pair, notes: list[str]) -> tuple[Prediction, NDArray[np.int64]]:
        """Return where the labelling starts from, and the refined labels 0 … K-1."""
        most = None if self._memory is None else self._memory // self._bytes_a_pixel
        photo = image_files.read_photo(pair.image, most_pixels=most, role="image", note=notes.append)
        shape = photo.shape[0], photo.shape[1]
        with self._budget.of(photo.nbytes + array_bytes(pair.prediction) * _TIMES_THE_ARRAY):
            start = self._settings.read(pair, shape, notes.append)
        count = len(start.values)
        if count == 1:
            return start, np.zeros(shape, np.int64)
        # Only now it is known how many labels there are. What was read does not count while this waits: two
        # that held a part each, and waited for more, would wait for ever.
        a_pixel = self._bytes_a_pixel + _BYTES_A_LABEL * (count - 2)
        with self._budget.of(shape[0] * shape[1] * a_pixel):
            layer = self._layer(count)
            guide = torch.from_numpy(photo).permute(2, 0, 1)[None]
            with as_input_error(), torch.inference_mode():
                result = layer.infer(
                    start.logits[None].to(self._device),
                    guide.to(self._device),
                    return_logits=False,
                    progress=self._check_stop,
                )
                labels = most_likely(result.marginals[0].permute(1, 2, 0), layer.backend)
        return start, labels.cpu().numpy()

    def _layer(self, num_labels: int) -> hdcrf.DenseCRF:
        layers: dict[int, hdcrf.DenseCRF] = self._own.__dict__.setdefault("layers", {})
        if num_labels not in layers:
            with as_input_error():
                layer = hdcrf.DenseCRF(num_labels, learn=(), **self._settings.model)
            layers[num_labels] = layer.to(self._device)
        return layers[num_labels]

    def _check_stop(self, _: int) -> None:
        if self._stopped.is_set():
            raise _Stopped

    def _scored(
        self,
        pair: Pair,
        entry: Entry,
        start: Prediction,
        refined: Callable[[], NDArray[np.int64]],
        notes: list[str],
    ) -> Result:
        """Return the result with its scores, if there is ground truth."""
        if pair.truth is None:
            return Result(pair, entry, notes=notes)
        with _failures(pair, notes, entry) as failures:
            shape = start.labels.shape[0], start.labels.shape[1]
            truth = read_labels("ground truth", pair.truth, shape)
            ignore = start.ignored(self._ignore)
            with as_input_error(f"ground truth {pair.truth}: "):
                before, after = (
                    score_labels(each, truth, ignore=ignore) for each in (start.given, refined())
                )
        return failures[0] if failures else Result(pair, entry, before, after, notes=notes)


def _count(labels: NDArray[np.int64]) -> int:
    """Return how many labels 0 … K-1 occur."""
    return int(np.count_nonzero(np.bincount(labels.ravel())))


def _encoded(start: Prediction, labels: NDArray[np.int64]) -> bytes:
    """Return the PNG of refined labels: with the values and the palette that labels in a PNG had."""
    file = io.BytesIO()
    if start.annotated:
        image_files.write_label_values(file, start.values[labels], start.palette)
    else:
        image_files.write_labels(file, labels, _palette(len(start.values)), optimize=False)
    return file.getvalue()


class _Stopped(BaseException):
    """The work was given up."""


@contextmanager
def _failures(pair: Pair, notes: list[str], entry: Entry | None = None) -> Iterator[list[Result]]:
    """Take down warnings as notes; yield a list that gets the result if the block fails."""
    failures: list[Result] = []
    with collected_warnings() as warnings:
        try:
            yield failures
        except Exception as error:  # what is wrong with one image must not end the work on the others
            if isinstance(error, InputError):
                message = str(error)
            elif is_out_of_memory(error):
                message = f"image {pair.image}: out of memory; scale it down, or use fewer --workers"
            else:
                message = f"image {pair.image}: {type(error).__name__}: {reason(error)}"
            failures.append(Result(pair, entry, failure=message, notes=notes))
    notes += [f"image {pair.image}: {warning}" for warning in warnings]


class _Budget:
    """Memory that threads take in turns, so that large images wait for each other.

    Args:
        most: Bytes; None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, needed: int) -> Iterator[None]:
        """Wait until there is so much, or nobody else has any."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._most is None or self._used == 0 or self._used + needed <= self._most
            )
            self._used += needed
        try:
            yield
        finally:
            with self._changed:
                self._used -= needed
                self._changed.notify_all()


def run_in_threads(
    tasks: Iterable[Callable[[], Result]],
    workers: int,
    threads: int,
    finish: Callable[[Result], object],
    stop: Callable[[], object],
) -> None:
    """Do tasks in threads of their own.

    Args:
        tasks: What to do; few of them are taken ahead of time.
        workers: How many are done at a time.
        threads: How many threads each of them computes on.
        finish: Called with each result, in this thread.
        stop: Called if this is interrupted or a task raises; the tasks at work should then end soon. Those
            that are finished nonetheless count.
    """
    own = torch.get_num_threads()
    waiting = iter(tasks)
    running: set[Future[Result]] = set()
    with ThreadPoolExecutor(workers, "hdcrf", torch.set_num_threads, (threads,)) as pool:
        try:
            while True:
                running |= {pool.submit(task) for task in islice(waiting, 2 * workers - len(running))}
                if not running:
                    break
                for future in wait(running, _POLL, FIRST_COMPLETED).done:
                    running.remove(future)
                    finish(future.result())
        except BaseException:
            stop()
            for future in running:
                future.cancel()
            for future in wait(running).done:
                if not future.cancelled() and future.exception() is None:
                    with suppress(OSError):  # such as the one that this ends with, once more
                        finish(future.result())
            raise
        finally:
            torch.set_num_threads(own)  # which new threads elsewhere begin with
