"""The sum over taps against a loop over its pairs, and its gradients of first and second order."""

import itertools

import pytest
import torch

from voxel import SparseConv, SparseTensor
from voxel.taps import sum_over_taps, tap_products, tap_sum

GROUPS = [(1, 2, 3), (2, 4, 6), (3, 3, 3), (3, 3, 6), (3, 6, 3)]
every_group = pytest.mark.parametrize(("groups", "inputs", "outputs"), GROUPS)
ROWS, RESULTS = 7, 5


def some_pairs(device="cpu"):
    """Return the pairs of four taps, one of which has none."""
    pairs = []
    for count in (5, 0, 1, 3):
        ends = (torch.randperm(ROWS)[:count], torch.randperm(RESULTS)[:count])
        pairs.append(tuple(end.to(device) for end in ends))
    return pairs


def some_arguments(groups, inputs, outputs, device="cpu"):
    features = torch.randn(ROWS, inputs, dtype=torch.float64)
    weight = torch.randn(4, inputs // groups, outputs, dtype=torch.float64)
    return [tensor.to(device).requires_grad_() for tensor in (features, weight)]


@every_group
def test_equals_a_loop_over_the_pairs(device, groups, inputs, outputs):
    pairs = some_pairs(device)
    features, weight = some_arguments(groups, inputs, outputs, device)
    result = sum_over_taps(features, weight, pairs, RESULTS, groups)
    expected = torch.zeros(RESULTS, outputs, dtype=torch.float64)
    rows, block = features.detach().cpu(), weight.detach().cpu()
    for tap, (sources, targets) in enumerate(pairs):
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            for j, i in itertools.product(range(outputs), range(inputs // groups)):
                first = j // (outputs // groups) * (inputs // groups)
                expected[target, j] += rows[source, first + i] * block[tap, i, j]
    torch.testing.assert_close(result.detach().cpu(), expected, rtol=0, atol=1e-14)


@every_group
def test_gradients(device, groups, inputs, outputs):
    pairs = some_pairs(device)

    def run(features, weight):
        return sum_over_taps(features, weight, pairs, RESULTS, groups)

    arguments = some_arguments(groups, inputs, outputs, device)
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


@every_group
def test_opcheck(device, groups, inputs, outputs):
    ends = [list(end) for end in zip(*some_pairs(device), strict=True)]
    features, weight = some_arguments(groups, inputs, outputs, device)
    torch.library.opcheck(tap_sum, (features, weight, *ends, RESULTS, groups))
    right = torch.randn(RESULTS, outputs, dtype=torch.float64, device=device, requires_grad=True)
    torch.library.opcheck(tap_products, (features, right, *ends, groups))


@every_group
def test_autocast_changes_nothing(groups, inputs, outputs):
    pairs = some_pairs()
    features, weight = (t.detach().float() for t in some_arguments(groups, inputs, outputs))

    def run():
        leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
        result = sum_over_taps(*leaves, pairs, RESULTS, groups)
        result.square().sum().backward()
        return [result, *(leaf.grad for leaf in leaves)]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run()
    assert all(torch.equal(*both) for both in zip(mixed, expected, strict=True))


def test_no_pairs_at_all():
    nothing = torch.empty(0, dtype=torch.int64)
    weight = torch.ones(2, 3, 4, requires_grad=True)
    result = sum_over_taps(torch.empty(0, 3), weight, [(nothing, nothing)] * 2, 0)
    assert result.shape == (0, 4)
    result.sum().backward()
    assert torch.count_nonzero(weight.grad) == 0


def test_autograd_keeps_the_arguments_alone():
    """A gathered copy for each tap would be 27 times the features."""
    coordinates = torch.nonzero(torch.ones(1, 6, 6, 6))
    features = torch.randn(216, 4, requires_grad=True)
    conv = SparseConv(4, 4, 3, dimension=3)
    tensor = SparseTensor(coordinates, features)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.setdefault(saved.data_ptr(), saved), lambda x: x
    ):
        conv(tensor).features.sum()
    floating = sum(tensor.numel() for tensor in kept.values() if tensor.is_floating_point())
    assert floating == features.numel() + conv.weight.numel()
    held = {row.data_ptr() for pair in tensor.voxels.kernel_map(3) for row in pair}
    assert {pointer for pointer, saved in kept.items() if not saved.is_floating_point()} <= held
