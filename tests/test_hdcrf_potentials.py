"""Unary potentials and compatibilities."""

import numpy as np
import pytest
import torch

from hdcrf import Compatibility, labels_from_annotation, logits_from_labels, logits_from_probabilities


class TestProbabilities:
    def test_softmax_gives_them_back(self):
        probabilities = torch.softmax(torch.randn(2, 3, 4, 5), 1)
        torch.testing.assert_close(torch.softmax(logits_from_probabilities(probabilities), 1), probabilities)

    def test_zero_is_raised_to_the_floor(self):
        logits = logits_from_probabilities(torch.tensor([[0.0, 1.0]]), floor=1e-4)
        torch.testing.assert_close(logits.exp(), torch.tensor([[1e-4, 1.0]]))

    def test_quantised_probabilities_are_normalised(self):
        logits = logits_from_probabilities(torch.tensor([[0.5, 0.496]]))
        assert logits.exp().sum() == pytest.approx(1)

    @pytest.mark.parametrize(
        ("probabilities", "message"),
        [
            ([[0.5, 0.4]], r"must sum to 1 over the labels \(axis 1\), got sums from 0\.9 to 0\.9"),
            ([[1.5, -0.5]], r"must be 0 or greater, got -0\.5"),
            ([[float("nan"), 1.0]], r"must be finite, got nan at index \(0, 0\)"),
            ([[float("inf"), 1.0]], r"must be finite, got inf at index \(0, 0\)"),
        ],
    )
    def test_wrong_ones(self, probabilities, message):
        with pytest.raises(ValueError, match=message):
            logits_from_probabilities(torch.tensor(probabilities))

    @pytest.mark.parametrize(("floor", "dtype"), [(1e-50, torch.float32), (1e-310, torch.float64)])
    def test_floor_below_the_dtype(self, floor, dtype):
        with pytest.raises(
            ValueError, match=rf"`floor` must be at least .* {dtype} holds in full, got {floor}"
        ):
            logits_from_probabilities(torch.tensor([[0.0, 1.0]], dtype=dtype), floor=floor)

    @pytest.mark.parametrize(
        ("probabilities", "error", "message"),
        [
            (torch.eye(2).to_sparse(), TypeError, r"must be a dense tensor, got torch\.sparse_coo; convert"),
            (torch.eye(2, device="meta"), ValueError, "must hold numbers, got a tensor on the meta device"),
        ],
    )
    def test_without_numbers_to_see(self, probabilities, error, message):
        with pytest.raises(error, match=message):
            logits_from_probabilities(probabilities)

    @pytest.mark.parametrize("floor", [0.0, 1.0])
    def test_wrong_floor(self, floor):
        with pytest.raises(ValueError, match="`floor` must lie between 0 and 1"):
            logits_from_probabilities(torch.tensor([[0.5, 0.5]]), floor=floor)


class TestLabels:
    def test_the_densecrf_convention(self):
        labels = torch.tensor([[[0, 2, -1]]])
        probabilities = logits_from_labels(labels, 3, gt_prob=0.7).exp()[0, :, 0]
        expected = torch.tensor([[0.7, 0.15, 0.15], [0.15, 0.15, 0.7], [1 / 3, 1 / 3, 1 / 3]]).T
        torch.testing.assert_close(probabilities, expected)

    def test_one_label(self):
        assert torch.equal(logits_from_labels(torch.tensor([[0, -1]]), 1), torch.zeros(1, 1, 2))

    @pytest.mark.parametrize(("label", "named"), [(3, "got 3"), (-2, "got -2"), (255, "got 255")])
    def test_out_of_range(self, label, named):
        with pytest.raises(
            ValueError, match=rf"`labels` must lie from 0 to 2, or be -1 for unknown, {named}"
        ):
            logits_from_labels(torch.tensor([[0, label]]), 3)

    @pytest.mark.parametrize("gt_prob", [0.2, 0.5, 1.0])
    def test_trust_no_better_than_chance(self, gt_prob):
        with pytest.raises(ValueError, match="`gt_prob` must lie between 1/2"):
            logits_from_labels(torch.tensor([[0, 1]]), 2, gt_prob=gt_prob)

    def test_wrong_types(self):
        with pytest.raises(TypeError, match=r"`labels` must hold integers, got torch\.float32"):
            logits_from_labels(torch.zeros(1, 2), 2)
        for dtype in (torch.complex64, torch.uint16, torch.uint64):
            with pytest.raises(TypeError, match=rf"`labels` must hold integers, got {dtype}; convert"):
                logits_from_labels(torch.zeros(1, 2, dtype=dtype), 2)
        with pytest.raises(ValueError, match="`labels` must hold numbers, got a tensor on the meta device"):
            logits_from_labels(torch.zeros(1, 2, dtype=torch.long, device="meta"), 2)
        with pytest.raises(ValueError, match="`num_labels` must be at most 65536"):
            logits_from_labels(torch.zeros(1, 2, dtype=torch.long), 10**12)
        with pytest.raises(ValueError, match="`num_labels` must be at least 1, got 0"):
            logits_from_labels(torch.zeros(1, 2, dtype=torch.long), 0)


