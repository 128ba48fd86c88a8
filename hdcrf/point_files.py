"""Reading and writing of point clouds: LAS and LAZ through laspy, PLY and PCD through Open3D, and .npz."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from hdcrf.array_files import read_arrays
from hdcrf.files import InputError, Note, check_file, ignore, import_extra, reason
from hdcrf.point_headers import check_las, check_pcd, check_ply

__all__ = ["SUFFIXES", "Attribute", "Cloud", "check_packages", "read_points", "write_points"]

Attribute = Literal["colours", "normals", "intensities", "labels"]

SUFFIXES = (".las", ".laz", ".ply", ".pcd", ".npz")
"""Of the files that are read and written."""

# What programs call them in PLY and PCD files, in lower case; CloudCompare puts `scalar_` in front.
_LABELS = ("label", "labels", "class", "classification", "scalar_label", "scalar_classification")
_INTENSITIES = ("intensity", "intensities", "scalar_intensity", "reflectance")

_COLOURED = {0: 2, 1: 3, 4: 5, 6: 7, 9: 10}
"""For each point format of LAS without colours, the one with them."""

_EIGHT_BITS = {0: 7, 1: 7, 2: 7, 3: 7, 4: 9, 5: 10}
"""For each point format of LAS whose classification goes up to 31, one like it where it goes up to 255."""


@dataclass(frozen=True)
class Cloud:
    """Points, and what is known of each.

    Attributes:
        positions: (N, 3) float64, finite, in the unit of the file; N is at least 1.
        colours: (N, 3) float32, 0 to 255.
        normals: (N, 3) float32.
        intensities: (N,) float32.
        labels: (N,) int64.
    """

    positions: NDArray[np.float64]
    colours: NDArray[np.float32] | None = None
    normals: NDArray[np.float32] | None = None
    intensities: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    _las: Any = field(default=None, repr=False)


def read_points(path: Path, *, require: Sequence[Attribute] = (), note: Note = warnings.warn) -> Cloud:
    """Read a point cloud.

    - LAS and LAZ: `classification` are the labels. Colours of 16 bits are scaled to 0..255; those of a file
      that has none above 255 are taken as they are. Colours or intensities that are 0 everywhere were never
      set, and are left out.
    - PLY and PCD: labels and intensities are found by their common names, such as `label` or
      `scalar_Intensity`.
    - .npz: arrays named `positions`, `colours`, `normals`, `intensities` and `labels`.

    Args:
        path: .las, .laz, .ply, .pcd or .npz.
        require: What the cloud must have.
        note: Called with a sentence for each conversion and for what is left out.

    Raises:
        InputError: If the file is missing, damaged, empty or of another kind; if a position, colour, normal
            or intensity is not finite; if something required is not there; or if laspy or Open3D is needed
            and not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        raise InputError(
            f"points {path} does not say what its columns are; save a .npz with arrays named positions, "
            "colours, normals, intensities or labels"
        )
    if suffix not in SUFFIXES:
        raise InputError(f"points {path} must end in {' or '.join(SUFFIXES)}, got {suffix or 'no suffix'!r}")
    check_file("points", path)
    if suffix == ".npz":
        cloud = _from_arrays(path, _named_arrays(path, note), note)
    elif suffix in (".las", ".laz"):
        cloud = _read_las(path, note)
    else:
        cloud = _read_by_open3d(path, note)
    for name in require:
        if getattr(cloud, name) is None:
            raise InputError(
                f"points {path} have no {name}, which are needed here; leave out what asks for them"
            )
    return cloud


