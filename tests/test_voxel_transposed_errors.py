"""What the transposed sparse convolution refuses."""

import pytest
import torch

from voxel import SparseConv, SparseConvTranspose, SparseTensor

FINE = SparseTensor(torch.tensor([[0, 1, 2], [0, 7, 8], [1, 1, 2]]), torch.ones(3, 2))
UP = SparseConvTranspose(3, 2, 2, dimension=2, stride=2)


def coarse_tensor():
    return SparseConv(2, 3, 2, dimension=2, stride=2)(FINE)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "`kernel_size` must be at least 1"),
        ({"kernel_size": "2"}, TypeError, "`kernel_size` must be an integer"),
        ({"in_channels": 0}, ValueError, "`in_channels`"),
        ({"dimension": 0}, ValueError, "`dimension`"),
        ({"stride": 1}, ValueError, "`stride` must be at least 2, got 1"),
        ({"stride": 2**31}, ValueError, "`stride` must be at most"),
        ({"stride": True}, TypeError, "`stride` must be an integer"),
        ({"shape": "sphere"}, ValueError, "`shape`"),
        ({"bias": None}, TypeError, "`bias`"),
    ],
)
def test_constructor_errors(changed, error, message):
    arguments = {"in_channels": 1, "out_channels": 1, "kernel_size": 2, "dimension": 2, "stride": 2}
    with pytest.raises(error, match=message):
        SparseConvTranspose(**{**arguments, **changed})


def test_input_errors():
    coarse = coarse_tensor()
    with pytest.raises(TypeError, match=r"`tensor` must be a voxel.SparseTensor, got Tensor"):
        UP(coarse.features, FINE)
    with pytest.raises(TypeError, match=r"`target` must be a voxel.SparseTensor, got Tensor"):
        UP(coarse, FINE.coordinates)
    with pytest.raises(TypeError, match=r"`features` must have the dtype of `weight`, torch.float32"):
        UP(coarse.map(torch.Tensor.double), FINE)
    with pytest.raises(ValueError, match="the input must have 3 channels, got 2"):
        UP(FINE, FINE)
    volume = SparseTensor(torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 3))
    with pytest.raises(ValueError, match="the input must have dimension 2, got 3"):
        UP(volume, FINE)
    with pytest.raises(ValueError, match="`target` must have dimension 2, got 3"):
        UP(coarse, volume)


def test_targets_whose_coarse_voxels_are_others():
    coarse = coarse_tensor()
    fewer = SparseTensor(FINE.coordinates[:2], FINE.features[:2])
    for target in (fewer, SparseTensor(FINE.coordinates + 5, FINE.features), coarse):
        with pytest.raises(ValueError, match=r"`tensor` must lie on the voxels floor\(x / 2\) of `target`"):
            UP(coarse, target)
    with pytest.raises(ValueError, match="3 of them; got 2, of which 2 are among them"):
        UP(SparseTensor(coarse.coordinates[:2], coarse.features[:2]), FINE)


def test_a_target_with_a_voxel_twice():
    twice = SparseTensor(FINE.coordinates[[0, 1, 2, 0]], torch.ones(4, 2))
    with pytest.raises(ValueError, match="must be distinct"):
        UP(coarse_tensor(), twice)


def test_two_devices(device):
    if device.type == "cpu":
        pytest.skip("needs a second device")
    target = SparseTensor(FINE.coordinates.to(device), FINE.features.to(device))
    with pytest.raises(ValueError, match="`target` must be on the device of `tensor`"):
        UP(coarse_tensor(), target)
