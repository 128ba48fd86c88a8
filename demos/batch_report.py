"""What refining does to a folder of photos: the page that shows it.

    python demos/batch_report.py
    python demos/batch_report.py --screenshot report.png    # the page in a browser, as a picture

Makes a folder of crops of photos with true labels and with predictions like a network's: blurred, and now and
then wrong. Refines these, scores them before and after, and writes one page on it.

Needs `pip install "hdcrf[batch]" scikit-image`, which brings the photos; a screenshot needs Playwright and
Chromium.
"""

import importlib.util
import shutil
from pathlib import Path

import click
import numpy as np
from scipy.ndimage import gaussian_filter, zoom

import hdcrf
from hdcrf.files import whole_files
from hdcrf.folders import (
    Outcome,
    Pair,
    read_labels,
    read_prediction,
    score_labels,
    scores_table,
    total_scores,
    write_report,
)
from hdcrf.image_files import read_photo, write_labels, write_picture
from hdcrf.pictures import palette

HERE = Path(__file__).parent
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")  # come with scikit-image, without a download
LABELS = 5


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where everything goes; by default output/ beside this file.",
)
@click.option("--count", type=click.IntRange(1, 1000), default=24, help="How many crops there are.")
@click.option("--size", type=click.IntRange(32, 300), default=300, help="How high a crop is, in pixels.")
@click.option(
    "--screenshot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a picture of the page: .png.",
)
def main(out_dir: Path, count: int, size: int, screenshot: Path | None) -> None:
    """Refine a folder of predictions and show what that did."""
    folders = [out_dir / name for name in ("photos", "predictions", "truth", "refined")]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.ClickException(f"cannot make the folder {folder} ({error.strerror})") from error
    photos, predictions, truths, refined = folders
    pairs = make_folder(photos, predictions, truths, count, size)

    settings = {"appearance_weight": 4.0, "appearance_sigma_xy": 30.0, "appearance_sigma_rgb": 10.0}
    outcomes = [refine_pair(pair, refined / f"{pair.stem}.png", settings) for pair in pairs]
    click.echo(scores_table(*total_scores(outcomes)))

    page = out_dir / "report.html"
    with whole_files([page]) as (file,):
        shown = {name: str(value) for name, value in settings.items()}
        held = write_report(file, outcomes, [], settings=shown, title="Crops of four photos, refined")
    click.echo(f"{page} ({held})")
    if screenshot is not None:
        take_screenshot(page, screenshot)
        click.echo(screenshot)


def make_folder(photos: Path, predictions: Path, truths: Path, count: int, size: int) -> list[Pair]:
    """Write crops of photos, what is true of them, and what a network might predict; return the files."""
    from skimage import data

    random = np.random.default_rng(0)
    width = size * 4 // 3
    colours = palette(LABELS)
    scenes = {name: (photo := getattr(data, name)(), regions(photo)) for name in PHOTOS}
    pairs = []
    for number in range(count):
        name = PHOTOS[number % len(PHOTOS)]
        photo, labels = scenes[name]
        top, left = (
            int(random.integers(0, length - part + 1))
            for length, part in zip(labels.shape, (size, width), strict=True)
        )
        crop = (slice(top, top + size), slice(left, left + width))
        stem = f"{name}_{number // len(PHOTOS) + 1}"
        pair = Pair(stem, photos / f"{stem}.png", predictions / f"{stem}.npy", truths / f"{stem}.png")
        with whole_files([pair.image, pair.prediction, pair.truth]) as (image, prediction, truth):
            write_picture(image, photo[crop])
            np.save(prediction, predicted(labels[crop], random))
            write_labels(truth, labels[crop], colours)
        pairs.append(pair)
    return pairs


def regions(photo: np.ndarray) -> np.ndarray:
    """Return labels (H, W) of a photo: superpixels, by how bright they are."""
    from skimage.segmentation import slic

    superpixel = slic(photo, n_segments=150, compactness=8, start_label=0)
    brightness = np.bincount(superpixel.ravel(), photo.mean(2).ravel()) / np.bincount(superpixel.ravel())
    return np.digitize(brightness, np.linspace(0, 256, LABELS + 1)[1:-1])[superpixel]


def predicted(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return probabilities (H, W, K) float32: right in the large, blurred, and with wrong patches."""
    strength = random.uniform(0.8, 1.6)  # some photos are harder than others
    one_hot = np.eye(LABELS, dtype=np.float32)[labels]
    patches = random.standard_normal((labels.shape[0] // 8 + 1, labels.shape[1] // 8 + 1, LABELS))
    noise = zoom(patches, (8, 8, 1), order=1)[: labels.shape[0], : labels.shape[1]]
    grain = random.standard_normal(one_hot.shape)
    logits = 3 * gaussian_filter(one_hot, (5, 5, 0)) + strength * noise + 0.5 * grain
    exponentials = np.exp(logits - logits.max(2, keepdims=True))
    return (exponentials / exponentials.sum(2, keepdims=True)).astype(np.float32)


def refine_pair(pair: Pair, output: Path, settings: dict[str, float]) -> Outcome:
    """Refine what was predicted for a photo, write the labels, and score them."""
    photo = read_photo(pair.image)
    start = read_prediction(pair.prediction, photo.shape[:2], gt_prob=0.9)
    probabilities = start.logits.softmax(0).permute(1, 2, 0).numpy()
    labels = hdcrf.refine(photo, probabilities=probabilities, **settings)
    with whole_files([output]) as (file,):
        write_labels(file, labels, palette(LABELS))
    truth = read_labels("ground truth", pair.truth, photo.shape[:2])
    before, after = (score_labels(scored, truth) for scored in (start.labels, labels))
    return Outcome(pair, output, float(np.mean(start.labels != labels)), before, after)


def take_screenshot(page: Path, path: Path) -> None:
    """Write a picture of a page down to its table, with two of the cards and few colours, to be small."""
    from PIL import Image

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        raise click.ClickException("--screenshot needs Chromium, and Playwright: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.goto(page.resolve().as_uri())
        opened.locator("#order").select_option("gained")  # different photos first
        opened.locator(".picture").evaluate_all("cards => cards.forEach((card, i) => card.hidden = i > 1)")
        opened.get_by_role("button", name="IoU gain").click()
        opened.get_by_role("searchbox").fill("chelsea")
        opened.evaluate("scrollTo(0, 0)")
        table = opened.locator("#images").bounding_box()
        clip = {"x": 0, "y": 0, "width": 1200, "height": table["y"] + table["height"] + 12}
        opened.screenshot(path=path, full_page=True, clip=clip)
        browser.close()
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )
    few.save(path, optimize=True)


if __name__ == "__main__":
    main()
