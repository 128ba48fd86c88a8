"""The work of `hdcrf batch` on a folder: what is kept is scored, the rest is refined, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from hdcrf import machine
from hdcrf.commands.running import progress_bar
from hdcrf.folders.manifest import Entry, Manifest
from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.pairs import Pair
from hdcrf.folders.refinement import Refinement, Result, run_in_threads

__all__ = ["Run"]


class Run:
    """One call's work, and what became of each pair.

    Args:
        pairs: What to do.
        manifest: The record of what is finished.
        refinement: What refines a pair, and scores it.
        workers: How many pairs to work on at a time, at most; None for as many as there are CPUs.
        threads: How many threads each worker computes on; None to share the CPUs.
        quiet: Whether to show no progress.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        manifest: Manifest,
        refinement: Refinement,
        *,
        workers: int | None,
        threads: int | None,
        quiet: bool,
    ) -> None:
        self._pairs, self._manifest, self._refinement = pairs, manifest, refinement
        self._workers, self._threads, self._quiet = workers, threads, quiet
        digest = refinement.digest
        self.kept: Mapping[str, Entry] = {
            pair.stem: entry for pair in pairs if (entry := manifest.kept(pair, digest))
        }
        self._results = {pair.stem: Result(pair, entry) for pair, entry in self._of_kept()}

    def score_kept(self) -> None:
        """Score the pairs that need not be done again, where there is ground truth."""
        tasks = [
            partial(self._refinement.score, pair, entry)
            for pair, entry in self._of_kept()
            if pair.truth is not None
        ]
        self._do(tasks, "Scores", self._take)

    def refine_others(self) -> None:
        """Refine the other pairs, and record each that is finished.

        They are by themselves, so that the rate and the time left are those of refining.
        """

        def finish(result: Result) -> None:
            if result.entry is not None:
                self._manifest.add(result.entry)
            self._take(result)

        tasks = [partial(self._refinement.refine, pair) for pair in self._pairs if pair.stem not in self.kept]
        self._do(tasks, "Images", finish)

    def at_work(self, count: int) -> tuple[int, int]:
        """Return how many workers do so many tasks, and on how many threads each."""
        cpus = machine.cpu_count()
        workers = min(self._workers or cpus, count)
        return workers, self._threads or max(1, cpus // workers)

    @property
    def results(self) -> list[Result]:
        """What became of the pairs so far, in their order."""
        return [self._results[pair.stem] for pair in self._pairs if pair.stem in self._results]

    @property
    def entries(self) -> list[Entry]:
        """What is finished."""
        return [result.entry for result in self.results if result.entry is not None]

    @property
    def outcomes(self) -> list[Outcome]:
        """What the images are that are finished, with their scores."""
        return [
            Outcome(
                result.pair,
                self._manifest.output(entry.stem),
                entry.changed / max(1, entry.known),
                result.before,
                result.after,
            )
            for result in self.results
            if (entry := result.entry) is not None
        ]

    @property
    def failures(self) -> list[Failure]:
        """What could not be used."""
        return [
            Failure(result.pair.stem, result.failure) for result in self.results if result.failure is not None
        ]

    @property
    def progress(self) -> str:
        """How far it is, in a sentence for one that ends early."""
        return (
            f"{len(self.entries)} of {len(self._pairs)} images are finished, and the same command goes on "
            "with the rest"
        )

    def _of_kept(self) -> list[tuple[Pair, Entry]]:
        return [(pair, self.kept[pair.stem]) for pair in self._pairs if pair.stem in self.kept]

    def _take(self, result: Result) -> None:
        self._results[result.pair.stem] = result

    def _do(
        self, tasks: Sequence[Callable[[], Result]], label: str, finish: Callable[[Result], object]
    ) -> None:
        """Do tasks in threads, and show a bar."""
        if not tasks:
            return
        done = 0
        with progress_bar(len(tasks), label, self._quiet, unit="images") as update:

            def count(result: Result) -> None:
                nonlocal done
                finish(result)
                done += 1
                if update is not None:
                    update(done)

            run_in_threads(tasks, *self.at_work(len(tasks)), count, self._refinement.stop)
