"""The drop-in against pydensecrf itself, in one process."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest

import hdcrf.compat.densecrf as ours
import hdcrf.compat.eigen as our_eigen
import hdcrf.compat.utils as our_utils
from benchmarks.inputs import network_probabilities, photo

theirs = pytest.importorskip("pydensecrf.densecrf")
their_utils = pytest.importorskip("pydensecrf.utils")
their_eigen = pytest.importorskip("pydensecrf.eigen")

BOTH = ((theirs, their_utils), (ours, our_utils))
HEIGHT, WIDTH = 45, 60
KERNELS = ("CONST_KERNEL", "DIAG_KERNEL", "FULL_KERNEL")
NORMALIZATIONS = ("NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER", "NORMALIZE_SYMMETRIC")

# No label differs, and marginals by no more than this. Worst seen here: 2e-6, on average 1e-8; in
# benchmarks/drop_in.py 3e-5, where points are many and lie close to the borders of simplices.
MOST_APART, MOST_APART_ON_AVERAGE = 1e-4, 1e-6


def probabilities(name, labels):
    """Return a network's probabilities for a photo, (K, H, W)."""
    return np.ascontiguousarray(network_probabilities(name, HEIGHT, WIDTH, labels).transpose(2, 0, 1))


def built(module, utils, name, labels, *, kernel="DIAG_KERNEL", normalization="NORMALIZE_SYMMETRIC",
          generic=False, compat=None):  # fmt: skip
    """Return a CRF over a photo, by the methods for pictures or by features."""
    image = photo(name, HEIGHT, WIDTH)
    options = {"kernel": getattr(module, kernel), "normalization": getattr(module, normalization)}
    # Without normalisation messages are sums over hundreds of pixels.
    smooth, bilateral = (0.02, 0.05) if normalization == "NO_NORMALIZATION" else (3, 10)
    if compat is not None:
        smooth, bilateral = compat
    unary = utils.unary_from_softmax(probabilities(name, labels))
    if generic:
        crf = module.DenseCRF(HEIGHT * WIDTH, labels)
        crf.setUnaryEnergy(unary)
        gaussian = utils.create_pairwise_gaussian(sdims=(3, 3), shape=(HEIGHT, WIDTH))
        crf.addPairwiseEnergy(gaussian, compat=smooth, **options)
        features = utils.create_pairwise_bilateral(sdims=(30, 30), schan=(13, 13, 13), img=image, chdim=2)
        crf.addPairwiseEnergy(features, compat=bilateral, **options)
    else:
        crf = module.DenseCRF2D(WIDTH, HEIGHT, labels)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=3, compat=smooth, **options)
        crf.addPairwiseBilateral(sxy=30, srgb=13, rgbim=image, compat=bilateral, **options)
    return crf