def write_points(
    file: BinaryIO,
    cloud: Cloud,
    labels: NDArray[np.integer[Any]],
    suffix: str,
    *,
    colours: NDArray[np.uint8] | None = None,
    note: Note = warnings.warn,
) -> None:
    """Write a point cloud with labels.

    A cloud that was read from LAS or LAZ and is written as either, unchanged, keeps all that it had but
    waveforms within the file, and its positions bit for bit; where its point format has no room for colours
    or for labels above 31, one that has is taken, in which scan angles have finer steps.

    Other clouds, and those that were changed since, are written there from their arrays alone: positions
    rounded to the finest power of ten in which their extent fits 31 bits, intensities to 16 bits, and no
    normals.

    Args:
        file: Open for writing, seekable.
        cloud: As it was read.
        labels: (N,) from 0 on; at most 255 in LAS and LAZ.
        suffix: ".las", ".laz", ".ply", ".pcd" or ".npz".
        colours: (N, 3), such as a palette's, in place of the cloud's own.
        note: Called with a sentence for what is scaled, rounded to fewer digits, or left out.

    Raises:
        InputError: If laspy or Open3D is needed and not installed.
        ValueError: If the labels, the colours or what is in the cloud have another shape, are not finite, or
            do not fit the format.
        OSError: If the file cannot be written.
    """
    _check_cloud(cloud, recoloured=colours is not None)
    count = len(cloud.positions)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"`labels` must be {count} integers, got {labels.dtype} of shape {labels.shape}")
    if colours is not None and (colours.shape != (count, 3) or colours.dtype != np.uint8):
        raise ValueError(
            f"`colours` must have shape {(count, 3)} and dtype uint8, got {colours.shape} and {colours.dtype}"
        )
    suffix = suffix.lower()
    most = 255 if suffix in (".las", ".laz") else np.iinfo(np.int32).max
    if not 0 <= labels.min() <= labels.max() <= most:
        raise ValueError(
            f"`labels` must lie from 0 to {most} in a {suffix} file, got {labels.min()} to {labels.max()}"
            + ("; write .ply or .npz" if suffix in (".las", ".laz") else "")
        )
    if suffix == ".npz":
        _write_arrays(file, cloud, labels, colours)
    elif suffix in (".las", ".laz"):
        _write_las(file, cloud, labels, colours, suffix, note)
    elif suffix in (".ply", ".pcd"):
        _write_by_open3d(file, cloud, labels, colours, suffix, note)
    else:
        raise ValueError(f"`suffix` must be one of {', '.join(SUFFIXES)}, got {suffix!r}")


def check_packages(suffix: str, purpose: str) -> None:
    """Check that the packages are installed that a kind of file needs.

    Args:
        suffix: As `read_points` and `write_points` take it.
        purpose: "reading" or "writing", for the message.

    Raises:
        InputError: If one is not.
    """
    if suffix.lower() in (".las", ".laz"):
        _laspy(suffix.lower(), purpose)
    elif suffix.lower() in (".ply", ".pcd"):
        _open3d(suffix.lower(), purpose)


def _check_cloud(cloud: Cloud, recoloured: bool) -> None:
    """Check what is written; a cloud need not come from a file."""
    count = len(cloud.positions)
    if count == 0:
        raise ValueError("`cloud` must have at least one point")
    for name in ("positions", "normals", "intensities", *(() if recoloured else ("colours",))):
        values = getattr(cloud, name)
        shape = (count,) if name == "intensities" else (count, 3)
        if values is not None and (values.shape != shape or not np.isfinite(values).all()):
            what = f"shape {values.shape}" if values.shape != shape else "some that are not"
            raise ValueError(f"`cloud.{name}` must be finite numbers of shape {shape}, got {what}")
    if not recoloured and cloud.colours is not None:
        low, high = cloud.colours.min(), cloud.colours.max()
        if low < 0 or high > 255:
            raise ValueError(f"`cloud.colours` must lie from 0 to 255, got {low:g} to {high:g}; scale them")


def _own_colours(cloud: Cloud) -> NDArray[np.uint8] | None:
    return None if cloud.colours is None else np.rint(cloud.colours).astype(np.uint8)


def _named_arrays(path: Path, note: Note) -> dict[str, NDArray[Any]]:
    arrays = read_arrays("points", path)
    known = ("positions", "colours", "normals", "intensities", "labels")
    if "positions" not in arrays:
        raise InputError(
            f"points {path} must hold an array named positions, (N, 3), got: {', '.join(arrays)}; others are "
            f"{', '.join(known[1:])}"
        )
    if others := [name for name in arrays if name not in known]:
        note(f"points {path}: {', '.join(others)} left out")
    return {name: array for name, array in arrays.items() if name in known}


