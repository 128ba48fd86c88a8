"""Checks of the headers of point clouds, for what their readers do not survive.

A few wrong bytes there make laspy count for hours, and Open3D crash or return memory that was never written.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_las", "check_pcd", "check_ply"]

_LONGEST_HEADER = 1 << 16  # bytes; one in use has a few hundred
_MOST_DIGITS = 16
_MOST_PACKED = 100_000  # to one, in LAZ: equal points came to 3,500 to one
_VLR, _EVLR = 54, 60  # bytes of the header of a (extended) variable length record
_PLY_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}
_PCD_TYPES = {"I": (1, 2, 4, 8), "U": (1, 2, 4, 8), "F": (4, 8)}


def check_las(path: Path) -> None:
    """Check that what the header of a LAS or LAZ file counts fits in the file.

    Raises:
        ValueError: If it does not.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(375)
    if len(header) < 227 or header[:4] != b"LASF":
        raise ValueError("it does not start as a LAS file does")
    header_size, start, records, point_format, length, count = struct.unpack_from("<HIIBHI", header, 94)
    # Records may be followed by bytes of a program's own.
    if header_size + _VLR * records > start or start > size:
        raise ValueError(
            f"its header counts {records} records before the points at byte {start}, and the file has {size}"
        )
    if header[25] >= 4:
        if len(header) < 375:
            raise ValueError("its header is cut off")
        first, extended = struct.unpack_from("<QI", header, 235)
        (count,) = struct.unpack_from("<Q", header, 247)
        if extended and first + _EVLR * extended > size:
            raise ValueError(
                f"its header counts {extended} records from byte {first} on, and the file has {size} bytes"
            )
    most = (size - start) * (_MOST_PACKED if point_format >= 128 else 1)  # from 128 on it is LAZ
    if count * length > most:
        raise ValueError(f"its header counts {count} points of {length} bytes, and the file has {size} bytes")


def check_ply(path: Path) -> None:
    """Check that the vertices of a PLY file have positions, and that a binary one is as long as they take.

    Raises:
        ValueError: If not.
    """
    with open(path, "rb") as file:
        lines = _header_lines(file, "end_header")
        rest = os.path.getsize(path) - file.tell()
    if lines[0] != ["ply"] or len(lines[1]) != 3 or lines[1][0] != "format":
        raise ValueError("it does not start as a PLY file does")
    elements: list[tuple[str, int, dict[str, str]]] = []
    for line in lines[2:-1]:
        match line:
            case ["element", name, number] if number.isdecimal() and len(number) < _MOST_DIGITS:
                elements.append((name, int(number), {}))
            case ["property", "list", *_] if elements and elements[0][0] == "vertex" and len(elements) > 1:
                pass
            case ["property", kind, name] if elements and kind in _PLY_SIZES and name not in elements[-1][2]:
                elements[-1][2][name] = kind
            case _:
                raise ValueError(f"its header has the line {' '.join(line)!r}, which is not understood here")
    if not elements or elements[0][0] != "vertex":
        raise ValueError("its first element is not `vertex`")
    _, count, properties = elements[0]
    for axis in "xyz":
        if properties.get(axis) not in ("float", "float32", "double", "float64"):
            raise ValueError(f"its vertices have no floating-point {axis}")
    # In text, a number and what parts it from the next take at least two bytes, but for the last.
    ascii_row, binary_row = 2 * len(properties), sum(_PLY_SIZES[kind] for kind in properties.values())
    least = count * ascii_row - 1 if lines[1][1] == "ascii" else count * binary_row
    if count and least > rest:
        raise ValueError(f"its header counts {count} points, which take {least} bytes, and {rest} follow")


def check_pcd(path: Path) -> None:
    """Check that the header of a PCD file describes points, and that the file is as long as they take.

    Raises:
        ValueError: If not.
    """
    with open(path, "rb") as file:
        lines = _header_lines(file, "DATA")
        data = file.tell()
        rest = os.path.getsize(path) - data
        sizes_of_packed = file.read(8)
    header = {line[0]: line[1:] for line in lines if line}
    known = {"VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA"}
    if set(header) - known or not known - {"VERSION", "VIEWPOINT", "COUNT"} <= set(header):
        raise ValueError("its header lacks a line, or has one that is not understood here")
    fields, kinds = header["FIELDS"], header["TYPE"]
    sizes = _numbers("SIZE", header["SIZE"])
    counts = _numbers("COUNT", header.get("COUNT", ["1"] * len(fields)))
    if not len(fields) == len(sizes) == len(kinds) == len(counts) == len(set(fields)):
        raise ValueError("the lines FIELDS, SIZE, TYPE and COUNT of its header do not match")
    for field, kind, size, repeats in zip(fields, kinds, sizes, counts, strict=True):
        if size not in _PCD_TYPES.get(kind, ()) or not 1 <= repeats <= _LONGEST_HEADER:
            raise ValueError(f"its field {field} has type {kind}, size {size} and count {repeats}")
        if field in ("rgb", "rgba") and size != 4:
            raise ValueError(f"its field {field} must have size 4, got {size}")
    for group in (("x", "y", "z"), ("normal_x", "normal_y", "normal_z")):
        found = [item for item in zip(fields, kinds, sizes, counts, strict=True) if item[0] in group]
        if group[0] == "x" and len(found) < 3:
            raise ValueError("its points have no x, y and z")
        if len(found) not in (0, 3) or len({item[1:] for item in found}) > 1 or any(i[3] > 1 for i in found):
            raise ValueError(f"its fields {', '.join(group)} must all be there, and alike")
    (width,), (height,), (points,) = (
        _numbers(name, header[name], 1) for name in ("WIDTH", "HEIGHT", "POINTS")
    )
    if width * height != points:
        raise ValueError(f"its header counts {width} x {height} points, and then {points}")
    row = sum(size * repeats for size, repeats in zip(sizes, counts, strict=True))
    promised = points * row
    match header["DATA"]:
        case ["ascii"]:
            least = max(0, 2 * points * sum(counts) - 1)
        case ["binary"]:
            least = promised
        case ["binary_compressed"]:
            if len(sizes_of_packed) < 8:
                raise ValueError("it ends with its header")
            packed, unpacked = struct.unpack("<II", sizes_of_packed)
            if unpacked != promised:
                raise ValueError(f"its points take {promised} bytes, and it promises {unpacked}")
            least = packed + 8
        case other:
            raise ValueError(f"its data are of the kind {' '.join(other)!r}, which is not known here")
    if least > rest:
        raise ValueError(f"its header counts {points} points, which take {least} bytes, and {rest} follow")


def _header_lines(file: BinaryIO, last: str) -> list[list[str]]:
    """Return the words of each line, up to the one that starts with the word `last`."""
    lines: list[list[str]] = []
    while file.tell() < _LONGEST_HEADER:
        line = file.readline(_LONGEST_HEADER)
        if line.startswith((b"#", b"comment", b"obj_info")):
            continue
        if not line.endswith(b"\n") or not line.isascii() or b"\0" in line:
            break
        lines.append(line.decode("ascii").split())
        if lines[-1][:1] == [last]:
            return lines
    raise ValueError("its header is damaged or cut off")


def _numbers(name: str, words: list[str], length: int | None = None) -> list[int]:
    if not all(word.isdecimal() and len(word) < _MOST_DIGITS for word in words) or length not in (
        None,
        len(words),
    ):
        raise ValueError(f"the line {name} of its header must hold whole numbers, got {' '.join(words)!r}")
    return [int(word) for word in words]
