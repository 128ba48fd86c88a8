"""Reading and writing of arrays: .npy and .npz."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hdcrf.files import InputError, Note, check_file, reason

__all__ = [
    "check_probabilities",
    "read_array",
    "read_arrays",
    "read_probabilities",
    "stream_array",
    "write_array",
]


def read_probabilities(
    path: Path,
    shape: Sequence[int],
    *,
    axes: str = "H, W",
    owner: str = "photo",
    note: Note = warnings.warn,
) -> NDArray[np.float32] | NDArray[np.float64]:
    """Read the probabilities of each label at each pixel, voxel or point.

    Args:
        path: .npy, or .npz that holds a single array or one named `probabilities`.
        shape: Of the photo that they belong to, (H, W), or of what else that is.
        axes: The names of its axes, for messages.
        owner: What they belong to, if not a photo, for messages.
        note: Called with a sentence for each conversion.

    Returns:
        (*shape, K) float32 or float64, finite. Their sums are for `hdcrf.logits_from_probabilities` to check.

    Raises:
        InputError: If the file is missing, broken, or holds anything else.
    """
    array = read_array("probabilities", path, "probabilities")
    return check_probabilities(f"probabilities {path}", array, shape, axes=axes, owner=owner, note=note)


def check_probabilities(
    name: str,
    array: NDArray[Any],
    shape: Sequence[int],
    *,
    axes: str = "H, W",
    owner: str = "photo",
    note: Note = warnings.warn,
) -> NDArray[np.float32] | NDArray[np.float64]:
    """Return probabilities (*shape, K), such as those of the pixels of a picture, as float32 or float64.

    Args:
        name: What they are called in messages.
        array: As it was read.
        shape: Of what they belong to.
        axes: The names of its axes, for messages.
        owner: What that is, for messages.
        note: Called with a sentence if they are converted.

    Raises:
        InputError: If the array is not floating-point, of another shape, or not finite.
    """
    if array.dtype.kind != "f":
        raise InputError(
            f"{name} must hold floating-point numbers, got {array.dtype}; convert them, for "
            "example `p.astype('float32') / 255` for bytes; labels alone are no probabilities"
        )
    count, given = len(shape), tuple(shape)
    if array.ndim != count + 1 or array.shape[:count] != given or array.shape[count] == 0:
        advice = f"save them in the {owner}'s size"
        if array.ndim == count + 1 and array.shape[1:] == given:
            order = ", ".join(map(str, (*range(1, count + 1), 0)))
            advice = f"the labels come first here: save p.transpose({order})"
        elif count == 2 and array.ndim == 3 and array.shape[1::-1] == given:
            advice = (
                f"rows and columns are swapped; {owner}s are turned upright as their orientation tags say: "
                "predict on them as they are then"
            )
        raise InputError(
            f"{name} must have shape ({axes}, K) = ({', '.join(map(str, given))}, K) to match the "
            f"{owner}, got {array.shape}; {advice}"
        )
    if not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"{name} must be finite, got {array[place]} at index {place}; replace such entries first"
        )
    wanted = np.dtype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
    if array.dtype.itemsize != wanted.itemsize:
        note(f"{name}: {array.dtype} converted to {wanted}")
    converted: NDArray[np.float32] | NDArray[np.float64] = array.astype(wanted, copy=False)
    return converted


def read_array(role: str, path: Path, name: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read an array from a .npy file, or from a .npz file where it is alone or called `name`.

    Args:
        role: What the array is, for messages.
        path: The file; pickled objects in it are never loaded.
        name: Of the array in a .npz file that holds several.
        mapped: Leave what a .npy file holds on disk, to be read where it is looked at.

    Raises:
        InputError: If the file is missing, broken, or holds no such array.
    """
    check_file(role, path)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(f"{role} {path} must be a .npy or .npz file; save it with numpy.save")
    with _as_input_error(role, path), open(path, "rb") as file:
        _check_size(file, os.fstat(file.fileno()).st_size)
        if mapped and path.suffix.lower() == ".npy":
            return np.lib.format.open_memmap(path, mode="r")
        loaded = np.load(file, allow_pickle=False)
        names = [] if isinstance(loaded, np.ndarray) else list(loaded.keys())
        if name in names or len(names) == 1:
            loaded = _load_member(loaded, name if name in names else names[0])
    if isinstance(loaded, np.ndarray):
        return loaded
    listed = ", ".join(names) or "none"
    raise InputError(f"{role} {path} must hold a single array or one named {name!r}, got: {listed}")