def _from_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], note: Note, las: Any = None) -> Cloud:
    """Check and convert what was read."""
    count = len(arrays["positions"]) if arrays["positions"].ndim else 0
    if count == 0:
        raise InputError(f"points {path} is empty; name a cloud with at least one point")
    converted: dict[str, Any] = {}
    for name, array in arrays.items():
        shape = (count,) if name in ("intensities", "labels") else (count, 3)
        if array.shape != shape or array.dtype.kind not in "iuf":
            raise InputError(
                f"points {path}: {name} must be numbers of shape {shape}, got {array.dtype} of {array.shape}"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
            values = array.astype(np.float64 if name in ("positions", "labels") else np.float32)
        finite = np.isfinite(values)
        if not finite.all():
            first = int(np.argwhere(~finite)[0][0])
            raise InputError(
                f"points {path}: {name} must be finite, got {values[first].tolist()} at point {first}; "
                "remove such points first"
            )
        converted[name] = values
    if "labels" in converted:
        converted["labels"] = _whole_numbers(path, arrays["labels"])
    if "colours" in converted:
        converted["colours"] = _to_bytes(path, arrays["colours"].dtype, converted["colours"], note)
    return Cloud(**converted, _las=las)


def _whole_numbers(path: Path, labels: NDArray[Any]) -> NDArray[np.int64]:
    # Some programs store labels as floating-point numbers.
    fraction = labels != np.rint(labels)
    wrong = fraction | (np.abs(labels.astype(np.float64)) > 2**53)
    if wrong.any():
        first = int(wrong.argmax())
        must = "be whole numbers" if fraction[first] else "lie within ±2**53"
        raise InputError(f"points {path}: labels must {must}, got {labels[first]} at point {first}")
    return labels.astype(np.int64)


def _to_bytes(
    path: Path, dtype: np.dtype[Any], colours: NDArray[np.float32], note: Note
) -> NDArray[np.float32]:
    """Scale colours to 0..255: from 0..1 if they are floating-point, and from 16 bits."""
    highest = colours.max()
    if dtype == np.uint16 and highest > 255:
        note(f"points {path}: colours of 16 bits scaled to 0..255")
        return (colours / 257).astype(np.float32)
    if dtype.kind == "f" and 0 < highest <= 1:
        note(f"points {path}: colours from 0 to 1 scaled to 0..255")
        colours = (colours * 255).astype(np.float32)
    if colours.min() < 0 or colours.max() > 255:
        raise InputError(
            f"points {path}: colours must lie from 0 to 255, got {colours.min():g} to {colours.max():g}"
        )
    return colours


def _write_arrays(
    file: BinaryIO, cloud: Cloud, labels: NDArray[Any], colours: NDArray[np.uint8] | None
) -> None:
    arrays: dict[str, Any] = {"positions": cloud.positions, "labels": labels}
    colours = _own_colours(cloud) if colours is None else colours
    others = {"colours": colours, "normals": cloud.normals, "intensities": cloud.intensities}
    arrays.update({name: array for name, array in others.items() if array is not None})
    np.savez_compressed(file, **arrays)


def _laspy(path_suffix: str, purpose: str) -> Any:
    if path_suffix == ".laz":
        import_extra("lazrs", f"{purpose} .laz", "points")
    return import_extra("laspy", f"{purpose} {path_suffix}", "points")


def _read_las(path: Path, note: Note) -> Cloud:
    laspy = _laspy(path.suffix.lower(), "reading")
    with _as_input_error(path):
        check_las(path)
        las = laspy.read(path)
        if len(las.points) != las.header.point_count:
            raise ValueError(f"it ends after {len(las.points)} of {las.header.point_count} points")
        arrays = _las_arrays(las)
    if "colours" in arrays and arrays["colours"].max() <= 255:
        note(f"points {path}: no colour is above 255, so they are taken as 8 bits")
    return _from_arrays(path, arrays, note, las)


def _las_arrays(las: Any) -> dict[str, NDArray[Any]]:
    arrays = {
        "positions": np.asarray(las.xyz),
        "intensities": np.asarray(las.intensity),
        "labels": np.asarray(las.classification),
    }
    if "red" in las.point_format.dimension_names:
        arrays["colours"] = np.stack([las.red, las.green, las.blue], axis=1)
    return {name: array for name, array in arrays.items() if name in ("positions", "labels") or array.any()}


def _write_las(
    file: BinaryIO,
    cloud: Cloud,
    labels: NDArray[Any],
    colours: NDArray[np.uint8] | None,
    suffix: str,
    note: Note,
) -> None:
    laspy = _laspy(suffix, "writing")
    if cloud.normals is not None:
        note(f"normals left out, for which {suffix} files have no place")
    before = cloud._las
    if before is not None and not _is_as_read(cloud, recoloured=colours is not None):
        note("the points were changed since they were read: what else their file holds is left out")
        before = None
    if before is None:
        before = _new_las(laspy, cloud, suffix, note)
        colours = _own_colours(cloud) if colours is None else colours
    elif before.header.global_encoding.waveform_data_packets_internal:
        note("waveforms within the file that was read are left out; keep it for them")
    point_format = before.header.point_format.id
    if labels.max() > 31:
        point_format = _EIGHT_BITS.get(point_format, point_format)
    if colours is not None:
        point_format = _COLOURED.get(point_format, point_format)
    las = laspy.convert(before, point_format_id=point_format)  # a copy
    names = [set(each.point_format.dimension_names) for each in (before, las)]
    if "scan_angle_rank" in names[0] and "scan_angle" in names[1]:
        las.scan_angle = np.rint(np.asarray(before.scan_angle_rank) / 0.006).astype(np.int16)  # from degrees
    las.classification = labels.astype(np.uint8)
    if colours is not None:
        las.red, las.green, las.blue = colours.astype(np.uint16).T * 257
    las.write(file, do_compress=suffix == ".laz")


def _is_as_read(cloud: Cloud, recoloured: bool) -> bool:
    """Whether a cloud still has what its LAS file has, but for what is written anew."""
    read = _from_arrays(Path(), _las_arrays(cloud._las), ignore)
    for name in ("positions", "intensities", *(() if recoloured else ("colours",))):
        now, then = getattr(cloud, name), getattr(read, name)
        if (now is None) != (then is None) or (now is not None and not np.array_equal(now, then)):
            return False
    return True


def _new_las(laspy: Any, cloud: Cloud, suffix: str, note: Note) -> Any:
    # The finest decimal step in which the extent fits 31 bits.
    lowest, highest = cloud.positions.min(0), cloud.positions.max(0)
    extent = float((highest - lowest).max())
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.offsets = lowest
    header.scales = np.full(3, 10.0 ** np.ceil(np.log10(max(extent, 1e-6) / (2**31 - 1))))
    las = laspy.LasData(header)
    las.xyz = cloud.positions
    if cloud.intensities is not None:
        las.intensity = _las_intensities(cloud.intensities, suffix, note)
    return las


def _las_intensities(intensities: NDArray[np.float32], suffix: str, note: Note) -> NDArray[np.uint16]:
    low, high = float(intensities.min()), float(intensities.max())
    whole = np.rint(intensities)
    if low < 0 or high > 65535 or (high <= 1 and (whole != intensities).any()):
        low, high = min(low, 0.0), max(high, 1.0)
        note(f"intensities from {low:g} to {high:g} scaled to 0..65535 for {suffix}")
        whole = np.rint((intensities.astype(np.float64) - low) * (65535 / (high - low)))
    elif (whole != intensities).any():
        note(f"intensities rounded to whole numbers for {suffix}")
    return whole.astype(np.uint16)


def _open3d(suffix: str, purpose: str) -> Any:
    """Import Open3D, which needs libusb for its cameras even where none is used."""
    try:
        return import_extra("open3d", f"{purpose} {suffix}", "points")
    except ImportError as error:
        if "libusb" not in str(error):
            raise
    # The system has none: take the one of a package, which the loader then finds by its name.
    with suppress(OSError):
        package = importlib.util.find_spec("libusb_package")
        for folder in (package and package.submodule_search_locations) or ():
            ctypes.CDLL(str(Path(folder) / "libusb-1.0.so"), mode=ctypes.RTLD_GLOBAL)
    try:
        return import_extra("open3d", f"{purpose} {suffix}", "points")
    except ImportError as error:
        raise InputError(
            f"{purpose} {suffix} needs Open3D, which cannot be loaded ({reason(error)}); install the "
            "library: apt-get install libusb-1.0-0, or pip install libusb-package"
        ) from error


def _read_by_open3d(path: Path, note: Note) -> Cloud:
    suffix = path.suffix.lower()
    open3d = _open3d(suffix, "reading")
    with _as_input_error(path):
        # Open3D crashes on some headers, and returns memory that was never written where a file is cut off.
        (check_ply if suffix == ".ply" else check_pcd)(path)
        with _raised_warnings(open3d, lambda warning: note(f"points {path}: {warning}")):
            cloud = open3d.t.io.read_point_cloud(str(path.absolute()), format=suffix[1:])
        found = {str(key).lower(): cloud.point[key].numpy() for key in cloud.point}
    names = {"positions": ("positions",), "colours": ("colors",), "normals": ("normals",)}
    arrays = {}
    for name, keys in (names | {"intensities": _INTENSITIES, "labels": _LABELS}).items():
        key = next((key for key in keys if key in found), None)
        if key is not None:
            values = found.pop(key)
            arrays[name] = values[:, 0] if name in ("intensities", "labels") else values
    if "positions" not in arrays:
        raise InputError(f"points {path} is empty; name a cloud with at least one point")
    if found:
        note(f"points {path}: {', '.join(sorted(found))} left out")
    return _from_arrays(path, arrays, note)


@contextmanager
def _raised_warnings(open3d: Any, note: Note) -> Iterator[None]:
    """Raise what Open3D prints as a warning, which is how it reports that it could not read or write.

    What it skips is only noted.
    """
    printed = io.StringIO()
    level = open3d.utility.VerbosityLevel.Warning
    with redirect_stdout(printed), open3d.utility.VerbosityContextManager(level):
        yield
    for part in printed.getvalue().split("WARNING]")[1:]:
        warning = part.split("\x1b")[0].strip().rstrip(".")
        if "skipping" not in warning:
            raise ValueError(warning)
        note(warning)


def _write_by_open3d(
    file: BinaryIO,
    cloud: Cloud,
    labels: NDArray[Any],
    colours: NDArray[np.uint8] | None,
    suffix: str,
    note: Note,
) -> None:
    open3d = _open3d(suffix, "writing")
    points = open3d.t.geometry.PointCloud(open3d.core.Tensor(cloud.positions))
    attributes = {
        "colors": _own_colours(cloud) if colours is None else colours,
        # Open3D 0.20 writes the header of a PCD file as if the normals had the type of the positions.
        "normals": None if cloud.normals is None else cloud.normals.astype(np.float64),
        "intensity": None if cloud.intensities is None else cloud.intensities[:, None],
        "label": labels.astype(np.int32)[:, None],
    }
    for name, values in attributes.items():
        if values is not None:
            points.point[name] = open3d.core.Tensor(np.ascontiguousarray(values))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"points{suffix}"
        try:
            with _raised_warnings(open3d, note):
                done = open3d.t.io.write_point_cloud(str(path), points)
            if not done:
                raise OSError(f"Open3D could not write a {suffix} file")
        except (RuntimeError, ValueError) as error:
            raise OSError(f"Open3D could not write a {suffix} file: {reason(error)}") from error
        with path.open("rb") as written:
            shutil.copyfileobj(written, file)


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Say what is wrong with a file of points."""
    try:
        yield
    except (InputError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # lazrs is written in Rust, whose panics are no `Exception`
        # Open3D's come with colours, a C++ signature and a line number.
        said = reason(error).split("\x1b[0;m")[0].split("\n")[0].rsplit(".cpp:", 1)[-1]
        raise InputError(
            f"points {path} cannot be read: {said.strip()}; it may be damaged or cut off, save it again"
        ) from error
