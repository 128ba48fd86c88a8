"""gaussian_filter, the exact oracle, and the lift."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdcrf import ExactGaussian, bilateral_features, build_filter, gaussian_filter
from hdcrf.gaussian_filter import METHODS


def dense(features, batch=None):
    matrix = torch.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(2))
    return matrix if batch is None else matrix * (batch[:, None] == batch[None])


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_exact_equals_the_dense_sum(normalization, device):
    features = torch.randn(60, 4, dtype=torch.float64, device=device)
    values = torch.randn(60, 3, dtype=torch.float64, device=device)
    batch = torch.arange(60, device=device) % 2
    matrix = dense(features, batch)
    degree = matrix.sum(1)
    expected = {
        "none": matrix @ values,
        "before": matrix @ (values / degree[:, None]),
        "after": (matrix @ values) / degree[:, None],
        "symmetric": (matrix @ (values / degree[:, None].sqrt())) / degree[:, None].sqrt(),
    }[normalization]
    # Blocks of one row and a bit: the cut must not show.
    operator = ExactGaussian(features, batch=batch, block_elements=80)
    torch.testing.assert_close(operator.filter(values, normalization=normalization), expected)


def test_exact_keeps_small_distances_in_float32():
    # |f| = 1e4, distance 1: by ‖f‖² + ‖g‖² - 2fg, float32 would lose it altogether.
    features = torch.tensor([[1e4, 0.0], [1e4, 1.0]])
    result = gaussian_filter(features, torch.tensor([[1.0], [0.0]]), method="exact")
    assert result[1, 0] == pytest.approx(np.exp(-0.5), rel=1e-6)


def test_exact_gradients():
    features = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    values = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    query = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for normalization in ("none", "symmetric"):
        assert torch.autograd.gradcheck(
            lambda f, v, q, n=normalization: gaussian_filter(f, v, method="exact", query=q, normalization=n),
            (features, values, query),
        )


@pytest.mark.parametrize("method", METHODS)
def test_query_out_of_reach_is_zero_and_never_nan(method, device):
    features = torch.rand(50, 3, device=device)
    query = torch.full((2, 3), 400.0, device=device)
    for normalization in ("none", "before", "after", "symmetric"):
        result = gaussian_filter(
            features,
            torch.ones(50, 2, device=device),
            method=method,
            normalization=normalization,
            query=query,
        )
        assert torch.equal(result, torch.zeros(2, 2, device=device))


@pytest.mark.parametrize("method", METHODS)
def test_methods_agree_on_a_smooth_cloud(method, device):
    features = torch.rand(2000, 2, dtype=torch.float64, device=device) * 4
    values = torch.rand(2000, 2, dtype=torch.float64, device=device)
    expected = dense(features) @ values
    result = gaussian_filter(features, values, method=method, order=3, halo=3)
    # Measured: permutohedral 0.0059, voxel 0.0098.
    assert (result - expected).norm() <= 0.012 * expected.norm()


def test_build_filter_refuses_what_it_does_not_know():
    features = torch.rand(5, 2)
    with pytest.raises(
        ValueError, match=r"`method` must be one of 'permutohedral', 'voxel', 'exact', got 'fft'"
    ):
        build_filter(features, method="fft")
    with pytest.raises(ValueError, match="`order` must be at least 1, got 0"):
        gaussian_filter(features, torch.rand(5, 1), order=0)
    with pytest.raises(ValueError, match=r"`values` must have shape \(N, C\) with 5 rows, got \(4, 1\)"):
        gaussian_filter(features, torch.rand(4, 1))
    with pytest.raises(TypeError, match=r"`values` must have the dtype of `features`"):
        gaussian_filter(features, torch.rand(5, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="`halo` must be at most 8, got 1000000000"):
        gaussian_filter(features, torch.rand(5, 1), halo=10**9)
    with pytest.raises(ValueError, match=r"`values` must be finite, got inf at index \(0, 0\)"):
        gaussian_filter(features, torch.full((5, 1), float("inf")))
    with pytest.raises(TypeError, match=r"`features` must be a dense tensor, got torch\.sparse_coo"):
        gaussian_filter(features.to_sparse(), torch.rand(5, 1))
    with pytest.raises(TypeError, match=r"`values` must be a dense tensor, got torch\.sparse_coo"):
        gaussian_filter(features, torch.rand(5, 1).to_sparse())
    with pytest.raises(ValueError, match="`features` must hold numbers, got a tensor on the meta device"):
        gaussian_filter(features.to("meta"), torch.rand(5, 1))
    features[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"`features` must be finite, got nan at index \(2, 1\)"):
        gaussian_filter(features, torch.rand(5, 1))


@given(
    points=st.integers(0, 30),
    dimension=st.integers(1, 8),
    channels=st.integers(0, 4),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    contiguous=st.booleans(),
)
def test_any_shape_and_dtype(points, dimension, channels, method, dtype, contiguous):
    features = torch.rand(dimension, points, dtype=dtype).T
    values = torch.rand(channels, points, dtype=dtype).T
    if contiguous:
        features, values = features.contiguous(), values.contiguous()
    result = gaussian_filter(features, values, method=method, normalization="after")
    assert result.shape == (points, channels)
    assert result.dtype == dtype
    assert bool(torch.isfinite(result).all())
    # A weighted mean stays within the values; 1e-5 for float32 sums.
    if result.numel():
        assert result.min() >= values.min() - 1e-5
        assert result.max() <= values.max() + 1e-5


class TestBilateralFeatures:
    def test_layout_and_units(self):
        guide = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).view(2, 3, 4, 5)
        features = bilateral_features(guide, 2.0, 10.0)
        assert features.shape == (40, 5)
        batch, y, x = 1, 2, 3
        row = features[batch * 20 + y * 5 + x]
        expected = torch.cat([torch.tensor([x / 2, y / 2]).double(), guide[batch, :, y, x] / 10])
        torch.testing.assert_close(row, expected)

    def test_gradients(self):
        guide = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        sigmas = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (2.0, 0.5)]
        assert torch.autograd.gradcheck(bilateral_features, (guide, *sigmas))

    def test_same_with_and_without_gradient(self):
        guide = torch.rand(2, 3, 4, 5)
        sigma = torch.tensor(2.0, requires_grad=True)
        torch.testing.assert_close(
            bilateral_features(guide, sigma, 3.0).detach(), bilateral_features(guide, 2.0, 3.0)
        )

    @pytest.mark.parametrize("name", ["sigma_xy", "sigma_rgb"])
    @pytest.mark.parametrize(
        ("sigma", "error", "message"),
        [
            (0.0, ValueError, "finite number greater than 0, got 0.0"),
            (-1.0, ValueError, "finite number greater than 0, got -1.0"),
            (float("nan"), ValueError, "finite number greater than 0, got nan"),
            pytest.param(10**400, ValueError, "within", id="huge"),
            (1e-50, ValueError, r"between 1\.18e-38 and 3\.4e\+38, as torch\.float32 does, got 1e-50"),
            ("3", TypeError, "a number, got str"),
            (torch.tensor(float("nan")), ValueError, "finite, got nan"),
            (torch.tensor(-1.0), ValueError, "finite number greater than 0, got -1.0"),
            (torch.ones(2), ValueError, r"a single number, got a tensor of shape \(2,\)"),
        ],
    )
    def test_wrong_sigma(self, sigma, error, message, name):
        sigmas = {"sigma_xy": 1.0, "sigma_rgb": 1.0} | {name: sigma}
        with pytest.raises(error, match=rf"`{name}` must (be|lie) .*{message}"):
            bilateral_features(torch.rand(1, 3, 4, 5), **sigmas)

    def test_wrong_guide(self):
        with pytest.raises(ValueError, match=r"`guide` must have shape \(B, c, H, W\), got \(3, 4, 5\)"):
            bilateral_features(torch.rand(3, 4, 5), 1.0, 1.0)
        with pytest.raises(TypeError, match=r"`guide` must be float32 or float64, got torch\.uint8"):
            bilateral_features(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), 1.0, 1.0)


@pytest.mark.parametrize("method", ["permutohedral", "voxel", "exact"])
@pytest.mark.parametrize("normalization", ["none", "after", "symmetric"])
def test_sums_beyond_the_range_are_an_error(method, normalization, backend):
    features, values = torch.rand(200, 5) * 0.1, torch.full((200, 2), 3e38)
    with pytest.raises(
        ValueError, match=r"`values` up to 3e\+38 have sums beyond the range of torch\.float32"
    ):
        gaussian_filter(features, values, method=method, normalization=normalization, backend=backend)
