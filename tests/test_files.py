"""Files in general: what is refused before any work, and that nothing is half-written."""

import os
from pathlib import Path

import pytest

from hdcrf.files import InputError, NotPutBackError, check_outputs, import_extra, whole_files


class TestOutputs:
    def check(self, path, suffixes=(".png",), **inputs):
        check_outputs({"--output": (path, suffixes)}, inputs)

    def test_sound_output_leaves_nothing_behind(self, tmp_path):
        self.check(tmp_path / "a.png")
        self.check(tmp_path / "a.PNG")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", ["a.txt", "a", ".png", "a.png.gz"])
    def test_unknown_suffix(self, name, tmp_path):
        with pytest.raises(InputError, match=r"must end in \.png"):
            self.check(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
    def test_jpeg_is_refused_with_the_reason(self, name, tmp_path):
        with pytest.raises(InputError, match="lossy"):
            self.check(tmp_path / name)
        self.check(tmp_path / name, (".png", ".jpg", ".jpeg"))

    def test_folder(self, tmp_path):
        (tmp_path / "a.png").mkdir()
        with pytest.raises(InputError, match="is a folder"):
            self.check(tmp_path / "a.png")

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match="does not exist; make it first"):
            self.check(tmp_path / "b" / "a.png")

    def test_name_too_long(self, tmp_path):
        with pytest.raises(InputError, match="cannot be used: File name too long; name another"):
            self.check(tmp_path / f"{'o' * 300}.png")

    def test_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "b").touch()
        with pytest.raises(InputError, match="is not a folder"):
            self.check(tmp_path / "b" / "a.png")

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
    def test_folder_not_writable(self):
        with pytest.raises(InputError, match="nothing can be written in"):
            check_outputs({"--output": (Path("/proc/self/a.png"), (".png",))}, {})

    @pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
    def test_a_device_is_not_replaced(self, tmp_path):
        (tmp_path / "a.png").symlink_to("/dev/null")
        with pytest.raises(InputError, match="not an ordinary file"):
            self.check(tmp_path / "a.png")

    def test_input_as_output(self, tmp_path):
        (tmp_path / "a.png").touch()
        (tmp_path / "link.png").symlink_to("a.png")
        for name in ("a.png", "link.png"):
            with pytest.raises(InputError, match="also the file of PHOTO"):
                self.check(tmp_path / name, PHOTO=tmp_path / "a.png")
        self.check(tmp_path / "b.png", PHOTO=tmp_path / "a.png", other=None)

    def test_one_file_for_two_outputs(self, tmp_path):
        path, same = tmp_path / "a.png", tmp_path / "." / "b" / ".." / "a.png"
        (tmp_path / "b").mkdir()
        with pytest.raises(InputError, match="also the file of --output"):
            check_outputs({"--output": (path, (".png",)), "--overlay": (same, (".png",))}, {})


class TestExtras:
    def test_missing(self):
        with pytest.raises(InputError, match=r'^reading x needs no_such: pip install "hdcrf\[files\]"$'):
            import_extra("no_such.part", "reading x", "files", package="no_such")

    def test_what_the_package_lacks_itself_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "has_needs.py").write_text("import no_such_need.part")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(InputError) as error:
            import_extra("has_needs", "reading x", "files")
        assert str(error.value) == (
            "reading x needs has_needs, which cannot be loaded (No module named 'no_such_need'); install "
            "what it lacks"
        )


