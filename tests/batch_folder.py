"""What the tests of `hdcrf batch` share: folders of small images, and how it is called."""

import functools
import os
import re
from pathlib import Path

import numpy as np
import torch
from calling import Command
from PIL import Image
from skimage import data

from hdcrf.folders.manifest import MANIFEST

COMMAND = Command("batch")
HEIGHT, WIDTH, LABELS, COUNT = 24, 36, 3, 6
STEMS = [f"a{index}" for index in range(COUNT)]


@functools.cache
def made_inputs():
    """Return photos, their true labels, and probabilities that are often wrong."""
    random = np.random.default_rng(0)
    coffee = data.coffee()
    made = []
    for index in range(COUNT):
        photo = coffee[100 + 9 * index :: 4, 200::4][:HEIGHT, :WIDTH]
        truth = np.digitize(photo.mean(2), np.quantile(photo.mean(2), (1 / 3, 2 / 3)))
        logits = random.normal(size=(HEIGHT, WIDTH, LABELS)) + 2 * (truth[..., None] == np.arange(LABELS))
        made.append((photo, truth, torch.softmax(torch.from_numpy(logits).float(), 2).numpy()))
    return made


def write_folders():
    """Write images, probabilities, labels as PNG, and ground truth in the working directory."""
    for name in ("images", "probabilities", "labels", "truth"):
        os.mkdir(name)
    for stem, (photo, truth, probabilities) in zip(STEMS, made_inputs(), strict=True):
        Image.fromarray(photo).save(f"images/{stem}.png")
        np.save(f"probabilities/{stem}.npy", probabilities)
        Image.fromarray(probabilities.argmax(2).astype(np.uint8)).save(f"labels/{stem}.png")
        Image.fromarray(truth.astype(np.uint8)).save(f"truth/{stem}.png")


def arguments(words, predictions="probabilities", output="out"):
    return "images", predictions, "-o", output, *words


def invoke(*words, **options):
    return COMMAND.invoke(*arguments(words, **options))


def succeed(*words, code=0, **options):
    return COMMAND.succeed(*arguments(words, **options), code=code)


def refuse(*words, **options):
    """Run what must be refused before any work, and return the message."""
    before = sorted(os.listdir())
    message = COMMAND.refuse(*arguments(words, **options))
    assert sorted(os.listdir()) == before
    return message


def labels(stem, output="out"):
    with Image.open(f"{output}/{stem}.png") as image:
        return np.asarray(image)


def mode(stem):
    with Image.open(f"out/{stem}.png") as image:
        return image.mode


def contents(output="out"):
    return {path.name: path.read_bytes() for path in Path(output).glob("*.png")}


def counts(result):
    """Return how many images were refined and kept, as the command says."""
    return tuple(map(int, re.search(r"(\d+) refined and (\d+) kept", result.stdout).groups()))


def finished(output="out"):
    manifest = Path(output, MANIFEST)
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0
