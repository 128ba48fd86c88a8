"""The drop-in for pydensecrf by itself. That results are alike is checked in test_compat_peer.py."""

import copy
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import hdcrf
from benchmarks.inputs import network_probabilities, photo
from hdcrf.compat import densecrf, eigen, utils
from hdcrf.compat.__main__ import main

HEIGHT, WIDTH, LABELS = 12, 17, 3
POINTS = HEIGHT * WIDTH


@pytest.fixture
def image():
    return photo("coffee", HEIGHT, WIDTH)


@pytest.fixture
def unary():
    return utils.unary_from_softmax(network_probabilities("coffee", HEIGHT, WIDTH, LABELS).transpose(2, 0, 1))


@pytest.fixture
def crf(image, unary):
    crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=2, compat=3)
    crf.addPairwiseBilateral(sxy=10, srgb=13, rgbim=image, compat=10)
    return crf


def test_marginals(crf):
    marginals = crf.inference(3)
    assert marginals.shape == (LABELS, POINTS)
    assert marginals.dtype == np.float32
    assert marginals.flags.f_contiguous
    assert marginals.flags.writeable
    np.testing.assert_allclose(marginals.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(crf.inference(3), marginals)


def test_dense_crf_of_our_own_without_the_self_term_left_out(crf, unary, image):
    ours = hdcrf.DenseCRF(
        LABELS, iterations=3, appearance_sigma_xy=10, smoothness_sigma=2, exclude_self=False, learn=()
    )
    logits = -torch.from_numpy(unary).view(1, LABELS, HEIGHT, WIDTH)
    guide = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = ours(logits, guide).view(LABELS, -1).numpy()
    apart = np.abs(crf.inference(3) - expected)
    # There the smoothness kernel is an exact convolution, here a lattice; 0.08 and 8e-4 measured.
    assert apart.max() < 0.2
    assert apart.mean() < 2e-3


class TestInput:
    def test_layout_and_dtype_do_not_matter(self, image, unary, crf):
        expected = crf.inference(3)
        for turn in (np.asfortranarray, np.float64, lambda a: np.repeat(a, 2, -1)[..., ::2]):
            other = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
            energy, picture = turn(unary), turn(image)
            energy.flags.writeable = picture.flags.writeable = False
            other.setUnaryEnergy(energy)
            other.addPairwiseGaussian(sxy=(2.0, 2), compat=np.float32(3))
            other.addPairwiseBilateral(
                sxy=np.array(10.0), srgb=torch.tensor(13), rgbim=picture, compat=np.array(10)
            )
            np.testing.assert_allclose(other.inference(3), expected, atol=1e-6)

    def test_caller_keeps_its_arrays(self, image, unary, crf):
        before = unary.copy()
        state = crf.startInference()
        crf.stepInference(*state)
        state[0][...] = 0
        np.testing.assert_array_equal(unary, before)

    @pytest.mark.parametrize("channels", [1, 2, 4, 6])
    def test_any_number_of_channels(self, channels, unary):
        random = np.random.default_rng(0)
        picture = random.uniform(0, 5, (HEIGHT, WIDTH, channels))
        crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseBilateral(sxy=5, srgb=range(1, channels + 1), rgbim=picture, compat=4)
        other = densecrf.DenseCRF(POINTS, LABELS)
        other.setUnaryEnergy(unary)
        features = utils.create_pairwise_bilateral((5, 5), range(1, channels + 1), picture, 2)
        features[[0, 1]] = features[[1, 0]]  # x before y
        other.addPairwiseEnergy(features, compat=4)
        np.testing.assert_array_equal(crf.inference(3), other.inference(3))
        assert not np.array_equal(crf.inference(0), crf.inference(3))

    def test_grey_picture(self, unary, image):
        marginals = []
        for picture in (image[:, :, 0], image[:, :, :1]):
            crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
            crf.setUnaryEnergy(unary)
            crf.addPairwiseBilateral(sxy=5, srgb=13, rgbim=picture, compat=4)
            marginals.append(crf.inference(2))
        np.testing.assert_array_equal(*marginals)

    @pytest.mark.parametrize("labels", [1, 2, 300, 1000])
    def test_number_of_labels(self, labels, image):
        random = np.random.default_rng(0)
        crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, labels)
        crf.setUnaryEnergy(random.uniform(0, 3, (labels, POINTS)))
        crf.addPairwiseGaussian(sxy=2, compat=3)
        crf.addPairwiseBilateral(sxy=10, srgb=13, rgbim=image, compat=10)
        marginals = crf.inference(2)
        np.testing.assert_allclose(marginals.sum(0), 1, rtol=1e-4)
        state = crf.startInference()
        for _ in range(2):
            crf.stepInference(*state)
        np.testing.assert_allclose(state[0], marginals, atol=1e-5)

    def test_labels_that_are_excluded_stay_so(self, unary, image):
        unary = unary.copy()
        unary[0, ::2] = np.inf
        crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseBilateral(sxy=10, srgb=13, rgbim=image, compat=10)
        marginals = crf.inference(5)
        assert (marginals[0, ::2] < 1e-30).all()
        assert np.isfinite(marginals).all()
        assert np.isfinite(crf.klDivergence(marginals))

    @pytest.mark.parametrize("labels", [2, 3])
    def test_labels_stay_excluded_whatever_the_messages(self, labels):
        crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, labels)
        unary = np.full((labels, POINTS), 20.0)
        unary[0] = 0
        unary[0, :5] = np.inf
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(30, 1e5, normalization=densecrf.NO_NORMALIZATION)
        assert (crf.inference(3)[0, :5] < 1e-30).all()

    def test_no_memory_is_taken_before_it_is_needed(self):
        crf = densecrf.DenseCRF(10**12, 2)
        with pytest.raises(ValueError, match="`u` must have shape"):
            crf.setUnaryEnergy(np.zeros((2, 5)))

    def test_subclass_that_does_not_call_ours(self, unary):
        class Own(densecrf.DenseCRF2D):
            def __init__(self, width, height):
                self.name = "own"

        for call in (lambda crf: crf.setUnaryEnergy(unary), lambda crf: crf.addPairwiseGaussian(3, 3)):
            with pytest.raises(AttributeError, match=r"call super\(\)\.__init__ first"):
                call(Own(WIDTH, HEIGHT))
        with pytest.raises(AttributeError, match=r"Own has no attribute 'nothing'$"):
            _ = Own(WIDTH, HEIGHT).nothing

    def test_copies(self, crf):
        for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
            np.testing.assert_array_equal(other.inference(2), crf.inference(2))

    def test_a_later_unary_replaces_the_one_before(self, unary):
        crf = densecrf.DenseCRF(POINTS, LABELS)
        crf.setUnaryEnergy(unary[::-1])
        crf.setUnary(densecrf.ConstUnary(unary))
        np.testing.assert_allclose(crf.inference(0), np.exp(-unary) / np.exp(-unary).sum(0), rtol=1e-4)


