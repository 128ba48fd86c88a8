"""Reading of the probabilities of a video's labels, one frame at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdcrf.array_files import check_probabilities, read_array, read_probabilities
from hdcrf.files import InputError, Note, ignore, natural_order
from hdcrf.video_files import Video

__all__ = ["VideoProbabilities", "frames_with_probabilities", "read_video_probabilities"]

Probabilities = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class VideoProbabilities:
    """Probabilities of each label at each pixel of each frame, read whenever it is iterated.

    Iterating yields (H, W, K) float32 or float64, finite, and raises `InputError`, with the frame's name or
    number, for any other.

    Attributes:
        path: A file or a folder.
        labels: K.
        count: How many frames they are for.
    """

    path: Path
    labels: int
    count: int
    _frames: Callable[[], Iterator[Probabilities]] = field(repr=False)

    def __iter__(self) -> Iterator[Probabilities]:
        """Return the probabilities from the first frame on."""
        return self._frames()


def read_video_probabilities(
    path: Path, shape: tuple[int, int], *, note: Note = warnings.warn
) -> VideoProbabilities:
    """Open the probabilities of each label at each pixel of a video.

    Args:
        path: An array (T, H, W, K): .npy, which stays on disk, or .npz, which is read as a whole. Or a folder
            of arrays (H, W, K), .npy or .npz, one a frame, in the order of the numbers in their names.
        shape: (H, W) of the frames.
        note: Called with a sentence for each conversion.

    Raises:
        InputError: If there is no such file or folder, or it holds anything else.
    """
    if path.is_dir():
        return _probabilities_of_folder(path, shape, note)
    array = read_array("probabilities", path, "probabilities", mapped=True)
    if array.ndim != 4 or array.shape[1:3] != shape or 0 in array.shape:
        advice = "save them in the video's size"
        if array.ndim == 4 and array.shape[2:] == shape:
            advice = "the labels come before the rows here: save p.transpose(0, 2, 3, 1) if they come second"
        raise InputError(
            f"probabilities {path} must have shape (T, H, W, K) = (T, {shape[0]}, {shape[1]}, K) to match "
            f"the video, got {array.shape}; {advice}"
        )

    def frames() -> Iterator[Probabilities]:
        for index, values in enumerate(array):
            name = f"probabilities {path} of frame {index}"
            yield check_probabilities(name, values, shape, owner="video", note=ignore if index else note)

    return VideoProbabilities(path, array.shape[3], len(array), frames)


def _probabilities_of_folder(path: Path, shape: tuple[int, int], note: Note) -> VideoProbabilities:
    files = [entry for entry in path.iterdir() if entry.suffix.lower() in (".npy", ".npz")]
    files = sorted((f for f in files if not f.name.startswith(".")), key=lambda f: natural_order(f.name))
    if not files:
        raise InputError(f"probabilities {path} is a folder without .npy or .npz files; save one a frame")
    labels = read_probabilities(files[0], shape, owner="video", note=ignore).shape[2]

    def frames() -> Iterator[Probabilities]:
        for index, file in enumerate(files):
            values = read_probabilities(file, shape, owner="video", note=ignore if index else note)
            if values.shape[2] != labels:
                raise InputError(
                    f"probabilities {file} have {values.shape[2]} labels, but those of the first frame have "
                    f"{labels}; save all of them for every frame"
                )
            yield values

    return VideoProbabilities(path, labels, len(files), frames)


def frames_with_probabilities(
    video: Video, probabilities: VideoProbabilities
) -> Iterator[tuple[NDArray[np.uint8], Probabilities]]:
    """Yield each frame of a video with its probabilities.

    Raises:
        InputError: As the two do, and where one of them ends before the other.
    """
    given = iter(probabilities)
    done = 0
    for frame in video:
        values = next(given, None)
        if values is None:
            raise InputError(
                f"probabilities {probabilities.path} are for {done} frames, but video {video.path} goes on "
                f"after frame {done - 1}; give one for each frame, or cut the video there"
            )
        done += 1
        yield frame, values
    if done < probabilities.count:
        raise InputError(
            f"video {video.path} ends early: it has {done} frames, but probabilities {probabilities.path} "
            f"are for {probabilities.count}; look whether the video is cut off"
        )
