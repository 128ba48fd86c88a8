"""Terms of videos against the matrix written out; neighbourhoods; contexts."""

import itertools
import math

import pytest
import torch

from hdcrf.gaussian import (
    NotPositiveDefiniteError,
    PottsMatrix,
    VideoGaussianCRF,
    VideoTerms,
    solve,
    video_in_contexts,
)
from hdcrf.gaussian.video_terms import temporal_neighbours
from tests.oracles import solved

FRAMES, HEIGHT, WIDTH = 6, 1, 3
APART = {"2": (1,), "4": (1, 2), "6ms": (1, 2, 4), "full": range(1, FRAMES)}
# Worst seen over these cases: 7e-11 in float64, 2e-6 in float32.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def drawn(shared, labels=2, dtype=torch.float64, frames=FRAMES, scale=0.5):
    parts = [
        scale * torch.randn((2, d, *(() if shared else (labels,)), frames, HEIGHT, WIDTH), dtype=dtype)
        for d in (2, 3)
    ]
    return *parts, torch.randn(2, labels, frames, HEIGHT, WIDTH, dtype=dtype)


def matrix(spatial, temporal, neighbourhood, labels):
    """Return A (B, n, n) in float64, from inner products of embeddings one by one."""
    places = list(itertools.product(range(labels), range(FRAMES), range(WIDTH)))
    result = torch.zeros(2, len(places), len(places), dtype=torch.float64)
    shared = spatial.dim() == 5
    for b, (i, (k, t, p)), (j, (m, u, q)) in itertools.product(
        range(2), enumerate(places), enumerate(places)
    ):
        if (shared and k == m) or (t != u and abs(t - u) not in APART[neighbourhood]):
            continue
        e = (spatial if t == u else temporal).double()[b]
        left, right = (e[:, t, 0, p], e[:, u, 0, q]) if shared else (e[:, k, t, 0, p], e[:, m, u, 0, q])
        result[b, i, j] = left @ right
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("neighbourhood", ["2", "4", "6ms", "full"])
def test_equals_the_dense_solution(neighbourhood, shared, dtype):
    spatial, temporal, unary = drawn(shared, dtype=dtype)
    terms = VideoTerms(spatial, temporal, neighbourhood=neighbourhood)
    whole = PottsMatrix(terms, 2) if shared else terms
    a = matrix(spatial, temporal, neighbourhood, 2)
    torch.testing.assert_close(whole.dense().double(), a, rtol=1e-5, atol=1e-5)
    margin = torch.diag_embed(whole.margin().double().expand(-1, whole.size))
    assert torch.linalg.eigvalsh(a).min() < -0.1  # indefinite by itself
    assert torch.linalg.eigvalsh(a + margin).min() > -1e-5
    if not shared:
        torch.testing.assert_close(
            terms.diagonal().double(), a.diagonal(dim1=1, dim2=2), rtol=1e-5, atol=1e-6
        )
        bound = torch.diag_embed(terms.bound().double().expand(-1, terms.size))
        assert min(torch.linalg.eigvalsh(b).min() for b in (bound + a, bound - a)) > -1e-5
    system = a + margin + 0.5 * torch.eye(a.shape[1], dtype=torch.float64)
    exact = solved(system, unary.double().flatten(1)).view(unary.shape)
    for precondition in (False, True):
        solution = solve(terms, unary, regularization=0.5, guarantee=True, precondition=precondition)
        assert float((solution.x - exact).norm() / exact.norm()) < TOLERANCE[dtype]


def test_without_the_guarantee_such_terms_are_refused():
    spatial, temporal, unary = drawn(False)
    with pytest.raises(NotPositiveDefiniteError, match="let `guarantee=True` add what is needed"):
        solve(VideoTerms(0.1 * spatial, temporal), unary, regularization=0.1)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients(shared):
    spatial, temporal, unary = (part[:1, ..., :3, :, :2].clone().requires_grad_() for part in drawn(shared))

    def scores(spatial, temporal, unary):
        terms = VideoTerms(spatial, temporal, neighbourhood="2")
        return solve(terms, unary, guarantee=True, tolerance=1e-14).x

    torch.autograd.gradcheck(scores, (spatial, temporal, unary))


