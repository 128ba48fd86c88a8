"""Reading and writing of pictures and arrays: the only place that knows about files.

Whatever is wrong with a file that the user names leaves as an `InputError`, which says what was expected,
what came and what to do. Pillow is imported where it is used, so that `import hdcrf` does not need it.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "InputError",
    "NotPutBackError",
    "check_outputs",
    "read_annotation",
    "read_array",
    "read_photo",
    "read_probabilities",
    "reason",
    "whole_files",
    "write_array",
    "write_labels",
    "write_picture",
]

Note = Callable[[str], object]

LARGE = 1 << 26
"""Photos of more pixels are read, with a remark: Pillow by itself warns at 89 million and gives up at 179."""

MOST_COLOURS = 256
"""A drawing of classes has a few colours; anti-aliasing and JPEG make hundreds."""

MOST_LABELS = 1 << 16
"""What a 16-bit PNG holds."""

_MANY_COLOURS = 32
_ORIENTATION = 0x0112  # EXIF tag
_COLOUR_FORMATS = ("RGB", "L", "1", "P")
_TRANSPARENT_FORMATS = ("RGBA", "LA", "PA", "RGBa", "La")


class InputError(ValueError):
    """A file that the user named cannot be used."""


class NotPutBackError(OSError):
    """A file could not be moved to its place, and what another one replaced could not be put back."""


def read_photo(
    path: Path, *, most_pixels: int | None = None, note: Note = warnings.warn
) -> NDArray[np.uint8]:
    """Read a photo as 8-bit RGB.

    Grey is repeated in the three channels, 16 bits are scaled to 8, transparency is ignored, the first of
    several frames is taken, and a photo that its camera marked as rotated is turned upright.

    Args:
        path: A file of any format that Pillow reads.
        most_pixels: Larger photos are refused before they are decoded; by default none is.
        note: Called with a sentence for each conversion, and for a photo of more than `LARGE` pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: If the file is missing, broken, too large, or of a kind that is no photo.
    """

    def check(image: Image) -> None:
        width, height = image.size
        size = f"{width} x {height} = {width * height / 1e6:.0f} megapixels"
        if most_pixels is not None and width * height > most_pixels:
            raise InputError(
                f"photo {path} has {size}, more than the {most_pixels / 1e6:.4g} that can be handled here; "
                "crop it or scale it down"
            )
        if width * height > LARGE:
            note(f"photo {path} is large: {size}")

    image, remarks = _decode("photo", path, check)
    for remark in remarks:
        note(f"photo {path}: {remark}")
    return _rgb("photo", path, image, note)


def read_annotation(path: Path, shape: tuple[int, int], *, note: Note = warnings.warn) -> NDArray[np.uint8]:
    """Read a picture whose colours are classes and whose black is unknown.

    Args:
        path: A file of any format that Pillow reads; transparent pixels become black.
        shape: (H, W) of the photo that it belongs to.
        note: Called with a sentence for each conversion.

    Returns:
        (H, W, 3) uint8 with at least 1 and at most 256 colours other than black, as
        `hdcrf.labels_from_annotation` takes it.

    Raises:
        InputError: If the file is missing, broken, of another size than the photo, all black, or has so many
            colours that it must have been smoothed.
    """

    def check(image: Image) -> None:
        if image.size != shape[::-1]:
            raise InputError(
                f"annotation {path} is {image.size[0]} x {image.size[1]} pixels, but the photo is "
                f"{shape[1]} x {shape[0]}; draw it over the photo, at the same size"
            )

    image, remarks = _decode("annotation", path, check)
    for remark in remarks:
        note(f"annotation {path}: {remark}")
    if image.mode in _TRANSPARENT_FORMATS or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        visible = rgba[..., 3] > 0
        annotation = rgba[..., :3] * visible[..., None]
        if not visible.all():
            note(f"annotation {path}: its transparent pixels are unknown, as black ones are")
    elif image.mode in _COLOUR_FORMATS:
        annotation = np.asarray(image.convert("RGB"))
    else:
        raise InputError(
            f"annotation {path} is a picture of kind {image.mode!r}, whose colours are not exact; save it as "
            "an 8-bit RGB or palette PNG"
        )
    _check_colours(path, annotation, note)
    return annotation


def _check_colours(path: Path, annotation: NDArray[np.uint8], note: Note) -> None:
    packed = annotation.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    colours = np.unique(packed)
    count = np.count_nonzero(colours)
    if count == 0:
        raise InputError(
            f"annotation {path} is all black, which means unknown everywhere; draw each class in a colour of "
            "its own"
        )
    advice = "save it without anti-aliasing, as PNG (JPEG blurs the colours)"
    if count > MOST_COLOURS:
        raise InputError(
            f"annotation {path} has {count} colours, and each would be a class; at most {MOST_COLOURS} are "
            f"taken: {advice}"
        )
    if count > _MANY_COLOURS:
        note(f"annotation {path} has {count} colours, and each is a class; if you drew fewer, {advice}")


def read_probabilities(
    path: Path, shape: tuple[int, int], *, note: Note = warnings.warn
) -> NDArray[np.float32] | NDArray[np.float64]:
    """Read the probabilities of each label at each pixel.

    Args:
        path: .npy, or .npz that holds a single array or one named `probabilities`.
        shape: (H, W) of the photo that they belong to.
        note: Called with a sentence for each conversion.

    Returns:
        (H, W, K) float32 or float64, finite. Their sums are for `hdcrf.logits_from_probabilities` to check.

    Raises:
        InputError: If the file is missing, broken, or holds anything else.
    """
    array = read_array("probabilities", path, "probabilities")
    if array.dtype.kind != "f":
        raise InputError(
            f"probabilities {path} must hold floating-point numbers, got {array.dtype}; convert them, for "
            "example `p.astype('float32') / 255` for bytes, or use --annotation for labels"
        )
    if array.ndim != 3 or array.shape[:2] != shape or array.shape[2] == 0:
        advice = "save them in the photo's size"
        if array.ndim == 3 and array.shape[1:] == shape:
            advice = "the labels come first here: save p.transpose(1, 2, 0)"
        raise InputError(
            f"probabilities {path} must have shape (H, W, K) = ({shape[0]}, {shape[1]}, K) to match the "
            f"photo, got {array.shape}; {advice}"
        )
    if not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"probabilities {path} must be finite, got {array[place]} at index {place}; replace such "
            "entries first"
        )
    wanted = np.dtype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
    if array.dtype.itemsize != wanted.itemsize:
        note(f"probabilities {path}: {array.dtype} converted to {wanted}")
    converted: NDArray[np.float32] | NDArray[np.float64] = array.astype(wanted, copy=False)
    return converted


def read_array(role: str, path: Path, name: str) -> NDArray[Any]:
    """Read an array from a .npy file, or from a .npz file where it is alone or called `name`.

    Args:
        role: What the array is, for messages.
        path: The file; pickled objects in it are never loaded.
        name: Of the array in a .npz file that holds several.

    Raises:
        InputError: If the file is missing, broken, or holds no such array.
    """
    _check_file(role, path)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(f"{role} {path} must be a .npy or .npz file; save it with numpy.save")
    try:
        with open(path, "rb") as file:
            _check_size(file, os.fstat(file.fileno()).st_size)
            loaded = np.load(file, allow_pickle=False)
            names = [] if isinstance(loaded, np.ndarray) else list(loaded.keys())
            if name in names or len(names) == 1:
                loaded = _load_member(loaded, name if name in names else names[0])
    except MemoryError:
        raise
    except Exception as error:  # what a broken header or archive raises depends on how it is broken
        if "pickle" in str(error):
            raise InputError(
                f"{role} {path} holds Python objects or is no array file; pickled objects are not loaded, "
                "because that can run any code: save a plain array of numbers with numpy.save"
            ) from error
        raise InputError(
            f"{role} {path} cannot be read: {reason(error)}; save it again with numpy.save"
        ) from error
    if isinstance(loaded, np.ndarray):
        return loaded
    listed = ", ".join(names) or "none"
    raise InputError(f"{role} {path} must hold a single array or one named {name!r}, got: {listed}")


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


def reason(error: BaseException) -> str:
    """Return what an error says, or its kind if it says nothing."""
    return str(error) or type(error).__name__


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
    if suffix in suffixes:
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


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Open files for writing that appear all together when the block succeeds, and not at all when it fails.

    They are written under temporary names beside their places and moved there at the end; a file that was
    there before is replaced, and put back if a later one cannot be moved. A symbolic link stays one: the file
    that it points to is replaced.

    Args:
        paths: Where the files go.

    Yields:
        The open binary files, in that order.

    Raises:
        OSError: If a file cannot be written or moved.
        NotPutBackError: If then another cannot be put back; the message names the copy that is kept of it.
    """
    places = [Path(os.path.realpath(path)) for path in paths]
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


