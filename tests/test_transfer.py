"""Labels carried from one set of points to another."""

import pytest
import torch

from hdcrf import bilateral_features, point_features, transfer_labels, video_features
from tests.oracles import gaussian


@pytest.fixture
def room():
    """Two noisy planes of different labels, a tenth of them annotated, and a dense cloud of the same."""
    generator = torch.Generator().manual_seed(0)

    def cloud(points):
        positions = torch.rand(points, 3, generator=generator) * torch.tensor([3.0, 3.0, 0.02])
        truth = torch.arange(points) % 2
        positions[:, 2] += 0.5 * truth * positions[:, 0]
        return positions, truth

    return cloud(300), cloud(3000)


@pytest.mark.parametrize("method", ["permutohedral", "voxel", "exact"])
def test_sparse_annotation_to_a_dense_cloud(room, method):
    (few, known), (many, truth) = room
    labels = transfer_labels(point_features(few, 0.15), known, point_features(many, 0.15), method=method)
    far = (many[:, 0] > 0.6) & (labels >= 0)  # where the planes are apart
    assert (labels >= 0).float().mean() > 0.97
    assert (labels == truth)[far].float().mean() > 0.99


@pytest.mark.parametrize("method", ["permutohedral", "voxel"])
def test_agrees_with_the_sum_over_all_points(method):
    features, query = torch.randn(200, 3, dtype=torch.float64), 0.5 * torch.randn(50, 3, dtype=torch.float64)
    weights = torch.rand(200, 4, dtype=torch.float64)
    carried = gaussian(query, features) @ weights
    result = transfer_labels(
        features, weights, query, method=method, order=3, halo=3, return_probabilities=True
    )
    # Measured: 2e-3.
    torch.testing.assert_close(result, carried / carried.sum(1, keepdim=True), atol=0.01, rtol=0)
    exact = transfer_labels(features, weights, query, method="exact", return_probabilities=True)
    torch.testing.assert_close(exact, carried / carried.sum(1, keepdim=True))


def test_from_one_frame_to_the_next():
    video = torch.zeros(1, 1, 2, 20, 20)
    video[0, 0, 0, 5:12, 5:12] = video[0, 0, 1, 6:13, 7:14] = 200.0
    features = video_features(video, 5.0, 1.0, 13.0)
    labels = transfer_labels(features[:400], (video[0, 0, 0] > 0).long().flatten(), features[400:])
    assert torch.equal(labels.view(20, 20), (video[0, 0, 1] > 0).long())


def test_unknown_carries_nothing_and_unreached_stays_unknown():
    features = torch.tensor([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0]])
    query = torch.tensor([[0.0, 0.1], [9.0, 9.1], [500.0, 0.0]])
    labels = torch.tensor([2, -1, -1])
    assert transfer_labels(features, labels, query).tolist() == [2, -1, -1]
    probabilities = transfer_labels(features, labels, query, return_probabilities=True)
    torch.testing.assert_close(probabilities, torch.tensor([[0, 0, 1.0], [1 / 3] * 3, [1 / 3] * 3]))


def test_batches_do_not_meet():
    features, query = torch.zeros(2, 2), torch.zeros(2, 2)
    batch = torch.tensor([0, 1])
    labels = transfer_labels(features, torch.tensor([1, 0]), query, batch=batch, query_batch=batch)
    assert labels.tolist() == [1, 0]


def test_gradcheck():
    features = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    query = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)

    def carried(*tensors):
        return transfer_labels(*tensors, return_probabilities=True)

    assert torch.autograd.gradcheck(carried, (features, weights, query), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), {}, ValueError, r"`labels` must have shape \(5,\)"),
        (torch.full((5,), -1), {}, ValueError, "`labels` are all -1, unknown"),
        (torch.full((5,), -2), {"num_labels": 2}, ValueError, "from 0 to 1, or be -1 for unknown, got -2"),
        (torch.full((5,), 2), {"num_labels": 2}, ValueError, "from 0 to 1, or be -1 for unknown, got 2"),
        (torch.ones(5, dtype=torch.bool), {}, TypeError, "`labels` must hold integers or probabilities"),
        (torch.rand(4, 2), {}, ValueError, r"`labels` must have shape \(N, K\) with 5 rows"),
        (torch.rand(5, 2) - 1, {}, ValueError, "`labels` must be 0 or greater"),
        (torch.rand(5, 2) * torch.nan, {}, ValueError, "`labels` must be finite"),
        (torch.rand(5, 2).double(), {}, TypeError, "`labels` must have the dtype of `features`"),
        (torch.rand(5, 2), {"num_labels": 2}, ValueError, "`num_labels` goes with labels as integers"),
        ([0] * 5, {}, TypeError, r"`labels` must be a torch\.Tensor"),
        (torch.zeros(5, dtype=torch.int64), {"return_probabilities": 1}, TypeError, "must be True or False"),
    ],
)
def test_wrong_labels(labels, options, error, message):
    with pytest.raises(error, match=message):
        transfer_labels(torch.rand(5, 3), labels, torch.rand(2, 3), **options)


@pytest.mark.parametrize("method", ["permutohedral", "voxel"])
def test_any_dimension_by_default(method):
    features = torch.randn(30, 8)
    labels = torch.arange(30) % 3
    assert torch.equal(transfer_labels(features, labels, features, method=method), labels)


def test_a_query_is_needed():
    with pytest.raises(TypeError, match=r"`query` must be a torch\.Tensor, got NoneType"):
        transfer_labels(torch.rand(5, 3), torch.zeros(5, dtype=torch.int64), None)


def test_a_guide_for_points_that_have_none():
    """From the pixels of a small photo to those of a large one."""
    small = torch.zeros(1, 1, 10, 10)
    small[..., 5:] = 255
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    query = bilateral_features(large, 8.0, 20.0)
    features = bilateral_features(small, 2.0, 20.0)
    labels = transfer_labels(features, (small > 0).long().flatten(), query)
    assert torch.equal(labels.view(40, 40), (large[0, 0] > 0).long())
