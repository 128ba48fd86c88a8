"""The page on a folder: opened in headless Chromium, with files of all kinds behind it."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from hdcrf.files import whole_files
from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.pairs import Pair
from hdcrf.folders.report import write_report
from hdcrf.folders.scores import score_labels
from hdcrf.image_files import write_labels, write_picture
from hdcrf.pictures import palette

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = """</script><img src=x onerror="alert(1)"><script>alert(2)</script>'"&amp;{{data}}"""
SETTINGS = {"appearance weight": "10", HOSTILE: HOSTILE}


def make_outcome(
    folder, stem, *, gain=0.2, shape=(60, 80), values=(0, 1, 2), probabilities=False, ground_truth=True
):
    """Write the files of an image of stripes, whose labels get better by so much."""
    drawn = np.random.default_rng([*map(ord, stem)])
    truth = np.array(values)[np.arange(shape[1]) * len(values) // shape[1]][None].repeat(shape[0], 0)
    wrong = np.array(values)[drawn.integers(0, len(values), shape)]
    chance = drawn.random(shape)
    before = np.where(chance < 0.3, wrong, truth)
    after = np.where(chance < 0.3 - gain, wrong, truth)
    safe = re.sub(r"[^\w-]", "_", stem) + str(len(stem))
    paths = [folder / f"{safe}_{name}.png" for name in ("photo", "before", "after", "truth")]
    if probabilities:
        paths[1] = paths[1].with_suffix(".npy")
    colours = palette(max(values) + 1)
    with whole_files(paths) as (photo, prediction, output, true):
        write_picture(photo, ramps(shape))
        if probabilities:
            np.save(prediction, np.eye(max(values) + 1, dtype=np.float32)[before])
        else:
            write_labels(prediction, before, colours)
        write_labels(output, after, colours)
        write_labels(true, truth, colours)
    pair = Pair(stem, paths[0], paths[1], paths[3] if ground_truth else None)
    scores = [score_labels(labels, truth) if ground_truth else None for labels in (before, after)]
    return Outcome(pair, paths[2], float((before != after).mean()), *scores)


def ramps(shape):
    """Return a photo (H, W, 3) in which colours change slowly."""
    down, right = (np.linspace(0, 255, length) for length in shape)
    channels = np.broadcast_arrays(down[:, None], right[None], (255 - down)[:, None])
    return np.stack(channels, 2).astype(np.uint8)


def written(outcomes, failures=(), *, title="A folder", **options):
    file = io.BytesIO()
    held = write_report(file, outcomes, failures, settings=SETTINGS, title=title, **options)
    return file.getvalue().decode(), held


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def pixels(uri):
    """Return an image of the page as RGBA."""
    from base64 import b64decode

    return np.asarray(Image.open(io.BytesIO(b64decode(uri.split(",")[1]))).convert("RGBA"))


class TestFile:
    """What is in the file, without a browser."""

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
        done = []
        data = data_of(written(outcomes, shown=6, progress=done.append)[0])
        assert [card["row"] for card in data["cards"]] == [49, 99, 48, 98, 47, 97]
        assert done == [1, 2, 3, 4, 5, 6]

    def test_many_labels(self, tmp_path):
        outcome = make_outcome(tmp_path, "a", shape=(40, 2000), values=tuple(range(1000)))
        data = data_of(written([outcome])[0])
        assert data["label_count"] == 1000
        assert len(data["labels"]) == 40
        colours = {tuple(colour) for colour in pixels(data["cards"][0]["truth"])[0].tolist()}
        assert len(colours) == 480  # of 2,000 columns, each of a label of its own

    def test_numbers(self, tmp_path):
        outcome = make_outcome(tmp_path, "a")
        data = data_of(written([outcome])[0])
        before, after = outcome.before, outcome.after
        expected = [before.mean_iou, after.mean_iou, before.mean_boundary_f, after.mean_boundary_f]
        assert data["rows"][0][2:] == pytest.approx(expected, abs=1e-5)
        name, *scores = data["scores"][0]
        assert name == "mean IoU"
        assert scores == pytest.approx([*expected[:2], expected[1] - expected[0]], abs=1e-5)

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


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Return what opens a report, and fails the test if anything went wrong in it."""
    complaints, requests, pages = [], [], []

    def opened(outcomes, failures=(), *, width=1200, title="A folder", **options):
        place = tmp_path / "report.html"
        place.write_bytes(written(outcomes, failures, title=title)[0].encode())
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(place.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    assert len(requests) == len(pages)  # each page alone
    assert all(url.startswith("file:///") for url in requests)


def names(page):
    return page.locator("#rows tr td:first-child").all_inner_texts()


GAINS = {"frame_2": 0.1, "frame_10": 0.25, "über <b>": 0.2, 'quote"s': 0.05, "worse": -0.3}


@pytest.fixture
def folder(tmp_path):
    return [make_outcome(tmp_path, stem, gain=gain) for stem, gain in GAINS.items()]


class TestInABrowser:
    def test_everything_is_shown(self, open_page, folder):
        page = open_page(folder, [Failure("broken", "photo broken.jpg cannot be read")], title="Ünder <i>")
        assert page.title() == page.locator("h1").inner_text() == "Ünder <i>"
        assert page.locator("#summary").inner_text() == "5 images refined · 4 improved · 1 worse · 1 failed"
        tiles = page.locator(".tile").all_inner_texts()
        assert [tile.splitlines()[0] for tile in tiles] == ["Mean IoU", "Mean boundary F", "Pixel accuracy"]
        assert page.locator("#bars li").count() == 3
        assert page.locator(".picture").count() == 5
        sizes = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
        assert len(sizes) == 5 * (5 + 1 + 3 + 2 + 2)
        assert min(sizes) > 0
        assert names(page) == [*GAINS, "broken"]
        assert "photo broken.jpg cannot be read" in page.locator("#failures").inner_text()
        assert "appearance weight" in page.locator("#setting-list").inner_text()
        # What a screen reader says of the chart.
        assert (
            page.get_by_role("img", name=re.compile("Gain in mean IoU.*From −.* to .* points")).count() == 1
        )
        assert page.locator("#histogram rect title").count() > 1

    def test_scores_are_those_of_the_folder(self, open_page, folder):
        page = open_page(folder)
        after = folder[0].after
        for outcome in folder[1:]:
            after += outcome.after
        value = page.locator(".tile .value").first.inner_text()
        assert float(value.rstrip("%")) == pytest.approx(100 * after.mean_iou, abs=0.051)
        bar = page.locator("#bars li").filter(has=page.locator("strong.key", has_text=re.compile("^1$")))
        assert f"→ {100 * after.iou[1]:.1f}" in bar.inner_text()
        page.get_by_role("button", name="Boundary F", exact=True).click()
        assert f"→ {100 * after.boundary_f[1]:.1f}" in bar.inner_text()

    def test_sort(self, open_page, folder):
        page = open_page(folder, [Failure("broken", "no")])
        for head, key in (
            ("Changed, %", lambda one: one.changed),
            ("IoU before", lambda one: one.before.mean_iou),
            ("IoU after", lambda one: one.after.mean_iou),
            ("IoU gain", lambda one: one.after.mean_iou - one.before.mean_iou),
            ("F before", lambda one: one.before.mean_boundary_f),
            ("F after", lambda one: one.after.mean_boundary_f),
            ("F gain", lambda one: one.after.mean_boundary_f - one.before.mean_boundary_f),
        ):
            ascending = [one.pair.stem for one in sorted(folder, key=key)]
            button = page.get_by_role("button", name=head, exact=True)
            button.click()
            assert names(page) == [*ascending[::-1], "broken"]
            assert (
                page.get_by_role("columnheader", name=head, exact=True).get_attribute("aria-sort")
                == "descending"
            )
            button.press("Enter")
            assert names(page) == [*ascending, "broken"]
            assert (
                page.get_by_role("columnheader", name=head, exact=True).get_attribute("aria-sort")
                == "ascending"
            )
        by_name = page.get_by_role("button", name="Image", exact=True)
        by_name.click()
        assert names(page) == ["broken", "frame_2", "frame_10", 'quote"s', "über <b>", "worse"]
        by_name.click()
        assert names(page)[0] == "worse"

    def test_images_without_scores_come_last(self, open_page, folder, tmp_path):
        single = make_outcome(tmp_path, "single", ground_truth=False)
        page = open_page([*folder[:2], single, *folder[2:]])
        assert "1 without ground truth" in page.locator("#summary").inner_text()
        by_gain = page.get_by_role("button", name="IoU gain", exact=True)
        for first in ("frame_10", "worse"):
            by_gain.click()
            assert (names(page)[0], names(page)[-1]) == (first, "single")

    def test_filter(self, open_page, folder):
        page = open_page(folder, [Failure("broken_frame", "no")])
        box = page.get_by_role("searchbox")
        box.fill("FRAME_")
        assert names(page) == ["frame_2", "frame_10"]
        assert page.locator("#count").inner_text() == "2 rows."
        box.fill("no such")
        assert names(page) == []
        box.fill("")
        for state, expected in (
            ("Improved 4", ["frame_2", "frame_10", "über <b>", 'quote"s']),
            ("Worse 1", ["worse"]),
            ("Failed 1", ["broken_frame"]),
            ("All 6", [*GAINS, "broken_frame"]),
        ):
            page.get_by_role("button", name=state).click()
            assert names(page) == expected
        page.get_by_role("button", name="Improved 4").click()
        box.fill("frame")
        assert names(page) == ["frame_2", "frame_10"]

    def test_slider_and_views(self, open_page, folder):
        page = open_page(folder)
        card = page.locator(".picture").first
        viewer, before = card.locator(".viewer"), card.locator(".viewer img.before")

        def shown_before():
            """Return how much of the width shows the labels before, in percent."""
            cut = before.evaluate("image => getComputedStyle(image).clipPath")
            return 100 - float(re.search(r"([\d.]+)%", cut)[1])

        assert shown_before() == 50
        slider = card.get_by_role("slider")
        slider.focus()
        slider.press("End")
        assert shown_before() == 100
        slider.press("Home")
        assert shown_before() == 0
        slider.press("ArrowRight")
        assert shown_before() == 1
        viewer.scroll_into_view_if_needed()
        place = viewer.bounding_box()
        middle = place["y"] + place["height"] / 2
        page.mouse.move(place["x"] + 0.2 * place["width"], middle)
        page.mouse.down()
        page.mouse.move(place["x"] + 0.75 * place["width"], middle)
        page.mouse.up()
        assert shown_before() == pytest.approx(75, abs=1)
        page.mouse.move(place["x"], middle)  # not pressed
        assert float(slider.input_value()) == pytest.approx(75, abs=1)

        seen = {}
        for view in ("Photo", "Compare", "Truth", "Differences"):
            card.get_by_role("button", name=view).click()
            assert card.get_by_role("button", name=view).get_attribute("aria-pressed") == "true"
            seen[view] = viewer.screenshot()
        assert len(set(seen.values())) == 4
        page.locator("#views").get_by_role("button", name="Truth").click()
        assert {one.get_attribute("data-view") for one in page.locator(".viewer").all()} == {"truth"}
        opaque = viewer.screenshot()
        page.locator("#opacity").fill("10")
        assert viewer.screenshot() != opaque

    def test_order_of_pictures(self, open_page, folder):
        page = open_page(folder)
        heads = page.locator(".picture h3")
        gains = {one.pair.stem: one.after.mean_iou - one.before.mean_iou for one in folder}
        changes = {one.pair.stem: one.changed for one in folder}
        assert heads.all_inner_texts() == sorted(GAINS, key=lambda stem: -changes[stem])
        page.locator("#order").select_option("gained")
        assert heads.all_inner_texts() == sorted(GAINS, key=lambda stem: -gains[stem])
        page.locator("#order").select_option("lost")
        assert heads.all_inner_texts() == sorted(GAINS, key=lambda stem: gains[stem])

    def test_hostile_names_do_nothing(self, open_page, tmp_path):
        outcome = make_outcome(tmp_path, HOSTILE)
        outcome.output.unlink()  # a message names the path too
        page = open_page([outcome], [Failure(HOSTILE, HOSTILE)], title=HOSTILE)
        assert page.title() == HOSTILE
        assert names(page) == [HOSTILE, HOSTILE]
        assert page.locator("h1").inner_text() == page.locator(".picture h3").inner_text() == HOSTILE
        assert page.locator("#failures dd").inner_text() == HOSTILE

    def test_the_policy_stops_other_scripts_and_requests(self, browser, tmp_path):
        page_text, _ = written([make_outcome(tmp_path, "a")])
        place = tmp_path / "report.html"
        added = (
            '<script>window.done = 1</script><img src="http://127.0.0.1:9/x.png" onerror="window.done = 2">'
        )
        place.write_text(page_text.replace("<main>", "<main>" + added), encoding="utf-8")
        page = browser.new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(place.as_uri())
        assert page.evaluate("window.done") is None
        assert sum("Content Security Policy" in text for text in complaints) >= 2
        assert page.locator(".tile").count() == 3
        page.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_on_a_phone(self, open_page, folder, tmp_path, scheme):
        long = make_outcome(tmp_path, "a_name_without_any_space_" * 6)
        failures = [Failure("b" * 200, "c" * 300)]
        page = open_page([*folder, long], failures, width=360, color_scheme=scheme, has_touch=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
        assert page.locator("#rows tr").first.is_visible()
        page.get_by_role("button", name="IoU gain", exact=True).click()
        assert names(page)[-2:] == ["worse", "b" * 200]

    def test_without_ground_truth(self, open_page, tmp_path):
        outcomes = [
            make_outcome(tmp_path, stem, gain=gain, ground_truth=False) for stem, gain in GAINS.items()
        ]
        page = open_page(outcomes)
        assert "no ground truth" in page.locator("#summary").inner_text()
        for gone in ("#scores", "#labels", "#failed", "#order-label"):
            assert not page.locator(gone).is_visible()
        assert page.locator("#heads th").all_inner_texts() == ["Image", "Changed, %"]
        assert page.locator("#spread-title").inner_text().startswith("Share of pixels that changed")
        assert page.locator(".picture").first.locator(".strip button").all_inner_texts() == [
            "Photo",
            "Compare",
            "Differences",
        ]

    def test_failures_alone(self, open_page):
        page = open_page([], [Failure("a", "not a picture"), Failure("b", "gone")])
        assert "2 failed" in page.locator("#summary").inner_text()
        assert names(page) == ["a", "b"]
        for gone in ("#scores", "#spread", "#labels", "#pictures"):
            assert not page.locator(gone).is_visible()

    def test_what_cannot_be_read_is_told(self, open_page, folder):
        folder[0].pair.image.unlink()
        folder[1].output.unlink()
        page = open_page(folder)
        problems = page.locator(".problem:visible").all_inner_texts()
        assert len(problems) == 2
        assert all("does not exist" in text for text in problems)

    def test_ten_thousand_images(self, open_page, tmp_path):
        one = make_outcome(tmp_path, "a")
        worse = one.after, one.before
        outcomes = [
            Outcome(
                Pair(f"image_{i}", *(one.pair.image,) * 3),
                one.output,
                i / 10_000,
                *(worse if i % 2 else (one.before, one.after)),
            )
            for i in range(10_000)
        ]
        page = open_page(outcomes)
        assert page.locator("#rows tr").count() == 200
        assert "200 of 10,000 rows" in page.locator("#count").inner_text()
        page.get_by_role("searchbox").fill("image_999")
        assert names(page) == ["image_999", *(f"image_{i}" for i in range(9990, 10_000))]
        page.get_by_role("searchbox").fill("")
        page.get_by_role("button", name="Changed, %").click()
        assert names(page)[:2] == ["image_9999", "image_9998"]
        page.get_by_role("button", name="Worse 5,000").click()
        assert names(page)[:2] == ["image_9999", "image_9997"]
        page.get_by_role("button", name="Show more").click()
        assert page.locator("#rows tr").count() == 1200
        assert page.locator(".picture").count() == 24

    def test_many_labels(self, open_page, tmp_path):
        values = tuple(range(1000))
        page = open_page([make_outcome(tmp_path, "a", shape=(40, 2000), values=values)])
        assert page.locator("#bars li").count() == 40
        assert "The 40 most frequent of 1,000 labels" in page.locator("#bars-note").inner_text()
