"""Products with sparse matrices, their transposes and their gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxel import SparseMatrix
from voxel.sparse_matrix import sampled_product, sparse_product

# Rows 2 and 4, and column 3, are empty; row 5 has two entries in one column.
COLUMNS = torch.tensor([[0, 4, 1], [2, -1, 0], [-1, -1, -1], [-1, 5, -1], [-1, -1, -1], [1, 1, 5]])
NUM_COLUMNS = 6


def table(device, dtype=torch.float64):
    return COLUMNS.to(device), torch.randn(COLUMNS.shape, dtype=dtype, device=device)


def dense(columns, weights, num_columns=NUM_COLUMNS):
    matrix = weights.new_zeros(columns.shape[0], num_columns)
    for row in range(columns.shape[0]):
        for column, weight in zip(columns[row].tolist(), weights[row], strict=True):
            if column >= 0:
                matrix[row, column] += weight
    return matrix


def arguments(matrix):
    return (
        matrix.weights,
        matrix.row_pointers,
        matrix.columns,
        matrix.transposed_weights,
        matrix.transposed_row_pointers,
        matrix.transposed_columns,
    )


def test_products_equal_the_dense_ones(device, native):
    columns, weights = table(device)
    matrix, expected = (
        SparseMatrix.from_rows(columns, weights, NUM_COLUMNS, native=native),
        dense(columns, weights),
    )
    identity = torch.eye(6, dtype=torch.float64, device=device)
    torch.testing.assert_close(matrix.product(identity), expected, rtol=0, atol=0)
    # Row 5 adds its two entries in column 1 in whichever order.
    torch.testing.assert_close(matrix.transposed_product(identity), expected.T, rtol=0, atol=1e-15)


@given(
    st.integers(0, 6).flatmap(
        lambda rows: st.tuples(
            st.just(rows), st.lists(st.integers(-1, 4), min_size=3 * rows, max_size=3 * rows)
        )
    ),
    st.integers(1, 3),
)
def test_any_table(drawn, channels):
    rows, flat = drawn
    columns = torch.tensor(flat, dtype=torch.int64).reshape(rows, 3)
    weights = torch.arange(1.0, 3 * rows + 1, dtype=torch.float64).reshape(rows, 3)
    matrix, expected = SparseMatrix.from_rows(columns, weights, 5), dense(columns, weights, 5)
    right = torch.arange(5.0 * channels, dtype=torch.float64).reshape(5, channels)
    left = torch.arange(1.0 * rows * channels, dtype=torch.float64).reshape(rows, channels)
    assert torch.equal(matrix.product(right), expected @ right)  # small integers: exact
    assert torch.equal(matrix.transposed_product(left), expected.T @ left)


def test_product_and_transposed_product_are_adjoint(device, native):
    matrix = SparseMatrix.from_rows(*table(device), NUM_COLUMNS, native=native)
    x, y = torch.randn(2, 6, 4, dtype=torch.float64, device=device)
    assert float((matrix.product(x) * y).sum()) == pytest.approx(
        float((x * matrix.transposed_product(y)).sum()), rel=1e-13
    )


def test_table_without_gaps(device, native):
    columns = torch.tensor([[0, 1], [1, 2], [4, 0]], device=device)
    weights = torch.randn(2, 3, dtype=torch.float64, device=device).T  # non-contiguous
    matrix = SparseMatrix.from_rows(columns, weights, 5, native=native)
    expected = dense(columns, weights, 5)
    x, y = torch.randn(5, 2, dtype=torch.float64, device=device), torch.eye(3, device=device).double()
    torch.testing.assert_close(matrix.product(x), expected @ x)
    torch.testing.assert_close(matrix.transposed_product(y), expected.T)


def test_symmetric(device, native):
    columns = torch.tensor([[-1, 0, 1], [0, 1, 3], [-1, 2, -1], [1, 3, -1]], device=device)
    weights = torch.tensor([[9.0, 1, 2], [2, 3, 4], [9, 5, 9], [4, 6, 9]], device=device)
    matrix, expected = SparseMatrix.symmetric(columns, weights, native=native), dense(columns, weights, 4)
    assert torch.equal(expected, expected.T)
    identity = torch.eye(4, device=device)
    assert torch.equal(matrix.product(identity), expected)
    assert torch.equal(matrix.transposed_product(identity), expected)


def test_matrix_without_entries(device, native):
    columns = torch.full((3, 2), -1, device=device)
    matrix = SparseMatrix.from_rows(columns, torch.ones(3, 2, device=device), 4, native=native)
    assert torch.equal(matrix.product(torch.ones(4, 2, device=device)), torch.zeros(3, 2, device=device))
    assert torch.equal(
        matrix.transposed_product(torch.ones(3, 2, device=device)), torch.zeros(4, 2, device=device)
    )


def test_no_channels(device, native):
    matrix = SparseMatrix.from_rows(*table(device), NUM_COLUMNS, native=native)
    assert matrix.product(torch.empty(6, 0, dtype=torch.float64, device=device)).shape == (6, 0)


def test_non_contiguous_values(device, native):
    matrix = SparseMatrix.from_rows(*table(device), NUM_COLUMNS, native=native)
    values = torch.randn(3, 12, dtype=torch.float64, device=device).T[::2]
    assert not values.is_contiguous()
    assert torch.equal(matrix.product(values), matrix.product(values.contiguous()))
    assert torch.equal(matrix.transposed_product(values), matrix.transposed_product(values.contiguous()))


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients(device, native, transpose):
    columns, weights = table(device)
    values = torch.randn(6, 2, dtype=torch.float64, device=device, requires_grad=True)

    def product(values, weights):
        matrix = SparseMatrix.from_rows(columns, weights, NUM_COLUMNS, native=native)
        return matrix.transposed_product(values) if transpose else matrix.product(values)

    assert torch.autograd.gradcheck(product, (values, weights.requires_grad_()))


def test_gradient_of_a_non_contiguous_gradient(device, native):
    columns, weights = table(device)
    matrix = SparseMatrix.from_rows(columns, weights, NUM_COLUMNS, native=native)
    values = torch.randn(6, 2, dtype=torch.float64, device=device, requires_grad=True)
    gradient = torch.randn(2, 6, dtype=torch.float64, device=device).T
    (result,) = torch.autograd.grad(matrix.product(values), values, gradient)
    torch.testing.assert_close(result, dense(columns, weights).T @ gradient)


def test_scale_rows(device, native):
    columns, weights = table(device)
    scale = torch.rand(6, dtype=torch.float64, device=device)
    scaled = SparseMatrix.from_rows(columns, weights, NUM_COLUMNS, native=native).scale_rows(scale)
    expected = scale[:, None] * dense(columns, weights)
    identity = torch.eye(6, dtype=torch.float64, device=device)
    torch.testing.assert_close(scaled.product(identity), expected)
    torch.testing.assert_close(scaled.transposed_product(identity), expected.T)


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_of_scale_rows(device, native, transpose):
    columns, weights = table(device)
    scale = torch.rand(6, dtype=torch.float64, device=device)
    values = torch.randn(6, 2, dtype=torch.float64, device=device)

    def product(values, weights, scale):
        matrix = SparseMatrix.from_rows(columns, weights, NUM_COLUMNS, native=native).scale_rows(scale)
        return matrix.transposed_product(values) if transpose else matrix.product(values)

    inputs = [tensor.requires_grad_() for tensor in (values, weights, scale)]
    assert torch.autograd.gradcheck(product, inputs)


@pytest.mark.parametrize("transpose", [False, True])
def test_opcheck_of_sparse_product(device, native, transpose):
    matrix = SparseMatrix.from_rows(*table(device, torch.float32), NUM_COLUMNS, native=native)
    values = torch.randn(6, 2, device=device, requires_grad=True)
    weights, *rest = arguments(matrix)
    torch.library.opcheck(sparse_product, (values, weights.requires_grad_(), *rest, transpose, native))


def test_opcheck_of_sampled_product(device, native):
    matrix = SparseMatrix.from_rows(*table(device, torch.float32), NUM_COLUMNS, native=native)
    left, right = torch.randn(2, 6, 3, device=device)
    torch.library.opcheck(sampled_product, (left, right, matrix.row_pointers, matrix.columns, native))


def test_sampled_product_equals_the_dense_one(device, native, monkeypatch):
    monkeypatch.setattr("voxel.sparse_matrix._CHUNK_ELEMENTS", 12)  # more than one chunk
    columns, weights = table(device)
    matrix = SparseMatrix.from_rows(columns, weights, NUM_COLUMNS, native=native)
    left, right = torch.randn(2, 6, 3, dtype=torch.float64, device=device)
    rows, entries = torch.nonzero(columns >= 0, as_tuple=True)
    expected = (left @ right.T)[rows, columns[rows, entries]]
    products = sampled_product(left, right, matrix.row_pointers, matrix.columns, native)
    torch.testing.assert_close(products, expected)


@pytest.mark.default_algorithms
def test_same_bits_twice(device, native):
    columns = torch.randint(-1, 50, (4000, 6), device=device)
    weights, values = torch.randn(4000, 6, device=device), torch.randn(4000, 5, device=device)

    def run():
        leaves = values.clone().requires_grad_(), weights.clone().requires_grad_()
        splatted = SparseMatrix.from_rows(columns, leaves[1], 50, native=native).transposed_product(leaves[0])
        return splatted, *torch.autograd.grad(splatted.square().sum(), leaves)

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