def assert_alike(expected, result, *, ties=False):
    """Compare marginals; with `ties`, labels may differ where two are as likely."""
    expected, result = np.asarray(expected), np.asarray(result)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    assert result.flags.f_contiguous == expected.flags.f_contiguous
    apart = np.abs(result - expected)
    assert apart.max() <= MOST_APART
    assert apart.mean() <= MOST_APART_ON_AVERAGE
    same = result.argmax(0) == expected.argmax(0)
    if ties:
        second, first = np.sort(expected, axis=0)[-2:]
        same |= first - second < 1e-6
    assert same.all()


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
@pytest.mark.parametrize("labels", [2, 5, 21])
@pytest.mark.parametrize("generic", [False, True], ids=["2d", "generic"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_inference_steps_and_divergence(kernel, normalization, generic, labels, name):
    crfs = [
        built(*both, name, labels, kernel=kernel, normalization=normalization, generic=generic)
        for both in BOTH
    ]
    expected, result = (np.array(crf.inference(5)) for crf in crfs)
    assert_alike(expected, result)
    start = probabilities(name, labels).reshape(labels, -1)
    assert (expected.argmax(0) != start.argmax(0)).mean() > 0.005  # the CRF has done something

    states = [crf.startInference() for crf in crfs]
    assert_alike(states[0][0], states[1][0])
    assert [np.array(empty).shape for empty in states[1][1:]] == [(0, 0), (0, 0)]
    divergences = []
    for _ in range(5):
        theirs_now, ours_now = (crf.klDivergence(state[0]) for crf, state in zip(crfs, states, strict=True))
        # Theirs adds up in float32. Worst seen: 2e-5.
        assert ours_now == pytest.approx(theirs_now, rel=1e-4)
        divergences.append(ours_now)
        for crf, state in zip(crfs, states, strict=True):
            crf.stepInference(*state)
        assert_alike(states[0][0], states[1][0])
    assert all(after < before for before, after in itertools.pairwise(divergences))
    np.testing.assert_allclose(states[1][0], result, rtol=0, atol=1e-4)  # worst seen: 2e-6


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["number and vector", "vectors", "matrices", "vector and matrix"])
def test_compatibilities(kind, normalization, labels):
    random = np.random.default_rng(0)
    vector = -random.uniform(1, 6, labels).astype(np.float32)
    matrix = (random.uniform(0, 4, (labels, labels)) * (1 - np.eye(labels))).astype(np.float32)
    scale = np.float32(0.01 if normalization == "NO_NORMALIZATION" else 1)
    compat = {
        "number and vector": (3 * scale, scale * vector),
        "vectors": (scale * vector, 2 * scale * vector),
        "matrices": (scale * matrix, 2 * scale * matrix.T.copy()),
        "vector and matrix": (scale * vector, scale * matrix),
    }[kind]
    crfs = [built(*both, "coffee", labels, compat=compat, normalization=normalization) for both in BOTH]
    assert_alike(*run_and_step(crfs, labels))


def run_and_step(crfs, labels, iterations=3):
    """Return the marginals of both, after checking that their steps and divergences agree."""
    states = [crf.startInference() for crf in crfs]
    for _ in range(iterations):
        for crf, state in zip(crfs, states, strict=True):
            crf.stepInference(*state)
        if labels > 1:  # with one label, everything but rounding cancels out
            expected, divergence = (
                crf.klDivergence(state[0]) for crf, state in zip(crfs, states, strict=True)
            )
            assert divergence == pytest.approx(expected, rel=1e-4)
    assert_alike(states[0][0], states[1][0])
    return [np.array(crf.inference(iterations)) for crf in crfs]


@pytest.mark.parametrize("labels", [1, 1000])
def test_number_of_labels(labels):
    random, image = np.random.default_rng(0), photo("coffee", 12, 16)
    unary = random.uniform(0, 5, (labels, 192)).astype(np.float32)
    rewards = -np.linspace(1, 8, labels, dtype=np.float32)
    crfs = []
    for module, _ in BOTH:
        crf = module.DenseCRF2D(16, 12, labels)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=2, compat=rewards)
        crf.addPairwiseBilateral(sxy=10, srgb=13, rgbim=image, compat=10)
        crfs.append(crf)
    assert_alike(*run_and_step(crfs, labels))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dimension", [1, 2, 5, 8, 20, 60, 115, 118, 120, 150, 300])
def test_number_of_features(dimension, normalization):
    random = np.random.default_rng(dimension)
    points = 30 if dimension < 150 else 10
    groups = random.normal(size=(dimension, 4))[:, random.integers(0, 4, points)]
    features = (3 * groups + 0.3 * random.normal(size=(dimension, points))).astype(np.float32)
    unary = random.uniform(0, 3, (3, points)).astype(np.float32)
    # Without normalisation, messages fall with the number of features.
    compat = dimension / 2 if normalization == "NO_NORMALIZATION" else 3
    crfs = []
    for module, _ in BOTH:
        crf = module.DenseCRF(points, 3)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseEnergy(features, compat=compat, normalization=getattr(module, normalization))
        crfs.append(crf)
    expected, result = run_and_step(crfs, 3)
    assert_alike(expected, result)
    assert np.abs(expected - np.exp(-unary) / np.exp(-unary).sum(0)).max() > 0.1


def test_labels_that_are_excluded():
    unary = np.array(their_utils.unary_from_softmax(probabilities("coffee", 3)))
    unary[0, ::2] = np.inf
    unary[1, ::3] = 3e38
    marginals = []
    for module, _ in BOTH:
        crf = module.DenseCRF2D(WIDTH, HEIGHT, 3)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseBilateral(sxy=30, srgb=13, rgbim=photo("coffee", HEIGHT, WIDTH), compat=10)
        marginals.append(np.array(crf.inference(5)))
        assert (marginals[-1][0, ::2] < 1e-30).all()
    assert_alike(*marginals)