# Of a CRF c with an energy u, over a picture i.
WRONG_VALUES = [
    (lambda c, u, i: c.setUnaryEnergy(u[:2]), r"`u` must have shape \(K, N\) = \(3, 204\)"),
    (lambda c, u, i: c.setUnaryEnergy(u.T), "transpose it"),
    (lambda c, u, i: c.setUnaryEnergy(u.reshape(3, 12, 17)), "reshape it"),
    (lambda c, u, i: c.setUnaryEnergy(u * np.nan), "must hold energies, -log P, got nan"),
    (lambda c, u, i: c.setUnaryEnergy(-np.inf + 0 * u), "got -inf"),
    (lambda c, u, i: densecrf.LogisticUnary(u, u), r"`f` must have shape \(F, N\)"),
    (lambda c, u, i: c.addPairwiseGaussian(0, 3), "`sxy` must be a finite number greater"),
    (lambda c, u, i: c.addPairwiseGaussian((1, -2), 3), r"`sxy\[1\]` must be a finite"),
    (lambda c, u, i: c.addPairwiseGaussian((1,), 3), "each of the 2 axes x and y, got 1"),
    (lambda c, u, i: c.addPairwiseGaussian((1, np.nan), 3), r"`sxy\[1\]` must be a finite"),
    (
        lambda c, u, i: c.addPairwiseGaussian((1e-9, 1), 3),
        r"`sxy` is too small: x of place 1 is 1e\+09 standard deviations from 0, .* use a larger one$",
    ),
    (lambda c, u, i: c.addPairwiseGaussian((1, 1e-45), 3), "`sxy` is too small: y of place 17 is inf"),
    (lambda c, u, i: c.addPairwiseGaussian(1e-60, 3), "`sxy` is too small: x of place 1 is inf"),
    (lambda c, u, i: c.addPairwiseBilateral(1e-9, 9, i, 3), "`sxy` is too small: x of place 1 "),
    (
        lambda c, u, i: c.addPairwiseBilateral(9, (9, 1e-9, 9), i, 3),
        "`srgb` is too small for `rgbim`: channel 1 of place 0 ",
    ),
    (lambda c, u, i: c.addPairwiseBilateral(9, 9, i + 1e30, 3), "look for outliers in the picture$"),
    (
        lambda c, u, i: c.addPairwiseEnergy(u * 1e9, 3),
        r"`features` is too large: feature \d of place 0 is .* divide it by a larger standard deviation",
    ),
    (
        lambda c, u, i: c.addPairwiseEnergy(u + np.inf, 3),
        r"`features` must be finite, got inf at index \(0, 0\)",
    ),
    (lambda c, u, i: c.addPairwiseBilateral(9, (1, 2), i, 3), "each of the 3 channels"),
    (
        lambda c, u, i: c.addPairwiseBilateral(9, 9, i.transpose(1, 0, 2), 3),
        "DenseCRF2D takes the width first",
    ),
    (lambda c, u, i: c.addPairwiseBilateral(9, 9, i[:5], 3), r"must have shape \(h, w, c\)"),
    (
        lambda c, u, i: c.addPairwiseBilateral(9, 9, i * np.nan, 3),
        r"`rgbim` must be finite, got nan at index \(0, 0, 0\)",
    ),
    (lambda c, u, i: c.addPairwiseBilateral(9, 9, i[..., :0], 3), "must have shape"),
    (lambda c, u, i: c.addPairwiseEnergy(u.T, 3), "transpose it"),
    (lambda c, u, i: c.addPairwiseEnergy(u[:, 1:], 3), r"must have shape \(d, N\)"),
    (lambda c, u, i: c.addPairwiseEnergy(u[:0], 3), r"must have shape \(d, N\)"),
    (lambda c, u, i: c.addPairwiseGaussian(3, np.ones(4)), "`compat` must be a number, a"),
    (lambda c, u, i: c.addPairwiseGaussian(3, np.ones((3, 3, 3))), "a vector"),
    (lambda c, u, i: c.addPairwiseGaussian(3, np.nan), "`compat` must be finite"),
    (lambda c, u, i: c.addPairwiseGaussian(3, [1, 2, np.inf]), "`compat` must be finite"),
    (lambda c, u, i: c.addPairwiseGaussian(3, 3, kernel=3), "`kernel` must be one of CONST"),
    (lambda c, u, i: c.addPairwiseGaussian(3, 3, normalization=9), "`normalization` must"),
    (lambda c, u, i: c.inference(-1), "`niter` must be at least 0"),
    (lambda c, u, i: c.klDivergence(u.T), r"`Q` must have shape \(K, N\)"),
    (lambda c, u, i: c.stepInference(u[:2], 0, 0), r"`Q` must have shape \(K, N\)"),
    (lambda c, u, i: c.pairwiseEnergy([0, 1]), "`labels` must be N = 204 integers"),
    (lambda c, u, i: c.pairwiseEnergy(np.zeros(204, int), 2), "`term` must be at most 1"),
    (lambda c, u, i: densecrf.DenseCRF(0, 3), "`nvar` must be at least 1"),
    (lambda c, u, i: densecrf.DenseCRF2D(5, 0, 3), "`h` must be at least 1"),
]
WRONG_TYPES = [
    (lambda c, u, i: c.setUnaryEnergy(None), "must be an array of real numbers"),
    (lambda c, u, i: c.setUnary(u), "must be a ConstUnary or LogisticUnary, got ndarray"),
    (lambda c, u, i: c.addPairwiseGaussian("3", 3), "must be a number or 2 of them, got str"),
    (lambda c, u, i: c.addPairwiseGaussian(None, 3), "must be a number or 2 of them"),
    (lambda c, u, i: c.inference("1"), "`niter` must be an integer"),
    (lambda c, u, i: c.inference(np.nan), "`niter` must be an integer"),
    (lambda c, u, i: c.stepInference(u.tolist(), 0, 0), "must be an array that can be"),
    (lambda c, u, i: densecrf.DenseCRF2D(5, 5, None), "`nlabels` must be an integer"),
]


