"""Pairs of files in folders: what belongs together, and what is said of what does not."""

import pytest

from hdcrf.files import InputError
from hdcrf.folders.pairs import find_pairs


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(**folders):
        for folder, names in folders.items():
            (tmp_path / folder).mkdir()
            for name in names.split():
                (tmp_path / folder / name).touch()
        return [tmp_path / folder for folder in folders]

    return make


@pytest.fixture
def notes():
    return []


class TestPairs:
    def test_by_stem_in_the_order_people_count(self, make, notes):
        images, predictions, truths = make(
            images="b.JPG c10.png c9.tif x.y.webp",
            predictions="c9.npy c10.TIFF b.png x.y.npz",
            truths="b.png c9.npy c10.png x.y.png",
        )
        pairs = find_pairs(images, predictions, truths, note=notes.append)
        assert [pair.stem for pair in pairs] == ["b", "c9", "c10", "x.y"]
        assert pairs[1].image == images / "c9.tif"
        assert pairs[1].prediction == predictions / "c9.npy"
        assert pairs[1].truth == truths / "c9.npy"
        assert notes == []
        assert find_pairs(images, predictions)[0].truth is None

    def test_hidden_files_other_files_and_folders_are_left_out(self, make, notes):
        images, predictions = make(images="a.png .b.png notes.txt", predictions="a.png .b.png b")
        (images / "c.png").mkdir()
        assert [pair.stem for pair in find_pairs(images, predictions, note=notes.append)] == ["a"]
        assert notes == []

    def test_notes_of_those_without_partner(self, make, notes):
        images, predictions, truths = make(
            images="a.png b.png k1.png k2.png k3.png k4.png", predictions="a.png b.png z.npy", truths="a.png"
        )
        assert len(find_pairs(images, predictions, truths, note=notes.append)) == 2
        assert notes == [
            "4 images have no prediction and are left out: k1.png, k2.png, k3.png …",
            "1 prediction has no image and is left out: z.npy",
            "1 of 2 images has no ground truth and is not scored: b.png",
        ]

    def test_notes_are_warnings_by_default(self, make):
        images, predictions = make(images="a.png b.png", predictions="a.png")
        with pytest.warns(UserWarning, match="1 image has no prediction"):
            find_pairs(images, predictions)

    def test_capital_letters(self, make, notes):
        images, predictions = make(images="a.png B.png", predictions="a.png b.png")
        assert len(find_pairs(images, predictions, note=notes.append)) == 1
        assert "1 image has no prediction (capital letters count)" in notes[0]


class TestRefused:
    def refuse(self, *folders):
        with pytest.raises(InputError) as caught:
            find_pairs(*folders)
        return str(caught.value)

    def test_no_pair(self, make):
        images, predictions = make(images="a_rgb.png b_rgb.png", predictions="A_RGB.png c.png d.png e.png")
        assert self.refuse(images, predictions) == (
            f"no image has a prediction: the names must be the same up to the suffix, and images {images} "
            f"has a_rgb.png, b_rgb.png, but predictions {predictions} has A_RGB.png, c.png, d.png …; rename "
            "one side (capital letters count)"
        )

    def test_no_truth(self, make):
        folders = make(images="a.png", predictions="a.png", truths="a_gt.png")
        assert "the images are a.png, but ground truth" in self.refuse(*folders)

    @pytest.mark.parametrize("side", [0, 1])
    def test_two_of_one_stem(self, make, side):
        names = ["a.png b.png", "a.png b.png"]
        names[side] = "a.png b.tif b.png"
        folders = make(images=names[0], predictions=names[1])
        message = self.refuse(*folders)
        assert f"{folders[side]} has two files of one name, b.png and b.tif" in message

    def test_folders_and_files(self, make, tmp_path):
        images, predictions = make(images="", predictions="a.jpg")
        assert "is empty; it should hold pictures" in self.refuse(images, predictions)
        (images / "train").mkdir()
        message = self.refuse(images, predictions)
        assert "holds only folders, such as train, and folders in it are not searched" in message
        (images / "a.png").touch()
        message = self.refuse(images, predictions)
        assert "holds no .png or .npy or .npz or .tif or .tiff files, only: .jpg; JPEG blurs" in message
        assert "does not exist; check the path" in self.refuse(images, tmp_path / "no")
        assert "is not a folder" in self.refuse(images / "a.png", predictions)

    def test_one_folder_twice(self, make):
        images, predictions = make(images="a.png", predictions="a.png")
        assert "is also the folder of the images" in self.refuse(images, images)
        assert "is also the folder of the predictions" in self.refuse(
            images, predictions, images / ".." / "predictions"
        )