def write_labels(file: BinaryIO, labels: NDArray[np.integer[Any]], colours: NDArray[np.uint8]) -> None:
    """Write a PNG whose pixel values are the labels.

    Args:
        file: Open for writing.
        labels: (H, W) integers, 0 … K-1.
        colours: (K, 3) uint8, the palette. More than 256 do not fit one, and make the PNG 16-bit grey.

    Raises:
        ValueError: If K is above 65,536, or a label out of range.
    """
    from PIL import Image

    count = len(colours)
    if count > MOST_LABELS:
        raise ValueError(f"a PNG holds at most {MOST_LABELS} labels, got {count}; save the marginals instead")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise ValueError(
            f"`labels` must lie from 0 to {count - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    if count > 256:
        Image.fromarray(labels.astype(np.uint16)).save(file, format="PNG")
        return
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(np.ascontiguousarray(colours).tobytes())
    image.save(file, format="PNG", optimize=True)


def write_picture(file: BinaryIO, picture: NDArray[np.uint8], suffix: str = ".png") -> None:
    """Write an RGB picture.

    Args:
        file: Open for writing.
        picture: (H, W, 3) uint8.
        suffix: ".png", or ".jpg" or ".jpeg" for lossy compression.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    if suffix.lower() in (".jpg", ".jpeg"):
        image.save(file, format="JPEG", quality=92)
    else:
        image.save(file, format="PNG")


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


def _check_file(role: str, path: Path) -> None:
    if os.path.isdir(path):
        raise InputError(f"{role} {path} is a folder; name a file in it")
    if not os.path.exists(path):
        raise InputError(f"{role} {path} does not exist; check the path")
    if not os.path.isfile(path):  # to read a pipe or a device may take forever
        raise InputError(f"{role} {path} is not an ordinary file; save it as one and name that")


def _decode(role: str, path: Path, check: Callable[[Image], None]) -> tuple[Image, list[str]]:
    """Return the first frame, upright, and remarks on what was done; `check` sees it before it is decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_file(role, path)
    remarks = []
    # Size is for `check` to judge: Pillow's own limit for all files is lifted while this one is read.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            with Image.open(path) as image:
                check(image)
                if getattr(image, "n_frames", 1) > 1:
                    remarks.append("only the first of its frames is used")
                if image.mode == "RGB" and ";16" in str(getattr(image, "tile", "")):
                    remarks.append("16 bits a channel reduced to the upper 8")
                image.load()
                if image.getexif().get(_ORIENTATION, 1) != 1:
                    remarks.append("turned upright as its orientation tag says")
                upright = ImageOps.exif_transpose(image)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{role} {path} is not a picture in a format that is known here; save it as PNG or JPEG"
        ) from error
    except Exception as error:  # what a decoder raises on a broken file depends on the format
        raise InputError(
            f"{role} {path} cannot be read: {reason(error)}; it may be damaged, save it again"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return upright, remarks + [str(complaint.message) for complaint in complaints]


def _rgb(role: str, path: Path, image: Image, note: Note) -> NDArray[np.uint8]:
    """Convert any picture to (H, W, 3) uint8 RGB, with a note of what was done."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(
                f"{role} {path} has grey values from {grey.min()} to {grey.max()}, beyond 16 bits; scale it "
                "to 0..255"
            )
        note(f"{role} {path}: 16-bit grey scaled to 8 bits and repeated in three channels")
        reduced = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(reduced[..., None], 3, axis=2)
    if image.mode == "F":
        raise InputError(
            f"{role} {path} holds floating-point numbers; scale it to 0..255 and save it as 8-bit"
        )
    if image.mode in _TRANSPARENT_FORMATS or "transparency" in image.info:
        note(f"{role} {path}: its transparency is ignored")
        image = image.convert("RGBA")
    elif image.mode in ("L", "1"):
        note(f"{role} {path}: grey repeated in three channels")
    elif image.mode not in ("RGB", "P"):
        note(f"{role} {path}: {image.mode} converted to RGB")
    return np.array(image.convert("RGB"))
