"""Lifts of videos, volumes, points and space-time voxels; those of images are in test_hdcrf_filter.py."""

import pytest
import torch

import hdcrf
from hdcrf import (
    bilateral_features,
    build_filter,
    point_features,
    trilateral_features,
    video_features,
    volume_features,
)
from voxel import SparseTensor


def rows_one_by_one(guide, distances, sigma):
    """Lift a (B, c, …) grid voxel by voxel; `distances` in standard deviations along the axes, last first."""
    rows = []
    for item in guide:
        for place in torch.cartesian_prod(*(torch.arange(size) for size in item.shape[1:])).tolist():
            position = [at * distance for at, distance in zip(reversed(place), distances, strict=True)]
            rows.append([*position, *(item[(slice(None), *place)] / sigma).tolist()])
    return torch.tensor(rows, dtype=guide.dtype)


class TestGrids:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_video(self, channels, device):
        guide = torch.rand(2, channels, 3, 4, 5, dtype=torch.float64)
        features = video_features(guide.to(device), 2.0, 0.5, 0.1)
        torch.testing.assert_close(features.cpu(), rows_one_by_one(guide, (1 / 2, 1 / 2, 1 / 0.5), 0.1))

    def test_one_frame_is_an_image_at_time_zero(self):
        guide = torch.rand(2, 3, 1, 4, 5)
        features = video_features(guide, 2.0, 3.0, 0.1)
        torch.testing.assert_close(features[:, [0, 1, 3, 4, 5]], bilateral_features(guide[:, :, 0], 2.0, 0.1))
        assert features[:, 2].eq(0).all()

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.5, 0.75)])
    def test_volume(self, spacing):
        guide = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
        features = volume_features(guide, 2.0, 0.1, spacing)
        distances = [distance / 2.0 for distance in reversed(spacing)]
        torch.testing.assert_close(features, rows_one_by_one(guide, distances, 0.1))

    def test_one_row_a_feature_in_memory(self):
        for features in (
            video_features(torch.rand(1, 3, 2, 4, 5), 2.0, 2.0, 0.1),
            volume_features(torch.rand(1, 1, 2, 4, 5).requires_grad_(), 2.0, 0.1),
        ):
            assert features.T.is_contiguous()

    def test_gradients(self):
        guide = torch.rand(2, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        sigmas = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (2.0, 3.0, 0.5)]
        assert torch.autograd.gradcheck(video_features, (guide, *sigmas))
        assert torch.autograd.gradcheck(
            lambda g, p, i: volume_features(g, p, i, (3.0, 1.0, 2.0)), (guide, *sigmas[:2])
        )

    @pytest.mark.parametrize(
        ("spacing", "message"),
        [
            (2.0, "must be three numbers, the distances of voxels along D, H and W, got 2.0"),
            ((1.0, 2.0), r"must be three numbers.* got \(1.0, 2.0\)"),
            ((1.0, 0.0, 1.0), r"`spacing\[1\]` must be"),
        ],
    )
    def test_wrong_spacing(self, spacing, message):
        with pytest.raises(ValueError, match=message):
            volume_features(torch.rand(1, 1, 2, 2, 2), 1.0, 1.0, spacing)

    @pytest.mark.parametrize("lift", [video_features, volume_features])
    def test_wrong_guide(self, lift):
        sigmas = (1.0,) * (3 if lift is video_features else 2)
        with pytest.raises(
            ValueError, match=r"`guide` must have shape \(B, c, ., H, W\), got \(1, 3, 4, 5\)"
        ):
            lift(torch.rand(1, 3, 4, 5), *sigmas)
        with pytest.raises(TypeError, match="`guide` must be"):
            lift(torch.zeros(1, 3, 4, 5, 6, dtype=torch.uint8), *sigmas)

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), torch.tensor(0.0), torch.ones(2), 1e-50])
    def test_wrong_sigma(self, place, sigma):
        sigmas = [1.0, 1.0, 1.0]
        sigmas[place] = sigma
        with pytest.raises(ValueError, match="`" + ("sigma_xy", "sigma_t", "sigma_rgb")[place] + "` must"):
            video_features(torch.rand(1, 3, 2, 2, 2), *sigmas)