class TestWrongInput:
    @pytest.mark.parametrize(
        ("call", "match", "error"),
        [*((*case, ValueError) for case in WRONG_VALUES), *((*case, TypeError) for case in WRONG_TYPES)],
        ids=itertools.count(),
    )
    def test_is_explained(self, call, match, error, crf, unary, image):
        with pytest.raises(error, match=match):
            call(crf, unary, image)
        assert np.isfinite(crf.inference(1)).all()  # nothing was left half-done

    def test_weights_beyond_the_range(self, crf):
        crf.addPairwiseGaussian(3, 3e38)
        crf.addPairwiseGaussian(3, 3e38)
        with pytest.raises(ValueError, match="left the range of"):
            crf.inference(2)
        with pytest.raises(ValueError, match="left the range of"):
            crf.stepInference(*crf.startInference())

    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda: utils.unary_from_labels([0, 4], 3, 0.7), "from 1 to 3, or be 0 for unknown"),
            (lambda: utils.unary_from_labels([0, -1], 3, 0.7), "got -1"),
            (lambda: utils.unary_from_labels([3], 3, 0.7, False), "must lie from 0 to 2, got 3"),
            (lambda: utils.unary_from_labels([0.5], 3, 0.7), "must hold integers"),
            (lambda: utils.unary_from_labels([1], 3, 1.0), "`gt_prob` must lie between 0 and 1"),
            (lambda: utils.unary_from_softmax(np.array(1.0)), r"must have shape \(K, …\)"),
            (lambda: utils.unary_from_softmax([[np.nan]]), "got nan"),
            (lambda: utils.unary_from_softmax([[-1.0]], clip=None), "0 or greater, got -1"),
            (lambda: utils.unary_from_softmax([[0.5]], scale=2), "`scale` must be above 0"),
            (lambda: utils.create_pairwise_gaussian((3,), (4, 5)), "each of the 2 axes, got 1"),
            (lambda: utils.create_pairwise_gaussian((3,), 5), r"got 5; for one axis, \(5,\)"),
            (lambda: utils.create_pairwise_gaussian((3,), np.array(5)), "must be a sequence of lengths"),
            (lambda: utils.create_pairwise_gaussian((3, 0), (4, 5)), r"`sdims\[1\]` must be"),
            (
                lambda: utils.create_pairwise_bilateral((3, 3), (1, 2, 3, 4), np.ones((4, 5, 3)), 2),
                "each of the 3 channels, got 4",
            ),
            (lambda: utils.create_pairwise_bilateral((3, 3), 1, np.ones((4, 5, 3)), 3), "`chdim`"),
            (lambda: eigen.matrixXf(np.ones(3)), "must have 2 dimensions"),
        ],
        ids=itertools.count(),
    )
    def test_of_utils_is_explained(self, call, match):
        with pytest.raises((TypeError, ValueError), match=match):
            call()


