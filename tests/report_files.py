"""What the tests of the page on a folder share: images with scores, and what is written of them."""

import io
import json
import re
from dataclasses import replace

import numpy as np
from PIL import Image

from hdcrf.files import whole_files
from hdcrf.folders.outcomes import Outcome
from hdcrf.folders.pairs import Pair
from hdcrf.folders.report import write_report
from hdcrf.folders.scores import score_labels
from hdcrf.image_files import write_labels, write_picture
from hdcrf.pictures import palette

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


def without_a_pixel(outcome):
    """Return the outcome as it is where ground truth, all of which is to be ignored, is scored."""
    with Image.open(outcome.pair.truth) as image:
        ignored = np.full(image.size[::-1], 255)
    nothing = score_labels(ignored, ignored, ignore=255)
    return replace(outcome, before=nothing, after=nothing)


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
