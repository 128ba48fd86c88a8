"""Inputs in overlapping windows and blocks, against the whole at once."""

import math

import pytest
import torch

import hdcrf
from hdcrf import PointCRF, VideoCRF, VolumeCRF, points_in_blocks, video_in_windows, volume_in_blocks

BLOBS = 40
WEAK = {"appearance_weight": 2.0, "smoothness_weight": 0.5, "iterations": 3, "learn": ()}


def scene(*sizes, seed=0):
    """Return logits (3, *sizes) and a guide (2, *sizes) of smooth blobs, each of a colour, with noise."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in sizes), indexing="ij"), -1)
    centres = torch.rand(BLOBS, len(sizes), generator=generator) * torch.tensor(sizes)
    nearest = torch.cdist(place.view(-1, len(sizes)), centres).argmin(1).view(sizes)
    truth = (nearest % 3)[None]
    guide = torch.cat([60.0 * truth + 40, 200 - 50.0 * truth])
    guide = guide + 8 * torch.randn(guide.shape, generator=generator)
    logits = 1.5 * (truth == torch.arange(3).view(3, *[1] * len(sizes)))
    return logits + torch.randn(logits.shape, generator=generator), guide


@pytest.fixture(scope="module")
def video():
    crf = VideoCRF(3, appearance_sigma_xy=6.0, appearance_sigma_t=2.0, smoothness_sigma=1.0, **WEAK)
    logits, guide = scene(30, 16, 18)
    return crf, logits, guide, crf(logits[None], guide[None])[0]


def frames_of(logits, guide):
    yield from zip(logits.unbind(1), guide.unbind(1), strict=True)


@pytest.fixture(scope="module")
def volume():
    crf = VolumeCRF(3, appearance_sigma_xyz=3.0, smoothness_sigma=1.0, spacing=(2.0, 1.0, 1.0), **WEAK)
    logits, guide = scene(14, 20, 23, seed=1)
    return crf, logits, guide, crf(logits[None], guide[None])[0]


@pytest.fixture(scope="module")
def cloud():
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(3000, 3, generator=generator) * torch.tensor([5.0, 4.0, 2.0]) - 1.0
    centres = torch.rand(BLOBS, 3, generator=generator) * torch.tensor([5.0, 4.0, 2.0]) - 1.0
    truth = torch.cdist(positions, centres).argmin(1) % 3
    colours = 60.0 * truth[:, None] + 8 * torch.randn(3000, 2, generator=generator) + 50
    logits = 1.5 * (truth[:, None] == torch.arange(3)) + torch.randn(3000, 3, generator=generator)
    crf = PointCRF(3, appearance_sigma_xyz=0.3, smoothness_sigma=0.15, **WEAK)
    return crf, logits, positions, colours, crf(logits, positions, colours=colours)


class TestVideo:
    @pytest.mark.parametrize("window", [30, 31, 100])
    def test_one_window_is_the_whole(self, video, window):
        crf, logits, guide, whole = video
        result = torch.stack(list(video_in_windows(crf, frames_of(logits, guide), window=window)), 1)
        torch.testing.assert_close(result, whole)

    @pytest.mark.parametrize(
        ("window", "overlap"), [(1, 0), (7, 0), (7, 3), (8, 4), (13, 5), (29, 1), (16, 8)]
    )
    def test_every_frame_comes_once_and_in_order(self, video, window, overlap):
        crf, logits, guide, whole = video
        windows = video_in_windows(crf, frames_of(logits, guide), window=window, overlap=overlap)
        result = torch.stack(list(windows), 1)
        assert result.shape == whole.shape
        torch.testing.assert_close(result.sum(0), torch.ones_like(result[0]))
        # Nearer to its own frame of the whole than to any other.
        distance = (result[:, :, None] - whole[:, None]).abs().mean((0, 3, 4))
        assert torch.equal(distance.argmin(1), torch.arange(30))

    def test_overlap_hides_the_seams(self, video):
        crf, logits, guide, whole = video

        def error(overlap):
            windows = video_in_windows(crf, frames_of(logits, guide), window=12, overlap=overlap)
            return float((torch.stack(list(windows), 1) - whole).abs().mean())

        # Measured: 0.0041, 0.0027 and 0.0018, at 0, 1 and 2.5 sigma_t.
        assert error(5) < error(2) < error(0)
        assert error(5) < 0.6 * error(0)

    def test_no_more_than_a_window_is_read_ahead(self, video):
        crf, logits, guide, _ = video
        read = 0

        def frames():
            nonlocal read
            for frame in frames_of(logits, guide):
                read += 1
                yield frame

        windows = video_in_windows(crf, frames(), window=8, overlap=4)
        for number, _marginals in enumerate(windows):
            assert read <= number + 8

    def test_no_frames_give_none(self, video):
        assert list(video_in_windows(video[0], [])) == []

    def test_wrong_frames(self, video):
        crf, logits, guide, _ = video
        frames = list(frames_of(logits, guide))

        def run(frames, **options):
            return list(video_in_windows(crf, frames, **{"window": 4, "overlap": 2, **options}))

        with pytest.raises(ValueError, match=r"the guide of frame 6 are \(2, 16, 17\)"):
            run([*frames[:6], (frames[6][0], frames[6][1][..., :-1])])
        with pytest.raises(ValueError, match=r"the logits of frame 1 are \(3, 15, 18\)"):
            run([frames[0], (frames[1][0][:, 1:], frames[1][1])])
        with pytest.raises(TypeError, match="but frame 0 is of type Tensor"):
            run(frames[0][:1])
        with pytest.raises(ValueError, match=r"in frame 0 they have shape \(16, 18\)"):
            run([(frames[0][0][0], frames[0][1])])
        with pytest.raises(ValueError, match="`overlap` must be at most 2, got 3"):
            run(frames, overlap=3)
        with pytest.raises(TypeError, match="`crf` must be a VideoCRF, got DenseCRF"):
            video_in_windows(hdcrf.DenseCRF(3), frames)
        with pytest.raises(TypeError, match="`frames` must be iterable, got int"):
            video_in_windows(crf, 5)


class TestVolume:
    def test_one_block_is_the_whole(self, volume):
        crf, logits, guide, whole = volume
        torch.testing.assert_close(volume_in_blocks(crf, logits, guide), whole)

    @pytest.mark.parametrize(
        ("block", "overlap"),
        [((5, 7, 8), (0, 0, 0)), ((5, 7, 8), (2, 3, 4)), ((14, 4, 23), (7, 2, 1)), ((1, 20, 9), (0, 3, 4))],
    )
    def test_shares_sum_to_one(self, volume, block, overlap):
        crf, logits, guide, whole = volume
        steps = []
        result = volume_in_blocks(
            crf, logits, guide, block=block, overlap=overlap, progress=lambda *step: steps.append(step)
        )
        torch.testing.assert_close(result.sum(0), torch.ones_like(result[0]))
        assert (result.argmax(0) == whole.argmax(0)).float().mean() > 0.9
        assert steps == [(done, steps[-1][1]) for done in range(1, steps[-1][1] + 1)]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes(self, volume, dtype):
        crf, logits, guide, _whole = volume
        result = volume_in_blocks(crf, logits.to(dtype), guide, block=(5, 7, 8), overlap=(2, 3, 4))
        assert result.dtype == dtype
        # Shares are summed in float32 and rounded once to the 8 bits of bfloat16: three labels' worth.
        tolerance = 1e-12 if dtype == torch.float64 else 6e-3
        total = result.double().sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)

    def test_overlap_hides_the_seams(self, volume):
        crf, logits, guide, whole = volume

        def error(overlap):
            result = volume_in_blocks(crf, logits, guide, block=(14, 12, 12), overlap=(0, overlap, overlap))
            return float((result - whole).abs().mean())

        # Measured: 0.0068, 0.0044 and 0.0031.
        assert error(6) < error(3) < error(0)
        assert error(6) < 0.7 * error(0)

    def test_wrong_arguments(self, volume):
        crf, logits, guide, _ = volume
        with pytest.raises(ValueError, match=r"got \(3, 14, 20, 23\) and \(2, 14, 20, 22\)"):
            volume_in_blocks(crf, logits, guide[..., 1:])
        with pytest.raises(ValueError, match=r"`overlap\[1\]` must be at most 3, got 4"):
            volume_in_blocks(crf, logits, guide, block=(5, 7, 8), overlap=(2, 4, 4))
        with pytest.raises(ValueError, match="`block` must be three numbers"):
            volume_in_blocks(crf, logits, guide, block=64)
        with pytest.raises(TypeError, match="`crf` must be a VolumeCRF, got VideoCRF"):
            volume_in_blocks(VideoCRF(3), logits, guide)


class TestPoints:
    def test_one_block_is_the_whole(self, cloud):
        crf, logits, positions, colours, whole = cloud
        result = points_in_blocks(crf, logits, positions, block=10.0, overlap=1.0, colours=colours)
        torch.testing.assert_close(result, whole)

    @pytest.mark.parametrize(("block", "overlap"), [(2.0, 0), (2.0, 0.5), (1.5, 0.75), (0.7, 0.1)])
    def test_shares_sum_to_one(self, cloud, block, overlap):
        crf, logits, positions, colours, _ = cloud
        steps = []
        result = points_in_blocks(
            crf, logits, positions, block=block, overlap=overlap, colours=colours,
            progress=lambda *step: steps.append(step),
        )  # fmt: skip
        torch.testing.assert_close(result.sum(1), torch.ones(3000))
        assert steps[-1][0] == steps[-1][1] == len(steps)
        if overlap == 0:
            extent = positions.amax(0) - positions.amin(0)
            assert len(steps) <= math.prod(int(length / block) + 1 for length in extent.tolist())

    def test_overlap_hides_the_seams(self, cloud):
        crf, logits, positions, colours, whole = cloud

        def error(overlap):
            result = points_in_blocks(crf, logits, positions, block=2.0, overlap=overlap, colours=colours)
            return float((result - whole).abs().mean())

        # Measured: 0.0070, 0.0047 and 0.0023, at 0, 1 and 2.5 sigma.
        assert error(0.75) < error(0.3) < error(0)
        assert error(0.75) < 0.5 * error(0)

    def test_clouds_of_a_batch_do_not_meet(self, cloud):
        crf, logits, positions, colours, _ = cloud
        batch = torch.arange(3000) % 2 * 4
        # They lie in one another, a little shifted.
        moved = positions + 0.13 * batch[:, None]
        options = {"block": 2.0, "overlap": 0.5}
        result = points_in_blocks(crf, logits, moved, colours=colours, batch=batch, **options)
        for number in (0, 4):
            one = batch == number
            alone = points_in_blocks(crf, logits[one], moved[one], colours=colours[one], **options)
            torch.testing.assert_close(result[one], alone)

    def test_empty_cubes_are_skipped(self, cloud):
        crf, logits, positions, colours, _whole = cloud
        far = positions + 1000 * (torch.arange(3000) % 2)[:, None]
        steps = []
        result = points_in_blocks(
            crf, logits, far, block=10.0, overlap=1.0, colours=colours,
            progress=lambda *step: steps.append(step),
        )  # fmt: skip
        assert len(steps) <= 16  # of some million
        torch.testing.assert_close(result.sum(1), torch.ones(3000))

    def test_map_coordinates(self, cloud):
        """In double precision, millions of metres from the origin and hundreds of kilometres wide."""
        _, logits, positions, colours, _ = cloud
        # A lattice lies elsewhere in a cloud that is moved, so only the exact kernel gives the same.
        crf = PointCRF(3, appearance_sigma_xyz=0.3, smoothness_sigma=0.15, method="exact", **WEAK)
        whole = crf(logits, positions, colours=colours)
        place = positions.double() + torch.tensor([500_000.3, 4_500_000.7, 100.0])
        # Measured: 3e-5; float32 tells 6e-5 apart at a kilometre.
        torch.testing.assert_close(crf(logits, place, colours=colours), whole, atol=5e-4, rtol=0)
        spread = place + 400_000.0 * (torch.arange(3000) % 2)[:, None]
        result = points_in_blocks(crf, logits, spread, block=10.0, overlap=1.0, colours=colours)
        near = torch.arange(3000) % 2 == 0
        alone = crf(logits[near], positions[near], colours=colours[near])
        torch.testing.assert_close(result[near], alone, atol=5e-4, rtol=0)

    def test_double_precision_is_kept(self, cloud):
        crf, logits, positions, colours, _ = cloud
        options = {"block": 2.0, "overlap": 0.5, "colours": colours}
        result = points_in_blocks(crf, logits.double(), positions.double(), **options)
        torch.testing.assert_close(result.sum(1), torch.ones(3000).double(), rtol=0, atol=1e-12)

    def test_wrong_arguments(self, cloud):
        crf, logits, positions, colours, _ = cloud

        def run(**changes):
            arguments = {"positions": positions, "block": 2.0, "overlap": 0.5, "colours": colours, **changes}
            return points_in_blocks(crf, logits, **arguments)

        with pytest.raises(ValueError, match=r"between 0 and half of the block, 1\.0, got 1\.5"):
            run(overlap=1.5)
        with pytest.raises(ValueError, match="`block` must be a finite number greater than 0"):
            run(block=0)
        with pytest.raises(ValueError, match=r"`block` must be larger: the cloud is .* wide"):
            run(block=1e-12, overlap=0)
        with pytest.raises(TypeError, match="`overlap` must be a number, got str"):
            run(overlap="wide")
        with pytest.raises(TypeError, match="`progress` must be a function"):
            run(progress=3)
        with pytest.raises(ValueError, match="`colours` must have 3000 rows to match `positions`"):
            run(colours=colours[1:])
        with pytest.raises(
            ValueError, match="`colours` are needed, as the layer has an appearance_sigma_rgb"
        ):
            run(colours=None)
        damaged = positions.clone()
        damaged[17, 2] = torch.nan
        with pytest.raises(ValueError, match=r"`positions` must be finite, got nan at index \(17, 2\)"):
            run(positions=damaged)
