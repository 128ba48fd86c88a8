"""Products with sparse matrices, the one operation that splatting, blurring and slicing share.

A matrix is kept by rows (row pointers, columns, weights) together with its transpose, so that the
adjoint costs the same as the product itself and is never approximated by it. The product runs on
the vendor's segmented weighted sum (`torch.embedding_bag`), on CPU and GPU alike, or on a compiled kernel,
and sums each row in the stored order: on the CPU, the same input gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voxel.backend import kernels

__all__ = ["SparseMatrix", "sampled_product", "sparse_product"]

_CHUNK_ELEMENTS = 1 << 23


@torch.library.custom_op("voxel::sparse_product", mutates_args=())
def sparse_product(
    values: Tensor,  # (C_in, C): one row per column of the matrix (per row, if transposed)
    weights: Tensor,  # (E,) entries of the matrix, row by row
    row_pointers: Tensor,  # (R + 1,) where each row starts in `weights`
    columns: Tensor,  # (E,)
    transposed_weights: Tensor,  # (E,) the same entries, column by column; not differentiated
    transposed_row_pointers: Tensor,  # (C_in + 1,)
    transposed_columns: Tensor,  # (E,)
    transpose: bool,
    native: bool,
) -> Tensor:
    """Return M v, or Mᵀ v if `transpose`, for a sparse M; differentiable in `values` and `weights`."""
    if transpose:
        weights, row_pointers, columns = transposed_weights, transposed_row_pointers, transposed_columns
    return _segment_sums(values, weights, row_pointers, columns, native)


def _segment_sums(
    values: Tensor, weights: Tensor, row_pointers: Tensor, columns: Tensor, native: bool
) -> Tensor:
    """Return Σ_e weights[e] values[columns[e]] over the entries e of each row."""
    if columns.numel() == 0 or values.numel() == 0:
        return values.new_zeros((row_pointers.numel() - 1, values.shape[1]))
    if native:
        result = values.new_empty((row_pointers.numel() - 1, values.shape[1]))
        entries = (tensor.detach().contiguous() for tensor in (values, weights, row_pointers, columns))
        kernels().sparse_product(*entries, result, torch.get_num_threads())
        return result
    sums: Tensor = torch.embedding_bag(
        values.contiguous(), columns, row_pointers, False, 0, False, weights, include_last_offset=True
    )[0]
    return sums


@sparse_product.register_fake
def _(
    values: Tensor,
    weights: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    transposed_weights: Tensor,
    transposed_row_pointers: Tensor,
    transposed_columns: Tensor,
    transpose: bool,
    native: bool,
) -> Tensor:
    rows = transposed_row_pointers if transpose else row_pointers
    return values.new_empty((rows.shape[0] - 1, values.shape[1]))


@torch.library.custom_op("voxel::sampled_product", mutates_args=())
def sampled_product(
    left: Tensor,  # (R, C)
    right: Tensor,  # (C_in, C)
    row_pointers: Tensor,  # (R + 1,)
    columns: Tensor,  # (E,)
    native: bool,
) -> Tensor:
    """Return the (E,) inner products ⟨left[row], right[column]⟩ at the entries of a sparse matrix."""
    entries = columns.numel()
    if native:
        products = left.new_empty(entries)
        factors = (tensor.detach().contiguous() for tensor in (left, right, row_pointers, columns))
        kernels().sampled_product(*factors, products, torch.get_num_threads())
        return products
    counts = (row_pointers[1:] - row_pointers[:-1]).to(torch.int64)
    rows = torch.repeat_interleave(counts, output_size=entries)
    products = left.new_empty(entries)
    step = max(1, _CHUNK_ELEMENTS // max(1, left.shape[1]))
    for start in range(0, entries, step):
        chunk = slice(start, start + step)
        gathered = left.index_select(0, rows[chunk]) * right.index_select(0, columns[chunk])
        torch.sum(gathered, 1, out=products[chunk])
    return products


@sampled_product.register_fake
def _(left: Tensor, right: Tensor, row_pointers: Tensor, columns: Tensor, native: bool) -> Tensor:
    return left.new_empty(columns.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    values, weights, row_pointers, columns, *transposed, ctx.transpose, ctx.native = inputs
    ctx.save_for_backward(values, weights, row_pointers, columns, *transposed)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    values, weights, row_pointers, columns, *transposed = ctx.saved_tensors
    grad_values = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_values = sparse_product(
            gradient, weights, row_pointers, columns, *transposed, not ctx.transpose, ctx.native
        )
    if ctx.needs_input_grad[1]:
        left, right = (values, gradient) if ctx.transpose else (gradient, values)
        grad_weights = sampled_product(left, right, row_pointers, columns, ctx.native)
    return grad_values, grad_weights, None, None, None, None, None, None, None


sparse_product.register_autograd(_backward, setup_context=_setup_context)


def _row_pointers(present: Tensor, integer: torch.dtype) -> Tensor:
    """Return the (R + 1,) starts of the rows of a table of which only the `present` entries are kept."""
    pointers = torch.zeros(present.shape[0] + 1, dtype=integer, device=present.device)
    torch.cumsum(present.sum(1), 0, dtype=integer, out=pointers[1:])
    return pointers


@dataclass(frozen=True)
class SparseMatrix:
    """An (R, C) sparse matrix and its transpose, both by rows.

    Attributes:
        shape: (R, C).
        weights: (E,) entries row by row; the only differentiable part.
        row_pointers: (R + 1,) integers.
        columns: (E,) integers.
        transposed_weights: (E,) the entries column by column, without gradient.
        transposed_row_pointers: (C + 1,) integers.
        transposed_columns: (E,) integers.
        native: Whether its products run on the compiled kernels.
    """

    shape: tuple[int, int]
    weights: Tensor
    row_pointers: Tensor
    columns: Tensor
    transposed_weights: Tensor
    transposed_row_pointers: Tensor
    transposed_columns: Tensor
    native: bool = False

    @staticmethod
    def from_rows(
        columns: Tensor, weights: Tensor, num_columns: int, *, native: bool = False
    ) -> SparseMatrix:
        """Build from a table with P entries for each row.

        Args:
            columns: (R, P) integers; -1 marks an absent entry.
            weights: (R, P) entries; those at absent places are ignored.
            num_columns: C.
            native: Whether its products run on the compiled kernels.
        """
        rows, per_row = columns.shape
        integer = torch.int32 if max(columns.numel(), rows, num_columns) < 2**31 else torch.int64
        columns = columns.to(integer)
        present = columns >= 0
        if bool(present.all()):
            row_pointers = torch.arange(0, rows * per_row + 1, per_row, dtype=integer, device=columns.device)
            columns, weights = columns.reshape(-1), weights.reshape(-1)
            row_of_entry = None
        else:
            row_pointers = _row_pointers(present, integer)
            columns, weights = columns[present], weights[present]
            row_of_entry = torch.nonzero(present)[:, 0]

        if native and row_of_entry is None:
            order = torch.empty_like(columns)
            transposed_row_pointers = columns.new_empty(num_columns + 1)
            table = columns.view(rows, per_row)
            kernels().transpose(table, transposed_row_pointers, order, torch.get_num_threads())
        else:
            sorted_columns, order = torch.sort(columns, stable=True)
            order = order.to(integer)
            bounds = torch.arange(num_columns + 1, dtype=integer, device=columns.device)
            transposed_row_pointers = torch.searchsorted(
                sorted_columns, bounds, out_int32=integer == torch.int32
            )
        if row_of_entry is None:
            transposed_columns = order // per_row
        else:
            transposed_columns = row_of_entry.to(integer).index_select(0, order)
        return SparseMatrix(
            shape=(rows, num_columns),
            weights=weights,
            row_pointers=row_pointers,
            columns=columns,
            transposed_weights=weights.detach().index_select(0, order),
            transposed_row_pointers=transposed_row_pointers,
            transposed_columns=transposed_columns,
            native=native,
        )

    @staticmethod
    def symmetric(columns: Tensor, weights: Tensor, *, native: bool = False) -> SparseMatrix:
        """Build a matrix that equals its transpose from a table, as in `from_rows`, without sorting it."""
        num_rows = columns.shape[0]
        present = columns >= 0
        integer = torch.int32 if columns.numel() < 2**31 else torch.int64
        row_pointers = _row_pointers(present, integer)
        entries, columns = weights[present], columns[present].to(integer)
        return SparseMatrix(
            (num_rows, num_rows), entries, row_pointers, columns, entries, row_pointers, columns, native
        )

    def product(self, values: Tensor) -> Tensor:
        """Return M v for (C, channels) `values`: (R, channels)."""
        return self._product(values, transpose=False)

    def transposed_product(self, values: Tensor) -> Tensor:
        """Return Mᵀ v for (R, channels) `values`: (C, channels)."""
        return self._product(values, transpose=True)

    def _product(self, values: Tensor, transpose: bool) -> Tensor:
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            # What the operation does, without the cost of dispatching to it.
            if transpose:
                entries = self.transposed_weights, self.transposed_row_pointers, self.transposed_columns
            else:
                entries = self.weights, self.row_pointers, self.columns
            return _segment_sums(values, *entries, self.native)
        result: Tensor = sparse_product(
            values,
            self.weights,
            self.row_pointers,
            self.columns,
            self.transposed_weights,
            self.transposed_row_pointers,
            self.transposed_columns,
            transpose,
            self.native,
        )
        return result

    @torch.no_grad()
    def product_rows(self, values: Tensor, rows: slice) -> Tensor:
        """Return some successive rows of M v, without gradient."""
        pointers = self.row_pointers[rows.start : rows.stop + 1]
        entries = slice(int(pointers[0]), int(pointers[-1]))
        return _segment_sums(
            values, self.weights[entries], pointers - pointers[0], self.columns[entries], self.native
        )

    def scale_rows(self, scale: Tensor) -> SparseMatrix:
        """Return diag(scale) M for a (R,) `scale`; differentiable in both."""
        counts = (self.row_pointers[1:] - self.row_pointers[:-1]).to(torch.int64)
        by_row = torch.repeat_interleave(scale, counts, output_size=self.columns.numel())
        by_column = scale.detach().index_select(0, self.transposed_columns)
        return replace(
            self,
            weights=self.weights * by_row,
            transposed_weights=self.transposed_weights * by_column,
        )
