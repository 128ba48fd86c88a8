"""Sparse convolutions against PyTorch's dense ones and against brute force."""

import itertools

import pytest
import torch
from oracles import brute_convolution

from voxel import GaussianConv, SparseConv, SparseTensor, kernel_offsets

DENSE = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


def sparse_grid(dimension, channels, device, *, size=6, batches=2):
    """Return a half empty (batches, channels, size, …) grid, its occupied places, and its sparse form."""
    occupied = torch.rand(batches, *[size] * dimension) < 0.5
    grid = torch.randn(batches, channels, *[size] * dimension, dtype=torch.float64) * occupied[:, None]
    coordinates = torch.nonzero(occupied)
    coordinates = coordinates[torch.randperm(len(coordinates))]
    # Moved, so that some coordinates are negative.
    features = grid.movedim(1, -1)[tuple(coordinates.T)]
    shift = torch.tensor([0, *[-3] * dimension])
    return grid.to(device), coordinates, SparseTensor((coordinates + shift).to(device), features.to(device))


def cube_weight(conv, size, dilation=1):
    """Return a convolution's weight in the form (out, in, size, …) that PyTorch's dense ones take."""
    dense = conv.weight.new_zeros(*[size] * conv.dimension, conv.in_channels, conv.out_channels)
    for offset, matrix in zip(
        (conv.offsets // dilation + size // 2).tolist(), conv.weight.detach(), strict=True
    ):
        dense[tuple(offset)] = matrix
    return dense.movedim((-1, -2), (0, 1))


@pytest.mark.parametrize("shape", ["cube", "cross"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_equals_the_dense_convolution_at_the_occupied_voxels(device, dimension, size, bias, shape):
    grid, places, tensor = sparse_grid(dimension, 2, device)
    conv = SparseConv(2, 3, size, dimension=dimension, shape=shape, bias=bias).double().to(device)
    weight = cube_weight(conv, size)
    assert torch.count_nonzero(weight) == conv.weight.numel()
    dense = DENSE[dimension](grid, weight, conv.bias, padding="same")
    expected = dense.movedim(1, -1)[tuple(places.T.to(device))]
    result = conv(tensor)
    assert torch.equal(result.coordinates, tensor.coordinates)
    # Worst seen: 9e-16.
    torch.testing.assert_close(result.features, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilation_equals_the_dense_one(device, dilation):
    grid, places, tensor = sparse_grid(2, 2, device)
    conv = SparseConv(2, 3, 3, dimension=2, dilation=dilation).double().to(device)
    weight = cube_weight(conv, 3, dilation)
    dense = torch.nn.functional.conv2d(grid, weight, conv.bias, padding=dilation, dilation=dilation)
    expected = dense.movedim(1, -1)[tuple(places.T.to(device))]
    torch.testing.assert_close(conv(tensor).features, expected, rtol=0, atol=1e-13)


def test_cube_weight_is_in_the_order_of_pytorch():
    conv = SparseConv(2, 3, 3, dimension=3)
    expected = conv.weight.detach().reshape(3, 3, 3, 2, 3).permute(4, 3, 0, 1, 2)
    assert torch.equal(cube_weight(conv, 3), expected)


@pytest.mark.parametrize(("dimension", "shape"), [(4, "cube"), (5, "cross"), (7, "cross")])
def test_high_dimension_equals_brute_force(device, dimension, shape):
    coordinates = torch.randint(0, 3, (60, 1 + dimension)).unique(dim=0)
    features = torch.randn(len(coordinates), 2, dtype=torch.float64)
    conv = SparseConv(2, 3, 3, dimension=dimension, shape=shape, bias=False).double()
    _voxels, expected = brute_convolution(coordinates, features, conv.offsets, conv.weight.detach())
    result = conv.to(device)(SparseTensor(coordinates.to(device), features.to(device))).features
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-13)


def test_batch_equals_its_items(device):
    _grid, _places, tensor = sparse_grid(2, 2, device, batches=3)
    conv = SparseConv(2, 3, 3, dimension=2).double().to(device)
    together = conv(tensor).features
    for item in range(3):
        mine = tensor.coordinates[:, 0] == item
        alone = conv(SparseTensor(tensor.coordinates[mine], tensor.features[mine])).features
        torch.testing.assert_close(together[mine], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", ["cube", "cross"])
def test_gradients(device, shape):
    coordinates = torch.randint(0, 3, (12, 3), device=device).unique(dim=0)
    conv = SparseConv(2, 3, 3, dimension=2, shape=shape).double().to(device)

    def run(features, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(conv, parameters, (SparseTensor(coordinates, features),)).features

    features = torch.randn(len(coordinates), 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(
        run, (features, *(p.detach().requires_grad_() for p in conv.parameters()))
    )


def test_no_voxels(device):
    empty = SparseTensor(
        torch.empty(0, 3, dtype=torch.int32, device=device), torch.empty(0, 2, device=device)
    )
    assert SparseConv(2, 3, 3, dimension=2).to(device)(empty).features.shape == (0, 3)
    assert GaussianConv(1.0)(empty).features.shape == (0, 2)


def test_initial_parameters_lie_within_the_bound():
    conv = SparseConv(4, 50, 3, dimension=2)
    bound = (9 * 4) ** -0.5
    for parameter in conv.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound


def test_offsets_are_not_saved():
    assert set(SparseConv(1, 1, 3, dimension=2).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"kernel_size": 2}, ValueError, "`kernel_size` must be odd"),
        ({"kernel_size": 0}, ValueError, "`kernel_size` must be at least 1"),
        ({"kernel_size": 3.0}, TypeError, "`kernel_size` must be an integer"),
        ({"in_channels": 0}, ValueError, "`in_channels`"),
        ({"out_channels": True}, TypeError, "`out_channels`"),
        ({"dimension": 0}, ValueError, "`dimension`"),
        ({"dilation": 0}, ValueError, "`dilation`"),
        ({"shape": "sphere"}, ValueError, "`shape` must be one of 'cube', 'cross', got 'sphere'"),
        ({"bias": 1}, TypeError, "`bias` must be True or False"),
        ({"stride": 0}, ValueError, "`stride` must be at least 1"),
        ({"stride": 2.0}, TypeError, "`stride` must be an integer"),
        ({"stride": 2**31}, ValueError, "`stride` must be at most"),
    ],
)
def test_constructor_errors(changed, error, message):
    arguments = {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "dimension": 2}
    with pytest.raises(error, match=message):
        SparseConv(**{**arguments, **changed})


def test_input_errors():
    tensor = SparseTensor(torch.tensor([[0, 1, 2]]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="must have dimension 3, got 2"):
        SparseConv(2, 1, 3, dimension=3)(tensor)
    with pytest.raises(ValueError, match="must have 4 channels, got 2"):
        SparseConv(4, 1, 3, dimension=2)(tensor)
    with pytest.raises(TypeError, match=r"`tensor` must be a voxel.SparseTensor, got Tensor"):
        SparseConv(2, 1, 3, dimension=2)(tensor.features)
    with pytest.raises(TypeError, match=r"`features` must have the dtype of `weight`, torch.float64"):
        SparseConv(2, 1, 3, dimension=2).double()(tensor)
    with pytest.raises(ValueError, match="`features` must be on the device of `weight`, meta"):
        SparseConv(2, 1, 3, dimension=2).to("meta")(tensor)
    twice = SparseTensor(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.ones(2, 2))
    with pytest.raises(ValueError, match="must be distinct"):
        SparseConv(2, 1, 3, dimension=2)(twice)


def gaussian_sum(coordinates, features, sigma, truncate):
    positions = coordinates.double()
    squared = (positions[:, None, 1:] - positions[None, :, 1:]).square().sum(2)
    same_batch = positions[:, None, 0] == positions[None, :, 0]
    near = squared <= (truncate * sigma) ** 2 + 1e-9
    return (torch.exp(-squared / (2 * sigma**2)) * same_batch * near) @ features


class TestGaussianConv:
    @pytest.mark.parametrize("dimension", [1, 2, 3, 4])
    @pytest.mark.parametrize(("sigma", "truncate"), [(1.0, 3.0), (0.4, 3.0), (1.3, 2.0)])
    def test_equals_the_dense_sum(self, device, dimension, sigma, truncate):
        _grid, _places, tensor = sparse_grid(dimension, 3, device, size=5)
        expected = gaussian_sum(tensor.coordinates, tensor.features, sigma, truncate)
        result = GaussianConv(sigma, truncate=truncate)(tensor)
        assert torch.equal(result.coordinates, tensor.coordinates)
        torch.testing.assert_close(result.features, expected, rtol=0, atol=1e-13)

    def test_crosses_gaps(self):
        tensor = SparseTensor(torch.tensor([[0, 0], [0, 2]]), torch.eye(2, dtype=torch.float64))
        across = float(GaussianConv(1.0)(tensor).features[0, 1])
        assert across == pytest.approx(float(torch.exp(torch.tensor(-2.0).double())))

    def test_gradients(self, device):
        _grid, _places, tensor = sparse_grid(2, 2, device, size=3)
        features = tensor.features.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: GaussianConv(0.8)(tensor.replace(x)).features, features)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [((0.0,), ValueError), ((float("inf"),), ValueError), (("1",), TypeError), ((True,), TypeError)],
    )
    def test_errors(self, arguments, error):
        with pytest.raises(error, match="`sigma`"):
            GaussianConv(*arguments)
        with pytest.raises(error, match="`truncate`"):
            GaussianConv(1.0, truncate=arguments[0])

    def test_only_sparse_tensors(self):
        with pytest.raises(TypeError, match=r"`tensor` must be a voxel\.SparseTensor, got Tensor"):
            GaussianConv(1.0)(torch.ones(3, 2))


def test_offsets_reach_as_far_as_the_kernel_is_large():
    for size, dilation in itertools.product((1, 3, 5), (1, 2)):
        assert int(kernel_offsets(size, 2, "cube", dilation).max()) == dilation * (size // 2)