class TestUtils:
    def test_numbers_in_arrays_without_dimensions(self):
        labels, softmax = np.arange(4) % 3, np.random.default_rng(0).dirichlet(np.ones(3), 5).T
        np.testing.assert_array_equal(
            utils.unary_from_labels(labels, 2, np.array(0.7)), utils.unary_from_labels(labels, 2, 0.7)
        )
        np.testing.assert_array_equal(
            utils.unary_from_softmax(softmax, np.array(0.8), torch.tensor(0.25)),
            utils.unary_from_softmax(softmax, 0.8, 0.25),
        )
        np.testing.assert_array_equal(
            utils.create_pairwise_bilateral(np.array(2.0), np.array(13.0), np.ones((4, 5, 3)), 2),
            utils.create_pairwise_bilateral((2, 2), (13, 13, 13), np.ones((4, 5, 3)), 2),
        )

    def test_a_single_label(self):
        np.testing.assert_array_equal(
            utils.unary_from_labels([0, 1], 1, 0.6), np.array([[0, -np.log(0.6)]], np.float32)
        )

    def test_no_places(self):
        assert utils.unary_from_labels(np.zeros((0, 3), int), 2, 0.6).shape == (2, 0)
        assert utils.unary_from_softmax(np.ones((2, 0, 3))).shape == (2, 0)

    def test_excluded_labels_have_infinite_energy(self):
        np.testing.assert_array_equal(utils.unary_from_softmax([[0.0], [1.0]], clip=None), [[np.inf], [0]])

    def test_vectors_and_matrices(self):
        given = np.arange(6.0).reshape(2, 3)
        copied = eigen.matrixXf(given)
        assert copied.dtype == np.float32
        copied[0, 0] = 7
        assert given[0, 0] == 0
        np.testing.assert_array_equal(eigen.vectorXf([1, 2]), [1, 2])


