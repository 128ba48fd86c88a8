"""Pictures in and out: what is converted and what is refused."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hdcrf import image_files
from hdcrf.files import InputError
from hdcrf.image_files import (
    picture_size_and_palette,
    read_annotation,
    read_label_picture,
    read_photo,
    write_label_values,
    write_labels,
    write_picture,
)

SHAPE = (6, 8)
RGB = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def png(width, height, depth, colour_type, rows):
    """A PNG made by hand, for kinds that Pillow does not write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


@pytest.fixture
def notes():
    return []


class TestPhoto:
    def read(self, path, notes, **options):
        photo = read_photo(path, note=notes.append, **options)
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3
        return photo

    def test_rgb_is_read_as_it_is_without_a_note(self, tmp_path, notes):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), RGB)
        assert notes == []

    def test_the_result_may_be_written_to(self, tmp_path, notes):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        assert self.read(tmp_path / "a.png", notes).flags.writeable

    def test_transparency_is_ignored(self, tmp_path, notes):
        alpha = GREY[..., None] // 2
        Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), RGB)
        assert "transparency is ignored" in notes[0]

    def test_palette(self, tmp_path, notes):
        image = Image.fromarray(GREY % 5)
        colours = RGB.reshape(-1, 3)[:5]
        image.putpalette(colours.tobytes())
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), colours[GREY % 5])

    def test_transparent_palette(self, tmp_path, notes):
        image = Image.fromarray(GREY % 5)
        colours = RGB.reshape(-1, 3)[:5]
        image.putpalette(colours.tobytes())
        image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255, 255]))
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), colours[GREY % 5])
        assert "transparency is ignored" in notes[0]

    def test_grey_is_repeated(self, tmp_path, notes):
        Image.fromarray(GREY).save(tmp_path / "a.png")
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), np.repeat(GREY[..., None], 3, 2))
        assert "grey repeated" in notes[0]

    def test_black_and_white(self, tmp_path, notes):
        Image.fromarray(GREY > 127).save(tmp_path / "a.png")
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes)[..., 1], 255 * (GREY > 127))

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bit_grey_is_scaled(self, suffix, tmp_path, notes):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(self.read(tmp_path / f"a.{suffix}", notes)[..., 2], GREY)
        assert "16-bit" in notes[0]

    def test_sixteen_bit_rgb_keeps_the_upper_bits(self, tmp_path, notes):
        values = (RGB.astype(np.uint16) * 256 + 17).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        (tmp_path / "a.png").write_bytes(png(SHAPE[1], SHAPE[0], 16, 2, rows))
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), RGB)
        assert "16 bits a channel" in notes[0]

    def test_cmyk(self, tmp_path, notes):
        Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.tif")
        np.testing.assert_array_equal(self.read(tmp_path / "a.tif", notes), RGB)
        assert "CMYK" in notes[0]

    def test_first_of_several_frames(self, tmp_path, notes):
        first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
        first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
        np.testing.assert_array_equal(self.read(tmp_path / "a.tif", notes), RGB)
        assert "first of its frames" in notes[0]

    def test_orientation_is_applied(self, tmp_path, notes):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to look right
        Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), np.rot90(RGB, -1))
        assert "upright" in notes[0]

    def test_orientation_upright_needs_no_note(self, tmp_path, notes):
        exif = Image.Exif()
        exif[0x0112] = 1
        Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
        self.read(tmp_path / "a.png", notes)
        assert notes == []

    @pytest.mark.parametrize(
        "array", [RGB[..., 0].astype(np.float32) / 255, GREY.astype(np.int32) * 1000 - 5]
    )
    def test_numbers_that_are_no_photo(self, array, tmp_path, notes):
        Image.fromarray(array).save(tmp_path / "a.tif")
        with pytest.raises(InputError, match=r"scale it to 0\.\.255"):
            self.read(tmp_path / "a.tif", notes)

    def test_larger_than_pillow_allows_is_read_with_a_note(self, tmp_path, notes, monkeypatch):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        monkeypatch.setattr(image_files, "LARGE", 10)
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), RGB)
        assert "is large: 8 x 6" in notes[0]
        assert Image.MAX_IMAGE_PIXELS == 10

    def test_too_large_is_refused_before_it_is_decoded(self, tmp_path, notes):
        side = 30_000
        (tmp_path / "a.png").write_bytes(png(side, side, 1, 0, bytes(side * (side // 8 + 1))))
        limit = Image.MAX_IMAGE_PIXELS
        with pytest.raises(InputError, match="30000 x 30000 = 900 megapixels, more than the 100 that"):
            self.read(tmp_path / "a.png", notes, most_pixels=100_000_000)
        assert limit == Image.MAX_IMAGE_PIXELS

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_truncated(self, suffix, share, tmp_path, notes):
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
        content = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"a format that is known|cannot be read"):
            self.read(tmp_path / f"a.{suffix}", notes)

    def test_empty(self, tmp_path, notes):
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(InputError, match=r"photo .*a\.png is empty; save it again"):
            self.read(tmp_path / "a.png", notes)

    @pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(64)])
    def test_not_a_picture(self, content, tmp_path, notes):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a format that is known|cannot be read"):
            self.read(tmp_path / "a.png", notes)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    @pytest.mark.timeout(20)
    def test_pipes_are_not_waited_for(self, tmp_path, notes):
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(InputError, match="is not an ordinary file"):
            self.read(tmp_path / "a.png", notes)

    def test_missing_and_folder(self, tmp_path, notes):
        with pytest.raises(InputError, match="does not exist"):
            self.read(tmp_path / "a.png", notes)
        with pytest.raises(InputError, match="does not exist"):
            self.read(tmp_path / ("a" * 300), notes)
        with pytest.raises(InputError, match="is a folder"):
            self.read(tmp_path, notes)

    def test_notes_are_warnings_by_default(self, tmp_path):
        Image.fromarray(GREY).save(tmp_path / "a.png")
        with pytest.warns(UserWarning, match="grey repeated"):
            read_photo(tmp_path / "a.png")


class TestSizeAndPalette:
    def test_of_any_size(self, tmp_path, monkeypatch):
        drawn = Image.fromarray(GREY % 3)
        drawn.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
        drawn.save(tmp_path / "a.png")
        Image.fromarray(GREY).save(tmp_path / "b.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # beyond twice of which Pillow raises
        shape, palette = picture_size_and_palette(tmp_path / "a.png")
        assert shape == SHAPE
        np.testing.assert_array_equal(palette[:3], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        assert picture_size_and_palette(tmp_path / "b.png") == (SHAPE, None)

    def test_none(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match=r"output .*a\.png is not a picture in a format"):
            picture_size_and_palette(tmp_path / "a.png", role="output")
        with pytest.raises(InputError, match="does not exist"):
            picture_size_and_palette(tmp_path / "b.png")


class TestAnnotation:
    COLOURS = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0)], dtype=np.uint8)
    LABELS = np.arange(48).reshape(SHAPE) % 3

    def read(self, path, notes):
        return read_annotation(path, SHAPE, note=notes.append)

    def test_rgb_and_palette_agree(self, tmp_path, notes):
        drawn = self.COLOURS[self.LABELS]
        Image.fromarray(drawn).save(tmp_path / "a.png")
        image = Image.fromarray(self.LABELS.astype(np.uint8))
        image.putpalette(self.COLOURS.tobytes())
        image.save(tmp_path / "b.png")
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), drawn)
        np.testing.assert_array_equal(self.read(tmp_path / "b.png", notes), drawn)
        assert notes == []

    def test_transparent_is_unknown(self, tmp_path, notes):
        drawn = self.COLOURS[self.LABELS]
        alpha = np.where(self.LABELS == 1, 0, 100).astype(np.uint8)
        Image.fromarray(np.concatenate([drawn, alpha[..., None]], 2)).save(tmp_path / "a.png")
        expected = np.where((self.LABELS == 1)[..., None], 0, drawn)
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), expected)
        assert "transparent pixels are unknown" in notes[0]

    def test_transparent_palette_entry_is_unknown(self, tmp_path, notes):
        image = Image.fromarray(self.LABELS.astype(np.uint8))
        image.putpalette(self.COLOURS.tobytes())
        image.save(tmp_path / "a.png", transparency=2)
        expected = self.COLOURS[np.where(self.LABELS == 2, 0, self.LABELS)]
        np.testing.assert_array_equal(self.read(tmp_path / "a.png", notes), expected)

    def test_wrong_size(self, tmp_path, notes):
        Image.fromarray(RGB[:-1]).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="is 8 x 5 pixels, but the photo is 8 x 6"):
            self.read(tmp_path / "a.png", notes)

    def test_all_black(self, tmp_path, notes):
        Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="all black"):
            self.read(tmp_path / "a.png", notes)

    def test_all_transparent(self, tmp_path, notes):
        Image.fromarray(np.concatenate([RGB, 0 * RGB[..., :1]], 2)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="all black"):
            self.read(tmp_path / "a.png", notes)

    def test_sixteen_bit(self, tmp_path, notes):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="8-bit RGB or palette"):
            self.read(tmp_path / "a.png", notes)

    @pytest.mark.parametrize("count", [256, 257])
    def test_limit_of_colours(self, count, tmp_path, notes):
        codes = np.arange(1, 301).clip(max=count).reshape(15, 20)
        drawn = np.stack([codes // 256, codes % 256, 0 * codes], 2).astype(np.uint8)
        Image.fromarray(drawn).save(tmp_path / "a.png")
        if count == 256:
            read_annotation(tmp_path / "a.png", (15, 20), note=notes.append)
            assert "has 256 colours" in notes[0]
        else:
            with pytest.raises(InputError, match=r"has 257 colours.* without anti-aliasing, as PNG"):
                read_annotation(tmp_path / "a.png", (15, 20), note=notes.append)


class TestWrite:
    @pytest.mark.parametrize("count", [1, 2, 16, 256])
    def test_labels_with_a_palette(self, count, tmp_path):
        labels = (np.arange(48) * 7 % count).reshape(SHAPE)
        colours = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
        with (tmp_path / "a.png").open("wb") as file:
            write_labels(file, labels, colours)
        with Image.open(tmp_path / "a.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), labels)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colours[labels])

    def test_many_labels_as_sixteen_bit_grey(self, tmp_path):
        labels = np.arange(300).reshape(15, 20)
        with (tmp_path / "a.png").open("wb") as file:
            write_labels(file, labels, np.zeros((300, 3), np.uint8))
        with Image.open(tmp_path / "a.png") as image:
            assert image.mode.startswith("I")
            np.testing.assert_array_equal(np.asarray(image), labels)

    @pytest.mark.parametrize(("labels", "count"), [([[3]], 3), ([[-1]], 3), ([[0]], 65537)])
    def test_labels_that_do_not_fit(self, labels, count, tmp_path):
        with (
            (tmp_path / "a.png").open("wb") as file,
            pytest.raises(ValueError, match=r"labels.*, got"),
        ):
            write_labels(file, np.array(labels), np.zeros((count, 3), np.uint8))

    def test_picture(self, tmp_path):
        for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG")):
            with (tmp_path / "a").open("wb") as file:
                write_picture(file, RGB[:, ::-1], suffix)
            with Image.open(tmp_path / "a") as image:
                assert image.format == kind
                assert image.size == SHAPE[::-1]
                if kind == "PNG":
                    np.testing.assert_array_equal(np.asarray(image), RGB[:, ::-1])

    @pytest.mark.parametrize("most", [1, 9, 255, 256, 65535])
    @pytest.mark.parametrize("colours", [None, 2, 256])
    def test_values_of_another_picture(self, most, colours, tmp_path):
        """A value beyond the palette stays, too; above 255 there is none."""
        if colours is not None and most > 255:
            pytest.skip("a palette has 256 colours")
        values = np.array([[0, 1, most], [most, 0, 0]])
        palette = None if colours is None else np.arange(3 * colours).astype(np.uint8).reshape(-1, 3)
        with open(tmp_path / "a.png", "wb") as file:
            write_label_values(file, values, palette)
        read, read_palette = read_label_picture("labels", tmp_path / "a.png", (2, 3))
        np.testing.assert_array_equal(read, values)
        if palette is None:
            assert read_palette is None
        else:
            np.testing.assert_array_equal(read_palette[: len(palette)], palette)
