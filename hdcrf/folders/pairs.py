"""Which files of several folders belong together: those whose names are the same up to the suffix."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from hdcrf.files import InputError, Note, many, natural_order

__all__ = ["Pair", "find_pairs"]

_PREDICTION_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff")
_TRUTH_SUFFIXES = (".png", ".npy")
_SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """An image and what was predicted for it.

    Attributes:
        stem: Their name without folder and suffix.
        image: The image's file.
        prediction: The prediction's.
        truth: The ground truth's; None if there is none.
    """

    stem: str
    image: Path
    prediction: Path
    truth: Path | None


def find_pairs(
    images: Path, predictions: Path, truths: Path | None = None, *, note: Note = warnings.warn
) -> list[Pair]:
    """Pair the files of folders by their stems, in the order that people count in.

    Hidden files and other folders in these folders are left out.

    Args:
        images: Holds pictures of any format that Pillow reads.
        predictions: Holds PNG, .npy, .npz or TIFF files.
        truths: Holds PNG or .npy files.
        note: Called with a sentence where files have no partner.

    Returns:
        At least one pair.

    Raises:
        InputError: If a folder is missing, unreadable, given twice, or holds no such file; if two files in it
            have the same stem; if no stem is in both.
    """
    folders = {"images": images, "predictions": predictions, "ground truth": truths}
    _check_different(folders)
    of_images = _stems("images", images, _picture_suffixes())
    of_predictions = _stems("predictions", predictions, _PREDICTION_SUFFIXES)
    of_truths = {} if truths is None else _stems("ground truth", truths, _TRUTH_SUFFIXES)
    stems = sorted(of_images.keys() & of_predictions.keys(), key=natural_order)
    if not stems:
        raise InputError(
            f"no image has a prediction: the names must be the same up to the suffix, and images {images} "
            f"has {_examples(of_images)}, but predictions {predictions} has {_examples(of_predictions)}; "
            "rename one side" + _case_advice(of_images, of_predictions)
        )
    _note_of_single("image", "prediction", of_images, of_predictions, note)
    _note_of_single("prediction", "image", of_predictions, of_images, note)
    if truths is not None:
        _check_truths(truths, {stem: of_images[stem] for stem in stems}, of_truths, note)
    return [Pair(stem, of_images[stem], of_predictions[stem], of_truths.get(stem)) for stem in stems]


def _check_folder(role: str, folder: Path) -> None:
    if not os.path.exists(folder):
        raise InputError(f"{role} {folder} does not exist; check the path")
    if not os.path.isdir(folder):
        raise InputError(f"{role} {folder} is not a folder; name the folder that holds the files")


def _check_different(folders: dict[str, Path | None]) -> None:
    places: dict[str, str] = {}
    for role, folder in folders.items():
        if folder is None:
            continue
        _check_folder(role, folder)
        other = places.setdefault(os.path.realpath(folder), role)
        if other != role:
            raise InputError(
                f"{role} {folder} is also the folder of the {other}; keep them in folders of their own"
            )


def _picture_suffixes() -> set[str]:
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _stems(role: str, folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Return the files of a folder that have one of the suffixes, by their stems."""
    found: dict[str, Path] = {}
    others: set[str] = set()
    folders: list[str] = []
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{role} {folder} cannot be read: {error.strerror}") from error
    for entry in sorted(entries, key=lambda entry: natural_order(entry.name)):
        path = folder / entry.name
        if entry.is_dir():
            folders.append(entry.name)
        elif path.suffix.lower() not in suffixes:
            others.add(path.suffix.lower() or "no suffix")
        elif path.stem in found:
            raise InputError(
                f"{role} {folder} has two files of one name, {found[path.stem].name} and {entry.name}; take "
                "one away"
            )
        else:
            found[path.stem] = path
    if not found:
        raise InputError(f"{role} {folder} {_what_instead(suffixes, others, folders)}")
    return found


def _what_instead(suffixes: Collection[str], others: set[str], folders: list[str]) -> str:
    """Say what a folder holds in place of the files that it should."""
    wanted = "pictures" if len(suffixes) > len(_PREDICTION_SUFFIXES) else " or ".join(suffixes) + " files"
    if others:
        jpeg = "; JPEG blurs labels, save them as PNG" if others & {".jpg", ".jpeg"} else ""
        return f"holds no {wanted}, only: {', '.join(sorted(others)[:6])}{jpeg}"
    if folders:
        return (
            f"holds only folders, such as {folders[0]}, and folders in it are not searched; name one that "
            f"holds the {wanted}"
        )
    return f"is empty; it should hold {wanted}"


def _examples(paths: dict[str, Path]) -> str:
    names = [path.name for path in list(paths.values())[:_SHOWN]]
    return ", ".join(names) + (" …" if len(paths) > _SHOWN else "")


def _case_advice(here: Iterable[str], there: Iterable[str]) -> str:
    """Return advice if names would be the same but for capital letters."""
    alike = {stem.casefold() for stem in here} & {stem.casefold() for stem in there}
    return " (capital letters count)" if alike else ""


def _note_of_single(
    role: str, partner: str, here: dict[str, Path], there: dict[str, Path], note: Note
) -> None:
    single = {stem: path for stem, path in here.items() if stem not in there}
    if single:
        case = _case_advice(single, set(there) - set(here))
        one = len(single) == 1
        note(
            f"{many(len(single), role)} {'has' if one else 'have'} no {partner}{case} and "
            f"{'is' if one else 'are'} left out: {_examples(single)}"
        )


def _check_truths(truths: Path, paired: dict[str, Path], of_truths: dict[str, Path], note: Note) -> None:
    without = {stem: path for stem, path in paired.items() if stem not in of_truths}
    case = _case_advice(without, of_truths)
    if len(without) == len(paired):
        raise InputError(
            "no image has ground truth: the names must be the same up to the suffix, and the images are "
            f"{_examples(paired)}, but ground truth {truths} has {_examples(of_truths)}; rename one side"
            + case
        )
    if without:
        one = len(without) == 1
        note(
            f"{len(without)} of {len(paired)} images {'has' if one else 'have'} no ground truth{case} and "
            f"{'is' if one else 'are'} not scored: {_examples(without)}"
        )
