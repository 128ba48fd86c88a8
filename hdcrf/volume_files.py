"""Reading and writing of volumes: NIfTI through nibabel.

NIfTI counts voxels along x, y and z, and nibabel returns arrays in that order. Here all arrays are (D, H, W),
which is (z, y, x): the axes are reversed on the way in, and again on the way out, so that what is written
lies where the volume that was read does.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from hdcrf.files import InputError, Note, check_file, import_extra, reason

__all__ = ["Volume", "read_volume", "write_volume_labels", "write_volume_marginals"]

Suffix = Literal[".nii", ".nii.gz"]

_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_MOST_DEFLATED = 1032  # to one, which is what deflate can reach
_AXES = ("W", "H", "D")  # the axes of `pixdim`, which NIfTI calls x, y and z


@dataclass(frozen=True)
class Volume:
    """A volume, and where it lies.

    Attributes:
        intensities: (c, D, H, W) float32, finite; c is 1 for a NIfTI file of three axes.
        spacing: Distance of neighbouring voxels along D, H and W, in mm.
        affine: (4, 4) float64, from NIfTI's voxel indices (x, y, z), which are (W, H, D) here, to mm.
    """

    intensities: NDArray[np.float32]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    _image: Any = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.intensities.shape[1:]
        return depth, height, width


def read_volume(
    path: Path, *, role: str = "volume", like: Volume | None = None, note: Note = warnings.warn
) -> Volume:
    """Read a NIfTI file, with its scale applied.

    A fourth axis becomes the channels, whatever it is: sequences, time, or probabilities of labels.

    Args:
        path: .nii or .nii.gz.
        role: What it is called in messages.
        like: A volume whose (D, H, W) and place this one must have too.
        note: Called with a sentence for a fourth axis.

    Raises:
        InputError: If the file is missing, damaged, or holds no volume of finite real numbers; if its spacing
            is not positive; if it does not lie where `like` does; or if nibabel is not installed.
    """
    check_file(role, path)
    _suffix(role, path)
    nibabel = import_extra("nibabel", "reading .nii", "volumes")
    try:
        image = _loaded(nibabel, role, path)
        dtype, shape = image.get_data_dtype(), image.shape
        _check_kind(role, path, dtype, shape)
        spacing, affine = _placed(role, path, image)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
            values = np.asarray(image.dataobj, dtype=np.float32)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what a broken header or archive raises depends on how it is broken
        raise InputError(
            f"{role} {path} cannot be read: {' '.join(reason(error).split())}; it may be damaged or cut off, "
            "save it again"
        ) from error
    if len(shape) == 5:  # vectors: the fourth axis is time
        values = values[:, :, :, 0]
    if values.ndim == 4:
        note(f"{role} {path}: its {values.shape[3]} values a voxel are taken as channels")
    values = np.ascontiguousarray(values.T if values.ndim == 4 else values.T[None])
    if not np.isfinite(values).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(values))[0])
        raise InputError(
            f"{role} {path} must be finite in float32, got {values[place]} at voxel (d, h, w) = {place[1:]}"
            + (f" of channel {place[0]}" if len(values) > 1 else "")
            + "; replace such voxels first"
        )
    volume = Volume(values, spacing, affine, image)
    if like is not None:
        _check_place(role, path, volume, like)
    return volume


def _suffix(role: str, path: Path) -> Suffix:
    name = path.name.lower()
    if name.endswith(".nii.gz"):
        return ".nii.gz"
    if name.endswith(".nii"):
        return ".nii"
    raise InputError(f"{role} {path} must be a .nii or .nii.gz file; convert it to NIfTI")


def _loaded(nibabel: Any, role: str, path: Path) -> Any:
    """Return the image, after a look at its header as it is: nibabel repairs some, and says so on stderr."""
    packed = _suffix(role, path) == ".nii.gz"
    with (gzip.open if packed else open)(path, "rb") as file:
        start = file.read(nibabel.Nifti2Header.sizeof_hdr)
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        size = kind.header_class.sizeof_hdr
        if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            break
    else:
        raise InputError(f"{role} {path} is no NIfTI file, or its header is damaged; convert it to NIfTI")
    header = kind.header_class.from_fileobj(io.BytesIO(start), check=False)
    for axis, distance in zip(_AXES, header["pixdim"][1:4], strict=True):
        if not distance > 0 or not math.isfinite(distance):
            raise InputError(
                f"{role} {path} must have a positive spacing, got {distance} along {axis}; set the "
                "distance of its voxels in mm"
            )
    promised = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    size = os.path.getsize(path)
    if promised > size * (_MOST_DEFLATED if packed else 1):  # before memory is taken for it
        raise ValueError(f"its header promises {promised} bytes of voxels, and the file has {size}")
    if not packed:
        return kind.from_filename(path)
    with gzip.open(path, "rb") as file:  # to its end, where the checksum is
        return kind.from_bytes(file.read())


def _check_kind(role: str, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.fields is not None:
        raise InputError(f"{role} {path} holds colours; convert it to one grey value a voxel, or to channels")
    if dtype.kind == "c":
        raise InputError(f"{role} {path} holds complex numbers; save their magnitude")
    if len(shape) not in (3, 4) and not (len(shape) == 5 and shape[3] == 1):
        hint = "; read a single slice as a photo" if len(shape) < 3 else ""
        raise InputError(
            f"{role} {path} must have three axes, or four with channels, got the shape {shape}{hint}"
        )
    if 0 in shape:
        raise InputError(f"{role} {path} is empty: its shape is {shape}")


def _placed(role: str, path: Path, image: Any) -> tuple[tuple[float, float, float], NDArray[np.float64]]:
    """Return the spacing and the affine, both in mm."""
    factor = _MILLIMETRES[image.header.get_xyzt_units()[0]]
    x, y, z = (float(distance) * factor for distance in image.header.get_zooms()[:3])
    affine = np.array(image.affine, dtype=np.float64)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        affine[:3] *= factor
    if not np.isfinite(affine).all():
        raise InputError(f"{role} {path} must have a finite affine, got {image.affine.tolist()}")
    return (z, y, x), affine


def _check_place(role: str, path: Path, volume: Volume, like: Volume) -> None:
    if volume.shape != like.shape:
        raise InputError(
            f"{role} {path} has (D, H, W) = {volume.shape}, but the volume has {like.shape}; resample it "
            "onto the volume"
        )
    # Programs store affines as float32, or compute them from quaternions: allow a thousandth of a voxel.
    if not np.allclose(volume.affine, like.affine, rtol=1e-4, atol=1e-3 * max(like.spacing)):
        raise InputError(
            f"{role} {path} lies elsewhere than the volume: their affines differ by up to "
            f"{np.abs(volume.affine - like.affine).max():.3g} mm; resample it onto the volume"
        )


def write_volume_labels(
    file: BinaryIO, labels: NDArray[np.integer[Any]], like: Volume, suffix: Suffix = ".nii.gz"
) -> None:
    """Write labels as a NIfTI file, in the smallest type that holds them.

    Args:
        file: Open for writing.
        labels: (D, H, W) integers, at most 32 bits of them.
        like: The volume that they belong to, and where they are put.
        suffix: ".nii", or ".nii.gz" for compression.

    Raises:
        ValueError: If the labels have another shape than the volume, or do not fit.
    """
    if labels.shape != like.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be integers of the volume's shape {like.shape}, "
            f"got {labels.dtype} of {labels.shape}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    for dtype in (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return _write(file, labels.astype(dtype).T, like, suffix)
    raise ValueError(f"`labels` must fit in 32 bits, got {lowest} to {highest}")


def write_volume_marginals(
    file: BinaryIO, marginals: NDArray[np.floating[Any]], like: Volume, suffix: Suffix = ".nii.gz"
) -> None:
    """Write marginals as a NIfTI file of four axes (x, y, z, label), float32.

    Args:
        file: Open for writing.
        marginals: (K, D, H, W).
        like: The volume that they belong to, and where they are put.
        suffix: ".nii", or ".nii.gz" for compression.

    Raises:
        ValueError: If the marginals have another shape than (K, D, H, W).
    """
    if marginals.ndim != 4 or marginals.shape[1:] != like.shape:
        shape = ", ".join(str(length) for length in like.shape)
        raise ValueError(f"`marginals` must have the shape (K, {shape}), got {marginals.shape}")
    _write(file, marginals.astype(np.float32).T, like, suffix)


def _write(file: BinaryIO, array: NDArray[Any], like: Volume, suffix: Suffix) -> None:
    """Write an array of axes (x, y, z, …) with the header's account of where it lies."""
    header = like._image.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    # How bright to show, and remarks on, what was there before.
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    image = type(like._image)(array, None, header)
    if suffix == ".nii":
        image.to_stream(file)
        return
    # Without a name and a time in it, equal volumes make equal files.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        image.to_stream(packed)
