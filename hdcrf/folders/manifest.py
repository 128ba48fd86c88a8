"""The record of what is finished in a folder, so that work goes on where it stopped.

A line of JSON an image, added once its output is in place. What a line says is checked against the files, so
that one which is torn, or no longer true, only means that an image is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path

from hdcrf.files import InputError, lock_file, reason
from hdcrf.folders.pairs import Pair

__all__ = ["MANIFEST", "Entry", "Manifest", "Stamp", "digest", "open_manifest", "stamp"]

MANIFEST = "hdcrf-batch.jsonl"

_LEFT_OVER = re.compile(r"\.hdcrf-[0-9a-f]{16}\.part")

Stamp = tuple[str, int, int]
"""A file's name, its size, and when it was changed last, in nanoseconds."""


def stamp(path: Path) -> Stamp:
    """Return what tells whether a file is still the same."""
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def digest(content: bytes) -> str:
    """Return what tells contents apart."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Entry:
    """An image that is finished.

    Attributes:
        stem: Its name.
        settings: The digest of what the result depends on besides the files.
        image: The stamp of its file, when it was read.
        prediction: The same of the prediction.
        output: The digest of the output's content.
        pixels: How many it has.
        known: How many had a label before.
        changed: How many of these have another one now.
        labels_before: How many labels there were.
        labels_after: How many there are.
    """

    stem: str
    settings: str
    image: Stamp
    prediction: Stamp
    output: str
    pixels: int
    known: int
    changed: int
    labels_before: int
    labels_after: int


class Manifest:
    """The record of a folder.

    Args:
        folder: Where the outputs and the record are.
        file: The record, open for reading and appending, without a buffer.
    """

    def __init__(self, folder: Path, file: FileIO) -> None:
        self._folder = folder
        self._file = file
        self._entries: dict[str, Entry] = {}
        content = file.read()
        for line in content.splitlines():
            entry = _parsed(line)
            if entry is not None:
                self._entries[entry.stem] = entry
        if content and not content.endswith(b"\n"):  # its writer was killed
            file.write(b"\n")

    def output(self, stem: str) -> Path:
        """Return where the output of an image goes."""
        return self._folder / f"{stem}.png"

    def kept(self, pair: Pair, settings: str) -> Entry | None:
        """Return the entry of an image that need not be done again; None if it must be."""
        entry = self._entries.get(pair.stem)
        if entry is None or entry.settings != settings:
            return None
        try:
            same = (stamp(pair.image), stamp(pair.prediction)) == (entry.image, entry.prediction)
            return entry if same and digest(self.output(pair.stem).read_bytes()) == entry.output else None
        except OSError:
            return None

    def add(self, entry: Entry) -> None:
        """Record that an image is finished, whose output is in place.

        Raises:
            OSError: If that cannot be written.
        """
        self._entries[entry.stem] = entry
        line = json.dumps(asdict(entry)).encode() + b"\n"
        while line:  # a full disk takes a part at first
            line = line[self._file.write(line) :]


def _parsed(line: bytes) -> Entry | None:
    """Return the entry of a line; None if it is torn, damaged, or of another version."""
    try:
        values = json.loads(line)
        values.update(image=tuple(values["image"]), prediction=tuple(values["prediction"]))
        entry = Entry(**values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    kinds = {"str": str, "int": int, "Stamp": tuple}
    fit = all(isinstance(getattr(entry, field.name), kinds[str(field.type)]) for field in fields(Entry))
    return entry if fit else None


@contextmanager
def open_manifest(folder: Path, *, restart: bool = False) -> Iterator[Manifest]:
    """Take a folder for this process alone, remove what a killed one left there, and read its record.

    Args:
        folder: It must exist.
        restart: Whether to forget what is finished.

    Raises:
        InputError: If another process has the folder, or nothing can be written there.
    """
    try:
        # Without a buffer, or else closing it would fail once more where a line could not be written.
        file = open(folder / MANIFEST, "a+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"--output {folder}: nothing can be written in it ({reason(error)})") from error
    with file:
        if not lock_file(file):
            raise InputError(
                f"--output {folder} is in use by another run of this command; wait for it, or name another "
                "folder"
            )
        _remove_left_over(folder)
        if restart:
            file.truncate(0)
        file.seek(0)
        yield Manifest(folder, file)


def _remove_left_over(folder: Path) -> None:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _LEFT_OVER.fullmatch(entry.name)]
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()
