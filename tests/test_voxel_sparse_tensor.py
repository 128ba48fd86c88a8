"""Sparse tensors: what they accept, and how points are quantised to them."""

import pytest
import torch

from voxel import CoordinateRangeError, SparseTensor

COORDINATES = torch.tensor([[0, 1, 2], [0, -3, 2], [1, 1, 2]])
FEATURES = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def test_attributes(device):
    tensor = SparseTensor(COORDINATES.to(device), FEATURES.to(device))
    assert len(tensor) == 3
    assert tensor.dimension == 2
    assert tensor.coordinates.dtype == torch.int32
    assert tensor.coordinates.tolist() == COORDINATES.tolist()
    assert tensor.features.device.type == device.type
    assert "3 voxels, D=2, C=2" in repr(tensor)
    assert tensor.index.lookup(tensor.coordinates[1:2]).tolist() == [1]


def test_empty():
    tensor = SparseTensor(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 2))
    assert len(tensor) == 0
    assert tensor.dimension == 3


@pytest.mark.parametrize(
    ("coordinates", "features", "error", "message"),
    [
        (COORDINATES.tolist(), FEATURES, TypeError, "`coordinates` must be a torch.Tensor"),
        (COORDINATES.float(), FEATURES, TypeError, "`coordinates` must hold integers, got torch.float32"),
        (COORDINATES.bool(), FEATURES, TypeError, "`coordinates` must hold integers, got torch.bool"),
        *(
            (
                COORDINATES.abs().to(dtype),
                FEATURES,
                TypeError,
                rf"`coordinates` must hold integers, got {dtype}; .*with \.long\(\)",
            )
            for dtype in (torch.uint16, torch.uint64)
        ),
        (COORDINATES[0], FEATURES, ValueError, r"`coordinates` must have shape \(V, 1 \+ D\)"),
        (COORDINATES[:, :1], FEATURES, ValueError, r"`coordinates` must have shape \(V, 1 \+ D\)"),
        (COORDINATES, FEATURES.tolist(), TypeError, "`features` must be a torch.Tensor"),
        (COORDINATES, FEATURES.long(), TypeError, "`features` must be float32 or float64"),
        (COORDINATES, FEATURES.half(), TypeError, "`features` must be float32 or float64"),
        (COORDINATES, FEATURES[:2], ValueError, r"shape \(V, C\) with 3 rows, got \(2, 2\)"),
        (COORDINATES, FEATURES[:, 0], ValueError, r"shape \(V, C\) with 3 rows, got \(3,\)"),
        (COORDINATES, FEATURES.to("meta"), ValueError, "`features` must be on .*, got meta"),
        (COORDINATES.to("meta"), FEATURES, ValueError, "`coordinates`"),
        (-COORDINATES, FEATURES, ValueError, "negative batch index"),
        (COORDINATES + 2**31 - 2, FEATURES, ValueError, "must fit into int32"),
        (COORDINATES * torch.tensor([1, 2**30, 1]), FEATURES, ValueError, "must fit into int32"),
    ],
)
def test_errors(coordinates, features, error, message):
    with pytest.raises(error, match=message):
        SparseTensor(coordinates, features)


def test_duplicates_are_an_error_when_the_index_is_needed():
    tensor = SparseTensor(COORDINATES[[0, 1, 0]], FEATURES)
    with pytest.raises(ValueError, match="rows 0 and 2"):
        _ = tensor.index


def test_replace_shares_coordinates_and_index():
    tensor = SparseTensor(COORDINATES, FEATURES)
    other = tensor.replace(FEATURES[:, :1].double())
    assert "index" not in vars(tensor.voxels)  # which is built only when needed
    assert other.voxels is tensor.voxels
    assert other.index is tensor.index
    assert other.coordinates is tensor.coordinates
    assert other.features.dtype == torch.float64
    assert tensor.features is FEATURES
    with pytest.raises(ValueError, match=r"shape \(V, C\) with 3 rows"):
        tensor.replace(FEATURES[:2])


def test_map():
    tensor = SparseTensor(COORDINATES, FEATURES - 2)
    assert torch.equal(tensor.map(torch.relu).features, torch.relu(FEATURES - 2))
    assert tensor.map(torch.relu).voxels is tensor.voxels
    with pytest.raises(ValueError, match=r"shape \(V, C\) with 3 rows, got \(\)"):
        tensor.map(torch.sum)


