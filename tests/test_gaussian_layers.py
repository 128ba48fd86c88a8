"""Heads over a network: what they solve, how they train, what they refuse; affinities."""

import math

import pytest
import torch
from torch import nn

from hdcrf.gaussian import (
    DenseGaussianCRF,
    LowRankTerms,
    SparseGaussianCRF,
    VideoGaussianCRF,
    VideoTerms,
    affinity,
    affinity_loss,
    solve,
)

LABELS, CHANNELS = 3, 4
HEADS = {
    "sparse": lambda **k: SparseGaussianCRF(LABELS, CHANNELS, **k),
    "sparse, 12 neighbours": lambda **k: SparseGaussianCRF(LABELS, CHANNELS, connectivity=12, **k),
    "sparse, Potts": lambda **k: SparseGaussianCRF(LABELS, CHANNELS, potts=True, **k),
    "dense": lambda **k: DenseGaussianCRF(LABELS, CHANNELS, embedding=5, potts=False, **k),
    "dense, Potts": lambda **k: DenseGaussianCRF(LABELS, CHANNELS, embedding=5, **k),
    "video": lambda **k: VideoGaussianCRF(LABELS, CHANNELS, embedding=5, potts=False, **k),
    "video, Potts": lambda **k: VideoGaussianCRF(LABELS, CHANNELS, embedding=5, neighbourhood="2", **k),
}


@pytest.fixture(params=HEADS)
def kind(request):
    return request.param


def inputs(kind, batch=2, dtype=torch.float32, device="cpu"):
    grid = (3, 4, 5) if "video" in kind else (4, 5)
    unary = torch.randn(batch, LABELS, *grid, dtype=dtype, device=device)
    return unary, torch.randn(batch, CHANNELS, *grid, dtype=dtype, device=device)


def strong(head, factor=30.0):
    """Return the head with terms that matter: they start small."""
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(factor)
    return head


def test_solves_the_system_of_its_terms(kind, device):
    head = strong(HEADS[kind](regularization=2.0)).double().to(device)
    unary, features = inputs(kind, dtype=torch.float64, device=device)
    result = head.infer(unary, features)
    terms = head.terms(features)
    direct = solve(terms, 2 * unary, regularization=2.0, guarantee="sparse" in kind)
    torch.testing.assert_close(result.x, direct.x)
    torch.testing.assert_close(head(unary, features), result.x)
    assert result.converged.all()
    assert (result.x - unary).abs().max() > 0.01


def test_a_head_whose_terms_vanish_returns_the_unary(kind):
    head = HEADS[kind](regularization=7.0)
    unary, features = inputs(kind)
    if kind in ("dense, Potts", "video, Potts"):
        head.logit_strength.data.fill_(-30)
    else:
        head = strong(head, 0)
    torch.testing.assert_close(head(unary, features), unary, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 10.0])
def test_any_features_give_a_positive_definite_system(kind, scale):
    options = {"strength": 0.98} if kind in ("dense, Potts", "video, Potts") else {}
    head = strong(HEADS[kind](**options), 100.0).double()
    unary, features = inputs(kind, dtype=torch.float64)
    result = head.infer(unary, scale * features)
    assert result.converged.all()
    assert result.residual.max() < 1e-8


@pytest.mark.parametrize("kind", ["dense, Potts", "video, Potts"])
def test_strength_never_reaches_one(kind):
    head = HEADS[kind]()
    head.logit_strength.data.fill_(50.0)
    assert float(head.strength.detach()) < 1
    result = head.infer(*inputs(kind))
    assert result.converged.all()
    assert result.residual.max() < 1e-4


