"""Videos in and out: what comes back, what is refused, and that no broken file gets further."""

import errno
import itertools
import re
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from hdcrf import video_files
from hdcrf.files import InputError, whole_files
from hdcrf.video_files import VideoWriter, read_video
from hdcrf.video_probabilities import frames_with_probabilities, read_video_probabilities

av = pytest.importorskip("av")

SHAPE = (48, 64)
COLOURS = np.array([(220, 40, 30), (20, 200, 60), (30, 60, 230), (240, 240, 240)], dtype=np.uint8)
# Of flat colours through libx264 and back: 3 was measured with it, and 5 with MPEG-4 part 2.
CODING = 6


def frames(count, shape=SHAPE):
    """Two flat halves that swap colours, so that each frame is told from the others."""
    for index in range(count):
        frame = np.empty((*shape, 3), np.uint8)
        frame[:, : shape[1] // 2] = COLOURS[index % 4]
        frame[:, shape[1] // 2 :] = COLOURS[index // 4 % 4]
        yield frame


def noise(count, shape=SHAPE):
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 256, (*shape, 3), dtype=np.uint8)


def encode(path, pictures, kind="mp4", codec="libx264", container=None, stream=None, turn=0):
    """Write a video by PyAV itself."""
    pictures = list(pictures)
    with av.open(str(path), "w", format=kind, options=container or {}) as file:
        track = file.add_stream(codec, rate=25, options=stream or {})
        track.height, track.width = pictures[0].shape[:2]
        track.pix_fmt = "yuv420p"
        if turn:
            track.set_display_rotation(turn)
        for picture in pictures:
            file.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(track.encode(None))
    return path


def picture_folder(path, pictures, name="frame_{}.png"):
    path.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / name.format(index))
    return path


def write(path, pictures, rate=25, shape=SHAPE, notes=None):
    with (
        whole_files([path]) as (file,),
        VideoWriter(file, shape, rate, note=[].append if notes is None else notes.append) as writer,
    ):
        for picture in pictures:
            writer.write(picture)
    return path


@pytest.fixture
def notes():
    return []


