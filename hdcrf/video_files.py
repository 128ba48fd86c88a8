"""Reading and writing of videos, one frame at a time: files through PyAV, and folders of pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hdcrf.files import InputError, Note, check_file, ignore, import_extra, natural_order, reason
from hdcrf.image_files import read_photo

__all__ = ["Video", "VideoWriter", "read_video"]

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The suffixes that make a file of a folder a frame."""

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""For .mp4, the best first: builds of FFmpeg differ in what they hold."""

SLOWEST = 1e-4
"""The least frames a second: MP4 counts in 31 bits how long a few frames are shown, in ticks below 0.1 ms."""

_BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709 are all 1
_LIMITED = 1  # AVCOL_RANGE_MPEG


@dataclass(frozen=True)
class Video:
    """The frames of a video, read anew and one at a time whenever it is iterated.

    Iterating yields (H, W, 3) uint8 RGB, and raises `InputError` where a frame is damaged or of another size,
    or where the video ends before its header says.

    Attributes:
        path: A file, or a folder of pictures.
        shape: (H, W) of every frame, as it is shown.
        rate: Frames a second; None for a folder, and where the file does not say.
        count: How many frames there are: exact for a folder, what the header says or lets guess for a file.
    """

    path: Path
    shape: tuple[int, int]
    rate: Fraction | None
    count: int | None
    _frames: Callable[[], Iterator[NDArray[np.uint8]]] = field(repr=False)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Return the frames from the first on."""
        return self._frames()


def read_video(path: Path, *, note: Note = warnings.warn) -> Video:
    """Open a video, and read its first frame.

    A video that its camera marked as rotated is turned upright, more than 8 bits are reduced to 8, and
    transparency is ignored.

    Args:
        path: A file of any format that FFmpeg reads, or a folder of pictures, whose order is that of the
            numbers in their names.
        note: Called with a sentence for each conversion, here or while frames are read.

    Raises:
        InputError: If there is no such file or folder, no video or no frame in it, or PyAV is not installed.
    """
    if path.is_dir():
        return _read_folder(path, note)
    check_file("video", path)
    av = import_extra("av", f"reading {path.suffix or 'a video'}", "video")
    rate, count = _header(av, path, note)
    shape = _first_shape(path, _decoded(av, path, ignore))
    return Video(path, shape, rate, count, lambda: _same_size(path, shape, _decoded(av, path, note)))


def _read_folder(path: Path, note: Note) -> Video:
    names = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    pictures = [entry for entry in names if entry.suffix.lower() in PICTURES]
    pictures.sort(key=lambda entry: natural_order(entry.name))
    if not pictures:
        raise InputError(
            f"video {path} is a folder without pictures; name a video, or a folder of frames that end in "
            f"{', '.join(PICTURES)}"
        )
    import_extra("PIL", "reading pictures", "video", package="pillow")
    if len(pictures) < len(names):
        note(f"video {path}: {len(names) - len(pictures)} files that are no pictures are left out")

    def frames() -> Iterator[NDArray[np.uint8]]:
        for index, picture in enumerate(pictures):
            # What is converted in one is most often converted in all.
            yield read_photo(picture, role="frame", note=ignore if index else note)

    shape = _first_shape(path, (read_photo(picture, role="frame", note=ignore) for picture in pictures))
    return Video(path, shape, None, len(pictures), lambda: _same_size(path, shape, frames()))


def _first_shape(path: Path, frames: Iterator[NDArray[np.uint8]]) -> tuple[int, int]:
    first = next(frames, None)
    if first is None:
        raise InputError(f"video {path} has no frame that can be read; look at it in a player")
    return first.shape[0], first.shape[1]


