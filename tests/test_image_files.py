"""Pictures and arrays in and out: what is converted, what is refused, and that nothing is half-written."""

import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from hdcrf import image_files
from hdcrf.image_files import (
    InputError,
    NotPutBackError,
    check_outputs,
    read_annotation,
    read_array,
    read_photo,
    read_probabilities,
    whole_files,
    write_array,
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

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(64)])
    def test_not_a_picture(self, content, tmp_path, notes):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a format that is known|cannot be read"):
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


class TestProbabilities:
    GOOD = np.full((*SHAPE, 3), 1 / 3, np.float32)

    def read(self, path, notes=None):
        return read_probabilities(path, SHAPE, note=[].append if notes is None else notes.append)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
    def test_npy(self, dtype, tmp_path, notes):
        np.save(tmp_path / "p.npy", self.GOOD.astype(dtype))
        array = self.read(tmp_path / "p.npy", notes)
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, self.GOOD)
        assert notes == []

    def test_half_precision_is_converted_with_a_note(self, tmp_path, notes):
        np.save(tmp_path / "p.npy", self.GOOD.astype(np.float16))
        assert self.read(tmp_path / "p.npy", notes).dtype == np.float32
        assert "float16 converted to float32" in notes[0]

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "one.npz", whatever=self.GOOD)
        np.savez_compressed(tmp_path / "two.npz", other=np.zeros(3), probabilities=self.GOOD)
        np.testing.assert_array_equal(self.read(tmp_path / "one.npz"), self.GOOD)
        np.testing.assert_array_equal(self.read(tmp_path / "two.npz"), self.GOOD)

    @pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(2), "b": np.zeros(3)}])
    def test_npz_without_the_array(self, arrays, tmp_path):
        np.savez(tmp_path / "p.npz", **arrays)
        with pytest.raises(InputError, match=r"single array or one named 'probabilities', got: (a, b|none)"):
            self.read(tmp_path / "p.npz")

    @pytest.mark.parametrize("array", [GREY, np.full((*SHAPE, 3), 85, np.uint8), GREY > 3])
    def test_not_floating(self, array, tmp_path):
        np.save(tmp_path / "p.npy", array)
        with pytest.raises(InputError, match=r"floating-point numbers, got (uint8|bool)"):
            self.read(tmp_path / "p.npy")

    def test_objects_are_never_loaded(self, tmp_path):
        np.save(tmp_path / "p.npy", np.array([{}, []], dtype=object), allow_pickle=True)
        np.savez(tmp_path / "p.npz", probabilities=np.array([{}], dtype=object))
        for name in ("p.npy", "p.npz"):
            with pytest.raises(InputError, match="objects are not loaded"):
                self.read(tmp_path / name)

    @pytest.mark.parametrize("shape", [(6, 8), (8, 6, 3), (6, 8, 0), (1, 6, 8, 3)])
    def test_wrong_shape(self, shape, tmp_path):
        np.save(tmp_path / "p.npy", np.zeros(shape, np.float32))
        with pytest.raises(InputError, match=r"\(H, W, K\) = \(6, 8, K\)"):
            self.read(tmp_path / "p.npy")

    def test_labels_first(self, tmp_path):
        np.save(tmp_path / "p.npy", self.GOOD.transpose(2, 0, 1))
        with pytest.raises(InputError, match=r"transpose\(1, 2, 0\)"):
            self.read(tmp_path / "p.npy")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, value, tmp_path):
        array = self.GOOD.copy()
        array[2, 3, 1] = value
        np.save(tmp_path / "p.npy", array)
        with pytest.raises(InputError, match=rf"got {value} at index \(2, 3, 1\)"):
            self.read(tmp_path / "p.npy")

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    @pytest.mark.parametrize("share", [0, 0.2, 0.9])
    def test_truncated(self, suffix, share, tmp_path):
        path = tmp_path / f"p.{suffix}"
        with path.open("wb") as file:
            write_array(file, np.random.default_rng(0).random((*SHAPE, 3)), "probabilities", path.suffix)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError):
            self.read(path)

    def test_member_that_is_no_array(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
            archive.writestr("a.txt", "0.5")
        with pytest.raises(InputError, match=r"single array or one named 'probabilities', got: a\.txt"):
            self.read(tmp_path / "p.npz")

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_header_that_promises_too_much(self, suffix, tmp_path):
        path = tmp_path / "p.npy"
        np.save(path, self.GOOD)
        damaged = path.read_bytes().replace(b"(6, 8, 3), }" + 11 * b" ", b"(6, 80000000000, 3), }" + b" ")
        path.write_bytes(damaged)
        if suffix == "npz":
            with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
                archive.write(path, "probabilities.npy")
        with pytest.raises(InputError, match=r"it is damaged, as its header promises 5760000000000 bytes"):
            self.read(tmp_path / f"p.{suffix}")

    def test_an_error_that_says_nothing_is_named(self, tmp_path, monkeypatch):
        def load(*_, **__):
            raise NotImplementedError

        np.save(tmp_path / "p.npy", self.GOOD)
        monkeypatch.setattr(np, "load", load)
        with pytest.raises(InputError, match="cannot be read: NotImplementedError;"):
            self.read(tmp_path / "p.npy")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    @pytest.mark.timeout(20)
    def test_pipes_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "p.npy")
        with pytest.raises(InputError, match="is not an ordinary file"):
            self.read(tmp_path / "p.npy")
        with pytest.raises(InputError, match="is not an ordinary file"):
            read_photo(tmp_path / "p.npy")

    def test_missing_folder_and_suffix(self, tmp_path):
        (tmp_path / "p.txt").write_text("0.5")
        with pytest.raises(InputError, match=r"must be a \.npy or \.npz"):
            self.read(tmp_path / "p.txt")
        with pytest.raises(InputError, match="does not exist"):
            self.read(tmp_path / "p.npy")
        with pytest.raises(InputError, match="is a folder"):
            self.read(tmp_path)