@pytest.mark.parametrize("kind", ["volume", "hyperspectral"])
def test_volumes_and_pictures_of_many_channels(kind):
    random = np.random.default_rng(0)
    shape = (6, 10, 11) if kind == "volume" else (15, 20)
    channels = 1 if kind == "volume" else 30
    image = random.normal(size=(channels, *shape)).cumsum(1).cumsum(2).astype(np.float32)
    softmax = random.dirichlet(np.ones(3), shape)
    softmax = np.ascontiguousarray(np.moveaxis(softmax, -1, 0), dtype=np.float32)
    costs = 5 * (1 - np.eye(3, dtype=np.float32))
    crfs = []
    for module, utils in BOTH:
        crf = module.DenseCRF(softmax[0].size, 3)
        crf.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(softmax)))
        sdims = tuple(range(2, 2 + len(shape)))
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian(sdims, shape), compat=3)
        bilateral = utils.create_pairwise_bilateral(sdims, (4.0,) * channels, image, chdim=0)
        crf.addPairwiseEnergy(bilateral, compat=costs)
        crfs.append(crf)
    assert_alike(*run_and_step(crfs, 3))


def test_places_where_two_labels_are_as_likely():
    # Scribbles, which narrow kernels do not carry far: elsewhere all labels are alike but for rounding.
    strokes = np.zeros((HEIGHT, WIDTH), dtype=int)
    for label in range(1, 9):
        strokes[5 * label : 5 * label + 2, 6 * label : 6 * label + 6] = label
    marginals = []
    for module, utils in BOTH:
        crf = module.DenseCRF2D(WIDTH, HEIGHT, 8)
        crf.setUnaryEnergy(utils.unary_from_labels(strokes, 8, gt_prob=0.7))
        crf.addPairwiseGaussian(sxy=1, compat=3)
        crf.addPairwiseBilateral(sxy=4, srgb=3, rgbim=photo("coffee", HEIGHT, WIDTH), compat=10)
        marginals.append(np.array(crf.inference(5)))
    assert_alike(*marginals, ties=True)
    second, first = np.sort(marginals[0], axis=0)[-2:]
    assert 0.1 < (first - second < 1e-6).mean() < 0.9


def test_deviations_of_each_axis_and_channel():
    image, unary = photo("coffee", HEIGHT, WIDTH), their_utils.unary_from_softmax(probabilities("coffee", 3))
    marginals = []
    for module, _ in BOTH:
        crf = module.DenseCRF2D(WIDTH, HEIGHT, 3)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=(2, 7), compat=3)
        crf.addPairwiseBilateral(sxy=(20, 60), srgb=(5, 13, 30), rgbim=image, compat=10)
        marginals.append(np.array(crf.inference(5)))
    assert_alike(*marginals)


def test_numbers_that_are_no_integers_and_deviations_too_many_or_infinite():
    image, unary = photo("coffee", HEIGHT, WIDTH), their_utils.unary_from_softmax(probabilities("coffee", 3))
    marginals = []
    for module, _ in BOTH:
        crf = module.DenseCRF2D(WIDTH + 0.5, np.float64(HEIGHT), np.array(3))
        crf.setUnaryEnergy(unary)
        with pytest.warns(UserWarning, match="the rest is ignored") if module is ours else nullcontext():
            crf.addPairwiseGaussian(sxy=(2, 7, 11), compat=3)
        with pytest.warns(UserWarning, match="the rest is ignored") if module is ours else nullcontext():
            crf.addPairwiseBilateral(sxy=(np.inf, 20), srgb=(5, 13, 30, 7), rgbim=image, compat=10)
        marginals.append(np.array(crf.inference(5.9)))
    assert_alike(*marginals)


def test_no_unary_and_no_pairwise_energy():
    rewards = np.array([-3, -1, -2, -1], dtype=np.float32)
    for prepare in (lambda crf: crf.addPairwiseGaussian(sxy=3, compat=rewards), lambda crf: None):
        crfs = [module.DenseCRF2D(12, 9, 4) for module, _ in BOTH]
        for crf in crfs:
            prepare(crf)
        assert_alike(*(np.array(crf.inference(3)) for crf in crfs))
        states = [crf.startInference() for crf in crfs]
        for _ in range(3):
            np.testing.assert_allclose(states[1][0], np.array(states[0][0]), rtol=0, atol=1e-5)
            for crf, state in zip(crfs, states, strict=True):
                crf.stepInference(*state)


@pytest.mark.parametrize("size", [(1, 1), (49, 1), (1, 50), (7, 13), (8, 13)])
def test_number_of_points_that_is_no_multiple_of_four(size):
    # Dark pictures, whose features lie around those of the points that their code adds: marginals by 0.1.
    width, height = size
    random = np.random.default_rng(0)
    for _ in range(5):
        unary = random.uniform(0, 4, (3, width * height)).astype(np.float32)
        image = random.integers(0, 20, (height, width, 3), dtype=np.uint8)
        crfs = [module.DenseCRF2D(width, height, 3) for module, _ in BOTH]
        for crf in crfs:
            crf.setUnaryEnergy(unary)
            crf.addPairwiseBilateral(sxy=3, srgb=13, rgbim=image, compat=10)
        assert_alike(*(np.array(crf.inference(3)) for crf in crfs))