class TestRead:
    def test_frames_of_a_file(self, tmp_path, notes):
        video = read_video(write(tmp_path / "a.mp4", frames(16)), note=notes.append)
        assert (video.shape, video.rate, video.count) == (SHAPE, 25, 16)
        read = list(video)
        assert len(read) == 16
        for got, expected in zip(read, frames(16), strict=True):
            assert got.dtype == np.uint8
            assert got.flags.c_contiguous
            half = SHAPE[1] // 2
            for place in (np.s_[:, : half - 8], np.s_[:, half + 8 :]):  # away from the border
                assert np.abs(got[place].astype(int) - expected[place]).max() <= CODING
        assert notes == []

    def test_iterates_anew(self, tmp_path):
        video = read_video(write(tmp_path / "a.mp4", frames(5)))
        first = next(iter(video))
        np.testing.assert_array_equal(first, next(iter(video)))
        assert len(list(video)) == len(list(video)) == 5

    def test_frames_are_not_held_in_memory(self, tmp_path, monkeypatch):
        """The second frame is not decoded before it is asked for."""
        folder = picture_folder(tmp_path / "f", frames(3))
        read = []
        real = video_files.read_photo
        monkeypatch.setattr(
            video_files, "read_photo", lambda path, **k: read.append(path.name) or real(path, **k)
        )
        video = iter(read_video(folder))
        next(video)
        assert read == ["frame_0.png"] * 2  # once for the shape

    @pytest.mark.parametrize("kind", ["matroska", "avi", "webm"])
    def test_other_formats(self, kind, tmp_path, notes):
        codec = {"matroska": "libx264", "avi": "mpeg4", "webm": "libvpx-vp9"}[kind]
        if codec not in av.codecs_available:
            pytest.skip(f"this FFmpeg has no {codec}")
        video = read_video(encode(tmp_path / "a", frames(10), kind, codec), note=notes.append)
        assert (video.shape, video.rate, video.count, len(list(video))) == (SHAPE, 25, 10, 10)
        assert notes == []

    @pytest.mark.parametrize("turn", [90, 180, -90])
    def test_rotation_is_undone(self, turn, tmp_path, notes):
        if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        path = encode(tmp_path / "a.mp4", frames(8), turn=turn)
        video = read_video(path, note=notes.append)
        assert video.shape == (SHAPE if turn == 180 else SHAPE[::-1])
        got = list(video)[6]
        expected = np.rot90(list(frames(8))[6], turn // 90)  # counter-clockwise, both
        assert np.median(np.abs(got.astype(int) - expected)) <= CODING
        assert notes == [f"video {path}: turned upright, as its header says"]

    @pytest.mark.parametrize("turn", [30, 120])
    def test_other_rotation_is_noted(self, turn, tmp_path, notes):
        if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        video = read_video(encode(tmp_path / "a.mp4", frames(2), turn=turn), note=notes.append)
        assert video.shape == SHAPE
        assert next(iter(video)).shape[:2] == SHAPE
        assert re.search(r"its header says to turn it by about \d+°, which is not done", notes[0])

    def test_folder_in_natural_order(self, tmp_path, notes):
        path = picture_folder(tmp_path / "f", frames(12))
        (path / "notes.txt").touch()
        (path / ".hidden.png").touch()
        video = read_video(path, note=notes.append)
        assert (video.shape, video.rate, video.count) == (SHAPE, None, 12)
        np.testing.assert_array_equal(list(video), list(frames(12)))
        assert notes == [f"video {path}: 1 files that are no pictures are left out"]

    def test_folder_notes_a_conversion_once(self, tmp_path, notes):
        path = picture_folder(tmp_path / "f", [frame[..., 0] for frame in frames(3)])
        list(read_video(path, note=notes.append))
        assert len(notes) == 1
        assert "frame_0.png: grey repeated" in notes[0]


class TestRefuse:
    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"video .*a\.mp4 does not exist; check the path"):
            read_video(tmp_path / "a.mp4")

    @pytest.mark.parametrize("content", [b"", b"no video", bytes(1000)])
    def test_not_a_video(self, content, tmp_path):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(
            InputError, match="is not a video in a format that is known here, or it is cut off"
        ):
            read_video(tmp_path / "a.mp4")

    def test_sound_alone(self, tmp_path):
        with av.open(str(tmp_path / "a.mp4"), "w") as file:
            track = file.add_stream("aac", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 8000
            file.mux(track.encode(sound))
            file.mux(track.encode(None))
        with pytest.raises(InputError, match="has no video stream"):
            read_video(tmp_path / "a.mp4")

    def test_no_frame(self, tmp_path):
        folder = tmp_path / "f"
        folder.mkdir()
        with pytest.raises(InputError, match="is a folder without pictures"):
            read_video(folder)
        with av.open(str(tmp_path / "a.avi"), "w") as file:
            track = file.add_stream("mpeg4", rate=25)
            track.height, track.width = SHAPE
            file.start_encoding()
        with pytest.raises(InputError, match="has no frame that can be read"):
            read_video(tmp_path / "a.avi")

    def test_folder_of_different_sizes(self, tmp_path):
        path = picture_folder(tmp_path / "f", [*frames(2), *frames(1, (48, 66))])
        video = read_video(path)
        with pytest.raises(
            InputError, match="changes its size: frame 2 is 66 x 48 pixels and the first is 64 x 48"
        ):
            list(video)

    def test_file_of_different_sizes(self, tmp_path):
        content = b""
        for name, shape in (("a", SHAPE), ("b", (96, 64))):
            encode(tmp_path / name, frames(4, shape), "mpeg2video", "mpeg2video")
            content += (tmp_path / name).read_bytes()
        (tmp_path / "a.m2v").write_bytes(content)
        video = read_video(tmp_path / "a.m2v")
        with pytest.raises(InputError, match=r"changes its size: frame \d is 64 x 96 pixels"):
            list(video)

    def test_damaged_picture_in_a_folder(self, tmp_path):
        path = picture_folder(tmp_path / "f", frames(3))
        (path / "frame_1.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match=r"frame .*frame_1\.png is not a picture"):
            list(read_video(path))

    def test_ends_early(self, tmp_path):
        path = encode(tmp_path / "a.mp4", noise(30), container={"movflags": "faststart"})
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        video = read_video(path)
        assert video.count == 30
        numbers = itertools.count()
        with pytest.raises(InputError, match="damaged or ends early: after frame") as error:
            list(zip(video, numbers, strict=False))
        read = next(numbers)
        assert f"after frame {read - 1} comes none that can be read" in str(error.value)
        assert 5 < read < 20

    def test_fewer_packets_than_promised(self, tmp_path):
        """Cut between two frames, where nothing is damaged but the count."""
        path = encode(tmp_path / "a.avi", noise(30), "avi", "mpeg4")
        content = path.read_bytes()
        seventh = [found.start() for found in re.finditer(b"00dc", content[content.index(b"movi") :])][6]
        path.write_bytes(content[: content.index(b"movi") + seventh])
        with pytest.raises(InputError, match="ends early: its header promises 30 frames, and it has 6;"):
            list(read_video(path))

    def test_cut_off_where_no_count_is_kept(self, tmp_path, notes):
        path = encode(tmp_path / "a.mkv", noise(30), "matroska", stream={"bf": "0"})
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        read = list(read_video(path, note=notes.append))
        assert 5 < len(read) < 20
        assert f"may have been cut off: it ends after {len(read)} frames" in notes[0]

    @pytest.mark.parametrize("kind", ["mp4", "faststart", "frag", "matroska", "avi"])
    def test_nothing_but_input_errors_escape(self, kind, tmp_path):
        flags = {"faststart": "faststart", "frag": "frag_keyframe+empty_moov"}.get(kind)
        path = encode(
            tmp_path / "a",
            noise(12, (16, 16)),
            "mp4" if flags else kind,
            "mpeg4" if kind == "avi" else "libx264",
            container={"movflags": flags} if flags else {},
        )
        content = path.read_bytes()
        generator = np.random.default_rng(0)
        broken = [content[: int(len(content) * share)] for share in np.linspace(0, 0.99, 40)]
        for _ in range(60):
            damaged = bytearray(content)
            damaged[generator.integers(len(content))] ^= 1 << generator.integers(8)
            broken.append(bytes(damaged))
        refused = 0
        for each in broken:
            path.write_bytes(each)
            try:
                for frame in read_video(path, note=[].append):
                    assert frame.dtype == np.uint8
            except InputError:
                refused += 1
        assert refused >= 10  # of the 40 that are cut off, however the format is laid out

    def test_missing_extra(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.mp4", frames(1))
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(InputError) as error:
            read_video(path)
        assert str(error.value) == 'reading .mp4 needs av: pip install "hdcrf[video]"'
        with pytest.raises(InputError, match=r'writing \.mp4 needs av: pip install "hdcrf\[video\]"'):
            write(tmp_path / "b.mp4", frames(1))
        assert not (tmp_path / "b.mp4").exists()
        folder = picture_folder(tmp_path / "f", frames(1))
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(
            InputError, match=r'^reading pictures needs pillow: pip install "hdcrf\[video\]"$'
        ):
            read_video(folder)


class TestWrite:
    @pytest.mark.parametrize("shape", [(47, 63), (48, 63), (47, 64), (1, 1), (3, 200)])
    def test_odd_sizes_are_padded(self, shape, tmp_path, notes):
        picture = np.empty((*shape, 3), np.uint8)
        picture[:] = COLOURS[0]
        video = read_video(write(tmp_path / "a.mp4", [picture] * 3, shape=shape, notes=notes))
        height, width = (length + length % 2 for length in shape)
        assert video.shape == (height, width)
        assert len(notes) == 1
        assert f"{shape[1]} x {shape[0]} pixels are padded to {width} x {height}" in notes[0]
        # The row and column that were added repeat the last, rather than being black.
        assert np.abs(next(iter(video)).astype(int) - COLOURS[0]).max() <= CODING

    @pytest.mark.parametrize("rate", [25, 29.97, Fraction(30000, 1001), 0.5, 240, 1e-4, 3e-4, 0.015])
    def test_rate(self, rate, tmp_path):
        video = read_video(write(tmp_path / "a.mp4", frames(30), rate))
        assert float(video.rate) == pytest.approx(float(rate))
        assert len(list(video)) == 30

    def test_colours_are_tagged(self, tmp_path):
        with av.open(str(write(tmp_path / "a.mp4", frames(2)))) as file:
            frame = next(file.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)  # BT.709, limited

    @pytest.mark.parametrize("encoders", [("mpeg4",), ("no_such_encoder", "mpeg4")])
    def test_without_h264(self, encoders, tmp_path, monkeypatch):
        monkeypatch.setattr(video_files, "ENCODERS", encoders)
        path = write(tmp_path / "a.mp4", frames(8))
        with av.open(str(path)) as file:
            assert file.streams.video[0].codec_context.name == "mpeg4"
        for got, expected in zip(read_video(path), frames(8), strict=True):
            difference = np.abs(got.astype(int) - expected)[:, [*range(24), *range(40, 64)]]
            assert difference.max() <= CODING

    def test_nothing_appears_when_the_block_fails(self, tmp_path):
        def fail():
            with whole_files([tmp_path / "a.mp4"]) as (file,), VideoWriter(file, SHAPE, 25) as writer:
                for frame in frames(3):
                    writer.write(frame)
                raise KeyError("stop")

        with pytest.raises(KeyError, match="stop"):
            fail()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("room", [0, 10, 100, 5000])
    def test_disk_full(self, room, tmp_path):
        """The error is that of the disk, whether it comes from the header, a frame or the end."""

        class Full:
            def __init__(self, file):
                self.file, self.written = file, 0
                self.seek, self.tell = file.seek, file.tell

            def write(self, content):
                self.written += len(content)
                if self.written > room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return self.file.write(content)

        def fill():
            with (
                whole_files([tmp_path / "a.mp4"]) as (file,),
                VideoWriter(Full(file), SHAPE, 25) as writer,
            ):
                for frame in noise(20):
                    writer.write(frame)

        with pytest.raises(OSError, match="No space left on device") as error:
            fill()
        assert error.value.errno == errno.ENOSPC
        assert list(tmp_path.iterdir()) == []

    def test_wrong_arguments(self, tmp_path):
        with pytest.raises(ValueError, match=r"`shape` must be \(H, W\), at least 1 each, got \(0, 4\)"):
            write(tmp_path / "a.mp4", [], shape=(0, 4))
        for rate in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="`rate` must be a positive number of frames a second"):
                write(tmp_path / "a.mp4", [], rate)
        for rate in (9e-5, Fraction(1, 10**9)):
            with pytest.raises(ValueError, match=r"`rate` must be at least 0\.0001 frames a second, got"):
                write(tmp_path / "a.mp4", [], rate)
        for frame in (np.zeros((48, 65, 3), np.uint8), np.zeros((*SHAPE, 3)), np.zeros(SHAPE, np.uint8)):
            with pytest.raises(
                ValueError, match=r"`frame` must have shape \(48, 64, 3\) and dtype uint8, got"
            ):
                write(tmp_path / "a.mp4", [frame])
        with pytest.raises(ValueError, match="no frame was written"):
            write(tmp_path / "a.mp4", [])
        assert list(tmp_path.iterdir()) == []

    def test_too_large_to_encode(self, tmp_path):
        with pytest.raises(OSError, match="the video cannot be encoded: "):
            write(tmp_path / "a.mp4", [np.zeros((2, 40_000, 3), np.uint8)], shape=(2, 40_000))
        assert list(tmp_path.iterdir()) == []


class TestProbabilities:
    GOOD = np.random.default_rng(0).random((12, 6, 8, 3), dtype=np.float32)

    def read(self, path, notes=None):
        return read_video_probabilities(path, (6, 8), note=[].append if notes is None else notes.append)

    def folder(self, path, arrays):
        path.mkdir()
        for index, array in enumerate(arrays):
            np.save(path / f"p{index}.npy", array)
        return path

    def test_array_on_disk(self, tmp_path, notes):
        np.save(tmp_path / "p.npy", self.GOOD)
        probabilities = self.read(tmp_path / "p.npy", notes)
        assert (probabilities.labels, probabilities.count) == (3, 12)
        first = next(iter(probabilities))
        assert isinstance(first.base, np.memmap) or isinstance(first, np.memmap)
        np.testing.assert_array_equal(list(probabilities), self.GOOD)
        assert notes == []

    def test_compressed_array(self, tmp_path):
        np.savez_compressed(tmp_path / "p.npz", other=np.zeros(3), probabilities=self.GOOD)
        np.testing.assert_array_equal(list(self.read(tmp_path / "p.npz")), self.GOOD)

    def test_folder_in_natural_order(self, tmp_path, notes):
        path = self.folder(tmp_path / "p", self.GOOD.astype(np.float16))
        np.savez(path / "p5.npz", self.GOOD[5].astype(np.float16))
        (path / "p5.npy").unlink()
        (path / "readme.txt").touch()
        probabilities = self.read(path, notes)
        assert (probabilities.labels, probabilities.count) == (3, 12)
        np.testing.assert_array_equal(list(probabilities), self.GOOD.astype(np.float16))
        assert len(notes) == 1
        assert "float16 converted to float32" in notes[0]

    @pytest.mark.parametrize("shape", [(6, 8, 3), (12, 8, 6, 3), (0, 6, 8, 3), (12, 6, 8, 0)])
    def test_wrong_shape(self, shape, tmp_path):
        np.save(tmp_path / "p.npy", np.zeros(shape, np.float32))
        with pytest.raises(InputError, match=r"\(T, H, W, K\) = \(T, 6, 8, K\) to match the video, got"):
            self.read(tmp_path / "p.npy")

    def test_labels_first(self, tmp_path):
        np.save(tmp_path / "p.npy", self.GOOD.transpose(0, 3, 1, 2))
        with pytest.raises(InputError, match=r"transpose\(0, 2, 3, 1\)"):
            self.read(tmp_path / "p.npy")

    def test_frame_with_nan_is_named(self, tmp_path):
        array = self.GOOD.copy()
        array[7, 2, 3, 1] = np.nan
        np.save(tmp_path / "p.npy", array)
        with pytest.raises(InputError, match=r"of frame 7 must be finite, got nan at index \(2, 3, 1\)"):
            list(self.read(tmp_path / "p.npy"))
        with pytest.raises(InputError, match=r"p7\.npy must be finite, got nan at index \(2, 3, 1\)"):
            list(self.read(self.folder(tmp_path / "p", array)))

    def test_not_floating(self, tmp_path):
        np.save(tmp_path / "p.npy", np.zeros((2, 6, 8, 3), int))
        with pytest.raises(InputError, match="of frame 0 must hold floating-point numbers"):
            list(self.read(tmp_path / "p.npy"))

    def test_folder_whose_frames_differ(self, tmp_path):
        path = self.folder(tmp_path / "p", self.GOOD)
        np.save(path / "p3.npy", self.GOOD[3, :, :, :2])
        with pytest.raises(InputError, match=r"p3\.npy have 2 labels, but those of the first frame have 3"):
            list(self.read(path))
        np.save(path / "p3.npy", self.GOOD[3, :5])
        with pytest.raises(
            InputError, match=r"p3\.npy must have shape .* to match the video, got \(5, 8, 3\)"
        ):
            list(self.read(path))

    def test_empty_folder_and_objects(self, tmp_path):
        (tmp_path / "p").mkdir()
        with pytest.raises(InputError, match=r"is a folder without \.npy or \.npz files"):
            self.read(tmp_path / "p")
        np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match="objects are not loaded"):
            self.read(tmp_path / "p.npy")

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_truncated(self, suffix, tmp_path):
        path = tmp_path / f"p.{suffix}"
        np.save(path, self.GOOD) if suffix == "npy" else np.savez_compressed(path, self.GOOD)
        content = path.read_bytes()
        for share in np.linspace(0, 0.999, 40):
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(InputError):
                self.read(path)

    def test_frames_come_with_theirs(self, tmp_path):
        np.save(tmp_path / "p.npy", self.GOOD)
        video = read_video(picture_folder(tmp_path / "f", frames(12, (6, 8))))
        pairs = list(frames_with_probabilities(video, self.read(tmp_path / "p.npy")))
        np.testing.assert_array_equal([frame for frame, _ in pairs], list(frames(12, (6, 8))))
        np.testing.assert_array_equal([values for _, values in pairs], self.GOOD)

    @pytest.mark.parametrize(
        ("count", "message"),
        [
            (11, r"video .*f ends early: it has 11 frames, but probabilities .*p\.npy are for 12"),
            (13, r"probabilities .*p\.npy are for 12 frames, but video .*f goes on after frame 11"),
        ],
    )
    def test_one_ends_before_the_other(self, count, message, tmp_path):
        np.save(tmp_path / "p.npy", self.GOOD)
        video = read_video(picture_folder(tmp_path / "f", frames(count, (6, 8))))
        with pytest.raises(InputError, match=message):
            list(frames_with_probabilities(video, self.read(tmp_path / "p.npy")))