def test_one_frame_is_an_image():
    spatial, temporal, _ = drawn(False, frames=1)
    terms = VideoTerms(spatial, temporal)
    e = spatial.flatten(2)
    torch.testing.assert_close(terms.dense(), e.mT @ e)
    assert not terms.margin().any()


def test_neighbours():
    assert temporal_neighbours(6, "6ms")[0].tolist() == [False, True, True, False, True, False]
    assert temporal_neighbours(4, "2").sum(1).tolist() == [1, 2, 2, 1]
    assert temporal_neighbours(9, "4").sum(1).max() == 4
    assert temporal_neighbours(9, "6ms").sum(1).max() == 6
    assert temporal_neighbours(5, "full").sum(1).tolist() == [4] * 5


V32 = torch.zeros(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: VideoTerms(V32, None), TypeError, "`temporal` must be a torch.Tensor"),
        (lambda: VideoTerms(V32[0, 0], V32), ValueError, r"`spatial` must have shape \(B, D, L, T, H, W\)"),
        (lambda: VideoTerms(V32, V32[..., :5]), ValueError, "the same shape but for D"),
        (lambda: VideoTerms(V32, V32[:, :, 0]), ValueError, "the same shape but for D"),
        (lambda: VideoTerms(V32, V32.double()), TypeError, "the dtype of `spatial`"),
        (lambda: VideoTerms(V32 + math.inf, V32), ValueError, "`spatial` must be finite"),
        (lambda: VideoTerms(V32, V32, neighbourhood="3"), ValueError, "`neighbourhood` must be one of"),
        (
            lambda: solve(VideoTerms(V32, V32), torch.zeros(1, 3, 5, 5, 6)),
            ValueError,
            r"\(B, L, T, H, W\) = \(1, 3, 4, 5, 6\)",
        ),
    ],
)
def test_what_terms_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture
def crf():
    return VideoGaussianCRF(2, 3, embedding=4).double()


def clip(frames):
    return (
        torch.randn(1, 2, frames, HEIGHT, WIDTH, dtype=torch.float64),
        torch.randn(1, 3, frames, HEIGHT, WIDTH, dtype=torch.float64),
    )


def test_contexts_are_averaged(crf):
    unary, features = clip(5)
    result = video_in_contexts(crf, unary, features, context=3, overlap=1)
    first, last = crf(unary[:, :, :3], features[:, :, :3]), crf(unary[:, :, 2:], features[:, :, 2:])
    torch.testing.assert_close(result[:, :, :2], first[:, :, :2])
    torch.testing.assert_close(result[:, :, 2], (first[:, :, 2] + last[:, :, 0]) / 2)
    torch.testing.assert_close(result[:, :, 3:], last[:, :, 1:])


def test_the_last_context_ends_with_the_video(crf):
    unary, features = clip(4)
    result = video_in_contexts(crf, unary, features, context=3, overlap=0)
    torch.testing.assert_close(result[:, :, 3], crf(unary[:, :, 1:], features[:, :, 1:])[:, :, 2])


@pytest.mark.parametrize(("frames", "context"), [(3, 3), (2, 5), (1, 2)])
def test_a_video_within_one_context_is_solved_at_once(crf, frames, context):
    unary, features = clip(frames)
    result = video_in_contexts(crf, unary, features, context=context, overlap=1)
    torch.testing.assert_close(result, crf(unary, features))


def test_contexts_have_gradients(crf):
    unary, features = clip(4)
    features.requires_grad_()
    video_in_contexts(crf, unary, features, context=2, overlap=1).square().sum().backward()
    assert (features.grad.abs().amax((0, 1, 3, 4)) > 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context": 0}, ValueError, "`context` must be at least 1"),
        ({"context": 3, "overlap": 3}, ValueError, "`overlap` must be at most 2"),
        ({"unary": torch.zeros(2, 4, 1, 3)}, ValueError, r"`unary` must have shape \(B, channels, T, H, W\)"),
        ({"features": torch.zeros(1, 3, 5, 1, 3)}, ValueError, "must have the 4 frames of `unary`"),
        ({"crf": None}, TypeError, "`crf` must be a VideoGaussianCRF"),
    ],
)
def test_what_contexts_refuse(crf, options, error, message):
    unary, features = clip(4)
    arguments = {"crf": crf, "unary": unary, "features": features, **options}
    with pytest.raises(error, match=message):
        video_in_contexts(**arguments)
