"""Batch normalisation over the stored voxels."""

import pytest
import torch

from voxel import SparseBatchNorm, SparseTensor


def random_tensor(voxels, channels, *, dtype=torch.float32, device="cpu"):
    coordinates = torch.nn.functional.pad(torch.arange(voxels)[:, None], (1, 0))
    features = 3 + 2 * torch.randn(voxels, channels, dtype=dtype)
    return SparseTensor(coordinates.to(device), features.to(device))


def test_training_normalises_each_channel(device):
    tensor = random_tensor(50, 4, dtype=torch.float64, device=device)
    norm = SparseBatchNorm(4).double().to(device)
    result = norm(tensor)
    assert result.voxels is tensor.voxels
    # Worst seen: 9e-16. The deviations differ by the eps in the root.
    assert result.features.mean(0).abs().max() < 1e-13
    variance = tensor.features.var(0, unbiased=False)
    expected = (tensor.features - tensor.features.mean(0)) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(result.features, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(norm.norm.running_mean, 0.1 * tensor.features.mean(0))


def test_evaluation_uses_the_running_statistics(device):
    norm = SparseBatchNorm(4, momentum=None).to(device)
    seen = random_tensor(50, 4, device=device)
    norm(seen)
    one = random_tensor(1, 4, device=device)
    expected = (one.features - seen.features.mean(0)) / (seen.features.var(0) + 1e-5).sqrt()
    # Worst seen: 5e-7.
    torch.testing.assert_close(norm.eval()(one).features, expected, rtol=0, atol=2e-6)


def test_no_voxels_pass_through_and_leave_the_statistics():
    norm = SparseBatchNorm(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert norm(random_tensor(0, 2)).features.shape == (0, 2)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.eval()(random_tensor(0, 2)).features.shape == (0, 2)


def test_one_voxel_has_no_variance():
    for norm in (SparseBatchNorm(2), SparseBatchNorm(2, track_running_stats=False).eval()):
        with pytest.raises(ValueError, match="`tensor` must have 2 voxels or more"):
            norm(random_tensor(1, 2))
    assert SparseBatchNorm(2).eval()(random_tensor(1, 2)).features.isfinite().all()


def test_gradients():
    tensor = random_tensor(6, 2, dtype=torch.float64)
    norm = SparseBatchNorm(2).double()

    def run(features, weight, bias):
        parameters = {"norm.weight": weight, "norm.bias": bias}
        return torch.func.functional_call(norm, parameters, (tensor.replace(features),)).features

    inputs = [value.detach().requires_grad_() for value in (tensor.features, *norm.parameters())]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_nothing(device, dtype):
    tensor = random_tensor(50, 4, dtype=dtype, device=device)
    norm = SparseBatchNorm(4).to(device, dtype)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = norm(tensor).features
    assert mixed.dtype == dtype
    assert torch.equal(mixed, norm(tensor).features)


def test_errors():
    with pytest.raises(ValueError, match="`channels` must be at least 1"):
        SparseBatchNorm(0)
    with pytest.raises(TypeError, match=r"`tensor` must be a voxel.SparseTensor, got Tensor"):
        SparseBatchNorm(2)(torch.ones(3, 2))
    with pytest.raises(ValueError, match="the input must have 3 channels, got 2"):
        SparseBatchNorm(3)(random_tensor(5, 2))
    for affine in (True, False):
        with pytest.raises(TypeError, match=r"`features` must have the dtype of `norm`, torch.float32"):
            SparseBatchNorm(2, affine=affine)(random_tensor(5, 2, dtype=torch.float64))