@pytest.mark.parametrize("kind", ["dense, Potts", "video, Potts"])
def test_strength_is_the_largest_eigenvalue_of_shared_terms(kind):
    head = strong(HEADS[kind](strength=0.8, regularization=3.0)).double()
    _, features = inputs(kind, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(head.terms(features).dense())
    torch.testing.assert_close(eigenvalues[:, -1], torch.full((2,), 0.8 * 3, dtype=torch.float64))
    assert eigenvalues.min() > -1e-12


def test_a_video_of_shared_terms_is_positive_semidefinite_for_every_neighbourhood():
    for neighbourhood in ("2", "4", "6ms", "full"):
        head = strong(VideoGaussianCRF(LABELS, CHANNELS, embedding=3, neighbourhood=neighbourhood)).double()
        features = torch.randn(1, CHANNELS, 6, 2, 3, dtype=torch.float64)
        eigenvalues = torch.linalg.eigvalsh(head.terms(features).dense())
        assert eigenvalues.min() > -1e-12
        assert float(eigenvalues.detach().max()) == pytest.approx(0.5)


def test_gradients(kind):
    head = strong(HEADS[kind](tolerance=1e-14)).double()
    unary, features = (part[:1, ..., :2, :2].clone() for part in inputs(kind, dtype=torch.float64))
    torch.autograd.gradcheck(head, (unary.requires_grad_(), features.requires_grad_()))
    head(unary, features).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


def test_learns_to_join_what_belongs_together(kind):
    """Noisy scores of two halves; features say, noisily too, which half a pixel is of."""
    torch.manual_seed(1)
    head = HEADS[kind]()
    grid = (2, 6, 8) if "video" in kind else (6, 8)
    labels = torch.zeros(4, *grid, dtype=torch.int64)
    labels[..., 4:] = 1
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    losses = []
    for _ in range(60):
        sign = (2.0 * labels - 1)[:, None]
        unary = torch.cat([-sign, sign, torch.full_like(sign, -3)], 1) + 2 * torch.randn(4, 3, *grid)
        features = torch.cat([3 * sign, -3 * sign, torch.ones_like(sign), torch.zeros_like(sign)], 1)
        features = features + 0.1 * torch.randn_like(features)
        loss = nn.functional.cross_entropy(head(unary, features), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start, end = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    # Seen: 0.27 of the start (dense) to 0.84 (sparse with shared terms, which are weak by construction).
    assert end < (0.95 if kind == "sparse, Potts" else 0.75) * start


def test_half_precision_is_computed_in_float32(kind):
    head = strong(HEADS[kind]())
    unary, features = inputs(kind)
    half = head(unary.half(), features.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(
        half.float(), head(unary.half().float(), features.half().float()), rtol=1e-3, atol=1e-3
    )


def test_autocast_changes_nothing(kind):
    head = strong(HEADS[kind]())
    unary, features = inputs(kind)
    results = []
    for on in (False, True):
        head.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            scores = head(unary, features)
            scores.square().sum().backward()
        results.append([scores, *(parameter.grad for parameter in head.parameters())])
    # Called in there, `backward` differentiates products in bfloat16: seen 0.032.
    torch.testing.assert_close(results[1][0], results[0][0])
    for mixed, full in zip(results[1][1:], results[0][1:], strict=True):
        assert (mixed - full).norm() <= 0.05 * full.norm()


def test_a_batch_equals_its_items(kind):
    head = strong(HEADS[kind]()).double()
    unary, features = inputs(kind, dtype=torch.float64)
    together = head(unary, features)
    for item in range(2):
        alone = head(unary[item : item + 1], features[item : item + 1])
        torch.testing.assert_close(together[item : item + 1], alone, rtol=1e-7, atol=1e-7)


def test_state_dict_round_trip(kind):
    head, other = strong(HEADS[kind]()), HEADS[kind]()
    other.load_state_dict(head.state_dict())
    unary, features = inputs(kind)
    torch.testing.assert_close(head(unary, features), other(unary, features), rtol=0, atol=0)
    assert f"{LABELS}, {CHANNELS}, potts=" in repr(head)


def test_in_a_compiled_model(kind):
    head = strong(HEADS[kind]())
    unary, features = inputs(kind)
    torch.testing.assert_close(
        torch.compile(head, backend="eager")(unary, features), head(unary, features), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DenseGaussianCRF(0, 4), "`num_labels` must be at least 1"),
        (lambda: DenseGaussianCRF(3, 0), "`feature_channels` must be at least 1"),
        (lambda: DenseGaussianCRF(3, 4, embedding=0), "`embedding` must be at least 1"),
        (lambda: DenseGaussianCRF(3, 4, strength=1.0), "`strength` must lie between 0 and 0.99"),
        (lambda: DenseGaussianCRF(3, 4, regularization=0), "`regularization`"),
        (lambda: DenseGaussianCRF(3, 4, method="lu"), "`method` must be one of"),
        (lambda: DenseGaussianCRF(3, 4, on_failure="hide"), "`on_failure` must be one of"),
        (lambda: SparseGaussianCRF(3, 4, connectivity=5), "`connectivity` must be one of 4, 8, 12, got 5"),
        (lambda: VideoGaussianCRF(3, 4, neighbourhood="1"), "`neighbourhood` must be one of"),
    ],
)
def test_what_constructors_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()


U, F = torch.zeros(1, LABELS, 4, 5), torch.zeros(1, CHANNELS, 4, 5)


@pytest.mark.parametrize(
    ("unary", "features", "error", "message"),
    [
        (None, F, TypeError, "`unary` must be a torch.Tensor"),
        (U, None, TypeError, "`features` must be a torch.Tensor"),
        (U.int(), F, TypeError, "`unary` must be float32 or float64"),
        (U, F.int(), TypeError, "`features` must be floating"),
        (U, F[:, :3], ValueError, "4 channels on the grid of `unary`"),
        (U, F[..., :4], ValueError, "interpolate either"),
        (U[:, :2], F, ValueError, r"`unary` must have shape \(B, 3, H, W\)"),
        (U[:0], F[:0], ValueError, "no size of 0"),
        (U[..., :0], F[..., :0], ValueError, "no size of 0"),
        (U[:, :, None], F[:, :, None], ValueError, r"`unary` must have shape \(B, 3, H, W\)"),
        (U + math.nan, F, ValueError, "`unary` must be finite"),
        (U, F + math.inf, ValueError, "`features` must be finite"),
        (U[0], F[0], ValueError, r"`unary` must have shape \(B, 3, H, W\)"),
    ],
)
@pytest.mark.parametrize("potts", [False, True])
def test_what_forward_refuses(unary, features, error, message, potts):
    with pytest.raises(error, match=message):
        DenseGaussianCRF(LABELS, CHANNELS, potts=potts)(unary, features)


def test_affinity_is_a_column_of_the_matrix():
    embeddings = torch.randn(2, 3, LABELS, 4, 5)
    e = embeddings[1].flatten(2)  # (D, L, P)
    wanted = torch.einsum("d,dlp->lp", e[:, 2, 1 * 5 + 3], e).view(LABELS, 4, 5)
    torch.testing.assert_close(affinity(LowRankTerms(embeddings), (1, 3), label=2, item=1), wanted)
    shared = LowRankTerms(embeddings[:, :, 0])
    wanted = torch.einsum("d,dhw->hw", embeddings[0, :, 0, 2, 4], embeddings[0, :, 0])
    torch.testing.assert_close(affinity(shared, (2, 4)), wanted)
    video = VideoTerms(embeddings[:, None, 0].expand(-1, 2, -1, -1, -1), embeddings[:, :1])
    assert affinity(video, (2, 1, 0)).shape == (LABELS, 4, 5)


@pytest.mark.parametrize(
    ("pixel", "options", "message"),
    [
        ((4, 0), {"label": 0}, r"`pixel\[0\]` must be at most 3"),
        ((0, -1), {"label": 0}, r"`pixel\[1\]` must be at least 0"),
        ((0,), {"label": 0}, "`pixel` must have 2 indices"),
        ((0, 0), {}, "`label` must be given exactly if"),
        ((0, 0), {"label": 3}, "`label` must be at most 2"),
        ((0, 0), {"label": 0, "item": 2}, "`item` must be at most 1"),
    ],
)
def test_what_affinity_refuses(pixel, options, message):
    with pytest.raises(ValueError, match=message):
        affinity(LowRankTerms(torch.randn(2, 3, LABELS, 4, 5)), pixel, **options)


@pytest.mark.parametrize("shared", [False, True])
def test_affinity_loss_makes_the_true_labels_terms_least(shared):
    labels = torch.randint(0, LABELS, (2, 4, 5))
    embeddings = torch.randn(2, 6, *(() if shared else (LABELS,)), 4, 5).mul(0.1).requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        affinity_loss(embeddings, labels, pairs=400).backward()
        optimizer.step()
    terms = LowRankTerms(embeddings.detach())
    for row, column in ((0, 0), (2, 3)):
        label = int(labels[0, row, column])
        if shared:  # disagreement costs where labels are the same, and is rewarded where they differ
            cost = affinity(terms, (row, column))
            assert ((cost > 0) == (labels[0] == label)).float().mean() > 0.95
        else:
            least = affinity(terms, (row, column), label=label).argmin(0)
            assert (least == labels[0]).float().mean() > 0.9


def test_affinity_loss_of_all_pairs_is_the_cross_entropy():
    torch.manual_seed(0)
    labels = torch.randint(0, LABELS, (1, 2, 3))
    labels[0, 1, 2] = -1
    embeddings = torch.randn(1, 4, LABELS, 2, 3, dtype=torch.float64)
    e, truth = embeddings[0].flatten(2), labels[0].flatten()
    losses = []
    for p in range(5):
        for q in range(5):
            costs = (e[:, :, p, None] * e[:, None, :, q]).sum(0)
            losses.append(-(-costs).flatten().log_softmax(0).view(LABELS, LABELS)[truth[p], truth[q]])
    drawn = affinity_loss(embeddings, labels, pairs=200_000)
    # A mean of 200,000 draws: four standard errors.
    spread = 4 * float(torch.stack(losses).std()) / math.sqrt(200_000)
    assert float(drawn) == pytest.approx(float(torch.stack(losses).mean()), abs=spread)


def test_affinity_loss_without_labels_is_zero():
    embeddings = torch.randn(1, 4, 2, 3, requires_grad=True)
    loss = affinity_loss(embeddings, torch.full((1, 2, 3), -1))
    loss.backward()
    assert loss == 0
    assert not embeddings.grad.any()


@pytest.mark.parametrize(
    ("embeddings", "labels", "error", "message"),
    [
        (torch.zeros(1, 4, 2, 3), torch.zeros(1, 2, 3), TypeError, "`labels` must hold integers"),
        (torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 3).long(), ValueError, "`labels` must have shape"),
        (torch.zeros(2, 4, 2, 3), torch.zeros(1, 2, 3).long(), ValueError, "`labels` must have shape"),
        (torch.zeros(1, 4, 2, 2, 3), torch.full((1, 2, 3), 2), ValueError, "`labels` must be from 0 to 1"),
        (torch.zeros(1, 4, 2, 3) / 0, torch.zeros(1, 2, 3).long(), ValueError, "must be finite"),
    ],
)
def test_what_affinity_loss_refuses(embeddings, labels, error, message):
    with pytest.raises(error, match=message):
        affinity_loss(embeddings, labels)
