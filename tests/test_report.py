"""The page on a folder as a file: its pictures, its numbers, and that nothing in it is markup."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from report_files import HOSTILE, data_of, make_outcome, without_a_pixel, written

from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.pairs import Pair
from hdcrf.pictures import palette


def pixels(uri):
    """Return an image of the page as RGBA."""
    from base64 import b64decode

    return np.asarray(Image.open(io.BytesIO(b64decode(uri.split(",")[1]))).convert("RGBA"))


class TestFile:
    def test_pictures_show_the_files(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", values=(0, 3, 5), probabilities=True)
        page, held = written([outcome])
        assert held == "1 image, 1 with pictures"
        (card,) = data_of(page)["cards"]
        assert card["problems"] == []
        assert card["ratio"] == pytest.approx(80 / 60, abs=1e-4)
        before = np.load(outcome.pair.prediction).argmax(2)
        after = np.asarray(Image.open(outcome.output))
        truth = np.asarray(Image.open(outcome.pair.truth))
        colours = palette(6)
        for name, labels in (("before", before), ("after", after), ("truth", truth)):
            np.testing.assert_array_equal(pixels(card[name])[..., :3], colours[labels])
            assert (pixels(card[name])[..., 3] == 255).all()
        differences = pixels(card["differences"])
        np.testing.assert_array_equal(differences[..., 3] > 0, before != after)
        mended = (before != after) & (after == truth)
        assert mended.any()
        assert (differences[mended][:, :3] == (86, 180, 233)).all()
        assert card["mended"] == pytest.approx(mended.mean(), abs=1e-5)
        photo = np.asarray(Image.open(outcome.pair.image)).astype(int)
        assert np.abs(pixels(card["photo"])[..., :3] - photo).mean() < 3  # of 255; JPEG: measured 1.2

    def test_colours_are_the_outputs(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", values=(0, 255))
        image = Image.open(outcome.output)
        image.load()
        image.putpalette([10, 20, 30] * 255 + [200, 100, 50])
        image.save(outcome.output)
        data = data_of(written([outcome])[0])
        assert {label: colour for label, colour, *_ in data["labels"]} == {0: "#0a141e", 255: "#c86432"}
        shown = pixels(data["cards"][0]["truth"])
        assert {tuple(colour) for colour in shown.reshape(-1, 4).tolist()} == {
            (10, 20, 30, 255),
            (200, 100, 50, 255),
        }

    def test_what_says_nothing_is_transparent(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", values=(0, 1, 2))
        truth = np.asarray(Image.open(outcome.pair.truth)).copy()
        truth[:30] = 255
        Image.fromarray(truth).save(outcome.pair.truth)
        page, _ = written([outcome], unknown={2})
        (card,) = data_of(page)["cards"]
        assert (pixels(card["truth"])[:30, :, 3] == 0).all()
        assert (pixels(card["truth"])[30:, :, 3] == 255).all()
        before = np.asarray(Image.open(outcome.pair.prediction))
        np.testing.assert_array_equal(pixels(card["before"])[..., 3] == 0, before == 2)

    def test_what_became_of_each_pixel(self, tmp_path):
        """Broken where it was right, and merely changed where the truth says nothing."""
        outcome = make_outcome(tmp_path, "a", gain=-0.3)
        before, after, truth = (
            np.asarray(Image.open(path)).astype(int)
            for path in (outcome.pair.prediction, outcome.output, outcome.pair.truth)
        )
        truth[:30] = 255
        Image.fromarray(truth.astype(np.uint8)).save(outcome.pair.truth)
        (card,) = data_of(written([outcome], unknown={2})[0])["cards"]
        changed = np.where(before == 2, -1, before) != after
        shown = pixels(card["differences"])
        np.testing.assert_array_equal(shown[..., 3] > 0, changed)
        assert (shown[:30][changed[:30]][:, :3] == (240, 228, 66)).all()
        broken = changed & (before == truth) & (before != 2)
        assert broken.any()
        assert (shown[broken][:, :3] == (213, 94, 0)).all()
        assert card["broken"] == pytest.approx(broken.mean(), abs=1e-5)

    def test_large_photos_are_made_small(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", shape=(1200, 900))
        (card,) = data_of(written([outcome])[0])["cards"]
        for name in ("photo", "before", "after", "truth", "differences"):
            assert pixels(card[name]).shape == (480, 360, 4)

    def test_a_pixel_wide(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", shape=(2000, 3))
        (card,) = data_of(written([outcome])[0])["cards"]
        assert pixels(card["after"]).shape == (480, 1, 4)

    def test_files_that_are_gone(self, tmp_path):
        outcomes = [make_outcome(tmp_path, name) for name in ("a", "bb", "ccc", "dddd", "eeeee")]
        outcomes[0].pair.image.unlink()
        outcomes[1].pair.prediction.write_bytes(b"no picture")
        outcomes[2].output.unlink()
        outcomes[3].pair.truth.write_bytes(outcomes[3].pair.truth.read_bytes()[:60])
        cards = {card["row"]: card for card in data_of(written(outcomes)[0])["cards"]}
        expected = [
            {"photo", "before", "after", "truth", "differences"},
            {"before", "differences"},
            {"after", "differences"},
            {"truth"},
            set(),
        ]
        for row, missing in enumerate(expected):
            there = set(cards[row]) & {"photo", "before", "after", "truth", "differences"}
            assert there == {"photo", "before", "after", "truth", "differences"} - missing
            assert len(cards[row]["problems"]) == (1 if missing else 0)
        assert "does not exist" in cards[0]["problems"][0]

    def test_those_that_changed_most_are_shown(self, tmp_path):
        outcome = make_outcome(tmp_path, "a")
        outcomes = [
            Outcome(Pair(str(i), *(outcome.pair.image,) * 2, None), outcome.output, i % 50 / 50)
            for i in range(100)
        ]
        data = data_of(written(outcomes)[0])
        assert [card["row"] for card in data["cards"]] == [
            row for i in range(49, 37, -1) for row in (i, i + 50)
        ]

    def test_many_labels(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", shape=(40, 2000), values=tuple(range(1000)))
        data = data_of(written([outcome])[0])
        assert len(data["labels"]) == 1000
        colours = {tuple(colour) for colour in pixels(data["cards"][0]["truth"])[0].tolist()}
        assert len(colours) == 480  # of 2,000 columns, each of a label of its own

    def test_numbers(self, tmp_path):
        """None is rounded: the page does that, once."""
        outcome = make_outcome(tmp_path, "a", shape=(61, 83))
        data = data_of(written([outcome])[0])
        before, after = outcome.before, outcome.after
        expected = [before.mean_iou, after.mean_iou, before.mean_boundary_f, after.mean_boundary_f]
        assert data["rows"] == [["a", outcome.changed, 61 * 83, *expected]]
        assert data["scores"][0] == ["mean IoU", *expected[:2], expected[1] - expected[0]]
        for value, _, share, iou, boundary in data["labels"]:
            assert share == before.pixels[value] / (61 * 83)
            assert iou == [before.iou[value], after.iou[value], after.iou[value] - before.iou[value]]
            assert boundary[:2] == [before.boundary_f[value], after.boundary_f[value]]

    def test_ground_truth_that_counts_nowhere(self, tmp_path):
        """It is no ground truth to show, and nothing was mended or broken."""
        data = data_of(written([without_a_pixel(make_outcome(tmp_path, "a"))])[0])
        assert data["rows"][0][2:] == [0, None, None, None, None]
        assert data["labels"] == []
        (card,) = data["cards"]
        assert card["problems"] == []
        assert not {"truth", "mended", "broken"} & set(card)
        assert np.unique(pixels(card["differences"])[..., 3]).tolist() == [0, 255]

    def test_hints(self, tmp_path):
        outcome = make_outcome(tmp_path, "a")
        assert data_of(written([outcome])[0])["hints"] == []
        assert data_of(written([outcome], hints=["look <b>"])[0])["hints"] == ["look <b>"]

    def test_pictures_beyond_pillows_limit(self, tmp_path, monkeypatch):
        """Pillow refuses by an exception of its own, and the page comes after all the work."""
        outcome = make_outcome(tmp_path, "a")
        expected = data_of(written([outcome])[0])
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(outcome.output)
        assert data_of(written([outcome])[0]) == expected

    def test_nothing_from_outside_is_markup(self, tmp_path):
        outcome = make_outcome(tmp_path, HOSTILE)
        clean, _ = written([outcome.__class__(**{**vars(outcome), "pair": Pair("a", *[tmp_path] * 3)})])
        page, _ = written([outcome], [Failure(HOSTILE, HOSTILE)], title=HOSTILE)
        for text in ("<script", "</script", "<img"):
            # Only in the template, whose script speaks of no tags.
            assert page.lower().count(text) == clean.lower().count(text)
        assert data_of(page)["rows"][0][0] == HOSTILE
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)

    def test_names_that_are_no_text(self, tmp_path):
        # What Python makes of a file name that is not UTF-8.
        page, _ = written([make_outcome(tmp_path, "a\udcff")], title="b\udcff")
        assert data_of(page)["rows"][0][0] == "a\udcff"
        assert "<title>b?</title>" in page

    def test_many_images_are_a_small_file(self, tmp_path):
        one = make_outcome(tmp_path, "a")
        outcomes = [
            Outcome(
                Pair(f"image_{i:05}", *(one.pair.image,) * 3), one.output, i / 10_000, one.before, one.after
            )
            for i in range(10_000)
        ]
        page, _ = written(outcomes)
        assert len(page) < 3_000_000