class TestOutputs:
    def check(self, path, suffixes=(".png",), **inputs):
        check_outputs({"--output": (path, suffixes)}, inputs)

    def test_sound_output_leaves_nothing_behind(self, tmp_path):
        self.check(tmp_path / "a.png")
        self.check(tmp_path / "a.PNG")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", ["a.txt", "a", ".png", "a.png.gz"])
    def test_unknown_suffix(self, name, tmp_path):
        with pytest.raises(InputError, match=r"must end in \.png"):
            self.check(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
    def test_jpeg_is_refused_with_the_reason(self, name, tmp_path):
        with pytest.raises(InputError, match="lossy"):
            self.check(tmp_path / name)
        self.check(tmp_path / name, (".png", ".jpg", ".jpeg"))

    def test_folder(self, tmp_path):
        (tmp_path / "a.png").mkdir()
        with pytest.raises(InputError, match="is a folder"):
            self.check(tmp_path / "a.png")

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match="does not exist; make it first"):
            self.check(tmp_path / "b" / "a.png")

    def test_name_too_long(self, tmp_path):
        with pytest.raises(InputError, match="cannot be used: File name too long; name another"):
            self.check(tmp_path / f"{'o' * 300}.png")

    def test_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "b").touch()
        with pytest.raises(InputError, match="is not a folder"):
            self.check(tmp_path / "b" / "a.png")

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
    def test_folder_not_writable(self):
        with pytest.raises(InputError, match="nothing can be written in"):
            check_outputs({"--output": (image_files.Path("/proc/self/a.png"), (".png",))}, {})

    @pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
    def test_a_device_is_not_replaced(self, tmp_path):
        (tmp_path / "a.png").symlink_to("/dev/null")
        with pytest.raises(InputError, match="not an ordinary file"):
            self.check(tmp_path / "a.png")

    def test_input_as_output(self, tmp_path):
        (tmp_path / "a.png").touch()
        (tmp_path / "link.png").symlink_to("a.png")
        for name in ("a.png", "link.png"):
            with pytest.raises(InputError, match="also the file of PHOTO"):
                self.check(tmp_path / name, PHOTO=tmp_path / "a.png")
        self.check(tmp_path / "b.png", PHOTO=tmp_path / "a.png", other=None)

    def test_one_file_for_two_outputs(self, tmp_path):
        path, same = tmp_path / "a.png", tmp_path / "." / "b" / ".." / "a.png"
        (tmp_path / "b").mkdir()
        with pytest.raises(InputError, match="also the file of --output"):
            check_outputs({"--output": (path, (".png",)), "--overlay": (same, (".png",))}, {})