def _same_size(
    path: Path, shape: tuple[int, int], frames: Iterator[NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    for index, frame in enumerate(frames):
        if frame.shape[:2] != shape:
            raise InputError(
                f"video {path} changes its size: frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels "
                f"and the first is {shape[1]} x {shape[0]}; scale all to one size"
            )
        yield frame


def _header(av: Any, path: Path, note: Note) -> tuple[Fraction | None, int | None]:
    """Return the frames a second and their number, as far as the file says."""
    with _opened(av, path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or None
        seconds = None
        if stream.duration and stream.time_base:
            seconds = stream.duration * stream.time_base
        elif container.duration:
            seconds = Fraction(container.duration, av.time_base)
        pixels = stream.codec_context.format
        if pixels is not None and pixels.components[0].bits > 8:
            note(f"video {path}: {pixels.components[0].bits} bits a channel reduced to 8")
    guess = round(seconds * rate) if seconds and rate else None
    return (Fraction(rate) if rate else None), (stream.frames or guess)


def _opened(av: Any, path: Path) -> Any:
    """Open a video file that has a video stream."""
    try:
        container = av.open(str(path.absolute()), mode="r")
    except MemoryError:
        raise
    except Exception as error:  # what a demuxer raises on a broken file depends on the format
        raise InputError(
            f"video {path} is not a video in a format that is known here, or it is cut off "
            f"({_strerror(error)}); save it again, as .mp4 for example"
        ) from error
    if not container.streams.video:
        container.close()
        raise InputError(f"video {path} has no video stream; name a file with pictures in it")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise InputError(
            f"video {path} is coded in a way that is not known here; save it again, as .mp4 for example"
        )
    return container


def _decoded(av: Any, path: Path, note: Note) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a file upright, and raise if it ends before its header says."""
    with _opened(av, path) as container:
        stream = container.streams.video[0]
        done = packets = 0
        end = 0.0
        step = 1 / float(stream.average_rate or 25)
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise ValueError("the file is cut off or overwritten")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise ValueError("the frame is incomplete")
                    turns, remark = _quarter_turns(frame.rotation)
                    if remark and done == 0:
                        note(f"video {path}: {remark}")
                    end = max(end, (frame.time or 0) + step)
                    picture = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                    done += 1
                    yield np.ascontiguousarray(picture)
        except MemoryError:
            raise
        except Exception as error:
            raise InputError(
                f"video {path} is damaged or ends early: after frame {done - 1} comes none that can be read "
                f"({_strerror(error)}); save it again, or cut it there"
                if done
                else f"video {path} is damaged: not one frame can be read ({_strerror(error)})"
            ) from error
        if packets < stream.frames:
            raise InputError(
                f"video {path} ends early: its header promises {stream.frames} frames, and it has {packets}; "
                "save it again, or cut it there"
            )
        missing = _promised_end(stream) - end
        if missing > 2 * step:
            note(
                f"video {path} may have been cut off: it ends after {done} frames, {missing:.2f} s before "
                "its header says"
            )


def _quarter_turns(degrees: int) -> tuple[int, str]:
    """Return how often to turn a frame by 90° counter-clockwise, and a remark if that is to be made."""
    turns = round(degrees / 90)
    if abs(degrees - 90 * turns) > 1:  # the angle comes from fixed-point numbers, cut off
        return 0, f"its header says to turn it by about {degrees}°, which is not done"
    return turns, "turned upright, as its header says" if turns else ""


def _promised_end(stream: Any) -> float:
    """Return when a Matroska or WebM stream ends, in seconds, which its header says instead of a count."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return 0.0


def _strerror(error: BaseException) -> str:
    return getattr(error, "strerror", None) or reason(error)


def _ratio(rate: Fraction) -> Fraction:
    """Return a rate, or the time that a frame takes if that is longer than a second, in small numbers."""
    if rate < 1:
        return 1 / (1 / rate).limit_denominator(1001)
    return rate.limit_denominator(1001)  # 30000/1001 is television's


class VideoWriter:
    """Writes frames as an .mp4 file: H.264, or MPEG-4 part 2 where FFmpeg was built without it.

    It is lossy: colours shift by a step or two, and blend at borders. For exact labels write a picture or an
    array for each frame.

    H.264 needs even sizes: an odd one is padded by its last row or column, with a note.

    Use it as a context manager; the file is complete when the block ends without an error. It goes into an
    open file, so that `hdcrf.files.whole_files` can hold that back until then.

    Args:
        file: Open for writing, seekable.
        shape: (H, W) of the frames.
        rate: Frames a second, at least 1e-4.
        note: Called with a sentence if the frames are padded.

    Raises:
        InputError: If PyAV is not installed.
        ValueError: If the shape is not positive, or the rate too low.
    """

    def __init__(
        self,
        file: BinaryIO,
        shape: tuple[int, int],
        rate: Fraction | float,
        *,
        note: Note = warnings.warn,
    ) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"`shape` must be (H, W), at least 1 each, got {shape}")
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"`rate` must be a positive number of frames a second, got {rate}")
        if rate < SLOWEST:
            raise ValueError(f"`rate` must be at least {SLOWEST} frames a second, got {float(rate)}")
        self._av = import_extra("av", "writing .mp4", "video")
        self._shape = tuple(shape)
        height, width = (length + length % 2 for length in shape)
        if (height, width) != self._shape:
            note(
                f"frames of {shape[1]} x {shape[0]} pixels are padded to {width} x {height}, as MP4 needs "
                "even sizes"
            )
        self._padding = ((0, height - shape[0]), (0, width - shape[1]), (0, 0))
        self._file = _WatchedFile(file)
        self._frames = 0
        exact = _ratio(Fraction(rate))
        encoder = next((name for name in ENCODERS if name in self._av.codecs_available), ENCODERS[-1])
        with self._as_os_error():
            self._container = self._av.open(self._file, mode="w", format="mp4")
            self._stream = self._container.add_stream(encoder, rate=exact)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            if encoder == "libx264":
                self._stream.options = {"crf": "18"}  # visually lossless
            else:
                self._stream.bit_rate = max(100_000, int(height * width * exact))  # one bit a pixel
            # Players guess the matrix of colours from the size unless told.
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED

    def __enter__(self) -> VideoWriter:
        """Return itself."""
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) uint8.

        Raises:
            ValueError: If it has another shape or dtype.
            OSError: If it cannot be encoded or written.
        """
        if frame.shape != (*self._shape, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"`frame` must have shape {(*self._shape, 3)} and dtype uint8, "
                f"got {frame.shape} and {frame.dtype}"
            )
        padded = np.ascontiguousarray(np.pad(frame, self._padding, mode="edge"))
        with self._as_os_error():
            picture = self._av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED
            )
            self._container.mux(self._stream.encode(picture))
        self._frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file, unless an error comes through."""
        if error is not None:
            with suppress(Exception):  # the file is lost, and the first error tells why
                self._container.close()
            return
        with self._as_os_error():
            if self._frames:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        if not self._frames:
            raise ValueError("no frame was written, and a video needs at least one")

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """Report what an encoder raises as the failure to write that it is."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            if self._file.failure is not None:
                raise self._file.failure from None
            raise OSError(f"the video cannot be encoded: {_strerror(error)}") from error


class _WatchedFile:
    """A file that remembers why it could not be written: FFmpeg forgets."""

    def __init__(self, file: BinaryIO) -> None:
        self.failure: OSError | None = None
        self.seek, self.tell = file.seek, file.tell
        self._write = file.write

    def write(self, content: bytes) -> int:
        try:
            return self._write(content)
        except OSError as error:
            self.failure = self.failure or error
            raise