class TestAnnotation:
    def test_black_is_unknown_and_colours_are_numbered_in_order(self):
        picture = np.zeros((2, 2, 3), np.uint8)
        picture[0, 0], picture[0, 1], picture[1, 0] = (255, 0, 0), (0, 0, 255), (255, 0, 0)
        labels, colours = labels_from_annotation(picture)
        assert labels.tolist() == [[1, 0], [1, -1]]
        assert colours.tolist() == [[0, 0, 255], [255, 0, 0]]

    def test_without_black(self):
        labels, colours = labels_from_annotation(np.full((2, 3, 3), 7, np.uint8))
        assert labels.tolist() == [[0, 0, 0], [0, 0, 0]]
        assert colours.tolist() == [[7, 7, 7]]

    def test_wrong_ones(self):
        with pytest.raises(ValueError, match="all black"):
            labels_from_annotation(np.zeros((2, 2, 3), np.uint8))
        with pytest.raises(ValueError, match=r"must have shape \(H, W, 3\), got \(2, 2, 4\)"):
            labels_from_annotation(np.zeros((2, 2, 4), np.uint8))
        with pytest.raises(TypeError, match="`annotation` must have no mask, got a masked array"):
            labels_from_annotation(np.ma.masked_array(np.ones((2, 2, 3), np.uint8)))
        with pytest.raises(TypeError, match="must be a uint8 array, got float64"):
            labels_from_annotation(np.zeros((2, 2, 3)))


class TestCompatibility:
    @pytest.mark.parametrize(
        "kind",
        ["potts", "diagonal", "full", torch.tensor([1.0, 2.0, 0.5]), torch.arange(9.0).view(3, 3)],
        ids=["potts", "diagonal", "full", "vector", "matrix"],
    )
    def test_cost_is_the_matrix_product(self, kind):
        compatibility = Compatibility(3, kind)
        message = torch.randn(5, 3)
        expected = message @ compatibility.matrix().T
        torch.testing.assert_close(compatibility.cost(message), expected)
        torch.testing.assert_close(
            torch.softmax(compatibility.reward(message), 1), torch.softmax(-expected, 1)
        )

    @pytest.mark.parametrize("kind", ["potts", "diagonal", "full"])
    def test_mixed_precision_around_it_changes_nothing(self, kind, device):
        compatibility = Compatibility(3, kind).to(device)
        message = torch.randn(5, 3, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            cost = compatibility.cost(message)
        assert torch.equal(cost, compatibility.cost(message))

    def test_potts_diagonal_and_full_start_as_one_model(self):
        message = torch.randn(5, 4)
        updates = [
            torch.softmax(Compatibility(4, k).reward(message), 1) for k in ("potts", "diagonal", "full")
        ]
        torch.testing.assert_close(updates[0], updates[1])
        torch.testing.assert_close(updates[0], updates[2])

    def test_learned_or_not(self):
        assert Compatibility(3, "full", learn=True).values.requires_grad
        assert not Compatibility(3, "full").values.requires_grad
        with pytest.raises(ValueError, match="has nothing to learn"):
            Compatibility(3, "potts", learn=True)

    def test_wrong_ones(self):
        with pytest.raises(ValueError, match=r"must have shape \(3,\) or \(3, 3\), got \(2, 3\)"):
            Compatibility(3, torch.zeros(2, 3))
        with pytest.raises(ValueError, match="must be one of 'potts', 'diagonal', 'full' or a tensor"):
            Compatibility(3, "ising")
        with pytest.raises(ValueError, match="must be finite"):
            Compatibility(2, torch.tensor([1.0, float("nan")]))
