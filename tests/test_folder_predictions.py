"""Predictions of a folder: labels as PNG, probabilities as NumPy and TIFF files, and what is refused."""

import logging
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hdcrf.files import InputError
from hdcrf.folders import predictions
from hdcrf.folders.predictions import read_labels, read_prediction
from hdcrf.image_files import _without_limit, read_photo
from hdcrf.potentials import logits_from_labels, logits_from_probabilities
from hdcrf.starts import start_from_annotation
from hdcrf.thread_warnings import collected_warnings

SHAPE = (24, 36)


@pytest.fixture(scope="session")
def probabilities():
    drawn = torch.randn(*SHAPE, 5, generator=torch.Generator().manual_seed(1))
    return torch.softmax(2 * drawn, 2).numpy()


@pytest.fixture
def notes():
    return []


@pytest.fixture
def read(notes):
    return lambda path, **options: read_prediction(
        path, SHAPE, **({"gt_prob": 0.7, "note": notes.append} | options)
    )


def write_one_by_one(path, pages):
    """Write a TIFF file whose pages say nothing of each other."""
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, contiguous=False)


def stripes(*values):
    """Return labels (H, W) in columns of those values."""
    return np.array(values)[np.arange(SHAPE[1]) * len(values) // SHAPE[1]] + np.zeros((SHAPE[0], 1), int)


class TestLabels:
    @pytest.mark.parametrize("kind", ["palette", "grey", "16-bit"])
    def test_values_are_those_of_the_picture(self, kind, read, tmp_path):
        values = (3, 7, 0) if kind != "16-bit" else (3, 700, 0)
        labels = stripes(*values)
        image = Image.fromarray(labels.astype(np.uint16 if kind == "16-bit" else np.uint8))
        colours = np.arange(24, dtype=np.uint8).reshape(8, 3)
        if kind == "palette":
            image.putpalette(colours.tobytes())
        image.save(tmp_path / "a.png")
        start = read(tmp_path / "a.png")
        np.testing.assert_array_equal(start.values, sorted(values))
        np.testing.assert_array_equal(start.values[start.labels], labels)
        expected = logits_from_labels(torch.from_numpy(start.labels)[None], 3)[0]
        torch.testing.assert_close(start.logits, expected, rtol=0, atol=0)
        if kind == "palette":
            np.testing.assert_array_equal(start.palette[:8], colours)
        else:
            assert start.palette is None

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_grey_of_few_bits_is_not_spread(self, bits, read, tmp_path):
        labels = stripes(0, 1, (1 << bits) - 1)
        palette = Image.fromarray(labels.astype(np.uint8))
        palette.putpalette(bytes(range(48)))
        palette.save(tmp_path / "a.png", bits=bits)
        content = bytearray((tmp_path / "a.png").read_bytes())
        assert (content[24], content[25]) == (bits, 3)
        content[25] = 0  # grey
        header = bytes(content[12:29])
        content[29:33] = zlib.crc32(header).to_bytes(4, "big")
        where = content.index(b"PLTE") - 4
        del content[where : where + 12 + int.from_bytes(content[where : where + 4], "big")]
        (tmp_path / "a.png").write_bytes(content)
        start = read(tmp_path / "a.png")
        np.testing.assert_array_equal(start.values[start.labels], labels)

    def test_unknown(self, read, tmp_path):
        Image.fromarray(stripes(0, 1, 9, 255).astype(np.uint8)).save(tmp_path / "a.png")
        start = read(tmp_path / "a.png", unknown=(255, 9))
        np.testing.assert_array_equal(start.values, (0, 1))
        np.testing.assert_array_equal(start.labels, stripes(0, 1, -1, -1))
        with pytest.raises(InputError, match="all labels are unknown"):
            read(tmp_path / "a.png", unknown=(0, 1, 9, 255))

    def test_number_of_labels_given(self, read, tmp_path):
        Image.fromarray(stripes(0, 2, 255).astype(np.uint8)).save(tmp_path / "a.png")
        start = read(tmp_path / "a.png", unknown=(255,), num_labels=4)
        np.testing.assert_array_equal(start.values, range(4))
        np.testing.assert_array_equal(start.labels, stripes(0, 2, -1))
        assert start.logits.shape == (4, *SHAPE)
        with pytest.raises(InputError, match="has label 255, but there are 4 labels, from 0 to 3"):
            read(tmp_path / "a.png", num_labels=4)
        with pytest.raises(InputError, match="all labels are unknown"):
            read(tmp_path / "a.png", unknown=(0, 2, 255), num_labels=4)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda a: Image.fromarray(np.dstack([a] * 3)).save("a.png"), "of kind 'RGB', in which labels"),
            (lambda a: Image.fromarray(a).save("a.png", format="JPEG"), "is JPEG, not PNG"),
            (lambda a: Image.fromarray(a[:20]).save("a.png"), "is 36 x 20 pixels, but the photo is 36 x 24"),
            (lambda a: open("a.png", "wb").close(), "prediction .*a.png is empty; save it again"),
            (lambda a: Path("a.png").write_text("a"), "not a picture in a format that is known"),
        ],
    )
    def test_refused(self, make, message, read, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        make(stripes(0, 1).astype(np.uint8))
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.png")

    def test_gt_prob_no_better_than_chance(self, read, tmp_path):
        Image.fromarray(stripes(0, 1).astype(np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match=r"a\.png: `gt_prob` must lie between 1/2"):
            read(tmp_path / "a.png", gt_prob=0.4)

    @pytest.mark.parametrize(("low", "high"), [(0, 9), (-3, 4), (0, 1 << 40), (1 << 15, 1 << 16)])
    def test_labels_are_numbered_in_order(self, low, high):
        annotation = np.random.default_rng(0).choice(np.linspace(low, high, 7).astype(np.int64), (30, 40))
        start = start_from_annotation("labels", annotation, (), 0.7)
        values, numbers = np.unique(annotation, return_inverse=True)
        np.testing.assert_array_equal(start.values, values)
        np.testing.assert_array_equal(start.labels, numbers.reshape(annotation.shape))


class TestProbabilities:
    def check(self, start, probabilities, atol=0.0):
        expected = logits_from_probabilities(torch.from_numpy(probabilities), dim=2).movedim(2, 0)
        torch.testing.assert_close(start.logits, expected, rtol=0, atol=atol)
        np.testing.assert_array_equal(start.values, range(5))
        assert start.logits.dtype == torch.float32
        assert not start.annotated

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_numpy(self, suffix, read, tmp_path, probabilities, notes):
        path = tmp_path / f"a.{suffix}"
        np.save(path, probabilities) if suffix == "npy" else np.savez(
            path, other=1, probabilities=probabilities
        )
        start = read(path)
        self.check(start, probabilities)
        np.testing.assert_array_equal(start.labels, probabilities.argmax(2))
        assert notes == []

    def test_half_precision(self, read, tmp_path, probabilities, notes):
        half = probabilities.astype(np.float16)
        np.save(tmp_path / "a.npy", half)
        self.check(read(tmp_path / "a.npy"), half.astype(np.float32))
        assert "float16 converted to float32" in notes[0]

    @pytest.mark.parametrize("layout", ["pages", "one page", "planes", "by another program", "one by one"])
    def test_tiff(self, layout, read, tmp_path, probabilities, notes):
        path, first = tmp_path / "a.tif", np.ascontiguousarray(probabilities.transpose(2, 0, 1))
        if layout == "by another program":
            pages = [Image.fromarray(page) for page in first]
            pages[0].save(path, save_all=True, append_images=pages[1:])
        elif layout == "one by one":
            write_one_by_one(path, first)
        else:
            array = probabilities if layout == "one page" else first
            planar = {"one page": "contig", "planes": "separate"}.get(layout)
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig=planar, compression="zlib")
        self.check(read(path), probabilities)
        assert notes == []

    @pytest.mark.parametrize(("count", "ignored"), [(255, 255), (256, None)])
    def test_255_is_void_where_it_is_no_label(self, count, ignored, read, tmp_path):
        np.save(tmp_path / "a.npy", np.full((*SHAPE, count), 1 / count, np.float32))
        start = read(tmp_path / "a.npy")
        assert start.ignored(None) == ignored
        assert start.ignored(7) == 7

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("suffix", ["npy", "tif"])
    def test_in_steps(self, dtype, suffix, read, tmp_path, probabilities, notes):
        most = np.iinfo(dtype).max
        steps = np.round(probabilities * most).astype(dtype)
        if suffix == "npy":
            np.save(tmp_path / "a.npy", steps)
        else:
            tifffile.imwrite(tmp_path / "a.tif", steps.transpose(2, 0, 1), photometric="minisblack")
        scaled = steps / np.float32(most)
        self.check(read(tmp_path / f"a.{suffix}"), scaled / scaled.sum(2, keepdims=True), atol=1e-6)
        assert f"{np.dtype(dtype)} taken as steps of 1/{most}" in notes[0]

    def test_steps_of_many_labels(self, read, tmp_path):
        """Rounding 64 probabilities to 8 bits may change their sum by an eighth."""
        drawn = np.random.default_rng(0).dirichlet(np.ones(64), SHAPE)
        np.save(tmp_path / "a.npy", np.round(drawn * 255).astype(np.uint8))
        assert torch.isfinite(read(tmp_path / "a.npy").logits).all()

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(SHAPE, np.int64), r"holds labels, int64 \(24, 36\); save these as PNG"),
            (np.full((*SHAPE, 5), 9, np.uint8), "must sum to 1 over the labels"),
            (np.zeros((*SHAPE, 5), np.uint8), "must sum to 1 over the labels"),
            (np.zeros((*SHAPE, 600), np.uint8), "must sum to 1 over the labels"),
            (np.ones((*SHAPE, 5), np.float32), "must sum to 1 over the labels"),
            (np.zeros((5, *SHAPE), np.float32), r"the labels come first here: save p.transpose\(1, 2, 0\)"),
            (np.zeros((*SHAPE, 0), np.float32), "must have shape"),
            (np.full((*SHAPE, 1), np.nan, np.float32), "must be finite"),
        ],
    )
    def test_refused(self, array, message, read, tmp_path):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.npy")

    def test_tiff_of_another_size(self, read, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 24, 24), np.float32), photometric="minisblack")
        with pytest.raises(InputError, match="must have a page of 24 rows and 36 columns for each label"):
            read(tmp_path / "a.tif")

    @pytest.mark.parametrize("lacking", ["imagecodecs", "compression"])
    def test_tiff_whose_decoder_is_missing(self, lacking, read, tmp_path, probabilities, monkeypatch):
        """What tifffile raises then depends on the compression."""

        def decode(_):
            raise (ModuleNotFoundError if lacking == "compression" else ValueError)(f"no module {lacking}")

        monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", decode)
        tifffile.imwrite(tmp_path / "a.tif", probabilities.transpose(2, 0, 1), photometric="minisblack")
        with pytest.raises(InputError, match=r"pip install imagecodecs, or save it without compression"):
            read(tmp_path / "a.tif")

    @pytest.mark.parametrize("suffix", ["npy", "png"])
    def test_rows_and_columns_swapped(self, suffix, read, tmp_path, probabilities):
        """As they are of a network that did not turn the photo upright."""
        turned = probabilities.transpose(1, 0, 2)
        np.save(tmp_path / "a.npy", turned)
        Image.fromarray(turned.argmax(2).astype(np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="upright"):
            read(tmp_path / f"a.{suffix}")

    @pytest.mark.parametrize("share", [0, 0.05, 0.2, 0.5, 0.6, 0.9])  # Pillow: at the end of a page, in one
    @pytest.mark.parametrize("program", ["pillow", "tifffile", "one by one"])
    def test_truncated_tiff(self, share, program, read, tmp_path, probabilities):
        """A file that ends before its last pages is not taken for one of fewer labels."""
        pages = [Image.fromarray(page) for page in np.ascontiguousarray(probabilities.transpose(2, 0, 1))]
        if program == "pillow":
            pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        elif program == "one by one":
            write_one_by_one(tmp_path / "a.tif", map(np.asarray, pages))
        else:
            tifffile.imwrite(tmp_path / "a.tif", np.stack(pages), photometric="minisblack")
        content = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"a\.tif cannot be read: "):
            read(tmp_path / "a.tif")

    def test_bytes_of_what_is_in_a_file(self, tmp_path, probabilities):
        size = probabilities.nbytes
        even = np.full_like(probabilities, 0.2)
        np.save(tmp_path / "a.npy", probabilities)
        np.savez_compressed(tmp_path / "a.npz", probabilities=even, names=np.arange(3))
        tifffile.imwrite(
            tmp_path / "a.tif", even.transpose(2, 0, 1), photometric="minisblack", compression="zlib"
        )
        write_one_by_one(tmp_path / "b.tif", np.ascontiguousarray(even.transpose(2, 0, 1)))
        Image.fromarray(probabilities.argmax(2).astype(np.uint8)).save(tmp_path / "a.png")
        found = {path.name: predictions.array_bytes(path) for path in sorted(tmp_path.iterdir())}
        assert found.pop("a.png") == 0
        assert found.pop("a.npy") - size in range(64, 257)  # with its header
        assert found.pop("a.npz") - size in range(64, 257)
        assert found == {"a.tif": size, "b.tif": size}
        for name in ("a.npz", "a.tif"):
            (tmp_path / name).write_bytes(b"damaged")
            assert predictions.array_bytes(tmp_path / name) == 7
        assert predictions.array_bytes(tmp_path / "missing.npy") == 0

    def test_other_suffix(self, read, tmp_path):
        with pytest.raises(
            InputError, match=r"must be a \.png, \.npy, \.npz, \.tif or \.tiff file, got \.jpg"
        ):
            read(tmp_path / "a.jpg")


