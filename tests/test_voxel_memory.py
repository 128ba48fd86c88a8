import pytest
import torch

from voxel.memory import new_large


@pytest.mark.parametrize("rows", [0, 3, 300_000])
@pytest.mark.parametrize("dtype", [None, torch.int64])
def test_as_new_empty(rows, dtype, device):
    like = torch.empty(0, dtype=torch.float64, device=device)
    tensor = new_large(like, (rows, 5), dtype)
    assert tensor.shape == (rows, 5)
    assert tensor.dtype == (dtype or torch.float64)
    assert tensor.device.type == device.type
    assert tensor.is_contiguous()
    tensor.fill_(3)
    assert int(tensor.sum()) == 15 * rows


def test_large_memory_is_asked_for_in_large_pages(monkeypatch):
    asked = []
    monkeypatch.setattr("voxel.memory._madvise", lambda *arguments: asked.append(arguments))
    small, large = new_large(torch.empty(0), (1000,)), new_large(torch.empty(0), (5 << 20,))
    assert small.numel() == 1000
    [(first, length, _)] = asked
    assert first % (2 << 20) == length % (2 << 20) == 0
    assert large.data_ptr() <= first
    assert first + length <= large.data_ptr() + 4 * large.numel()
    assert length >= 4 * large.numel() - (4 << 20)