class TestWholeFiles:
    def test_one_file_twice(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "link").symlink_to("a")
        for other in ("a", "link"):
            with (
                pytest.raises(ValueError, match=r"`paths` must be different files, got .*a and .*same$"),
                whole_files([tmp_path / "a", tmp_path / "b", tmp_path / other]),
            ):
                pass
        assert sorted(os.listdir(tmp_path)) == ["a", "link"]
        assert (tmp_path / "a").read_bytes() == b"old"

    def test_files_appear_together(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        with whole_files([tmp_path / "a", tmp_path / "b"]) as (first, second):
            first.write(b"1")
            second.write(b"2")
            assert (tmp_path / "a").read_bytes() == b"old"
            assert not (tmp_path / "b").exists()
        assert sorted(os.listdir(tmp_path)) == ["a", "b"]
        assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"1", b"2")

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_none_appears_when_one_fails(self, error, tmp_path):
        (tmp_path / "a").write_bytes(b"old")

        def write():
            with whole_files([tmp_path / "a", tmp_path / "b"]) as (first, _):
                first.write(b"1")
                raise error

        with pytest.raises(error):
            write()
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"

    @pytest.mark.parametrize("links", [True, False], ids=["links", "no_links"])
    @pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
    def test_all_are_put_back_when_one_cannot_be_moved(self, old, links, monkeypatch, tmp_path):
        def no_link(source, destination):
            if os.path.exists(source):
                raise PermissionError("no links here")
            raise FileNotFoundError

        def replace(source, destination, _replace=os.replace):
            if str(source).endswith(".part") and str(destination).endswith("c"):
                raise OSError("no space left")
            _replace(source, destination)

        if not links:
            monkeypatch.setattr(os, "link", no_link)
        monkeypatch.setattr(os, "replace", replace)
        names = ("a", "b", "c")
        for name in names if old else ():
            (tmp_path / name).write_text(f"old {name}")

        def write():
            with whole_files([tmp_path / name for name in names]) as files:
                for file in files:
                    file.write(b"new")

        with pytest.raises(OSError, match="no space left"):
            write()
        left = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert left == ({name: f"old {name}" for name in names} if old else {})

    def test_what_cannot_be_put_back_is_kept_and_named(self, monkeypatch, tmp_path):
        def replace(source, destination, _replace=os.replace):
            if str(source).endswith(".old") or str(destination).endswith("b"):
                raise OSError("no space left")
            _replace(source, destination)

        monkeypatch.setattr(os, "replace", replace)
        (tmp_path / "a").write_text("old a")
        with (
            pytest.raises(
                NotPutBackError, match=r"a could not be put back .*: what was in it is now in (.*)$"
            ) as error,
            whole_files([tmp_path / "a", tmp_path / "b"]),
        ):
            pass
        (kept,) = (path for path in tmp_path.iterdir() if path.name != "a")
        assert str(error.value).endswith(str(kept))
        assert kept.read_text() == "old a"

    @pytest.mark.parametrize("links", [True, False], ids=["links", "no_links"])
    def test_interrupt_while_a_file_is_set_aside(self, links, monkeypatch, tmp_path):
        def interrupted(function):
            def call(*arguments):
                monkeypatch.undo()
                function(*arguments)
                raise KeyboardInterrupt

            return call

        def no_link(*_):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", interrupted(os.link) if links else no_link)
        if not links:
            monkeypatch.setattr(os, "replace", interrupted(os.replace))
        (tmp_path / "a").write_text("old a")
        with pytest.raises(KeyboardInterrupt), whole_files([tmp_path / "a", tmp_path / "b"]):
            pass
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a"}

    def test_one_file_is_replaced_without_a_copy(self, monkeypatch, tmp_path):
        """A process that is killed in between leaves none behind."""
        (tmp_path / "a").write_text("old")
        seen = []
        move = os.replace

        def replace(source, destination):
            seen.append(sorted(path.suffix for path in tmp_path.iterdir()))
            move(source, destination)

        monkeypatch.setattr(os, "replace", replace)
        with whole_files([tmp_path / "a"]) as (file,):
            file.write(b"new")
        assert (tmp_path / "a").read_text() == "new"
        assert seen == [["", ".part"]]

    def test_none_is_left_when_one_cannot_be_opened(self, tmp_path):
        with pytest.raises(OSError), whole_files([tmp_path / "a", tmp_path / "missing" / "b"]):
            pass
        assert os.listdir(tmp_path) == []

    def test_link_stays_one(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "link").symlink_to("a")
        with whole_files([tmp_path / "link"]) as (file,):
            file.write(b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "a").read_bytes() == b"new"

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        (tmp_path / "plain").touch()
        with whole_files([tmp_path / "a"]):
            pass
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
