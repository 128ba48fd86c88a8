"""Volumes in and out: the order of the axes, where a volume lies, and what is refused."""

import gzip
import io
import struct
import sys

import numpy as np
import pytest

from hdcrf.files import InputError, whole_files
from hdcrf.volume_files import read_volume, write_volume_labels, write_volume_marginals

nibabel = pytest.importorskip("nibabel")

# In nibabel's order: x, y, z.
VALUES = np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)
# Turned about x, flipped, and with voxels of 2 x 1.5 x 3 mm.
AFFINE = np.array([[-2, 0, 0, 10], [0, 0, -3, 5], [0, 1.5, 0, 7], [0, 0, 0, 1]], dtype=float)


def save(path, values=VALUES, affine=AFFINE, kind=nibabel.Nifti1Image, **header):
    image = kind(values, affine)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path, offset, form, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)
    return path


def written(tmp_path, writer, values, like, suffix=".nii.gz"):
    with whole_files([tmp_path / f"out{suffix}"]) as (file,):
        writer(file, values, like, suffix)
    return nibabel.load(tmp_path / f"out{suffix}")


@pytest.fixture
def notes():
    return []


class TestRead:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    def test_axes_are_reversed(self, suffix, kind, tmp_path, notes):
        volume = read_volume(save(tmp_path / f"a{suffix}", kind=kind), note=notes.append)
        assert volume.intensities.dtype == np.float32
        assert volume.intensities.flags.c_contiguous
        assert volume.shape == (6, 5, 4)
        assert volume.intensities[0, 5, 1, 3] == VALUES[3, 1, 5]
        np.testing.assert_array_equal(volume.intensities[0], VALUES.transpose(2, 1, 0))
        assert volume.spacing == (3, 1.5, 2)
        np.testing.assert_array_equal(volume.affine, AFFINE)
        assert notes == []

    def test_fourth_axis_becomes_channels(self, tmp_path, notes):
        values = np.random.default_rng(0).random((4, 5, 6, 2), dtype=np.float32)
        volume = read_volume(save(tmp_path / "a.nii.gz", values), note=notes.append)
        np.testing.assert_array_equal(volume.intensities, values.transpose(3, 2, 1, 0))
        assert volume.shape == (6, 5, 4)
        assert "its 2 values a voxel are taken as channels" in notes[0]

    def test_vectors(self, tmp_path, notes):
        values = np.random.default_rng(0).random((4, 5, 6, 1, 3), dtype=np.float32)
        volume = read_volume(save(tmp_path / "a.nii.gz", values), note=notes.append)
        np.testing.assert_array_equal(volume.intensities, values[:, :, :, 0].transpose(3, 2, 1, 0))

    def test_scale_is_applied(self, tmp_path):
        image = nibabel.Nifti1Image(VALUES.astype(np.uint8), AFFINE)
        image.header.set_slope_inter(0.5, -10)
        nibabel.save(image, tmp_path / "a.nii")
        # nibabel finds a scale of its own when it writes: put ours into the file.
        patched(tmp_path / "a.nii", 112, "<2f", 0.5, -10)
        stored = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled())
        volume = read_volume(tmp_path / "a.nii")
        np.testing.assert_array_equal(volume.intensities[0], (stored * 0.5 - 10).T.astype(np.float32))

    @pytest.mark.parametrize(
        ("unit", "factor"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)]
    )
    def test_spacing_is_in_millimetres(self, unit, factor, tmp_path):
        image = nibabel.Nifti1Image(VALUES, AFFINE)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii")
        assert read_volume(tmp_path / "a.nii").spacing == pytest.approx(
            (3 * factor, 1.5 * factor, 2 * factor)
        )

    @pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001)])
    def test_affine_is_in_millimetres(self, unit, factor, tmp_path):
        like = read_volume(save(tmp_path / "a.nii"))
        image = nibabel.Nifti1Image(VALUES, np.diag([*[1 / factor] * 3, 1]) @ AFFINE)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "b.nii")
        volume = read_volume(tmp_path / "b.nii", like=like)
        # To the rounding of float32, in which it is stored.
        np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-7)
        # The same numbers in another unit are another place.
        save(tmp_path / "c.nii", affine=image.affine)
        with pytest.raises(InputError, match=r"c\.nii lies elsewhere than the volume"):
            read_volume(tmp_path / "c.nii", like=volume)
        labels = written(tmp_path, write_volume_labels, np.zeros((6, 5, 4), int), volume)
        np.testing.assert_array_equal(labels.affine, image.affine.astype(np.float32))
        assert labels.header.get_xyzt_units()[0] == unit

    def test_place_is_compared_in_voxels(self, tmp_path):
        """A micron is nothing to a scan of a head, and two voxels here."""
        for name, shift in (("a", 0), ("b", 1e-7), ("c", 1e-3)):
            affine = np.diag([5e-4, 5e-4, 5e-4, 1])
            affine[0, 3] = shift
            save(tmp_path / f"{name}.nii", affine=affine)
        like = read_volume(tmp_path / "a.nii")
        read_volume(tmp_path / "b.nii", like=like)
        with pytest.raises(InputError, match=r"differ by up to 0\.001 mm;"):
            read_volume(tmp_path / "c.nii", like=like)

    def test_big_endian(self, tmp_path):
        header = nibabel.Nifti1Header(endianness=">")
        nibabel.save(nibabel.Nifti1Image(VALUES.astype(">i2"), AFFINE, header), tmp_path / "a.nii")
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").intensities[0], VALUES.T)

    def test_same_place(self, tmp_path):
        like = read_volume(save(tmp_path / "a.nii"))
        save(tmp_path / "b.nii", np.zeros((4, 5, 6, 3), np.float32), AFFINE + 1e-5)
        assert read_volume(tmp_path / "b.nii", like=like, note=[].append).shape == like.shape
        save(tmp_path / "c.nii", VALUES[:3])
        with pytest.raises(
            InputError, match=r"labels .*c\.nii has \(D, H, W\) = \(6, 5, 3\), but the volume"
        ):
            read_volume(tmp_path / "c.nii", role="labels", like=like)
        save(tmp_path / "d.nii", affine=np.diag([-2, 1.5, 3, 1]))
        with pytest.raises(
            InputError, match=r"d\.nii lies elsewhere than the volume: .* differ by up to 10 mm;"
        ):
            read_volume(tmp_path / "d.nii", like=like)