def exact_crf(features, compats):
    """Return a CRF over points so far apart, or equal, that the lattice is as good as exact."""
    crf = densecrf.DenseCRF(features.shape[1], LABELS)
    for compat in compats:
        crf.addPairwiseEnergy(features, compat=compat)
    return crf


class TestEnergy:
    # Three groups of points: within one all features are equal, and the groups do not see each other.
    GROUP = np.array([0, 0, 0, 1, 1, 2])
    FEATURES = np.stack([100.0 * GROUP, 50.0 * GROUP])
    KERNEL = (GROUP[:, None] == GROUP) / (GROUP[:, None] == GROUP).sum(1)  # normalised

    def test_pairwise_energy_by_hand(self):
        matrix = np.array([[0, 1, 2], [3, 0, 4], [5, 6, 0.0]])
        vector = np.array([-1.0, -2, -3])
        costs = [-2.0 * np.eye(3), np.diag(vector), (matrix + matrix.T) / 2]
        crf = exact_crf(self.FEATURES, [2.0, vector, matrix])
        labels = np.array([0, 1, 0, 2, 2, 1])
        hot = np.eye(3)[labels]
        expected = [-0.5 * (self.KERNEL @ hot @ cost)[np.arange(6), labels] for cost in costs]
        for term in range(3):
            np.testing.assert_allclose(crf.pairwiseEnergy(labels, term), expected[term], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(crf.pairwiseEnergy(labels), sum(expected), rtol=1e-5)
        # What is no label takes no part.
        for other in (-1, 3):
            labels[1] = other
            assert crf.pairwiseEnergy(labels)[1] == 0
            assert crf.pairwiseEnergy(labels, 0)[0] == pytest.approx(0.5 * 2 * 2 / 3, rel=1e-5)

    def test_divergence_by_hand(self):
        random = np.random.default_rng(0)
        marginals = random.dirichlet(np.ones(3), 6).T.astype(np.float32)
        unary = random.uniform(0, 3, (3, 6))
        crf = exact_crf(self.FEATURES, [2.0])
        crf.setUnaryEnergy(unary)
        messages = marginals @ self.KERNEL
        expected = (marginals * (np.log(marginals) + unary - 2 * messages)).sum()
        assert crf.klDivergence(marginals) == pytest.approx(expected, rel=1e-5)
        hot = np.eye(3)[[0, 1, 0, 2, 2, 1]].T  # 0 log 0 is 0
        expected = (hot * (unary - 2 * hot @ self.KERNEL)).sum()
        assert crf.klDivergence(hot) == pytest.approx(expected, rel=1e-5)

    def test_divergence_goes_down(self, crf):
        state = crf.startInference()
        divergences = []
        for _ in range(6):
            divergences.append(crf.klDivergence(state[0]))
            crf.stepInference(*state)
        assert all(after < before for before, after in itertools.pairwise(divergences[:4]))
        assert divergences[-1] < divergences[0]


SCRIPT = """
import sys
import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels, create_pairwise_bilateral
import pydensecrf, pydensecrf.eigen
from helper import LABELS

crf = dcrf.DenseCRF2D(4, 3, LABELS)
crf.setUnaryEnergy(unary_from_labels(np.arange(12) % 3, LABELS, 0.7))
crf.addPairwiseGaussian(sxy=3, compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
print(np.array(crf.inference(2)).shape, dcrf.__name__, pydensecrf.utils.__name__, __name__, sys.argv[1:])
"""


# A function as scripts have them, for processes to run.
SEGMENT = """
import multiprocessing, os, subprocess, sys
import numpy as np
import torch

torch.set_num_threads(2)

def segment(seed):
    import pydensecrf.densecrf as dcrf
    random = np.random.default_rng(seed)
    crf = dcrf.DenseCRF2D(200, 100, 5)
    crf.setUnaryEnergy(random.uniform(0, 3, (5, 20000)).astype(np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    return np.array(crf.inference(2)), dcrf.__name__, torch.get_num_threads()
"""
START = """
if __name__ == "__main__":
    for way in sys.argv[1:]:
        # Threads of PyTorch, which a child does not have.
        torch.softmax(torch.rand(1000, 1000), 1)
        with multiprocessing.get_context(way).Pool(2) as pool:
            (first, name, threads), (second, *_) = pool.map_async(segment, [0, 0]).get(100)
        print(way, name, threads, np.array_equal(first, second))
"""


class TestRunner:
    def run(self, folder, *arguments, runner=("-m", "hdcrf.compat")):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("OMP_NUM_THREADS", None)
        return subprocess.run(
            [sys.executable, *runner, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "segment.py").write_text(SCRIPT)
        (tmp_path / "scripts" / "helper.py").write_text("LABELS = 2\n")
        return tmp_path

    EXPECTED = "(2, 12) hdcrf.compat.densecrf hdcrf.compat.utils __main__ ['a', '--b']\n"

    def test_script(self, folder):
        done = self.run(folder, "scripts/segment.py", "a", "--b")
        assert (done.stdout, done.stderr, done.returncode) == (self.EXPECTED, "", 0)

    @pytest.mark.slow
    def test_script_knows_where_it_is(self, folder):
        (folder / "beside.py").write_text("")
        (folder / "scripts" / "place.py").write_text(
            "import sys\nprint(__file__, sys.path[0])\nimport beside\n"
        )
        place = folder.resolve() / "scripts"
        done = self.run(folder, "scripts/place.py")
        assert done.stdout == f"{place / 'place.py'} {place}\n"
        assert "No module named 'beside'" in done.stderr  # as Python itself does not find it

    @pytest.mark.slow
    def test_script_by_a_link(self, folder):
        (folder / "link.py").symlink_to(folder / "scripts" / "segment.py")  # what is beside it is found
        done = self.run(folder, "link.py", "a", "--b")
        assert (done.stdout, done.stderr, done.returncode) == (self.EXPECTED, "", 0)

    @pytest.mark.slow
    def test_folder_and_archive(self, folder):
        (folder / "beside.py").write_text("")
        beside = "import importlib.util\nprint(importlib.util.find_spec('beside'))"
        (folder / "scripts" / "__main__.py").write_text(SCRIPT + beside)
        with zipfile.ZipFile(folder / "scripts.zip", "w") as archive:
            for name in ("__main__.py", "helper.py"):
                archive.write(folder / "scripts" / name, name)
        for app in ("scripts", "scripts.zip"):
            done = self.run(folder, app, "a", "--b")
            assert (done.stdout, done.stderr, done.returncode) == (self.EXPECTED + "None\n", "", 0)

    @pytest.mark.slow
    def test_module(self, folder):
        done = self.run(folder / "scripts", "-m", "segment", "a", "--b")
        assert (done.stdout, done.stderr, done.returncode) == (self.EXPECTED, "", 0)

    @pytest.mark.slow
    def test_processes_that_the_script_starts(self, folder):
        (folder / "pool.py").write_text(SEGMENT + START)
        ways = multiprocessing.get_all_start_methods()
        done = self.run(folder, "pool.py", *ways)
        expected = [f"{way} hdcrf.compat.densecrf {1 if way == 'fork' else 2} True\n" for way in ways]
        assert done.stdout == "".join(expected), done.stderr

    @pytest.mark.slow
    def test_program_that_the_script_starts(self, folder):
        command = "import pydensecrf.densecrf, pydensecrf; print(pydensecrf.densecrf.__name__, pydensecrf)"
        (folder / "starts.py").write_text(
            "import subprocess, sys\nimport pydensecrf\n"
            f"subprocess.run([sys.executable, '-c', {command!r}], check=True)\n"
        )
        done = self.run(folder, "starts.py")
        assert done.stdout.startswith("hdcrf.compat.densecrf <module 'hdcrf.compat' from"), done.stderr

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
    def test_forked_process_that_imports_it_by_itself(self, folder):
        text = (SEGMENT + START).replace("import pydensecrf.densecrf", "import hdcrf.compat.densecrf")
        (folder / "late.py").write_text(text)
        done = self.run(folder, "late.py", "fork", runner=())
        assert done.stdout == "fork hdcrf.compat.densecrf 1 True\n", done.stderr

    @pytest.mark.slow
    def test_thread_that_outlives_the_script(self, folder):
        (folder / "thread.py").write_text(
            "import pickle, threading, time\ndef function(): pass\n"
            "def late():\n"
            "    while threading.main_thread().is_alive(): time.sleep(0.01)\n"
            "    print(pickle.loads(pickle.dumps(function)) is function)\n"
            "threading.Thread(target=late).start()\n"
        )
        done = self.run(folder, "thread.py")
        assert done.stdout == "True\n", done.stderr

    def test_help_and_wrong_use(self, monkeypatch, capsys):
        for arguments, code in (["--help"], 0), ([], 2), (["nothing.py"], 2):
            monkeypatch.setattr(sys, "argv", ["hdcrf.compat", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == code
            printed = capsys.readouterr()
            shown, silent = (printed.err, printed.out) if code else (printed.out, printed.err)
            assert silent == ""
            assert "Usage: python -m hdcrf.compat script.py" in shown
            assert ("nothing.py: there is no such script" in shown) == ("nothing.py" in arguments)
        assert "pydensecrf" not in sys.modules or sys.modules["pydensecrf"] is not hdcrf.compat

    @pytest.mark.slow
    def test_exit_code_of_the_script(self, folder):
        (folder / "fails.py").write_text("import pydensecrf.densecrf as d\nd.DenseCRF(5, 0)\n")
        done = self.run(folder, "fails.py")
        assert done.returncode == 1
        assert "`nlabels` must be at least 1" in done.stderr

    @pytest.mark.slow
    def test_what_there_is_not(self, folder):
        (folder / "fails.py").write_text("import pydensecrf.nothing\n")
        assert "No module named 'pydensecrf.nothing'" in self.run(folder, "fails.py").stderr

    def test_install_after_the_peer(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydensecrf", sys)
        with pytest.raises(RuntimeError, match="imported already"):
            hdcrf.compat.install()