def read_arrays(role: str, path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a .npz file, by their names.

    Args:
        role: What they are, for messages.
        path: The file; pickled objects in it are never loaded.

    Raises:
        InputError: If the file is missing, broken, or holds anything else.
    """
    check_file(role, path)
    with _as_input_error(role, path), open(path, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        names = [] if isinstance(archive, np.ndarray) else list(archive.keys())
        arrays = {name: _load_member(archive, name) for name in names}
    wrong = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if wrong or not arrays:
        raise InputError(
            f"{role} {path} must be a .npz file of named arrays, got "
            + (f"{wrong[0]}, which is none" if wrong else "none")
        )
    return arrays


@contextmanager
def _as_input_error(role: str, path: Path) -> Iterator[None]:
    """Say what is wrong with an array file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # what a broken header or archive raises depends on how it is broken
        if "pickle" in str(error) or "Python objects" in str(error):
            raise InputError(
                f"{role} {path} holds Python objects or is no array file; pickled objects are not loaded, "
                "because that can run any code: save a plain array of numbers with numpy.save"
            ) from error
        raise InputError(
            f"{role} {path} cannot be read: {reason(error)}; save it again with numpy.save"
        ) from error


def _load_member(archive: Any, name: str) -> Any:
    """Return a member of a .npz file: an array, or bytes if it is of another kind."""
    if f"{name}.npy" in archive.zip.namelist():
        with archive.zip.open(f"{name}.npy") as member:
            _check_size(member, archive.zip.getinfo(f"{name}.npy").file_size)
    return archive[name]


def _check_size(file: Any, size: int) -> None:
    """Raise if the header of an array promises more than the `size` bytes of its file; else rewind."""
    numpy_format = np.lib.format
    if file.read(len(numpy_format.MAGIC_PREFIX)) == numpy_format.MAGIC_PREFIX:
        file.seek(0)
        first = numpy_format.read_magic(file) == (1, 0)
        read = numpy_format.read_array_header_1_0 if first else numpy_format.read_array_header_2_0
        shape, _, dtype = read(file)
        promised = math.prod(shape) * dtype.itemsize
        if promised > size and not dtype.hasobject:
            raise ValueError(
                f"it is damaged, as its header promises {promised} bytes for the shape {shape}, "
                f"and the file has {size}"
            )
    file.seek(0)


def write_array(file: BinaryIO, array: NDArray[Any], name: str, suffix: str = ".npy") -> None:
    """Write an array.

    Args:
        file: Open for writing.
        array: Any.
        name: What it is called in a .npz file.
        suffix: ".npy", or ".npz" for lossless compression.
    """
    if suffix.lower() == ".npz":
        arrays: dict[str, Any] = {name: array}
        np.savez_compressed(file, **arrays)
    else:
        np.save(file, array, allow_pickle=False)


@contextmanager
def stream_array(
    file: BinaryIO, shape: Sequence[int], dtype: DTypeLike, name: str, suffix: str = ".npy"
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Write an array that is too large to hold, one entry of its first axis after the other.

    Args:
        file: Open for writing.
        shape: Of the whole.
        dtype: Of the whole.
        name: What it is called in a .npz file.
        suffix: ".npy", or ".npz" for lossless compression.

    Yields:
        A function that takes the next entry, of shape `shape[1:]`.

    Raises:
        ValueError: If an entry has another shape, or there are more or fewer than `shape` says.
    """
    kind = np.dtype(dtype)
    done = 0
    with ExitStack() as stack:
        member: Any = file
        if suffix.lower() == ".npz":
            archive = stack.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED))
            member = stack.enter_context(archive.open(f"{name}.npy", "w", force_zip64=True))
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(member, header)

        def write(entry: NDArray[Any]) -> None:
            nonlocal done
            if entry.shape != tuple(shape[1:]) or done == shape[0]:
                raise ValueError(
                    f"`entry` must have shape {tuple(shape[1:])}, {shape[0]} times, got {entry.shape} as "
                    f"number {done + 1}"
                )
            member.write(np.ascontiguousarray(entry, dtype=kind).tobytes())
            done += 1

        yield write
        if done != shape[0]:
            raise ValueError(f"{shape[0]} entries were promised, and {done} were written")
