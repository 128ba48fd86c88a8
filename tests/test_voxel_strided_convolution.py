"""Strided and transposed sparse convolutions against PyTorch's dense ones and against brute force."""

import pytest
import torch
from oracles import brute_convolution
from torch.nn import functional

from voxel import SparseConv, SparseConvTranspose, SparseTensor

DENSE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
DENSE_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
SIZES_AND_STRIDES = [(2, 2), (3, 2), (1, 2), (4, 2), (2, 3), (3, 3), (5, 3)]


def sparse_grid(dimension, channels, device, *, size, share, batches=2):
    """Return a (batches, channels, size, …) grid, zero at the places left out, and its sparse form."""
    occupied = torch.rand(batches, *[size] * dimension) < share
    grid = torch.randn(batches, channels, *[size] * dimension, dtype=torch.float64) * occupied[:, None]
    places = torch.nonzero(occupied)
    places = places[torch.randperm(len(places))]
    features = grid.movedim(1, -1)[tuple(places.T)]
    return grid.to(device), SparseTensor(places.to(device), features.to(device))


def moved(tensor, steps):
    """Return the same features on voxels that are `steps` further along each axis."""
    shift = torch.tensor([0, *[steps] * tensor.dimension], device=tensor.coordinates.device)
    return SparseTensor(tensor.coordinates + shift, tensor.features)


def values_at(grid, tensor, steps=0):
    """Return a dense result at the places of a tensor that was moved by `steps`."""
    places = moved(tensor, -steps).coordinates.long()
    return grid.movedim(1, -1)[tuple(places.T)]


