"""refine, from NumPy to NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hdcrf
from benchmarks.inputs import network_probabilities, photo

IMAGE = photo("astronaut", 24, 32)
PROBABILITIES = network_probabilities("astronaut", 24, 32, 3)
LABELS = np.where(np.arange(24 * 32).reshape(24, 32) % 5 == 0, PROBABILITIES.argmax(2), -1)


def test_equals_the_layer():
    marginals = hdcrf.refine(IMAGE, probabilities=PROBABILITIES, return_marginals=True, iterations=4)
    assert marginals.shape == (24, 32, 3)
    assert marginals.dtype == np.float32
    logits = torch.from_numpy(PROBABILITIES).clamp_min(1e-6).log().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = hdcrf.DenseCRF(3, iterations=4)(logits, torch.from_numpy(IMAGE).permute(2, 0, 1)[None])
    np.testing.assert_allclose(marginals, expected[0].permute(1, 2, 0), atol=1e-5)


def test_labels_are_the_likeliest():
    labels = hdcrf.refine(IMAGE, probabilities=PROBABILITIES)
    assert labels.dtype == np.int64
    marginals = hdcrf.refine(IMAGE, probabilities=PROBABILITIES, return_marginals=True)
    assert np.array_equal(labels, marginals.argmax(2))


def test_unknown_pixels_get_labels():
    refined = hdcrf.refine(IMAGE, labels=LABELS)
    assert refined.min() >= 0
    # Measured: 0.842 with one pixel in five given; by chance it would be 0.47.
    assert (refined == PROBABILITIES.argmax(2)).mean() > 0.8


def test_one_to_three_and_more_channels_and_strided_arrays():
    for image in (
        IMAGE[..., 0],
        IMAGE[..., :1],
        np.concatenate([IMAGE, IMAGE], 2),
        IMAGE.astype(np.float64),
        IMAGE.astype(np.uint16),
    ):
        assert hdcrf.refine(image, labels=LABELS).shape == (24, 32)
    strided = hdcrf.refine(IMAGE[::-1, ::2], probabilities=PROBABILITIES[::-1, ::2])
    copied = hdcrf.refine(IMAGE[::-1, ::2].copy(), probabilities=PROBABILITIES[::-1, ::2].copy())
    assert np.array_equal(strided, copied)
    read_only = IMAGE.copy()
    read_only.flags.writeable = False
    assert hdcrf.refine(read_only, labels=LABELS).shape == (24, 32)


def test_options_as_numpy_has_them():
    costs = 2 - 2 * np.eye(3)
    refined = hdcrf.refine(
        IMAGE,
        labels=LABELS,
        num_labels=np.int64(3),
        iterations=np.int32(2),
        appearance_weight=np.float32(5),
        appearance_sigma_xy=np.int64(60),
        compatibility=costs,
        return_marginals=True,
    )
    plain = hdcrf.refine(
        IMAGE,
        labels=LABELS,
        iterations=2,
        appearance_weight=5,
        appearance_sigma_xy=60,
        compatibility=torch.tensor(costs).float(),
        return_marginals=True,
    )
    assert np.array_equal(refined, plain)


@pytest.mark.parametrize("hold", [np.array, torch.tensor])
def test_numbers_in_arrays_without_dimensions(hold):
    options = {
        "num_labels": 3,
        "gt_prob": 0.8,
        "iterations": 2,
        "appearance_weight": 5.0,
        "smoothness_sigma": 2.0,
        "order": 2,
        "exclude_self": False,
        "tolerance": 0.01,
        "return_marginals": True,
    }
    plain = hdcrf.refine(IMAGE, labels=LABELS, **options)
    held = hdcrf.refine(IMAGE, labels=LABELS, **{name: hold(value) for name, value in options.items()})
    assert np.array_equal(plain, held)


def test_compatibility_in_lists():
    costs = [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    listed = hdcrf.refine(IMAGE, labels=LABELS, compatibility=costs, return_marginals=True)
    array = hdcrf.refine(IMAGE, labels=LABELS, compatibility=np.array(costs), return_marginals=True)
    assert np.array_equal(listed, array)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.uint64])
def test_masked_labels_are_unknown(dtype):
    masked = np.ma.masked_array(LABELS.astype(dtype), LABELS < 0)
    expected = hdcrf.refine(IMAGE, labels=LABELS, return_marginals=True)
    assert np.array_equal(hdcrf.refine(IMAGE, labels=masked, return_marginals=True), expected)


@pytest.mark.parametrize("hold", [np.ndarray.tolist, torch.from_numpy])
def test_labels_in_lists_or_a_tensor(hold):
    expected = hdcrf.refine(IMAGE, labels=LABELS)
    assert np.array_equal(hdcrf.refine(IMAGE, labels=hold(LABELS)), expected)


def test_labels_above_a_byte_need_their_number_said():
    labels = np.where(LABELS < 0, 300, LABELS)
    assert hdcrf.refine(IMAGE, labels=labels, num_labels=301, iterations=1).max() <= 300


def test_progress_counts_the_iterations():
    seen = []
    hdcrf.refine(IMAGE, labels=LABELS, iterations=3, progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "give either `probabilities` or `labels`, got neither"),
        ({"labels": LABELS, "probabilities": PROBABILITIES}, ValueError, "got both"),
        ({"labels": LABELS[:5]}, ValueError, r"must have shape \(H, W\) = \(24, 32\) to match"),
        ({"labels": LABELS.astype(float)}, TypeError, "`labels` must hold integers, got float64"),
        ({"labels": LABELS * 0 - 1}, ValueError, "all -1, unknown"),
        ({"labels": LABELS, "num_labels": 2}, ValueError, "must lie from 0 to 1"),
        ({"probabilities": PROBABILITIES, "num_labels": 3}, ValueError, "goes with `labels`"),
        ({"probabilities": PROBABILITIES[:, :, 0]}, ValueError, r"must have shape \(H, W, K\)"),
        ({"probabilities": PROBABILITIES.transpose(2, 0, 1)}, ValueError, r"\(24, 32, K\) to match `image`"),
        ({"probabilities": PROBABILITIES[:, :, :0]}, ValueError, "K of at least 1"),
        ({"probabilities": PROBABILITIES * 2}, ValueError, r"must sum to 1 over the labels \(axis 2\)"),
        ({"probabilities": PROBABILITIES * np.nan}, ValueError, "must be finite"),
        ({"probabilities": PROBABILITIES.astype(object)}, TypeError, "array of real numbers"),
        ({"probabilities": torch.from_numpy(PROBABILITIES)}, TypeError, "must be a NumPy array"),
        ({"labels": LABELS, "learn": ("weights",)}, TypeError, "does not take `learn`"),
        ({"labels": LABELS, "sigma": 3}, TypeError, "has no option `sigma`; it has appearance_weight"),
        ({"labels": LABELS, "appearance_sigma_rgb": 1e-8}, ValueError, "1e-08 is too small"),
        ({"labels": np.where(LABELS < 0, 255, LABELS)}, ValueError, "would make 256 classes; set ignored"),
        ({"labels": LABELS, "gt_prob": None}, TypeError, "`gt_prob` must be a number, got NoneType"),
        ({"labels": LABELS, "gt_prob": np.nan}, ValueError, "`gt_prob` must be finite"),
        ({"labels": LABELS, "compatibility": np.eye(2)}, ValueError, r"shape \(3,\) or \(3, 3\)"),
        ({"labels": LABELS, "compatibility": [[0, 1]]}, ValueError, r"or \(3, 3\), got \(1, 2\)"),
        ({"labels": LABELS, "compatibility": [[0, 1], [2]]}, ValueError, "must have rows of one length"),
        ({"labels": LABELS, "compatibility": None}, TypeError, "`compatibility` must be an array of real"),
        ({"labels": LABELS, "compatibility": [1, 2, 1e39]}, ValueError, r"got 1e\+39 at index \(2,\); scale"),
        ({"probabilities": PROBABILITIES.astype(float) * 1e39}, ValueError, "must lie within ±3.4e"),
        ({"labels": LABELS, "exclude_self": "no"}, TypeError, "`exclude_self` must be True or False"),
        ({"labels": LABELS, "return_marginals": "no"}, TypeError, "`return_marginals` must be True or False"),
        ({"labels": LABELS, "progress": 3}, TypeError, "`progress` must be a function .* got int"),
        ({"labels": LABELS, "iterations": 10**9}, ValueError, "`iterations` must be at most 1000000"),
        ({"probabilities": PROBABILITIES, "gt_prob": 0.9}, ValueError, "`gt_prob` goes with `labels`"),
        ({"labels": LABELS, "halo": 10**9}, ValueError, "`halo` must be at most 8, got 1000000000"),
        ({"labels": LABELS, "num_labels": 10**12}, ValueError, "`num_labels` must be at most 65536"),
        ({"labels": LABELS, "num_labels": 10**5000}, ValueError, "at most 65536, got one of 16610 bits"),
        ({"labels": [[0, 1], [2]]}, ValueError, "`labels` must have rows of one length"),
        ({"labels": LABELS, "gt_prob": 10**400}, ValueError, "`gt_prob` must lie within"),
        ({"labels": LABELS, "smoothness_sigma": 10**400}, ValueError, "`smoothness_sigma` must lie within"),
        ({"labels": LABELS.astype(np.uint64)}, ValueError, "got 18446744073709551615; set ignored"),
        ({"labels": LABELS.astype(np.uint64), "num_labels": 3}, ValueError, "got 18446744073709551615; set"),
        ({"labels": np.ma.masked_array(LABELS, LABELS < 9)}, ValueError, "all -1, unknown"),
        ({"probabilities": np.ma.masked_array(PROBABILITIES)}, TypeError, "an array without a mask"),
        ({"labels": LABELS, "appearance_weight": 1e38}, ValueError, "left the range of torch.float32"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        hdcrf.refine(IMAGE, **arguments)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (IMAGE[None], ValueError, r"`image` must have shape \(H, W, 3\), \(H, W\) or \(H, W, c\)"),
        (IMAGE[:0], ValueError, "must not be empty"),
        (IMAGE[..., :0], ValueError, "must not be empty"),
        (IMAGE.astype(complex), TypeError, "array of real numbers"),
        (np.where(IMAGE > 100, np.nan, IMAGE), ValueError, r"`image` must be finite, got nan at index \("),
        (IMAGE * 1e39, ValueError, r"`image` must lie within ±3\.4e\+38, .* at index \(0, 0, 0\)"),
        (np.ma.masked_array(IMAGE), TypeError, "`image` must be an array without a mask"),
        ([["a"]], TypeError, "array of real numbers"),
    ],
)
def test_wrong_images(image, error, message):
    with pytest.raises(error, match=message):
        hdcrf.refine(image, labels=LABELS)


@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    labels=st.integers(1, 5),
    dtype=st.sampled_from([np.uint8, np.int32, np.float16, np.float32, np.float64]),
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    fortran=st.booleans(),
)
def test_any_shape_and_dtype(height, width, labels, dtype, kind, fortran):
    random = np.random.default_rng(0)
    image = (random.random((height, width, 3)) * 255).astype(dtype)
    probabilities = random.dirichlet(np.ones(labels), (height, width)).astype(kind)
    if fortran:
        image, probabilities = np.asfortranarray(image), np.asfortranarray(probabilities)
    marginals = hdcrf.refine(image, probabilities=probabilities, return_marginals=True, iterations=2)
    assert marginals.shape == (height, width, labels)
    np.testing.assert_allclose(marginals.sum(2), 1, atol=1e-5)
