"""Point clouds in and out: what comes back, what is kept, and what is refused rather than read wrongly."""

import importlib
import io
import re
import struct
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from hdcrf import point_files
from hdcrf.files import InputError, ignore, whole_files
from hdcrf.point_files import Cloud, read_points, write_points

laspy = pytest.importorskip("laspy")

COUNT = 50
GENERATOR = np.random.default_rng(0)
POSITIONS = GENERATOR.random((COUNT, 3)) * (100, 10, 1) + (500_000, 4_000_000, 0)
COLOURS = GENERATOR.integers(0, 256, (COUNT, 3), dtype=np.uint8)
WIDE = COLOURS.astype(np.uint16) * 257
NORMALS = GENERATOR.random((COUNT, 3)).astype(np.float32)
INTENSITIES = GENERATOR.integers(1, 1000, COUNT).astype(np.float32)
LABELS = np.arange(COUNT) % 7
FULL = Cloud(POSITIONS, COLOURS.astype(np.float32), NORMALS, INTENSITIES, LABELS)
BY_OPEN3D = (".ply", ".pcd")
EVERY = (".las", ".laz", *BY_OPEN3D, ".npz")


@pytest.fixture(autouse=True)
def _needs(request):
    """Leave out the tests of PLY and PCD where Open3D cannot be loaded."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("suffix") in BY_OPEN3D:
        open3d_or_skip()


def open3d_or_skip():
    try:
        return point_files._open3d(".ply", "reading")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def notes():
    return []


def write(path, cloud=FULL, labels=LABELS, note=ignore, **options):
    with whole_files([path]) as (file,):
        write_points(file, cloud, labels, path.suffix, note=note, **options)
    return path


def save_las(path, point_format=3, colours=WIDE, **dimensions):
    """Write a file by laspy itself."""
    header = laspy.LasHeader(point_format=point_format)
    header.offsets, header.scales = (500_000, 4_000_000, 0), (0.01, 0.01, 0.001)
    header.vlrs.append(laspy.VLR("somebody", 7, "a record", b"content"))
    las = laspy.LasData(header)
    las.xyz = POSITIONS
    if colours is not None:
        las.red, las.green, las.blue = colours.T
    for name, values in dimensions.items():
        setattr(las, name, values)
    las.write(path)
    return path


def save_ply(path, properties, rows, encoding="ascii"):
    """Write a file by hand."""
    lines = ["ply", f"format {encoding} 1.0", "comment naïve", f"element vertex {len(rows)}"]
    lines += [f"property {kind} {name}" for name, kind in properties.items()]
    text = "\n".join([*lines, "end_header", *(" ".join(map(str, row)) for row in rows)]) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", [*BY_OPEN3D, ".npz"])
    def test_everything_is_kept(self, suffix, tmp_path, notes):
        cloud = read_points(write(tmp_path / f"a{suffix}"), note=notes.append)
        types = {"positions": "f8", "colours": "f4", "normals": "f4", "intensities": "f4", "labels": "i8"}
        for name, dtype in types.items():
            got = getattr(cloud, name)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, getattr(FULL, name))
        assert notes == []

    @pytest.mark.parametrize("suffix", [".las", ".laz", ".LAZ"])
    def test_las(self, suffix, tmp_path, notes):
        path = write(tmp_path / f"a{suffix}", note=notes.append)
        cloud = read_points(path, note=notes.append)
        # 100 of 2³² steps of 1e-7, and half of one is what rounding costs; the rest is that of float64.
        np.testing.assert_allclose(cloud.positions, POSITIONS, rtol=0, atol=0.51e-7 + 1e-9)
        np.testing.assert_array_equal(cloud.colours, COLOURS)
        np.testing.assert_array_equal(cloud.intensities, INTENSITIES)
        np.testing.assert_array_equal(cloud.labels, LABELS)
        assert cloud.normals is None
        assert notes == [
            f"normals left out, for which {suffix.lower()} files have no place",
            f"points {path}: colours of 16 bits scaled to 0..255",
        ]

    @pytest.mark.parametrize("suffix", EVERY)
    def test_positions_alone(self, suffix, tmp_path):
        cloud = read_points(write(tmp_path / f"a{suffix}", Cloud(POSITIONS)))
        np.testing.assert_allclose(cloud.positions, POSITIONS, rtol=0, atol=0.51e-7 + 1e-9)
        assert cloud.colours is cloud.normals is cloud.intensities is None
        np.testing.assert_array_equal(cloud.labels, LABELS)

    @pytest.mark.parametrize("suffix", EVERY)
    def test_one_point_in_other_colours(self, suffix, tmp_path):
        palette = np.array([[1, 2, 255]], np.uint8)
        one = Cloud(POSITIONS[:1], COLOURS[:1].astype(np.float32))
        path = write(tmp_path / f"a{suffix}", one, np.array([3]), colours=palette)
        cloud = read_points(path, note=ignore)
        np.testing.assert_array_equal(cloud.colours, palette)
        np.testing.assert_allclose(cloud.positions, POSITIONS[:1], rtol=1e-12)

    @pytest.mark.parametrize("suffix", EVERY)
    def test_labels_that_do_not_fit(self, suffix, tmp_path):
        most = 255 if suffix in (".las", ".laz") else 2**31 - 1
        write(tmp_path / f"a{suffix}", labels=np.where(LABELS == 1, most, 0))
        assert read_points(tmp_path / f"a{suffix}", note=ignore).labels.max() == most
        for wrong in (most + 1, -1):
            with pytest.raises(ValueError, match=rf"`labels` must lie from 0 to {most} in a {suffix} file"):
                write(tmp_path / f"b{suffix}", labels=np.where(LABELS == 1, wrong, 0))
        assert not (tmp_path / f"b{suffix}").exists()

    def test_wrong_arguments(self):
        for labels in (LABELS[1:], LABELS / 2):
            with pytest.raises(ValueError, match="`labels` must be 50 integers, got"):
                write_points(io.BytesIO(), FULL, labels, ".npz")
        for colours in (COLOURS[1:], COLOURS / 255):
            with pytest.raises(ValueError, match=r"`colours` must have shape \(50, 3\) and dtype uint8"):
                write_points(io.BytesIO(), FULL, LABELS, ".npz", colours=colours)
        with pytest.raises(ValueError, match=r"`suffix` must be one of \.las"):
            write_points(io.BytesIO(), FULL, LABELS, ".xyz")
        with pytest.raises(ValueError, match="`cloud` must have at least one point"):
            write_points(io.BytesIO(), Cloud(POSITIONS[:0]), LABELS[:0], ".npz")

    @pytest.mark.parametrize("suffix", EVERY)
    def test_clouds_that_no_file_could_hold(self, suffix, tmp_path):
        for name, values, message in (
            ("positions", np.where(POSITIONS > 9, np.inf, 0), "must be finite numbers of shape"),
            ("colours", FULL.colours[1:], r"must be finite numbers of shape \(50, 3\), got shape \(49, 3\)"),
            (
                "colours",
                FULL.colours * np.float32(np.nan),
                "finite numbers .*, got some that are not",
            ),
            ("colours", FULL.colours - 1, "must lie from 0 to 255, got -1 to 250; scale them"),
            ("colours", FULL.colours + 9, "must lie from 0 to 255, got 9 to 260; scale them"),
            ("normals", NORMALS[:, :2], r"must be finite numbers of shape \(50, 3\)"),
            ("intensities", INTENSITIES[:, None], r"of shape \(50,\), got shape \(50, 1\)"),
            ("intensities", INTENSITIES * np.float32(np.nan), "must be finite numbers"),
        ):
            with pytest.raises(ValueError, match=rf"`cloud\.{name}` .*{message}"):
                write(tmp_path / f"a{suffix}", replace(FULL, **{name: values}))
        assert list(tmp_path.iterdir()) == []
        # What is not written may be anything.
        write(tmp_path / f"a{suffix}", replace(FULL, colours=FULL.colours - 1), colours=COLOURS)


class TestLas:
    @pytest.mark.parametrize(("before", "after"), [("las", "las"), ("laz", "laz"), ("laz", "las")])
    def test_what_else_it_holds_is_kept(self, before, after, tmp_path, notes):
        times = np.linspace(0, 9, COUNT)
        path = save_las(tmp_path / f"a.{before}", gps_time=times, intensity=INTENSITIES.astype(np.uint16))
        cloud = read_points(path, note=ignore)
        write(tmp_path / f"b.{after}", cloud, LABELS, colours=255 - COLOURS, note=notes.append)
        first, second = laspy.read(path), laspy.read(tmp_path / f"b.{after}")
        for axis in "XYZ":
            np.testing.assert_array_equal(first[axis], second[axis])
        np.testing.assert_array_equal(first.xyz, second.xyz)
        np.testing.assert_array_equal(second.gps_time, times)
        assert second.header.point_format.id == 3
        assert [vlr.record_data_bytes() for vlr in second.header.vlrs if vlr.user_id == "somebody"] == [
            b"content"
        ]
        np.testing.assert_array_equal(second.red, (255 - COLOURS[:, 0]).astype(np.uint16) * 257)
        np.testing.assert_array_equal(second.classification, LABELS)
        assert not np.asarray(first.classification).any()
        assert notes == []
        # The cloud itself is as it was.
        np.testing.assert_array_equal(cloud.labels, 0)
        assert not np.asarray(cloud._las.classification).any()

    @pytest.mark.parametrize(
        ("point_format", "highest", "coloured", "expected"),
        [
            (0, 31, False, 0),
            (0, 31, True, 2),
            (1, 32, False, 7),
            (1, 5, True, 3),
            (2, 200, True, 7),
            (4, 31, False, 4),
            (4, 32, False, 9),
            (4, 32, True, 10),
            (5, 31, True, 5),
            (5, 32, False, 10),
            (6, 255, False, 6),
            (6, 255, True, 7),
            (8, 255, True, 8),
        ],
    )
    def test_room_is_made(self, point_format, highest, coloured, expected, tmp_path):
        path = save_las(tmp_path / "a.las", point_format, None)
        labels = np.where(LABELS == 1, highest, 0)
        write(tmp_path / "b.las", read_points(path), labels, colours=COLOURS if coloured else None)
        las = laspy.read(tmp_path / "b.las")
        assert las.header.point_format.id == expected
        np.testing.assert_array_equal(las.classification, labels)
        np.testing.assert_array_equal(las.xyz, laspy.read(path).xyz)
        if coloured:
            np.testing.assert_array_equal(las.blue, COLOURS[:, 2].astype(np.uint16) * 257)

    @pytest.mark.parametrize("suffix", [".las", ".laz"])
    @pytest.mark.parametrize("point_format", range(6))
    def test_labels_above_31_cost_nothing(self, point_format, suffix, tmp_path):
        generator = np.random.default_rng(1)
        empty = laspy.PointFormat(point_format)
        dimensions = {
            dimension.name: generator.integers(0, 2 if dimension.num_bits == 1 else 7, COUNT)
            for dimension in empty.dimensions
            if dimension.name not in ("X", "Y", "Z", "classification")
        }
        dimensions["scan_angle_rank"] = np.linspace(-90, 90, COUNT).astype(np.int8)
        path = save_las(tmp_path / "a.las", point_format, None, **dimensions)
        write(tmp_path / f"b{suffix}", read_points(path, note=ignore), LABELS + 200)
        las = laspy.read(tmp_path / f"b{suffix}")
        np.testing.assert_array_equal(las.classification, LABELS + 200)
        # In steps of 0.006 degrees there, and half of one is what rounding costs.
        angles = np.asarray(las.scan_angle) * 0.006
        np.testing.assert_allclose(angles, dimensions.pop("scan_angle_rank"), rtol=0, atol=0.0031)
        for name, values in dimensions.items():
            np.testing.assert_array_equal(las[name], values)

    def test_colours_of_16_bits_are_kept(self, tmp_path):
        wide = WIDE + np.uint16(1) * (WIDE < 65535)  # some that are no multiple of 257
        path = save_las(tmp_path / "a.las", colours=wide)
        write(tmp_path / "b.las", read_points(path, note=ignore))
        las = laspy.read(tmp_path / "b.las")
        np.testing.assert_array_equal(np.stack([las.red, las.green, las.blue], 1), wide)

    def test_waveforms_within_the_file(self, tmp_path, notes):
        path = save_las(tmp_path / "a.las", 4, None)
        content = bytearray(path.read_bytes())
        content[6] |= 2  # of the global encoding
        path.write_bytes(content)
        write(tmp_path / "b.las", read_points(path), note=notes.append)
        assert notes == ["waveforms within the file that was read are left out; keep it for them"]

    @pytest.mark.parametrize("change", ["positions", "intensities", "colours", "no_colours", "points"])
    def test_a_cloud_that_was_changed(self, change, tmp_path, notes):
        path = save_las(tmp_path / "a.las", intensity=INTENSITIES.astype(np.uint16))
        cloud = read_points(path, note=ignore)
        if change == "points":
            half = {name: getattr(cloud, name)[::2] for name in ("positions", "colours", "intensities")}
            changed = replace(cloud, **half)
        elif change == "no_colours":
            changed = replace(cloud, colours=None)
        else:
            changed = replace(cloud, **{change: getattr(cloud, change)[::-1]})
        write(tmp_path / "b.las", changed, LABELS[: len(changed.positions)], note=notes.append)
        written = read_points(tmp_path / "b.las", note=ignore)
        np.testing.assert_allclose(written.positions, changed.positions, rtol=0, atol=0.51e-7 + 1e-9)
        np.testing.assert_array_equal(written.intensities, changed.intensities)
        if change == "no_colours":
            assert written.colours is None
        else:
            np.testing.assert_array_equal(written.colours, changed.colours)
        assert notes == [
            "the points were changed since they were read: what else their file holds is left out"
        ]

    @pytest.mark.parametrize("places", range(-6, 7))
    def test_extents_that_just_fit(self, places, tmp_path):
        for extent in (2**31 - 2, 2**31 - 1, 2**31):
            positions = np.array([(0, 1, 2), (extent, 1, 2)]) * 10.0**places
            path = write(tmp_path / "a.las", Cloud(positions), LABELS[:2])
            step = 10.0 ** (places + (extent == 2**31))
            # Half a step of rounding, and that of float64.
            np.testing.assert_allclose(read_points(path).positions, positions, rtol=1e-15, atol=0.51 * step)

    @pytest.mark.parametrize(
        ("given", "expected", "said"),
        [
            ([0, 1, 65535], [0, 1, 65535], None),
            ([0, 1, 1], [0, 1, 1], None),
            ([0, 0.2, 1], [0, 13107, 65535], "from 0 to 1 scaled to 0..65535 for .las"),
            ([0, 0.2, 0.4], [0, 13107, 26214], "from 0 to 1 scaled to 0..65535 for .las"),
            ([0, 131070, 262140], [0, 32768, 65535], "from 0 to 262140 scaled to 0..65535 for .las"),
            ([-1, 0, 2], [0, 21845, 65535], "from -1 to 2 scaled to 0..65535 for .las"),
            ([0, 0.4, 7.6], [0, 0, 8], "rounded to whole numbers for .las"),
        ],
    )
    def test_intensities_of_other_ranges(self, given, expected, said, tmp_path, notes):
        cloud = Cloud(POSITIONS[:3], intensities=np.array(given, np.float32))
        path = write(tmp_path / "a.las", cloud, LABELS[:3], note=notes.append)
        np.testing.assert_array_equal(read_points(path).intensities, expected)
        assert notes == ([] if said is None else [f"intensities {said}"])

    def test_colours_of_eight_bits(self, tmp_path, notes):
        path = save_las(tmp_path / "a.las", colours=COLOURS.astype(np.uint16))
        np.testing.assert_array_equal(read_points(path, note=notes.append).colours, COLOURS)
        assert notes == [f"points {path}: no colour is above 255, so they are taken as 8 bits"]

    def test_what_was_never_set_is_left_out(self, tmp_path):
        cloud = read_points(save_las(tmp_path / "a.las", colours=np.zeros((COUNT, 3), np.uint16)))
        assert cloud.colours is None
        assert cloud.intensities is None


class TestPly:
    def test_names_of_other_programs(self, tmp_path, notes):
        open3d_or_skip()
        properties = dict.fromkeys(
            ("x", "y", "z", "scalar_Intensity", "scalar_Classification", "quality"), "float"
        )
        save_ply(tmp_path / "a.ply", properties, [(1, 2, 3, 0.5, 4, 9), (5, 6, 7, 0.25, 2, 9)])
        cloud = read_points(tmp_path / "a.ply", note=notes.append)
        np.testing.assert_array_equal(cloud.positions, [[1, 2, 3], [5, 6, 7]])
        np.testing.assert_array_equal(cloud.intensities, [0.5, 0.25])
        np.testing.assert_array_equal(cloud.labels, [4, 2])
        assert notes == [f"points {tmp_path / 'a.ply'}: quality left out"]

    def test_labels_that_are_no_whole_numbers(self, tmp_path):
        open3d_or_skip()
        properties = dict.fromkeys(("x", "y", "z", "label"), "float")
        save_ply(tmp_path / "a.ply", properties, [(1, 2, 3, 4), (1, 2, 3, 0.5)])
        with pytest.raises(InputError, match=r"labels must be whole numbers, got 0\.5 at point 1"):
            read_points(tmp_path / "a.ply")

    @pytest.mark.parametrize(
        ("kind", "rows", "expected"),
        [
            ("float", [(1, 0, 0.5), (0, 0.2, 0)], [(255, 0, 127.5), (0, 51, 0)]),
            ("float", [(255, 0, 2.5), (0, 0, 0)], [(255, 0, 2.5), (0, 0, 0)]),
        ],
    )
    def test_colours_of_other_ranges(self, kind, rows, expected, tmp_path):
        open3d_or_skip()
        properties = dict.fromkeys("xyz", "float") | dict.fromkeys(("red", "green", "blue"), kind)
        save_ply(tmp_path / "a.ply", properties, [(1, 2, 3, *row) for row in rows])
        np.testing.assert_allclose(
            read_points(tmp_path / "a.ply", note=[].append).colours, expected, rtol=1e-6
        )

    def test_what_open3d_skips_is_noted(self, tmp_path, notes):
        open3d_or_skip()
        properties = dict.fromkeys("xyz", "float") | dict.fromkeys(("red", "green", "blue"), "ushort")
        save_ply(tmp_path / "a.ply", properties, [(1, 2, 3, 65535, 0, 257)])
        cloud = read_points(tmp_path / "a.ply", note=notes.append)
        np.testing.assert_array_equal(cloud.positions, [[1, 2, 3]])
        assert cloud.colours is None
        assert len(notes) == 3
        assert 'skipping property "red"' in notes[0]

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("element vertex 2", "element vertex 3", "unable to read file|counts 3 points, which take"),
            (
                "element vertex 2",
                "element vertex 99999",
                "counts 99999 points, which take 599993 bytes, and 12 follow",
            ),
            ("element vertex 2", "element vertex 0", "is empty; name a cloud"),
            ("element vertex 2", "element vertex -2", "line 'element vertex -2', which is not understood"),
            ("property float x", "property float q", "its vertices have no floating-point x"),
            ("property float x", "property int x", "its vertices have no floating-point x"),
            ("property float x", "property list uchar int x", "which is not understood here"),
            ("element vertex 2", "element face 0\nelement vertex 2", "its first element is not `vertex`"),
            ("end_header", "the_end", "its header is damaged or cut off"),
            ("1 2 3", "1 b 3", "unable to read file"),
            (
                "1 2 3",
                "1 nan 3",
                r"positions must be finite, got \[1\.0, nan, 3\.0\] at point 0; remove such",
            ),
            ("4 5 6", "4 5 x", "unable to read file"),
            ("ply", "plx", "does not start as a PLY file does"),
        ],
    )
    def test_refused(self, old, new, message, tmp_path):
        open3d_or_skip()
        path = save_ply(tmp_path / "a.ply", dict.fromkeys("xyz", "float"), [(1, 2, 3), (4, 5, 6)])
        read_points(path)
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            read_points(path)

    def test_faces_are_left_alone(self, tmp_path):
        open3d_or_skip()
        path = save_ply(tmp_path / "a.ply", dict.fromkeys("xyz", "float"), [(1, 2, 3), (4, 5, 6)])
        text = path.read_text().replace(
            "end_header", "element face 1\nproperty list uchar int vertex_indices\nend_header"
        )
        path.write_text(text + "3 0 1 0\n")
        np.testing.assert_array_equal(read_points(path).positions, [[1, 2, 3], [4, 5, 6]])


PCD = """# .PCD v0.7
VERSION 0.7
FIELDS x y z label
SIZE 4 4 4 4
TYPE F F F U
COUNT 1 1 1 1
WIDTH 2
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 2
DATA ascii
1 2 3 4
5 6 7 8
"""


class TestPcd:
    def test_text(self, tmp_path):
        open3d_or_skip()
        (tmp_path / "a.pcd").write_text(PCD)
        cloud = read_points(tmp_path / "a.pcd")
        np.testing.assert_array_equal(cloud.positions, [[1, 2, 3], [5, 6, 7]])
        np.testing.assert_array_equal(cloud.labels, [4, 8])

    def test_compressed(self, tmp_path):
        open3d = open3d_or_skip()
        points = open3d.t.geometry.PointCloud(open3d.core.Tensor(POSITIONS))
        path = tmp_path / "a.pcd"
        assert open3d.t.io.write_point_cloud(str(path), points, compressed=True)
        np.testing.assert_array_equal(read_points(path).positions, POSITIONS)
        content = path.read_bytes()
        start = content.index(b"DATA binary_compressed\n") + 23
        for damaged in (
            content[: start + 4],
            content[:-1],
            content[:start] + struct.pack("<II", len(content), 1200) + content[start + 8 :],
            content[:start] + struct.pack("<II", 100, 1201) + content[start + 8 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match="cannot be read: "):
                read_points(path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("FIELDS x y z label", "FIELDS x y z", "FIELDS, SIZE, TYPE and COUNT of its header do not match"),
            ("FIELDS x y z label", "FIELDS x y q label", "its points have no x, y and z"),
            ("FIELDS x y z label", "FIELDS x y z rgb rgb", "do not match"),
            ("SIZE 4 4", "SIZE 4 8", "its fields x, y, z must all be there, and alike"),
            ("SIZE 4 4 4 4", "SIZE 4 4 4 3", "its field label has type U, size 3 and count 1"),
            ("COUNT 1 1 1 1", "COUNT 1 1 1 -1", "the line COUNT of its header must hold whole numbers"),
            ("WIDTH 2", "WIDTH 3", "its header counts 3 x 1 points, and then 2"),
            ("WIDTH 2\nHEIGHT 1", "HEIGHT 1", "its header lacks a line"),
            ("POINTS 2", "POINTS 2 2", "the line POINTS of its header must hold whole numbers"),
            ("DATA ascii", "DATA text", "data are of the kind 'text', which is not known"),
            ("DATA ascii", "DATA binary", "counts 2 points, which take 32 bytes, and 16 follow"),
            ("5 6 7 8", "5 6 7", "which take 15 bytes, and 14 follow"),
            ("5 6 7 8", "555 6 nan 8", r"positions must be finite, got \[555\.0, 6\.0, nan\] at point 1"),
        ],
    )
    def test_refused(self, old, new, message, tmp_path):
        open3d_or_skip()
        (tmp_path / "a.pcd").write_text(PCD.replace(old, new))
        with pytest.raises(InputError, match=message):
            read_points(tmp_path / "a.pcd")


class TestArrays:
    def test_shapes_and_kinds(self, tmp_path):
        for name, array, message in (
            (
                "positions",
                POSITIONS[:, :2],
                r"positions must be numbers of shape \(50, 3\), got float64 of \(50, 2\)",
            ),
            ("positions", POSITIONS[:0], "is empty"),
            ("positions", np.float64(3), "is empty"),
            ("colours", COLOURS[1:], r"colours must be numbers of shape \(50, 3\), got uint8 of \(49, 3\)"),
            ("labels", LABELS[:, None], r"labels must be numbers of shape \(50,\)"),
            ("normals", NORMALS.astype(str), r"normals must be numbers of shape \(50, 3\), got <U"),
            ("colours", COLOURS * 2.0, r"colours must lie from 0 to 255, got 0 to \d+"),
            (
                "intensities",
                INTENSITIES.astype(np.float64) * 1e39,
                "intensities must be finite, got inf at point 0",
            ),
        ):
            np.savez(tmp_path / "a.npz", **{"positions": POSITIONS, name: array})
            with pytest.raises(InputError, match=message):
                read_points(tmp_path / "a.npz")

    @pytest.mark.parametrize("value", [2**53 + 2, -(2**53) - 2, 2**63 - 1])
    def test_labels_that_are_too_large(self, value, tmp_path):
        labels = LABELS.copy()
        labels[7] = value
        np.savez(tmp_path / "a.npz", positions=POSITIONS, labels=labels)
        with pytest.raises(InputError, match=rf"labels must lie within ±2\*\*53, got {value} at point 7"):
            read_points(tmp_path / "a.npz")

    @pytest.mark.parametrize("name", ["positions", "colours", "normals", "intensities"])
    def test_not_finite(self, name, tmp_path):
        arrays = {"positions": POSITIONS, name: getattr(FULL, name).copy()}
        arrays[name][7] = np.nan
        arrays[name][9] = np.inf
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match=rf"{name} must be finite, got \[?nan.* at point 7; remove such"):
            read_points(tmp_path / "a.npz")

    def test_names(self, tmp_path, notes):
        np.savez(tmp_path / "a.npz", points=POSITIONS)
        with pytest.raises(InputError, match=r"must hold an array named positions, \(N, 3\), got: points;"):
            read_points(tmp_path / "a.npz")
        np.savez(tmp_path / "a.npz", positions=POSITIONS.astype(int), curvature=LABELS)
        cloud = read_points(tmp_path / "a.npz", note=notes.append)
        np.testing.assert_array_equal(cloud.positions, POSITIONS.astype(int))
        assert notes == [f"points {tmp_path / 'a.npz'}: curvature left out"]

    def test_what_is_no_archive_of_arrays(self, tmp_path):
        with (tmp_path / "a.npz").open("wb") as file:
            np.save(file, POSITIONS)
        with pytest.raises(InputError, match=r"must be a \.npz file of named arrays, got none"):
            read_points(tmp_path / "a.npz")
        np.savez(tmp_path / "a.npz", positions=np.array([{}], dtype=object))
        with pytest.raises(InputError, match="objects are not loaded"):
            read_points(tmp_path / "a.npz")


class TestRefuse:
    def test_missing_and_suffix(self, tmp_path):
        with pytest.raises(InputError, match=r"points .*a\.las does not exist"):
            read_points(tmp_path / "a.las")
        with pytest.raises(InputError, match=r"must end in \.las or .* or \.npz, got '\.xyz'"):
            read_points(tmp_path / "a.xyz")
        with pytest.raises(InputError, match="got 'no suffix'"):
            read_points(tmp_path / "a")
        with pytest.raises(
            InputError, match=r"does not say what its columns are; save a \.npz with arrays named"
        ):
            read_points(tmp_path / "a.npy")

    @pytest.mark.parametrize("suffix", EVERY)
    def test_what_is_required(self, suffix, tmp_path):
        path = write(tmp_path / f"a{suffix}", Cloud(POSITIONS))
        read_points(path, require=("labels",))
        with pytest.raises(InputError, match=r"have no colours, which are needed here; leave out what asks"):
            read_points(path, require=("labels", "colours"))

    @pytest.mark.parametrize("suffix", [".las", ".laz"])
    def test_empty_las(self, suffix, tmp_path):
        laspy.LasData(laspy.LasHeader(point_format=3)).write(tmp_path / f"a{suffix}")
        with pytest.raises(InputError, match="is empty; name a cloud with at least one point"):
            read_points(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("suffix", EVERY)
    @pytest.mark.parametrize("content", [b"", b"no points at all" * 50])
    def test_not_points(self, content, suffix, tmp_path):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read|objects are not loaded"):
            read_points(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("suffix", EVERY)
    def test_truncated(self, suffix, tmp_path):
        path = write(tmp_path / f"a{suffix}")
        content = path.read_bytes()
        for length in [*range(0, len(content), len(content) // 60), len(content) - 1]:
            path.write_bytes(content[:length])
            with pytest.raises(InputError, match=r"cannot be read: [^\n]+$"):
                read_points(path)

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("suffix", EVERY)
    def test_nothing_but_input_errors_escape(self, suffix, tmp_path):
        path = write(tmp_path / f"a{suffix}")
        content = path.read_bytes()
        generator = np.random.default_rng(0)
        refused = 0
        for trial in range(300):
            damaged = bytearray(content)
            # Every other time the header, which does the most harm.
            place = generator.integers(400 if trial % 2 else len(content))
            damaged[place] ^= 1 << generator.integers(8)
            path.write_bytes(damaged)
            try:
                assert len(read_points(path, note=[].append).positions) > 0
            except InputError:
                refused += 1
        assert refused >= 10

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("suffix", [".las", ".laz"])
    @pytest.mark.parametrize(
        ("offset", "form", "message"),
        [
            (100, "<I", "its header counts 4294967295 records"),
            (107, "<I", r"counts 4294967295 points of \d+ bytes, and the file has"),
            (96, "<I", "records before the points at byte 4294967295"),
        ],
    )
    def test_las_that_promises_too_much(self, offset, form, message, suffix, tmp_path):
        path = save_las(tmp_path / f"a{suffix}")
        content = bytearray(path.read_bytes())
        struct.pack_into(form, content, offset, 2**32 - 1)
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_points(path)


class TestExtras:
    @pytest.mark.parametrize(
        ("suffix", "module"), [(".las", "laspy"), (".laz", "lazrs"), (".ply", "open3d"), (".pcd", "open3d")]
    )
    def test_missing(self, suffix, module, tmp_path, monkeypatch):
        path = write(tmp_path / f"a{suffix}")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError) as error:
            read_points(path)
        assert str(error.value) == f'reading {suffix} needs {module}: pip install "hdcrf[points]"'
        with pytest.raises(
            InputError, match=re.escape(f'writing {suffix} needs {module}: pip install "hdcrf[')
        ):
            write(tmp_path / f"b{suffix}")

    def test_libusb_of_a_package(self, tmp_path, monkeypatch):
        """Where the system has none, the package's is loaded, and only then."""
        loaded = []
        stand_in = types.ModuleType("open3d")

        def find(name):
            if name == "open3d" and not loaded:
                raise ImportError("libusb-1.0.so.0: cannot open shared object file")
            return stand_in

        monkeypatch.setattr(importlib, "import_module", find)
        (tmp_path / "libusb_package").mkdir()
        (tmp_path / "libusb_package" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(point_files.ctypes, "CDLL", lambda path, mode: loaded.append(path))
        assert point_files._open3d(".ply", "reading") is stand_in
        assert loaded == [str(tmp_path / "libusb_package" / "libusb-1.0.so")]
        assert point_files._open3d(".ply", "reading") is stand_in
        assert len(loaded) == 1

    def test_no_libusb(self, monkeypatch):
        def find(name):
            raise ImportError("libusb-1.0.so.0: cannot open shared object file")

        monkeypatch.setattr(importlib, "import_module", find)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError) as error:
            point_files._open3d(".pcd", "writing")
        assert str(error.value) == (
            "writing .pcd needs Open3D, which cannot be loaded (libusb-1.0.so.0: cannot open shared object "
            "file); install the library: apt-get install libusb-1.0-0, or pip install libusb-package"
        )

    def test_importing_hdcrf_loads_none(self):
        extras = {"av", "nibabel", "laspy", "open3d", "PIL", "click"}
        program = f"import sys, hdcrf; print({extras} & set(sys.modules))"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert result.stdout == "set()\n"

    @pytest.mark.parametrize("suffix", BY_OPEN3D)
    def test_write_failure(self, suffix, tmp_path, monkeypatch):
        open3d = open3d_or_skip()
        monkeypatch.setattr(open3d.t.io, "write_point_cloud", lambda *_, **__: False)
        with pytest.raises(OSError, match=rf"Open3D could not write a \{suffix} file"):
            write(tmp_path / f"a{suffix}")
        assert list(tmp_path.iterdir()) == []
