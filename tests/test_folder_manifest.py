"""The record of a folder: what is read of it, and what a kill or a full disk leaves in it."""

import json
from dataclasses import asdict, replace

import pytest

from hdcrf.files import InputError
from hdcrf.folders.manifest import MANIFEST, Entry, digest, open_manifest, stamp
from hdcrf.folders.pairs import Pair


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of files, whose outputs are in the folder."""
    made = []
    for stem in ("a", "b"):
        paths = [tmp_path / f"{stem}.{suffix}" for suffix in ("jpg", "npy", "png")]
        for path in paths:
            path.write_text(str(path))
        made.append(Pair(stem, *paths[:2], None))
    return made


def entry_of(pair):
    output = digest(pair.image.with_suffix(".png").read_bytes())
    return Entry(pair.stem, "settings", stamp(pair.image), stamp(pair.prediction), output, 9, 9, 1, 2, 2)


def kept(folder, pairs):
    with open_manifest(folder) as manifest:
        return [manifest.kept(pair, "settings") for pair in pairs]


def test_what_is_added_is_kept(tmp_path, pairs):
    with open_manifest(tmp_path) as manifest:
        assert manifest.kept(pairs[0], "settings") is None
        manifest.add(entry_of(pairs[0]))
        manifest.add(replace(entry_of(pairs[1]), settings="others"))
        assert (tmp_path / MANIFEST).read_bytes().count(b"\n") == 2  # at once, for a kill
    assert kept(tmp_path, pairs) == [entry_of(pairs[0]), None]


def changed(**values):
    """Return a line that is whole, but for some values."""
    entry = Entry("b", "settings", ("b", 1, 1), ("b", 1, 1), "", 9, 9, 1, 2, 2)
    return json.dumps({**asdict(entry), **values}).encode()


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"stem": "b", "sett', b"null", b"[]", b'{"stem": "b"}', b"\xff\x00", b"[" * 100_000),
        *(changed(stem=["b"]), changed(changed="x"), changed(image=3), changed(output=None)),
    ],
    ids=range(10),
)
def test_lines_that_say_nothing_are_passed_over(line, tmp_path, pairs):
    """Also the last one, without its end: what is added then is a line of its own."""
    (tmp_path / MANIFEST).write_bytes(line + b"\n" + line)
    with open_manifest(tmp_path) as manifest:
        manifest.add(entry_of(pairs[0]))
    assert kept(tmp_path, pairs) == [entry_of(pairs[0]), None]


def test_a_full_disk(tmp_path, pairs):
    """It is one error, not one more when the record is closed, and what was added before is kept."""
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_manifest(tmp_path) as manifest:
        manifest.add(entry_of(pairs[0]))
        size = (tmp_path / MANIFEST).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            with pytest.raises(OSError):
                manifest.add(entry_of(pairs[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(tmp_path, pairs) == [entry_of(pairs[0]), None]


def test_one_at_a_time(tmp_path):
    with open_manifest(tmp_path), pytest.raises(InputError, match="is in use by another run"):  # noqa: SIM117
        with open_manifest(tmp_path):
            pass
    with open_manifest(tmp_path):
        pass