def dense_weight(conv, size):
    """Return a weight as (size, …, in, out), and how far the kernel reaches below its voxel."""
    lowest = -(size // 2) if size % 2 else 0
    dense = conv.weight.new_zeros(*[size] * conv.dimension, conv.in_channels, conv.out_channels)
    for offset, matrix in zip((conv.offsets // conv.dilation).tolist(), conv.weight.detach(), strict=True):
        dense[tuple(x - lowest for x in offset)] = matrix
    return dense, -lowest * conv.dilation


def assert_equals_dense(conv, grid, tensor, steps):
    """Compare a strided convolution of a tensor, moved by `steps` times the stride, with a dense one."""
    weight, below = dense_weight(conv, conv.kernel_size)
    above = conv.dilation * conv.kernel_size + conv.stride
    padded = functional.pad(grid, [below, above] * conv.dimension)
    weight = weight.movedim((-1, -2), (0, 1))
    expected = DENSE[conv.dimension](padded, weight, conv.bias, stride=conv.stride, dilation=conv.dilation)
    result = conv(moved(tensor, steps * conv.stride))
    # Worst seen: 7e-16.
    torch.testing.assert_close(result.features, values_at(expected, result, steps), rtol=0, atol=1e-13)
    found = {tuple(row) for row in result.coordinates.tolist()}
    floors = {(row[0], *[x // conv.stride + steps for x in row[1:]]) for row in tensor.coordinates.tolist()}
    assert len(found) == len(result)
    assert found == floors


def assert_transpose_equals_dense(conv, grid, tensor, fine, steps):
    """Compare a transposed convolution onto fine voxels with a dense one; both are moved by `steps`."""
    weight, below = dense_weight(conv, conv.kernel_size)
    weight = weight.movedim((-2, -1), (0, 1))
    options = {"stride": conv.stride, "dilation": conv.dilation}
    dense = DENSE_TRANSPOSE[conv.dimension](grid, weight, None, **options)
    size = conv.stride * grid.shape[2]
    dense = functional.pad(dense, [-below, size + below - dense.shape[2]] * conv.dimension)
    dense = dense + conv.bias.reshape(-1, *[1] * conv.dimension)
    fine = moved(fine, steps * conv.stride)
    result = conv(moved(tensor, steps), fine)
    assert result.voxels is fine.voxels
    expected = values_at(dense, fine, steps * conv.stride)
    # Worst seen: 7e-16.
    torch.testing.assert_close(result.features, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_equals_the_dense_convolution(device, dimension, size, stride, share):
    grid, tensor = sparse_grid(dimension, 2, device, size=7, share=share)
    conv = SparseConv(2, 3, size, dimension=dimension, stride=stride).double().to(device)
    assert_equals_dense(conv, grid, tensor, steps=-2)


@pytest.mark.parametrize("options", [{"shape": "cross"}, {"dilation": 2}, {"dilation": 3, "shape": "cross"}])
@pytest.mark.parametrize("size", [2, 3])
def test_options_equal_the_dense_convolution(device, size, options):
    grid, tensor = sparse_grid(2, 2, device, size=8, share=0.5)
    conv = SparseConv(2, 3, size, dimension=2, stride=2, **options).double().to(device)
    assert_equals_dense(conv, grid, tensor, steps=-3)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_transpose_equals_the_dense_one(device, dimension, size, stride, share):
    _grid, fine = sparse_grid(dimension, 1, device, size=3 * stride, share=share)
    coarse = SparseConv(1, 2, 1, dimension=dimension, stride=stride).double().to(device)(fine)
    coarse = coarse.map(torch.randn_like)
    grid = torch.zeros(2, 2, *[3] * dimension, dtype=torch.float64, device=device)
    grid.movedim(1, -1)[tuple(coarse.coordinates.long().T)] = coarse.features
    conv = SparseConvTranspose(2, 3, size, dimension=dimension, stride=stride).double().to(device)
    assert_transpose_equals_dense(conv, grid, coarse, fine, steps=-2)


@pytest.mark.parametrize("options", [{"shape": "cross"}, {"dilation": 2}, {"dilation": 3, "shape": "cross"}])
@pytest.mark.parametrize("size", [2, 3])
def test_options_of_the_transpose_equal_the_dense_one(device, size, options):
    grid, coarse = sparse_grid(2, 2, device, size=5, share=1.0)
    _grid, fine = sparse_grid(2, 1, device, size=10, share=1.0)
    conv = SparseConvTranspose(2, 3, size, dimension=2, stride=2, **options).double().to(device)
    assert_transpose_equals_dense(conv, grid, coarse, fine, steps=-3)


@pytest.mark.parametrize(("dimension", "size", "stride"), [(4, 2, 2), (4, 3, 2), (4, 3, 3), (5, 2, 2)])
def test_high_dimension_equals_brute_force(device, dimension, size, stride):
    coordinates = torch.randint(-4, 4, (150, 1 + dimension))
    coordinates[:, 0] %= 2
    coordinates = coordinates.unique(dim=0)
    features = torch.randn(len(coordinates), 2, dtype=torch.float64)
    conv = SparseConv(2, 3, size, dimension=dimension, stride=stride, bias=False).double()
    voxels, expected = brute_convolution(coordinates, features, conv.offsets, conv.weight.detach(), stride)
    result = conv.to(device)(SparseTensor(coordinates.to(device), features.to(device)))
    rows = {tuple(row): i for i, row in enumerate(result.coordinates.tolist())}
    assert set(rows) == set(voxels)
    found = result.features[[rows[voxel] for voxel in voxels]]
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-13)


def random_tensor(dimension, channels, device, *, voxels=60, reach=3):
    coordinates = torch.randint(-reach, reach + 1, (voxels, 1 + dimension))
    coordinates[:, 0] %= 2
    coordinates = coordinates.unique(dim=0)
    features = torch.randn(len(coordinates), channels, dtype=torch.float64)
    return SparseTensor(coordinates.to(device), features.to(device))


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 3), (4, 3)])
@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_transpose_is_the_adjoint(device, dimension, size, stride):
    fine = random_tensor(dimension, 2, device)
    options = {"dimension": dimension, "stride": stride, "bias": False}
    conv = SparseConv(2, 3, size, **options).double().to(device)
    transpose = SparseConvTranspose(3, 2, size, **options).double().to(device)
    with torch.no_grad():
        transpose.weight.copy_(conv.weight.transpose(1, 2))
    features = fine.features.requires_grad_()
    coarse = conv(fine)
    other = coarse.map(torch.randn_like)
    (expected,) = torch.autograd.grad((coarse.features * other.features).sum(), features)
    # Worst seen: 2e-16.
    torch.testing.assert_close(transpose(other, fine).features, expected, rtol=0, atol=1e-14)


def test_kernel_two_stride_two_sums_what_a_voxel_covers():
    coordinates = torch.tensor([[0, -2, -1], [0, -1, -2], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 2, 0]])
    conv = SparseConv(1, 1, 2, dimension=2, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    result = conv(SparseTensor(coordinates, torch.tensor([[1.0], [2], [4], [8], [16], [32]])))
    found = dict(zip(map(tuple, result.coordinates.tolist()), result.features[:, 0].tolist(), strict=True))
    assert found == {(0, -1, -1): 3, (0, 0, 0): 12, (1, 0, 0): 16, (0, 1, 0): 32}


def test_voxels_at_the_ends_of_int32():
    coordinates = torch.tensor([[0, -(2**31)], [0, 2**31 - 1]])
    for stride in (2, 3, 2**31 - 1):
        conv = SparseConv(1, 1, 3, dimension=1, stride=stride)
        tensor = SparseTensor(coordinates, torch.ones(2, 1))
        coarse = conv(tensor)
        assert sorted(coarse.coordinates[:, 1].tolist()) == sorted(x // stride for x in (-(2**31), 2**31 - 1))
        up = SparseConvTranspose(1, 1, 3, dimension=1, stride=stride)
        assert torch.equal(up(coarse, tensor).coordinates, tensor.coordinates)


def test_coarse_voxels_may_come_in_any_order(device):
    fine = random_tensor(3, 2, device)
    conv = SparseConv(2, 3, 2, dimension=3, stride=2).double().to(device)
    up = SparseConvTranspose(3, 2, 2, dimension=3, stride=2).double().to(device)
    coarse = conv(fine)
    order = torch.randperm(len(coarse), device=device)
    shuffled = SparseTensor(coarse.coordinates[order], coarse.features[order])
    assert torch.equal(up(shuffled, fine).features, up(coarse, fine).features)


def test_batch_equals_its_items(device):
    fine = random_tensor(2, 2, device)
    conv = SparseConv(2, 3, 3, dimension=2, stride=2).double().to(device)
    up = SparseConvTranspose(3, 2, 3, dimension=2, stride=2).double().to(device)
    coarse = conv(fine)
    for item in range(2):
        mine, theirs = (tensor.coordinates[:, 0] == item for tensor in (fine, coarse))
        alone = SparseTensor(fine.coordinates[mine], fine.features[mine])
        down = conv(alone)
        assert torch.equal(down.coordinates, coarse.coordinates[theirs])
        torch.testing.assert_close(coarse.features[theirs], down.features, rtol=0, atol=1e-14)
        together = up(coarse, fine).features[mine]
        torch.testing.assert_close(together, up(down, alone).features, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_gradients(device, dimension, size, stride):
    tensor = random_tensor(dimension, 1, device, voxels=9, reach=1)
    layers = [SparseConv(1, 2, size, dimension=dimension, stride=stride)]
    arguments = [(tensor,)]
    if stride > 1:
        coarse = tensor.voxels.coarser(stride)
        zeros = torch.zeros(len(coarse), 1, dtype=torch.float64, device=device)
        layers.append(SparseConvTranspose(1, 2, size, dimension=dimension, stride=stride))
        arguments.append((SparseTensor.from_voxels(coarse, zeros), tensor))
    for layer, (source, *target) in zip(layers, arguments, strict=True):
        layer.double().to(device)

        def run(features, weight, bias, layer=layer, source=source, target=target):
            inputs = (source.replace(features), *target)
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, inputs).features

        features = torch.randn(len(source), 1, dtype=torch.float64, device=device, requires_grad=True)
        inputs = (features, *(p.detach().requires_grad_() for p in layer.parameters()))
        assert torch.autograd.gradcheck(run, inputs)
        if dimension == 1:
            assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_nothing(device, dtype):
    fine = random_tensor(3, 2, device).map(lambda features: features.to(dtype))
    conv = SparseConv(2, 3, 2, dimension=3, stride=2).to(device, dtype)
    up = SparseConvTranspose(3, 2, 2, dimension=3, stride=2).to(device, dtype)
    with torch.autocast(device.type, torch.bfloat16):
        coarse = conv(fine)
        mixed = up(coarse, fine).features
    assert coarse.features.dtype == mixed.dtype == dtype
    assert torch.equal(mixed, up(conv(fine), fine).features)


def test_no_voxels(device):
    empty = SparseTensor(
        torch.empty(0, 3, dtype=torch.int32, device=device), torch.empty(0, 2, device=device)
    )
    coarse = SparseConv(2, 3, 2, dimension=2, stride=2).to(device)(empty)
    assert coarse.features.shape == (0, 3)
    up = SparseConvTranspose(3, 2, 2, dimension=2, stride=2).to(device)
    assert up(coarse, empty).features.shape == (0, 2)


def test_voxels_that_no_tap_reaches_hold_the_bias():
    tensor = SparseTensor(torch.tensor([[0, 1], [0, 2]]), torch.ones(2, 1))
    conv = SparseConv(1, 1, 1, dimension=1, stride=2)
    up = SparseConvTranspose(1, 1, 1, dimension=1, stride=2)
    coarse = conv(tensor)
    assert coarse.coordinates.tolist() == [[0, 0], [0, 1]]
    assert coarse.features[0] == conv.bias
    assert up(coarse, tensor).features[0] == up.bias


def test_repr_tells_the_stride():
    assert "taps=8, dimension=3, stride=2" in repr(SparseConvTranspose(1, 1, 2, dimension=3, stride=2))
