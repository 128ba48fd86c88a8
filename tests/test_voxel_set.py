"""Sets of voxels: the coarser ones, and what is kept for the tensors that share them."""

import gc
import weakref

import pytest
import torch

from voxel import SparseBatchNorm, SparseConv, SparseConvTranspose, SparseTensor, VoxelSet, voxel_set


@pytest.fixture
def computed(monkeypatch):
    """Return the list of the strides of the kernel maps computed so far."""
    strides = []
    original = voxel_set.kernel_map

    def counting(index, offsets, *, coordinates, stride):
        strides.append(stride)
        return original(index, offsets, coordinates=coordinates, stride=stride)

    monkeypatch.setattr(voxel_set, "kernel_map", counting)
    return strides


def random_tensor(dimension, channels, *, device="cpu", size=5):
    coordinates = torch.randint(-size, size, (150, 1 + dimension)).unique(dim=0)
    coordinates[:, 0] %= 2
    coordinates = coordinates.unique(dim=0).to(device)
    return SparseTensor(coordinates, torch.randn(len(coordinates), channels, device=device))


class UNet(torch.nn.Module):
    """Two levels down and up, with skip connections."""

    def __init__(self, dimension):
        super().__init__()
        self.enter = SparseConv(2, 4, 3, dimension=dimension)
        self.down = torch.nn.ModuleList(
            SparseConv(4, 4, size, dimension=dimension, stride=2) for size in (2, 3)
        )
        self.inner = torch.nn.ModuleList(SparseConv(4, 4, 3, dimension=dimension) for _ in range(2))
        self.up = torch.nn.ModuleList(
            SparseConvTranspose(4, 4, size, dimension=dimension, stride=2) for size in (2, 3)
        )
        self.merge = torch.nn.ModuleList(SparseConv(8, 4, 3, dimension=dimension) for _ in range(2))
        self.norm = SparseBatchNorm(4)

    def forward(self, tensor):
        levels = [self.norm(self.enter(tensor)).map(torch.relu)]
        for down, inner in zip(self.down, self.inner, strict=True):
            levels.append(inner(down(levels[-1])).map(torch.relu))
        result = levels.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            result = merge(up(result, levels[-1]).concatenate(levels.pop())).map(torch.relu)
        return result


def test_coarser_voxels_are_the_distinct_floors(device):
    coordinates = torch.randint(-9, 9, (80, 4)).unique(dim=0)
    coordinates[:, 0] = coordinates[:, 0].abs()
    coordinates = coordinates.unique(dim=0)
    voxels = VoxelSet(coordinates.to(device))
    for stride in (2, 3, 7, 2**31 - 1):
        expected = {(row[0], *[x // stride for x in row[1:]]) for row in coordinates.tolist()}
        found = [tuple(row) for row in voxels.coarser(stride).coordinates.tolist()]
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_coarser_sets_are_kept():
    voxels = VoxelSet(torch.tensor([[0, 1, 2], [0, 5, 6]]))
    assert voxels.coarser(1) is voxels
    assert voxels.coarser(2) is voxels.coarser(2)
    assert voxels.coarser(3) is not voxels.coarser(2)
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        voxels.coarser(0)


def test_no_voxels():
    empty = VoxelSet(torch.empty(0, 3, dtype=torch.int64))
    assert (len(empty), empty.dimension, len(empty.coarser(2))) == (0, 2, 0)
    assert [len(source) for source, _target in empty.kernel_map(2, stride=2)] == [0] * 4


@pytest.mark.parametrize("dimension", [2, 3, 4])
def test_unet_computes_each_map_once(device, computed, dimension):
    tensor = random_tensor(dimension, 2, device=device)
    net = UNet(dimension).to(device)
    result = net(tensor)
    assert result.voxels is tensor.voxels
    # Submanifold maps of three levels, and the two between them.
    assert sorted(computed) == [1, 1, 1, 2, 2]
    net(tensor.map(torch.sin)).features.square().sum().backward()
    assert len(computed) == 5
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_unet_keeps_batches_apart(device):
    tensor = random_tensor(3, 2, device=device)
    net = UNet(3).double().to(device).eval()
    tensor = tensor.map(torch.Tensor.double)
    together = net(tensor).features
    for item in range(2):
        mine = tensor.coordinates[:, 0] == item
        alone = net(SparseTensor(tensor.coordinates[mine], tensor.features[mine])).features
        # Worst seen: 0.
        torch.testing.assert_close(together[mine], alone, rtol=0, atol=1e-14)


def test_unet_without_voxels():
    empty = SparseTensor(torch.empty(0, 4, dtype=torch.int32), torch.empty(0, 2))
    assert UNet(3)(empty).features.shape == (0, 4)


def test_maps_differ_by_kernel():
    voxels = random_tensor(2, 1).voxels
    kernels = [(3, "cube", 1, 1), (3, "cross", 1, 1), (3, "cube", 2, 1), (3, "cube", 1, 2), (5, "cube", 1, 1)]
    for kernel in kernels:
        fresh = VoxelSet(voxels.coordinates).kernel_map(*kernel)
        for _ in range(2):
            for pair, expected in zip(voxels.kernel_map(*kernel), fresh, strict=True):
                assert torch.equal(torch.stack(pair), torch.stack(expected))


def test_maps_of_inference_mode_can_be_trained_on():
    tensor = random_tensor(2, 2)
    net = UNet(2)
    with torch.inference_mode():
        net(tensor)
    net(tensor).features.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_what_is_kept_dies_with_the_tensors_and_holds_no_graph():
    tensor = random_tensor(2, 2)
    net = UNet(2)
    activations = []
    net.down[0].register_forward_hook(lambda _module, _input, result: activations.append(result.features))
    result = net(tensor)
    graph, activation = weakref.ref(result), weakref.ref(activations.pop())
    voxels, coarse = weakref.ref(tensor.voxels), weakref.ref(tensor.voxels.coarser(2))
    gc.disable()  # reference counts suffice: there are no cycles
    try:
        del result
        assert graph() is None
        assert activation() is None
        assert voxels() is not None
        del tensor
        assert voxels() is None
        assert coarse() is None
    finally:
        gc.enable()
