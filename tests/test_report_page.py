"""The page on a folder, opened in headless Chromium."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batch_folder import STEMS, succeed, write_folders
from PIL import Image
from report_files import HOSTILE, make_outcome, without_a_pixel, written

from hdcrf.folders.outcomes import Failure, Outcome
from hdcrf.folders.pairs import Pair
from hdcrf.folders.scores import LabelScores
from hdcrf.folders.tables import scores_table

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

    def opened(outcomes, failures=(), *, title="A folder", hints=(), **options):
        place = tmp_path / "report.html"
        place.write_bytes(written(outcomes, failures, title=title, hints=hints)[0].encode())
        return opened_file(place, **options)

    def opened_file(place, *, width=1200, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(place.as_uri())
        return page

    opened.file = opened_file
    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    assert len(requests) == len(pages)  # each page alone
    assert all(url.startswith("file:///") for url in requests)


def names(page):
    return page.locator("#rows tr td:first-child").all_inner_texts()


def summary(page):
    return page.locator("#summary").inner_text()


def name_lines(page):
    """Return the names of the table as they are broken into lines."""
    script = """cells => cells.map(cell => {
        const lines = [], range = document.createRange();
        const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        let last = null;
        for (let node = walk.nextNode(); node; node = walk.nextNode()) {
            for (let index = 0; index < node.length; index += 1) {
                range.setStart(node, index);
                range.setEnd(node, index + 1);
                const top = range.getBoundingClientRect().top;
                if (top !== last) lines.push("");
                lines[lines.length - 1] += node.data[index];
                last = top;
            }
        }
        return lines;
    })"""
    return page.locator("#rows tr td:first-child").evaluate_all(script)


def widths(page):
    return page.locator("#heads th").evaluate_all("heads => heads.map(head => head.offsetWidth)")


def score_of(labels):
    """Return scores of labels 0, 1, …, each of so many pixels, of which so many are right."""
    right, pixels = np.array(labels, np.int64).T
    count = len(labels)
    return LabelScores(
        np.arange(count),
        np.diag(right),
        pixels - right,
        np.zeros(count),
        np.zeros(count, np.int64),
    )


@pytest.fixture
def folder(tmp_path):
    return [make_outcome(tmp_path, stem, gain=gain) for stem, gain in GAINS.items()]


class TestInABrowser:
    def test_an_image_whose_truth_failed_is_one_row(self, open_page, folder):
        first = next(iter(GAINS))
        folder[0] = replace(folder[0], before=None, after=None)
        reason = "it cannot be read: " + 30 * "a long reason "
        page = open_page(folder, [Failure(first, "its ground truth is damaged"), Failure("broken", reason)])
        assert names(page) == [*GAINS, "broken"]
        assert page.locator("#failures dt").all_inner_texts() == [first, "broken"]
        page.get_by_role("button", name="Failed 2").click()
        assert names(page) == [first, "broken"]
        # What changed there is known, and why it has no scores is said.
        changed, why = page.locator("#rows tr").first.locator("td:not(:first-child)").all_inner_texts()
        assert changed == f"{100 * folder[0].changed:.1f}"
        assert why == "its ground truth is damaged"
        assert page.locator("#rows tr").last.locator("td:not(:first-child)").all_inner_texts() == [
            reason.strip()
        ]

    def test_the_summary_adds_up(self, open_page, folder, tmp_path):
        unscored = [
            make_outcome(tmp_path, "without", ground_truth=False),
            without_a_pixel(make_outcome(tmp_path, "void")),
            replace(make_outcome(tmp_path, "damaged"), before=None, after=None),
        ]
        same = make_outcome(tmp_path, "same", gain=0)
        failures = [Failure("damaged", "its ground truth is damaged"), Failure("broken", "no")]
        page = open_page([*folder, *unscored, same], failures)
        assert summary(page) == (
            "9 images refined · 4 improved · 1 worse · 1 the same · 3 not scored · "
            "2 failures, 1 of ground truth alone"
        )
        assert page.locator("#states button").all_inner_texts() == [
            "All 10",
            "Improved 4",
            "Worse 1",
            "Same 1",
            "Not scored 3",
            "Failed 2",
        ]
        page.get_by_role("button", name="Not scored 3").click()
        assert names(page) == ["without", "void", "damaged"]
        assert page.locator("#rows .reason").all_inner_texts() == [
            "no ground truth",
            "no pixel of its ground truth counts",
            "its ground truth is damaged",
        ]

    def test_ground_truth_that_counts_nowhere(self, open_page, tmp_path):
        outcomes = [without_a_pixel(make_outcome(tmp_path, stem)) for stem in ("a", "b")]
        page = open_page(outcomes, hints=["nothing is scored"])
        assert summary(page).startswith(
            "2 images refined · no pixel of the ground truth counts: what changed"
        )
        assert page.locator("#hints").inner_text() == "Hint: nothing is scored"
        for gone in ("#scores", "#labels", "#order-label"):
            assert not page.locator(gone).is_visible()
        assert page.locator("#states button").all_inner_texts() == ["All 2"]
        facts = page.locator(".picture > p").all_inner_texts()
        assert len(facts) == 2
        for fact in facts:
            assert fact.endswith("% changed · no pixel of its ground truth counts")

    def test_ground_truth_that_failed_everywhere(self, open_page, tmp_path):
        page = open_page(
            [make_outcome(tmp_path, "a", ground_truth=False)], [Failure("a", "damaged"), Failure("b", "gone")]
        )
        assert "no ground truth that can be used: what changed" in summary(page)
        assert re.fullmatch(r"[\d.]+% changed; damaged", page.locator("#rows .reason").first.inner_text())
        assert page.locator("#rows .reason").last.inner_text() == "gone"

    def test_hints_are_beside_the_scores(self, open_page, folder):
        page = open_page(folder, hints=["the mean is over fewer labels", HOSTILE])
        assert page.locator("#hints p").all_inner_texts() == [
            "Hint: the mean is over fewer labels",
            "Hint: " + HOSTILE,
        ]
        scores, hints = (page.locator(place).bounding_box() for place in ("#tiles", "#hints"))
        assert 0 < hints["y"] - (scores["y"] + scores["height"]) < 40

    def test_everything_is_shown(self, open_page, folder):
        page = open_page(folder, [Failure("broken", "photo broken.jpg cannot be read")], title="Ünder <i>")
        assert page.title() == page.locator("h1").inner_text() == "Ünder <i>"
        assert summary(page) == "5 images refined · 4 improved · 1 worse · 1 failure"
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
        # How many images a bar is, without a mouse.
        assert page.locator("#histogram .many").all_text_contents() == ["0", "1"]

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
        assert "1 not scored" in summary(page)
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

    @pytest.mark.parametrize("ground_truth", [True, False])
    def test_nothing_is_wider_than_the_window(self, open_page, tmp_path, ground_truth):
        stems = ("street_scene_0000_leftImg8bit", "a_name_without_any_space_" * 6, "x" * 90)
        outcomes = [make_outcome(tmp_path, stem, ground_truth=ground_truth) for stem in stems]
        page = open_page(outcomes, [Failure("b" * 200, "c" * 300)], hints=["d" * 300])
        for width in (320, 360, 390, 700, 701, 715, 729, 760, 768, 1000, 1001, 1024, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            heads = page.locator("#heads th").evaluate_all(
                "all => all.map(one => [one.scrollWidth, one.clientWidth])"
            )
            assert all(inner <= outer for inner, outer in heads), width

    def test_names_in_the_table(self, open_page, folder, tmp_path):
        """They are on one line, or broken between their parts, and no row changes the columns."""
        stems = ["chelsea_101", "street_scene_0000_leftImg8bit", "frankfurt_000000_000294_leftImg8bit"]
        long = ["a_name_without_any_space_" * 6, "x" * 150]
        outcomes = [make_outcome(tmp_path, stem) for stem in (*stems, *long)]
        failures = [Failure("street_scene_0007_leftImg8bit", 20 * "a long reason "), Failure("b", "no")]
        page = open_page([*folder, *outcomes], failures, width=1280)
        one_line = [*GAINS, *stems, *(failure.stem for failure in failures)]
        lines = dict(zip(names(page), name_lines(page), strict=True))
        assert [lines[stem] for stem in one_line] == [[stem] for stem in one_line]
        assert [len(lines[stem]) for stem in long] == [4, 1]  # the latter ends in an ellipsis
        for name, title in page.locator("#rows td:first-child").evaluate_all(
            "cells => cells.map(cell => [cell.textContent, cell.title])"
        ):
            assert title == name
        for width, most in ((1280, 1), (768, 2), (390, 2)):
            page.set_viewport_size({"width": width, "height": 900})
            lines = dict(zip(names(page), name_lines(page), strict=True))
            for stem in (*one_line, long[0]):
                assert all(line[-1] in "_-" for line in lines[stem][:-1])
                assert len(lines[stem]) <= (most if stem != long[0] else 9)
            everything = widths(page)
            for state in ("Failed 2", "Worse 1", "All 12"):
                page.get_by_role("button", name=state).click()
                assert widths(page) == everything

    def test_long_pictures(self, open_page, tmp_path):
        """There is something to see of a few rows of pixels, and the slider's handle fits."""
        shapes = {"a": (3, 2000), "b": (1, 500), "c": (2000, 3), "d": (60, 800), "e": (60, 80)}
        outcomes = [make_outcome(tmp_path, stem, shape=shape) for stem, shape in shapes.items()]
        page = open_page(outcomes)
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 900})
            for stem, (height, wide) in shapes.items():
                card = page.get_by_role("article", name=stem, exact=True)
                box = card.locator(".viewer > .stack").bounding_box()
                assert min(box["width"], box["height"]) > 30
                long = max(height / wide, wide / height)
                fact = card.locator("> p").inner_text()
                assert ("than it is" in fact) == (long > 40)
                fit = card.locator(".viewer .photo").evaluate("image => getComputedStyle(image).objectFit")
                assert fit == ("fill" if long > 40 else "contain")
                if long < 6:
                    assert box["width"] / box["height"] == pytest.approx(wide / height, rel=0.01)

    def test_numbers_are_those_of_the_terminal(self, open_page, tmp_path):
        """Rounded once, and an exact half to the even digit."""
        drawn = np.random.default_rng(0)
        right = [(int(some), 10_000) for some in drawn.integers(1, 10_000, 30)]
        before = [(500_000, 1_000_000), (1225, 10_000), (1275, 10_000), (25, 10_000), (2500, 10_000), *right]
        after = [
            (507_499, 1_000_000),
            (2225, 10_000),
            (1300, 10_000),
            (50, 10_000),
            (2475, 10_000),
            *right[::-1],
        ]
        outcome = replace(make_outcome(tmp_path, "a"), before=score_of(before), after=score_of(after))
        page = open_page([outcome])
        page.locator("#bars-order").select_option("value")
        _, *lines = scores_table(outcome.before, outcome.after).split("\n\n")[1].splitlines()
        expected = [line.split() for line in lines]
        assert len(expected) == 35
        found = page.locator("#bars li .names").all_inner_texts()
        assert [
            [re.match(r"\d+", text)[0], *re.search(r"([\d.]+) → ([\d.]+)\s+[+−±]?([\d.]+)$", text).groups()]
            for text in found
        ] == [[label, first, second, gain.lstrip("+-")] for label, first, second, gain in expected]
        assert expected[0] == ["0", "50.0", "50.7", "+0.7"]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_on_paper(self, open_page, folder, scheme):
        """The colours are those for white, wherever it is printed from."""
        script = """['--good', '--bad', '--after', '--card', '--text'].map(
            name => getComputedStyle(document.documentElement).getPropertyValue(name))"""
        page = open_page(folder, color_scheme=scheme)
        on_screen = page.evaluate(script)
        page.emulate_media(media="print")
        colours = page.evaluate(script)
        assert colours == ["#0a7a50", "#bd3d0d", "#1668c1", "#fff", "#000"]
        assert (colours[:2] == on_screen[:2]) == (scheme == "light")
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
        assert not page.get_by_role("button", name="Show").first.is_visible()

    def test_without_ground_truth(self, open_page, tmp_path):
        outcomes = [
            make_outcome(tmp_path, stem, gain=gain, ground_truth=False) for stem, gain in GAINS.items()
        ]
        page = open_page(outcomes)
        assert "no ground truth" in summary(page)
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
        assert summary(page) == "0 images refined · 2 failures"
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
        values = tuple(range(150))
        outcome = make_outcome(tmp_path, "a", shape=(40, 2000), values=values)
        page = open_page([outcome])
        before, after, pixels = outcome.before.iou, outcome.after.iou, outcome.before.pixels

        def shown():
            return [int(text) for text in page.locator("#bars strong.key").all_inner_texts()]

        frequent = sorted(values, key=lambda label: -pixels[label])
        assert shown() == frequent[:40]
        assert page.locator("#bars-count").inner_text() == "40 of 150 labels shown."
        page.locator("#bars-order").select_option("gained")
        gained = sorted(frequent, key=lambda label: before[label] - after[label])
        assert shown() == gained[:40]
        page.get_by_role("button", name="Show all").click()
        assert shown() == gained
        assert page.locator("#bars-count").inner_text() == "150 of 150 labels shown."
        page.locator("#bars-order").select_option("lost")
        assert shown() == sorted(frequent, key=lambda label: after[label] - before[label])
        page.locator("#bars-order").select_option("value")
        assert shown() == list(values)
        page.get_by_role("button", name="Boundary F", exact=True).click()
        assert shown() == list(values)
        page.get_by_role("button", name="Show 40").click()
        assert shown() == list(range(40))

    def test_labels_without_a_gain_come_last(self, open_page, tmp_path):
        """Those that no result has any more."""
        outcome = make_outcome(tmp_path, "a", values=(0, 1, 2, 3))
        kept = replace(outcome, after=score_of([(80, 100)] * 3))
        page = open_page([kept])
        for order in ("gained", "lost"):
            page.locator("#bars-order").select_option(order)
            assert page.locator("#bars strong.key").all_inner_texts()[-1] == "3"
        assert "→ –" in page.locator("#bars li").last.inner_text()
        assert not page.locator("#bars-rest").is_visible()

    def test_of_the_command(self, open_page, tmp_path, monkeypatch):
        """What `hdcrf batch` itself writes, of a folder with a damaged photo and stray labels."""
        monkeypatch.chdir(tmp_path)
        write_folders()
        photo = Path(f"images/{STEMS[2]}.png")
        photo.write_bytes(photo.read_bytes()[:200])
        labels = Path(f"labels/{STEMS[0]}.png")
        with Image.open(labels) as image:
            values = np.array(image)
        values[0, :2] = 9
        Image.fromarray(values).save(labels)
        words = ("--ground-truth", "truth", "--report", "r.html")
        assert (
            "over 4 labels, and the one after over 3" in succeed(*words, predictions="labels", code=1).stderr
        )
        page = open_page.file(Path("r.html").resolve())
        assert page.title() == "Labels refined in out"
        assert summary(page).startswith("5 images refined · ")
        assert summary(page).endswith("1 failure")
        assert "over 4 labels, and the one after over 3" in page.locator("#hints").inner_text()
        sizes = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
        assert len(sizes) == 5 * 13
        assert min(sizes) > 0
        page.get_by_role("button", name="IoU gain", exact=True).click()
        gains = [text for text in page.locator("#rows td[data-name='IoU gain']").all_inner_texts()]
        numbers = [float(text.replace("−", "-").replace("±", "")) for text in gains]
        assert len(numbers) == 5
        assert numbers == sorted(numbers, reverse=True)
        assert names(page)[-1] == STEMS[2]
        page.get_by_role("searchbox").fill("A2")
        assert names(page) == [STEMS[2]]
        assert "cannot be read" in page.locator("#rows .reason").inner_text()
