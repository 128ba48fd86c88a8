"""Arrays in and out: what is converted and what is refused."""

import os
import zipfile

import numpy as np
import pytest

from hdcrf.array_files import read_array, read_probabilities, write_array
from hdcrf.files import InputError

SHAPE = (6, 8)
RGB = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.fixture
def notes():
    return []


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
        with pytest.raises(InputError, match=r"floating-point numbers, got (uint8|bool)") as error:
            self.read(tmp_path / "p.npy")
        assert "--" not in str(error.value)  # not every caller has the same options, or any

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

    def test_missing_folder_and_suffix(self, tmp_path):
        (tmp_path / "p.txt").write_text("0.5")
        with pytest.raises(InputError, match=r"must be a \.npy or \.npz"):
            self.read(tmp_path / "p.txt")
        with pytest.raises(InputError, match="does not exist"):
            self.read(tmp_path / "p.npy")
        with pytest.raises(InputError, match="is a folder"):
            self.read(tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPZ"])
def test_write(suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    with path.open("wb") as file:
        write_array(file, RGB / 255, "marginals", suffix)
    np.testing.assert_array_equal(read_array("marginals", path, "marginals"), RGB / 255)