def test_concatenate():
    tensor = SparseTensor(COORDINATES, FEATURES)
    expected = torch.cat([FEATURES, 2 * FEATURES[:, :1]], 1)
    for other in (tensor.replace(2 * FEATURES[:, :1]), SparseTensor(COORDINATES, 2 * FEATURES[:, :1])):
        both = tensor.concatenate(other)
        assert both.voxels is tensor.voxels
        assert torch.equal(both.features, expected)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (FEATURES, TypeError, r"`other` must be a voxel.SparseTensor, got Tensor"),
        (SparseTensor(COORDINATES, FEATURES.double()), TypeError, "`other` must have the dtype of `self`"),
        (SparseTensor(COORDINATES.flip(0), FEATURES), ValueError, "in the same order"),
        (SparseTensor(COORDINATES[:2], FEATURES[:2]), ValueError, "in the same order"),
    ],
)
def test_concatenate_errors(other, error, message):
    with pytest.raises(error, match=message):
        SparseTensor(COORDINATES, FEATURES).concatenate(other)


def test_tensors_on_two_devices_are_an_error(device):
    if device.type == "cpu":
        pytest.skip("needs a second device")
    tensor = SparseTensor(COORDINATES, FEATURES)
    with pytest.raises(ValueError, match="`other` must be on the device of `self`"):
        tensor.concatenate(SparseTensor(COORDINATES.to(device), FEATURES.to(device)))


class TestFromPoints:
    POSITIONS = torch.tensor([[0.1, 0.1], [0.4, 0.2], [-0.1, 0.0], [0.5, 0.9]])
    VALUES = torch.tensor([[1.0], [3.0], [10.0], [7.0]])

    def test_points_that_share_a_voxel_are_averaged(self, device):
        tensor, voxel = SparseTensor.from_points(self.POSITIONS.to(device), self.VALUES.to(device), 0.5)
        found = dict(
            zip(map(tuple, tensor.coordinates.tolist()), tensor.features[:, 0].tolist(), strict=True)
        )
        assert found == {(0, 0, 0): 2.0, (0, -1, 0): 10.0, (0, 1, 1): 7.0}
        assert tensor.coordinates[voxel].tolist() == [[0, 0, 0], [0, 0, 0], [0, -1, 0], [0, 1, 1]]

    def test_batches_stay_apart(self):
        batch = torch.tensor([0, 1, 0, 1])
        tensor, voxel = SparseTensor.from_points(self.POSITIONS, self.VALUES, 100.0, batch)
        # The third point lies in the voxel below the origin.
        found = dict(
            zip(map(tuple, tensor.coordinates.tolist()), tensor.features[:, 0].tolist(), strict=True)
        )
        assert found == {(0, 0, 0): 1.0, (1, 0, 0): 5.0, (0, -1, 0): 10.0}
        assert tensor.coordinates[voxel][:, 0].tolist() == batch.tolist()

    def test_gradient_is_shared_by_the_points_of_a_voxel(self):
        values = self.VALUES.clone().requires_grad_()
        tensor, _voxel = SparseTensor.from_points(self.POSITIONS, values, 0.5)
        tensor.features.sum().backward()
        assert values.grad[:, 0].tolist() == [0.5, 0.5, 1.0, 1.0]

    def test_no_points(self):
        tensor, voxel = SparseTensor.from_points(torch.empty(0, 3), torch.empty(0, 2), 1.0)
        assert tensor.coordinates.shape == (0, 4)
        assert tensor.features.shape == (0, 2)
        assert voxel.shape == (0,)

    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"positions": torch.full((4, 2), float("nan"))}, ValueError, "`positions` must be finite"),
            ({"positions": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "`positions` must be float"),
            ({"features": torch.zeros(3, 1)}, ValueError, r"`features` must have shape \(N, C\) with 4 rows"),
            ({"voxel_size": 1e-12}, CoordinateRangeError, r"`positions\[0, \d\]` is .*; divide axis"),
            ({"voxel_size": 0.0}, ValueError, "`voxel_size` must be"),
            ({"voxel_size": -1.0}, ValueError, "`voxel_size` must be"),
            ({"batch": torch.tensor([0.5, 0.5, 1.5, 0.0])}, TypeError, "`batch` must hold integers"),
            ({"batch": torch.tensor([0, 1])}, ValueError, "`batch` must have shape"),
            ({"batch": torch.tensor([0, 0, 0, -1])}, ValueError, "batch"),
        ],
    )
    def test_errors(self, changed, error, message):
        arguments = {"positions": self.POSITIONS, "features": self.VALUES, "voxel_size": 0.5}
        with pytest.raises(error, match=message):
            SparseTensor.from_points(**{**arguments, **changed})