class TestWholeFiles:
    def test_files_appear_together(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        with whole_files([tmp_path / "a", tmp_path / "b"]) as (first, second):
            first.write(b"1")
            second.write(b"2")
            assert (tmp_path / "a").read_bytes() == b"old"
            assert not (tmp_path / "b").exists()
        assert sorted(os.listdir(tmp_path)) == ["a", "b"]
        assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"1", b"2")

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_none_appears_when_one_fails(self, error, tmp_path):
        (tmp_path / "a").write_bytes(b"old")

        def write():
            with whole_files([tmp_path / "a", tmp_path / "b"]) as (first, _):
                first.write(b"1")
                raise error

        with pytest.raises(error):
            write()
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"

    @pytest.mark.parametrize("links", [True, False], ids=["links", "no_links"])
    @pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
    def test_all_are_put_back_when_one_cannot_be_moved(self, old, links, monkeypatch, tmp_path):
        def no_link(source, destination):
            if os.path.exists(source):
                raise PermissionError("no links here")
            raise FileNotFoundError

        def replace(source, destination, _replace=os.replace):
            if str(source).endswith(".part") and str(destination).endswith("c"):
                raise OSError("no space left")
            _replace(source, destination)

        if not links:
            monkeypatch.setattr(os, "link", no_link)
        monkeypatch.setattr(os, "replace", replace)
        names = ("a", "b", "c")
        for name in names if old else ():
            (tmp_path / name).write_text(f"old {name}")

        def write():
            with whole_files([tmp_path / name for name in names]) as files:
                for file in files:
                    file.write(b"new")

        with pytest.raises(OSError, match="no space left"):
            write()
        left = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert left == ({name: f"old {name}" for name in names} if old else {})

    def test_what_cannot_be_put_back_is_kept_and_named(self, monkeypatch, tmp_path):
        def replace(source, destination, _replace=os.replace):
            if str(source).endswith(".old") or str(destination).endswith("b"):
                raise OSError("no space left")
            _replace(source, destination)

        monkeypatch.setattr(os, "replace", replace)
        (tmp_path / "a").write_text("old a")
        with (
            pytest.raises(
                NotPutBackError, match=r"a could not be put back .*: what was in it is now in (.*)$"
            ) as error,
            whole_files([tmp_path / "a", tmp_path / "b"]),
        ):
            pass
        (kept,) = (path for path in tmp_path.iterdir() if path.name != "a")
        assert str(error.value).endswith(str(kept))
        assert kept.read_text() == "old a"

    @pytest.mark.parametrize("links", [True, False], ids=["links", "no_links"])
    def test_interrupt_while_a_file_is_set_aside(self, links, monkeypatch, tmp_path):
        def interrupted(function):
            def call(*arguments):
                monkeypatch.undo()
                function(*arguments)
                raise KeyboardInterrupt

            return call

        def no_link(*_):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", interrupted(os.link) if links else no_link)
        if not links:
            monkeypatch.setattr(os, "replace", interrupted(os.replace))
        (tmp_path / "a").write_text("old a")
        with pytest.raises(KeyboardInterrupt), whole_files([tmp_path / "a"]):
            pass
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a"}

    def test_none_is_left_when_one_cannot_be_opened(self, tmp_path):
        with pytest.raises(OSError), whole_files([tmp_path / "a", tmp_path / "missing" / "b"]):
            pass
        assert os.listdir(tmp_path) == []

    def test_link_stays_one(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "link").symlink_to("a")
        with whole_files([tmp_path / "link"]) as (file,):
            file.write(b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "a").read_bytes() == b"new"

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        (tmp_path / "plain").touch()
        with whole_files([tmp_path / "a"]):
            pass
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


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

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPZ"])
    def test_array(self, suffix, tmp_path):
        path = tmp_path / f"m{suffix}"
        with path.open("wb") as file:
            write_array(file, RGB / 255, "marginals", suffix)
        np.testing.assert_array_equal(read_array("marginals", path, "marginals"), RGB / 255)
