"""Files in general: what is wrong with one that the user named, and writing that is complete or not at all.

Whatever is wrong with a file that the user names leaves as an `InputError`, which says what was expected,
what came and what to do.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "InputError",
    "NotPutBackError",
    "Note",
    "check_file",
    "check_outputs",
    "ignore",
    "import_extra",
    "lock_file",
    "many",
    "natural_order",
    "printable",
    "reason",
    "whole_files",
]

Note = Callable[[str], object]

_FAR = 1 << 40  # the byte that is locked where there are no locks of whole files


def ignore(message: str) -> None:
    """Take a note, and do nothing with it."""


class InputError(ValueError):
    """A file that the user named cannot be used."""


class NotPutBackError(OSError):
    """A file could not be moved to its place, and what another one replaced could not be put back."""


def reason(error: BaseException) -> str:
    """Return what an error says, or its kind if it says nothing."""
    return str(error) or type(error).__name__


def many(count: int, noun: str) -> str:
    """Return how many there are of something."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Return a text without what would move a terminal's cursor: a file's name may hold anything."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)


def import_extra(module: str, purpose: str, extra: str, *, package: str | None = None) -> Any:
    """Import a package that only an extra brings.

    Args:
        module: Its name.
        purpose: What needs it, for the message.
        extra: Of hdcrf.
        package: Its name for pip, if that is another.

    Raises:
        InputError: If it, or what it needs itself, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise InputError(
                f"{purpose} needs {package or module}, which cannot be loaded ({reason(error)}); install "
                "what it lacks"
            ) from error
        raise InputError(f'{purpose} needs {package or module}: pip install "hdcrf[{extra}]"') from error


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return the key that sorts names as people count: frame_2 comes before frame_10."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part.lower() for index, part in enumerate(parts)], name


def check_file(role: str, path: Path) -> None:
    """Check that there is an ordinary file.

    Args:
        role: What it is, for messages.
        path: Where it should be.

    Raises:
        InputError: If there is none, or a folder, a pipe or a device.
    """
    if os.path.isdir(path):
        raise InputError(f"{role} {path} is a folder; name a file in it")
    if not os.path.exists(path):
        raise InputError(f"{role} {path} does not exist; check the path")
    if not os.path.isfile(path):  # to read a pipe or a device may take forever
        raise InputError(f"{role} {path} is not an ordinary file; save it as one and name that")


def check_outputs(
    outputs: Mapping[str, tuple[Path, Sequence[str]]], inputs: Mapping[str, Path | None]
) -> None:
    """Check, before any work, that each output can be written where it is to go.

    Args:
        outputs: For each output's name, its path and the suffixes that it may have.
        inputs: For each input's name, its path; None where there is none.

    Raises:
        InputError: If a suffix is unknown, a folder missing or not writable, or a file named twice.
    """
    taken = {os.path.realpath(path): name for name, path in inputs.items() if path is not None}
    for name, (path, suffixes) in outputs.items():
        _check_suffix(name, path, suffixes)
        place = os.path.realpath(path)
        _check_name(name, path, place)
        if os.path.isdir(place):
            raise InputError(f"{name} {path} is a folder; name a file in it")
        if os.path.exists(place) and not os.path.isfile(place):
            raise InputError(f"{name} {path} is not an ordinary file; name another")
        other = taken.setdefault(place, name)
        if other != name:
            raise InputError(f"{name} {path} is also the file of {other}; name another")
        _check_folder(name, path, os.path.dirname(place))


def _check_suffix(name: str, path: Path, suffixes: Sequence[str]) -> None:
    suffix = path.suffix.lower()
    if any(path.name.lower().endswith(end) for end in suffixes) and suffix:
        return
    listed = " or ".join(suffixes)
    came = repr(suffix) if suffix else "no suffix"
    if suffix in (".jpg", ".jpeg"):
        raise InputError(
            f"{name} {path} must end in {listed}: JPEG is lossy, it would blend the colours at the borders "
            "into ones that mean nothing"
        )
    raise InputError(f"{name} {path} must end in {listed}, got {came}")


def _check_name(name: str, path: Path, place: str) -> None:
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name too long
        raise InputError(f"{name} {path} cannot be used: {error.strerror}; name another") from error


def _check_folder(name: str, path: Path, folder: str) -> None:
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.exists(folder) else "does not exist; make it first"
        raise InputError(f"{name} {path}: the folder {folder} {what}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name} {path}: nothing can be written in {folder} ({error.strerror})") from error


def lock_file(file: FileIO) -> bool:
    """Lock a file until it is closed or the process ends, however; return False if another has it locked.

    Where the system or the file system has no locks, it is taken for granted.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return _locked_on_windows(file)
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _locked_on_windows(file: FileIO) -> bool:
    import msvcrt

    file.seek(_FAR)  # far behind the content, which others may still read
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Open files for writing that appear all together when the block succeeds, and not at all when it fails.

    They are written under temporary names beside their places and moved there at the end; a file that was
    there before is replaced, and put back if a later one cannot be moved. A symbolic link stays one: the file
    that it points to is replaced.

    Args:
        paths: Where the files go, no two of them the same place.

    Yields:
        The open binary files, in that order.

    Raises:
        ValueError: If two of the paths are one file.
        OSError: If a file cannot be written or moved.
        NotPutBackError: If then another cannot be put back; the message names the copy that is kept of it.
    """
    places = [Path(os.path.realpath(path)) for path in paths]
    if twice := [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]:
        raise ValueError(
            f"`paths` must be different files, got {' and '.join(map(str, twice))}, which are the same"
        )
    temporary = [place.with_name(f".hdcrf-{secrets.token_hex(8)}.part") for place in places]
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(open(name, "xb")) for name in temporary]
        _move_all(temporary, places)
    finally:
        for name in temporary:
            name.unlink(missing_ok=True)


def _move_all(sources: Sequence[Path], places: Sequence[Path]) -> None:
    """Move each file to its place, or leave all places as they were."""
    if len(places) == 1:  # no copy of what was there is needed, which a kill would leave behind
        os.replace(sources[0], places[0])
        return
    # For each place touched, where the file that was there is kept; None if there was none.
    backups: dict[Path, Path | None] = {}
    try:
        for source, place in zip(sources, places, strict=True):
            backup = source.with_suffix(".old") if place.exists() else None
            backups[place] = backup  # before the file is set aside, as an interrupt may come any time
            if backup is not None:
                _keep(place, backup)
            os.replace(source, place)
    except BaseException as error:
        left = [complaint for item in backups.items() if (complaint := _put_back(*item))]
        if left:
            raise NotPutBackError("; ".join([reason(error), *left])) from error
        raise
    for kept in backups.values():
        if kept is not None:
            with suppress(OSError):  # the results are in place
                kept.unlink()


def _keep(place: Path, backup: Path) -> None:
    """Keep the file at `place` under a second name."""
    try:
        os.link(place, backup)
    except OSError:  # a file system without links
        os.replace(place, backup)


def _put_back(place: Path, backup: Path | None) -> str | None:
    """Undo what was done to a place; return a complaint if that fails."""
    try:
        if backup is None:
            place.unlink(missing_ok=True)
        elif backup.exists():
            os.replace(backup, place)
            backup.unlink(missing_ok=True)  # replacing does nothing where both are names of one file
    except OSError as error:
        if backup is None:
            return f"{place}, which is new, could not be removed ({reason(error)})"
        return f"{place} could not be put back ({reason(error)}): what was in it is now in {backup}"
    return None