class TestPoints:
    positions = torch.rand(6, 3, dtype=torch.float64)
    colours = torch.rand(6, 3, dtype=torch.float64)
    normals = torch.nn.functional.normalize(torch.randn(6, 3, dtype=torch.float64))
    intensities = torch.rand(6, dtype=torch.float64)

    def test_each_divided_by_its_sigma(self):
        features = point_features(
            self.positions,
            0.1,
            colours=self.colours,
            sigma_rgb=0.2,
            normals=self.normals,
            sigma_normal=0.3,
            intensities=self.intensities,
            sigma_intensity=0.4,
        )
        parts = [
            self.positions / 0.1,
            self.colours / 0.2,
            self.normals / 0.3,
            self.intensities[:, None] / 0.4,
        ]
        torch.testing.assert_close(features, torch.cat(parts, 1))
        assert features.T.is_contiguous()

    def test_what_is_not_given_is_left_out(self):
        assert point_features(self.positions, 1.0).shape == (6, 3)
        features = point_features(self.positions, 1.0, intensities=self.intensities, sigma_intensity=2.0)
        torch.testing.assert_close(features[:, 3], self.intensities / 2)

    def test_gradients(self):
        tensors = [part.clone().requires_grad_() for part in (self.positions, self.colours)]
        sigmas = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (0.5, 0.3)]
        assert torch.autograd.gradcheck(
            lambda p, c, s, r: point_features(p, s, colours=c, sigma_rgb=r), (*tensors, *sigmas)
        )

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"sigma_rgb": 0.1}, ValueError, "`sigma_rgb` is given but `colours` is not; give both, or"),
            ({"normals": normals}, ValueError, "`normals` is given but `sigma_normal` is not; give both"),
            ({"colours": colours[:4], "sigma_rgb": 1.0}, ValueError, r"`colours` must have shape .*6 rows"),
            ({"colours": colours.float(), "sigma_rgb": 1.0}, TypeError, "`colours` must have the dtype of"),
            ({"colours": colours * torch.nan, "sigma_rgb": 1.0}, ValueError, "`colours` must be finite"),
            ({"intensities": "high", "sigma_intensity": 1.0}, TypeError, "`intensities` must be a torch"),
            ({"colours": colours, "sigma_rgb": 0.0}, ValueError, "`sigma_rgb` must be"),
        ],
    )
    def test_wrong_attributes(self, given, error, message):
        with pytest.raises(error, match=message):
            point_features(self.positions, 1.0, **given)

    def test_wrong_positions(self):
        with pytest.raises(ValueError, match=r"`positions` must have shape \(N, 3\), got \(6, 2\)"):
            point_features(torch.rand(6, 2), 1.0)
        with pytest.raises(ValueError, match=r"`positions` must be finite, got nan at index \(2, 1\)"):
            point_features(
                torch.rand(6, 3).index_put_((torch.tensor(2), torch.tensor(1)), torch.tensor(torch.nan)), 1.0
            )


class TestTrilateral:
    coordinates = torch.tensor([[0, 1, -2, 3, 0], [0, 1, -2, 3, 1], [1, 1, -2, 3, 0]])

    def test_each_divided_by_its_sigma(self):
        colours = torch.rand(3, 3)
        features = trilateral_features(SparseTensor(self.coordinates, colours), 0.2, 3.0, 0.5, voxel_size=0.1)
        place = self.coordinates[:, 1:].float() * torch.tensor([0.1, 0.1, 0.1, 1.0])
        sigmas = torch.tensor([0.2, 0.2, 0.2, 3.0])
        torch.testing.assert_close(features, torch.cat([place / sigmas, colours / 0.5], 1))

    def test_in_the_filter_items_of_a_batch_do_not_meet(self):
        voxels = SparseTensor(self.coordinates, torch.zeros(3, 3))
        features = trilateral_features(voxels, 1.0, 1.0, 1.0)
        assert features.shape == (3, 7)
        result = build_filter(features, method="exact", batch=voxels.coordinates[:, 0]).filter(torch.eye(3))
        near = torch.exp(torch.tensor(-0.5)).item()
        torch.testing.assert_close(result, torch.tensor([[1, near, 0], [near, 1, 0], [0, 0, 1]]))

    def test_wrong_voxels(self):
        with pytest.raises(TypeError, match=r"`voxels` must be a voxel.SparseTensor, got Tensor"):
            trilateral_features(torch.rand(3, 5), 1.0, 1.0, 1.0)
        with pytest.raises(ValueError, match="coordinates batch, x, y, z, t, got 3 dimensions"):
            trilateral_features(SparseTensor(self.coordinates[:, :4], torch.rand(3, 3)), 1.0, 1.0, 1.0)
        with pytest.raises(ValueError, match="`voxel_size` must be"):
            trilateral_features(SparseTensor(self.coordinates, torch.rand(3, 3)), 1.0, 1.0, 1.0, voxel_size=0)


@pytest.mark.parametrize("method", ["permutohedral", "voxel"])
def test_mean_field_agrees_with_the_exact_kernel(method):
    """In 7D, on confident probabilities, the labels of the lattices are those of the dense matrix."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.zeros(4, 6, 8, 8, dtype=torch.int64)
    inside[:, 1:5, 2:6, 2:6] = 1
    coordinates = torch.nonzero(inside >= 0)[:, [3, 2, 1, 0]]
    truth = inside[tuple(coordinates[:, [3, 2, 1, 0]].T)]
    colours = truth[:, None] * torch.tensor([90.0, 40.0, -60.0]) + 100
    colours = colours + 6 * torch.randn(len(truth), 3, generator=generator)
    voxels = SparseTensor(torch.nn.functional.pad(coordinates, (1, 0)), colours)
    features = trilateral_features(voxels, 4.0, 3.0, 25.0)
    noise = torch.randn(len(truth), 2, generator=generator)
    logits = 2.0 * torch.nn.functional.one_hot(truth, 2) + 0.7 * noise

    def labels(**options):
        kernel = hdcrf.pairwise_kernel(build_filter(features, **options), 5.0, "symmetric")
        result = hdcrf.mean_field(logits, [kernel], hdcrf.Compatibility(2), iterations=5)
        return result.marginals.argmax(1)

    exact = labels(method="exact")
    assert (exact == truth).float().mean() > (logits.argmax(1) == truth).float().mean() + 0.02
    assert (labels(method=method) != exact).float().mean() < 0.005