class TestRefuse:
    def test_missing_and_suffix(self, tmp_path):
        with pytest.raises(InputError, match=r"volume .*a\.nii does not exist"):
            read_volume(tmp_path / "a.nii")
        (tmp_path / "a.mha").touch()
        with pytest.raises(InputError, match=r"must be a \.nii or \.nii\.gz file; convert it"):
            read_volume(tmp_path / "a.mha")

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("content", [b"", b"no volume at all" * 50])
    def test_not_a_volume(self, content, suffix, tmp_path):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
        with pytest.raises(InputError, match="is no NIfTI file, or its header is damaged"):
            read_volume(path)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_truncated(self, suffix, tmp_path):
        path = save(tmp_path / f"a{suffix}")
        content = path.read_bytes()
        for length in [*range(0, len(content), 7), len(content) - 1]:
            path.write_bytes(content[:length])
            with pytest.raises(
                InputError, match=r"cannot be read: [^\n]+; it may be damaged|is no NIfTI file"
            ):
                read_volume(path)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_nothing_but_input_errors_escape(self, suffix, tmp_path, capfd):
        path = save(tmp_path / f"a{suffix}")
        content = path.read_bytes()
        generator = np.random.default_rng(0)
        refused = 0
        for _ in range(300):
            damaged = bytearray(content)
            damaged[generator.integers(min(len(content), 400))] ^= 1 << generator.integers(8)
            path.write_bytes(damaged)
            try:
                assert np.isfinite(read_volume(path, note=[].append).intensities).all()
            except InputError:
                refused += 1
        assert refused >= 10

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_header_that_promises_too_much(self, suffix, tmp_path):
        patched(save(tmp_path / "a.nii"), 40, "<4h", 3, 32767, 32767, 32767)
        path = tmp_path / f"a{suffix}"
        if suffix == ".nii.gz":
            path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
        with pytest.raises(InputError, match=r"its header promises 70\d+ bytes of voxels, and the file has"):
            read_volume(path)

    @pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
    def test_spacing(self, value, tmp_path, capfd):
        patched(save(tmp_path / "a.nii"), 84, "<f", value)
        with pytest.raises(InputError, match=rf"must have a positive spacing, got {float(value)} along H"):
            read_volume(tmp_path / "a.nii")
        assert capfd.readouterr() == ("", "")

    def test_affine(self, tmp_path):
        patched(save(tmp_path / "a.nii"), 280, "<f", np.nan)
        with pytest.raises(InputError, match="must have a finite affine, got"):
            read_volume(tmp_path / "a.nii")

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
    def test_not_finite(self, value, tmp_path):
        values = VALUES.astype(np.float64)
        values[1, 2, 3] = value
        values[3, 2, 3] = np.nan
        with pytest.raises(
            InputError, match=r"must be finite in float32, got (nan|inf) at voxel \(d, h, w\) = \(3, 2, 1\);"
        ):
            read_volume(save(tmp_path / "a.nii", values))
        values = np.stack([VALUES, values], 3)
        with pytest.raises(InputError, match=r"at voxel \(d, h, w\) = \(3, 2, 1\) of channel 1;"):
            read_volume(save(tmp_path / "a.nii", values), note=[].append)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                np.zeros((4, 5), np.float32),
                r"three axes, or four with channels, got the shape \(4, 5\); read a",
            ),
            (np.zeros((4, 5, 6, 2, 3), np.float32), r"got the shape \(4, 5, 6, 2, 3\)"),
            (np.zeros((4, 5, 6), np.complex64), "holds complex numbers; save their magnitude"),
            (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "holds colours; convert it"),
        ],
    )
    def test_kinds(self, values, message, tmp_path):
        with pytest.raises(InputError, match=message):
            read_volume(save(tmp_path / "a.nii", values))

    def test_missing_extra(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.nii")
        monkeypatch.setitem(sys.modules, "nibabel", None)
        with pytest.raises(InputError) as error:
            read_volume(path)
        assert str(error.value) == 'reading .nii needs nibabel: pip install "hdcrf[volumes]"'


class TestWrite:
    LABELS = np.random.default_rng(1).integers(0, 3, (6, 5, 4))

    @pytest.fixture
    def like(self, tmp_path):
        return read_volume(save(tmp_path / "a.nii.gz", cal_max=900, intent_code=1002))

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_labels_lie_where_the_volume_does(self, suffix, like, tmp_path):
        image = written(tmp_path, write_volume_labels, self.LABELS, like, suffix)
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj), self.LABELS.transpose(2, 1, 0))
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert image.header.get_zooms() == (2, 1.5, 3)
        for code in ("qform_code", "sform_code", "xyzt_units"):
            assert image.header[code] == like._image.header[code]
        # What described the intensities is gone.
        assert (image.header["cal_max"], image.header["intent_code"]) == (0, 0)
        again = read_volume(tmp_path / f"out{suffix}", like=like)
        np.testing.assert_array_equal(again.intensities[0], self.LABELS)

    @pytest.mark.parametrize(
        ("highest", "lowest", "dtype"),
        [
            (255, 0, np.uint8),
            (256, 0, np.int16),
            (65535, 0, np.uint16),
            (65536, 0, np.int32),
            (2**32 - 1, 0, np.uint32),
            (127, -1, np.int8),
            (128, -1, np.int16),
        ],
    )
    def test_smallest_type(self, highest, lowest, dtype, like, tmp_path):
        labels = np.full((6, 5, 4), lowest, np.int64)
        labels[1, 2, 3] = highest
        image = written(tmp_path, write_volume_labels, labels, like)
        assert image.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asarray(image.dataobj), labels.T)

    def test_marginals(self, like, tmp_path):
        marginals = np.random.default_rng(0).random((3, 6, 5, 4))
        image = written(tmp_path, write_volume_marginals, marginals, like)
        assert image.shape == (4, 5, 6, 3)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(
            np.asarray(image.dataobj), marginals.transpose(3, 2, 1, 0).astype(np.float32)
        )
        np.testing.assert_array_equal(image.affine, AFFINE)
        again = read_volume(tmp_path / "out.nii.gz", like=like, note=[].append)
        np.testing.assert_array_equal(again.intensities, marginals.astype(np.float32))

    def test_from_four_axes_and_nifti_2(self, tmp_path):
        values = np.zeros((4, 5, 6, 2), np.float32)
        save(tmp_path / "a.nii", values, kind=nibabel.Nifti2Image)
        like = read_volume(tmp_path / "a.nii", note=[].append)
        image = written(tmp_path, write_volume_labels, self.LABELS, like)
        assert isinstance(image, nibabel.Nifti2Image)
        assert image.shape == (4, 5, 6)
        np.testing.assert_array_equal(image.affine, AFFINE)

    def test_equal_volumes_make_equal_files(self, like):
        first, second = io.BytesIO(), io.BytesIO()
        write_volume_labels(first, self.LABELS, like)
        write_volume_labels(second, self.LABELS, like)
        assert first.getvalue() == second.getvalue()

    def test_wrong_arguments(self, like):
        for labels in (self.LABELS.T, self.LABELS / 2):
            with pytest.raises(
                ValueError, match=r"`labels` must be integers of the volume's shape \(6, 5, 4\)"
            ):
                write_volume_labels(io.BytesIO(), labels, like)
        with pytest.raises(ValueError, match="`labels` must fit in 32 bits, got 0 to 4294967296"):
            write_volume_labels(io.BytesIO(), self.LABELS * 2**31, like)
        with pytest.raises(ValueError, match=r"`marginals` must have the shape \(K, 6, 5, 4\), got"):
            write_volume_marginals(io.BytesIO(), self.LABELS.astype(np.float32), like)