def test_logistic_unary():
    random = np.random.default_rng(0)
    weights, features = (random.normal(size=size).astype(np.float32) for size in ((3, 4), (4, 50)))
    marginals = []
    for module, _ in BOTH:
        crf = module.DenseCRF(50, 3)
        crf.setUnary(module.LogisticUnary(weights, features))
        marginals.append(np.array(crf.inference(0)))
    assert_alike(*marginals)


def test_constants():
    for name in (*KERNELS, *NORMALIZATIONS):
        assert int(getattr(ours, name)) == int(getattr(theirs, name))
    for module, other in BOTH[::-1]:
        public = {name for name in dir(module) if not name.startswith("_")} - {"Number", "eigen"}
        assert public - set(dir(ours)) == set()
        assert {name for name in vars(other) if not name.startswith("_")} - {
            "np",
            "Number",
            "warning",
        } <= set(dir(our_utils))
    assert {name for name in dir(their_eigen) if not name.startswith("_")} <= set(dir(our_eigen))
    methods = {name for name in dir(theirs.DenseCRF2D) if not name.startswith("_")}
    assert methods <= set(dir(ours.DenseCRF2D))


class TestUtils:
    @pytest.mark.parametrize("zero_unsure", [False, True])
    def test_unary_from_labels(self, zero_unsure):
        labels = np.random.default_rng(0).integers(0, 4 if zero_unsure else 3, (7, 5))
        expected, result = (utils.unary_from_labels(labels, 3, 0.7, zero_unsure) for _, utils in BOTH)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        assert result.dtype == expected.dtype

    @pytest.mark.parametrize("scale", [None, 0.8, 1.0])
    @pytest.mark.parametrize("clip", [1e-5, 0.1, None])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_unary_from_softmax(self, scale, clip, dtype):
        softmax = np.random.default_rng(0).dirichlet(np.ones(4), (3, 5)).transpose(2, 0, 1).astype(dtype)
        expected, result = (utils.unary_from_softmax(softmax, scale, clip) for _, utils in BOTH)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)

    @pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning:pydensecrf")
    def test_older_names(self):
        labels, softmax = np.array([0, 1, 2, 2]), np.array([[0.2, 0.5, 0.0], [0.8, 0.5, 1.0]])
        for call in (
            lambda utils: utils.compute_unary(labels, 2, 0.6),
            lambda utils: utils.compute_unary(labels, 2),
            lambda utils: utils.softmax_to_unary(softmax),
            lambda utils: utils.softmax_to_unary(softmax, 0.7),
        ):
            expected = call(their_utils)
            with pytest.warns(DeprecationWarning, match="is deprecated") as caught:
                result = call(our_utils)
            assert caught[0].filename == __file__
            np.testing.assert_allclose(result, expected, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4), (2, 3, 2, 3)])
    def test_features(self, shape):
        sdims = tuple(range(1, len(shape) + 1))
        np.testing.assert_array_equal(
            our_utils.create_pairwise_gaussian(sdims, shape),
            their_utils.create_pairwise_gaussian(sdims, shape),
        )
        grey = np.random.default_rng(0).integers(0, 255, shape)
        for image, schan, chdim in (
            (grey, 3.0, -1),
            (grey, (3.0,), -1),
            (np.stack([grey] * 4, 0), (1, 2, 3, 4), 0),
            (np.stack([grey] * 2, -1), 7, len(shape)),
        ):
            expected, result = (
                utils.create_pairwise_bilateral(sdims, schan, image, chdim) for _, utils in BOTH
            )
            np.testing.assert_array_equal(result, expected)
            assert result.dtype == expected.dtype

    @pytest.mark.parametrize("missing", [{"schan": (13,)}, {"sdims": (8,)}], ids=["schan", "sdims"])
    def test_features_where_deviations_are_missing(self, missing):
        options = {"sdims": (8, 5), "schan": 13, "img": photo("coffee", 6, 7), "chdim": 2} | missing
        with pytest.warns(UserWarning, match="1 stands for each that is missing") as caught:
            result = our_utils.create_pairwise_bilateral(**options)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(result, their_utils.create_pairwise_bilateral(**options))

    def test_channels_counted_from_the_end_and_infinite_deviations(self):
        image = photo("coffee", 6, 7).transpose(2, 0, 1)
        expected, result = (utils.create_pairwise_bilateral((np.inf, 5), 13, image, -3) for _, utils in BOTH)
        np.testing.assert_array_equal(result, expected)
