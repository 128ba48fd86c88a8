"""The page on a folder, opened in headless Chromium."""

import re
import shutil

import pytest
from report_files import HOSTILE, make_outcome, written

from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.pairs import Pair

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GAINS = {"frame_2": 0.1, "frame_10": 0.25, "über <b>": 0.2, 'quote"s': 0.05, "worse": -0.3}


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


@pytest.fixture
def folder(tmp_path):
    return [make_outcome(tmp_path, stem, gain=gain) for stem, gain in GAINS.items()]


class TestInABrowser:
    def test_an_image_whose_truth_failed_is_one_row(self, open_page, folder):
        first = next(iter(GAINS))
        reason = "it cannot be read: " + 30 * "a long reason "
        page = open_page(folder, [Failure(first, "its ground truth is damaged"), Failure("broken", reason)])
        assert names(page) == [*GAINS, "broken"]
        assert page.locator("#failures dt").all_inner_texts() == [first, "broken"]
        page.get_by_role("button", name="Failed 2").click()
        assert names(page) == [first, "broken"]
        # A long reason does not squeeze the name's column so that its heading breaks within the word.
        heights = page.locator("#heads th").evaluate_all("heads => heads.map(head => head.offsetHeight)")
        assert heights[0] == min(heights)

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
        page = open_page([outcome], [Failure("2" + HOSTILE, HOSTILE)], title=HOSTILE)
        assert page.title() == HOSTILE
        assert names(page) == [HOSTILE, "2" + HOSTILE]
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