class TestReadLabels:
    def test_png_and_npy(self, tmp_path):
        labels = stripes(0, 4, 255)
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "a.png")
        np.save(tmp_path / "a.npy", labels.astype(np.int16) - 1)
        np.testing.assert_array_equal(read_labels("truth", tmp_path / "a.png", SHAPE), labels)
        np.testing.assert_array_equal(read_labels("truth", tmp_path / "a.npy", SHAPE), labels - 1)
        assert read_labels("truth", tmp_path / "a.png", SHAPE).dtype == np.int64

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(SHAPE), "truth .* must hold integers, got float64"),
            (np.zeros((9, 9), int), r"must have shape \(H, W\) = \(24, 36\)"),
            (np.full(SHAPE, 2**63, np.uint64), "goes up to 9223372036854775808"),
        ],
    )
    def test_refused(self, array, message, tmp_path):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=message):
            read_labels("truth", tmp_path / "a.npy", SHAPE)


class TestThreads:
    def test_what_tifffile_logs_is_taken_down_only_while_a_file_is_read(self, read, tmp_path, probabilities):
        logger = logging.getLogger("tifffile")
        handlers = list(logger.handlers)
        tifffile.imwrite(tmp_path / "a.tif", probabilities.transpose(2, 0, 1), photometric="minisblack")
        with predictions._refused_complaints():
            read(tmp_path / "a.tif")
            assert len(logger.handlers) == len(handlers) + 1
        assert logger.handlers == handlers

    def test_what_is_the_process_s_is_put_back(self, tmp_path):
        """Pillow's limit and the handling of warnings belong to all threads."""
        values = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
        for index in range(8):
            Image.fromarray(values).save(tmp_path / f"{index}.png")
        limit, filters, show = Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning
        notes = {index: [] for index in range(8)}

        def read(index):
            for _ in range(20):
                read_photo(tmp_path / f"{index}.png", note=notes[index].append)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
        assert limit == Image.MAX_IMAGE_PIXELS
        assert warnings.filters == filters
        assert warnings.showwarning is show
        assert all(len(of_file) == 20 for of_file in notes.values())

    def test_the_limit_is_lifted_until_the_last_has_left(self):
        with _without_limit():
            with _without_limit():
                pass
            assert Image.MAX_IMAGE_PIXELS is None
        assert Image.MAX_IMAGE_PIXELS is not None

    def test_warnings_of_a_block_in_a_block(self):
        with collected_warnings() as outer:
            with collected_warnings() as inner:
                warnings.warn("inner", stacklevel=1)
            warnings.warn("outer", stacklevel=1)
        assert (outer, inner) == (["outer"], ["inner"])

    def test_each_thread_has_its_own_warnings(self):
        def warn(index):
            with collected_warnings() as messages:
                for number in range(50):
                    warnings.warn(f"{index} {number}", stacklevel=1)
            return messages

        with ThreadPoolExecutor(8) as pool:
            for index, messages in enumerate(pool.map(warn, range(8))):
                assert messages == [f"{index} {number}" for number in range(50)]
        with pytest.warns(UserWarning, match="seen"):
            warnings.warn("seen", stacklevel=1)
