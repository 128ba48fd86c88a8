"""Reading of labelled examples, and what is to be known of their files."""

from __future__ import annotations

from hdcrf import image_files
from hdcrf.files import Note, ignore
from hdcrf.folders.pairs import Pair
from hdcrf.folders.predictions import read_labels
from hdcrf.folders.settings import Settings
from hdcrf.thread_warnings import collected_warnings
from hdcrf.tuning.examples import Example

__all__ = ["Reader"]

_MOST_SHOWN = 10


class Reader:
    """Reads examples, and takes down what is to be known of their files.

    Args:
        settings: How predictions are taken.
        most_pixels: Larger images are refused; None for no limit.
    """

    def __init__(self, settings: Settings, most_pixels: int | None) -> None:
        self._settings, self._most_pixels = settings, most_pixels
        self._notes: list[str] = []
        self._note: Note = self._notes.append

    def __call__(self, pair: Pair) -> Example:
        """Read a pair that has ground truth.

        Raises:
            InputError: If a file of it is missing, broken, or does not fit the others.
        """
        if pair.truth is None:
            raise ValueError(f"`pair` must have ground truth, got {pair}")
        with collected_warnings() as warnings:
            photo = image_files.read_photo(
                pair.image, most_pixels=self._most_pixels, role="image", note=self._note
            )
            shape = photo.shape[0], photo.shape[1]
            start = self._settings.read(pair, shape, self._note)
            truth = read_labels("ground truth", pair.truth, shape)
        for warning in warnings:
            self._note(f"image {pair.image}: {warning}")
        return Example(pair, photo, start, truth)

    def print_notes(self, note: Note) -> None:
        """Pass on what was taken down, the first of many alone; what is read again says no more."""
        for message in self._notes[:_MOST_SHOWN]:
            note(message)
        if len(self._notes) > _MOST_SHOWN:
            note(f"and {len(self._notes) - _MOST_SHOWN} more of the kind")
        self._note = ignore
