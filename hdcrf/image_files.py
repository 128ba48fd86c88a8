"""Reading and writing of pictures.

Pillow is imported where it is used, so that `import hdcrf` does not need it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hdcrf.files import InputError, Note, check_file, reason
from hdcrf.thread_warnings import collected_warnings

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "check_label_count",
    "picture_size_and_palette",
    "read_annotation",
    "read_label_picture",
    "read_photo",
    "write_label_values",
    "write_labels",
    "write_picture",
]

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
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of 2 and 4 bits over 0..255
_TURNED = ", and upright, as photos are turned where their orientation tags say so"
_limit_lock = threading.Lock()
_unlimited = 0  # how many threads are reading without Pillow's limit
_limit: int | None = None  # which it was


def read_photo(
    path: Path, *, most_pixels: int | None = None, role: str = "photo", note: Note = warnings.warn
) -> NDArray[np.uint8]:
    """Read a photo as 8-bit RGB.

    Grey is repeated in the three channels, 16 bits are scaled to 8, transparency is ignored, the first of
    several frames is taken, and a photo that its camera marked as rotated is turned upright.

    Args:
        path: A file of any format that Pillow reads.
        most_pixels: Larger photos are refused before they are decoded; by default none is.
        role: What it is called in messages.
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
                f"{role} {path} has {size}, more than the {most_pixels / 1e6:.4g} that can be handled here; "
                "crop it or scale it down"
            )
        if width * height > LARGE:
            note(f"{role} {path} is large: {size}")

    image, remarks = _decode(role, path, check)
    for remark in remarks:
        note(f"{role} {path}: {remark}")
    return _rgb(role, path, image, note)


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


def read_label_picture(
    role: str, path: Path, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.uint8] | None]:
    """Read a PNG whose pixel values are labels: the indices of a palette, or grey of up to 16 bits.

    Args:
        role: What it is called in messages.
        path: The file.
        shape: (H, W) of the photo that it belongs to.

    Returns:
        values: (H, W).
        palette: (P, 3) the colours of the values 0 … P-1; None where they are grey.

    Raises:
        InputError: If the file is missing, broken, of another size, no PNG, or in colours.
    """
    steps = [1]

    def check(image: Image) -> None:
        if image.format != "PNG":
            raise InputError(
                f"{role} {path} is {image.format}, not PNG; save labels without loss, as PNG with a palette "
                "or in grey"
            )
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
            raise InputError(
                f"{role} {path} is a picture of kind {image.mode!r}, in which labels are no numbers; save it "
                "with a palette or in grey, one value a label"
            )
        if image.size != shape[::-1]:
            raise InputError(
                f"{role} {path} is {image.size[0]} x {image.size[1]} pixels, but the photo is "
                f"{shape[1]} x {shape[0]}; save it in the photo's size"
                + (_TURNED if image.size == shape else "")
            )
        tiles = getattr(image, "tile", None)
        steps[0] = _GREY_STEPS.get(str(tiles[0][3]), 1) if tiles else 1

    image, _ = _decode(role, path, check)
    palette = _palette_of(image)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16), palette
    return np.asarray(image).astype(np.uint8) // np.uint8(steps[0]), palette


def check_label_count(name: str, count: int) -> None:
    """Check that a PNG can hold so many labels.

    Raises:
        InputError: If not; `name` is what has them.
    """
    if count > MOST_LABELS:
        raise InputError(
            f"{name}: {count} labels are more than the {MOST_LABELS} that a PNG can hold; use hdcrf.refine, "
            "in Python"
        )


def picture_size_and_palette(
    path: Path, *, role: str = "picture"
) -> tuple[tuple[int, int], NDArray[np.uint8] | None]:
    """Return the shape (H, W) of a picture, and its palette (P, 3) if it has one; it is not decoded.

    Raises:
        InputError: If the file is missing, or no picture.
    """
    with _opened(role, path) as image:
        return image.size[::-1], _palette_of(image)


def _palette_of(image: Image) -> NDArray[np.uint8] | None:
    if image.mode != "P":
        return None
    return np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)


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


def write_labels(
    file: BinaryIO, labels: NDArray[np.integer[Any]], colours: NDArray[np.uint8], *, optimize: bool = True
) -> None:
    """Write a PNG whose pixel values are the labels.

    Args:
        file: Open for writing.
        labels: (H, W) integers, 0 … K-1.
        colours: (K, 3) uint8, the palette. More than 256 do not fit one, and make the PNG 16-bit grey.
        optimize: Whether to look for the smallest file, a fifth smaller in five times the time.

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
    image.save(file, format="PNG", optimize=optimize)


def write_label_values(
    file: BinaryIO, values: NDArray[np.integer[Any]], palette: NDArray[np.uint8] | None
) -> None:
    """Write a PNG with the pixel values that another one had.

    Args:
        file: Open for writing.
        values: (H, W) integers, 0 … 65,535.
        palette: (P, 3) uint8, the colours of that one; None for grey.
    """
    from PIL import Image

    if palette is None:
        narrow = np.uint8 if values.max(initial=0) < 256 else np.uint16
        Image.fromarray(values.astype(narrow)).save(file, format="PNG")
        return
    full = np.zeros((256, 3), np.uint8)  # a value may lie beyond the colours that the file had
    full[: len(palette)] = palette
    count = max(len(palette), int(values.max(initial=0)) + 1)
    write_labels(file, values, full[:count], optimize=False)


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


def _decode(role: str, path: Path, check: Callable[[Image], None]) -> tuple[Image, list[str]]:
    """Return the first frame, upright, and remarks on what was done; `check` sees it before it is decoded."""
    from PIL import ImageOps

    remarks = []
    with collected_warnings() as complaints, _opened(role, path) as image:
        check(image)
        if getattr(image, "n_frames", 1) > 1:
            remarks.append("only the first of its frames is used")
        if image.mode == "RGB" and ";16" in str(getattr(image, "tile", "")):
            remarks.append("16 bits a channel reduced to the upper 8")
        image.load()
        upright: Image = image
        if image.getexif().get(_ORIENTATION, 1) != 1:
            remarks.append("turned upright as its orientation tag says")
            upright = ImageOps.exif_transpose(image)
    return upright, remarks + complaints


@contextmanager
def _opened(role: str, path: Path) -> Iterator[Image]:
    """Open a picture of any size; what is wrong with it is the user's to mend."""
    from PIL import Image, UnidentifiedImageError

    check_file(role, path)
    try:
        with _without_limit(), Image.open(path) as image:
            yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        if path.stat().st_size == 0:
            raise InputError(f"{role} {path} is empty; save it again") from error
        raise InputError(
            f"{role} {path} is not a picture in a format that is known here; save it as PNG or JPEG"
        ) from error
    except Exception as error:  # what a decoder raises on a broken file depends on the format
        raise InputError(
            f"{role} {path} cannot be read: {reason(error)}; it may be damaged, save it again"
        ) from error


@contextmanager
def _without_limit() -> Iterator[None]:
    """Lift Pillow's limit for all files while one is read, in any thread: size is for us to judge."""
    from PIL import Image

    global _limit, _unlimited
    with _limit_lock:
        if _unlimited == 0:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _unlimited += 1
    try:
        yield
    finally:
        with _limit_lock:
            _unlimited -= 1
            if _unlimited == 0:
                Image.MAX_IMAGE_PIXELS = _limit


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
