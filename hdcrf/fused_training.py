"""Mean field as one differentiable operation on the compiled kernels.

Forward it is `hdcrf.fused`, keeping the marginals Q_0 … Q_{T-1} that each iteration began with. Backward it
goes through the iterations in reverse. With L_t = logits - μ m_t, Q_t = softmax(L_t), the message
m_t = Σ_c w_c K_c Q_{t-1} - diag(own) Q_{t-1}, and g_t the gradient with respect to L_t,

    the gradient of m_t is      h = -μᵀ g_t,
    that of w_c gets            ⟨K_cᵀ h, Q_{t-1}⟩,
    that of own_i gets          -⟨h_i, Q_{t-1,i}⟩,
    that of the logits gets     g_t,
    and g_{t-1} is              J (Σ_c w_c K_cᵀ h - diag(own) h),

where J = diag(Q) - Q Qᵀ is the Jacobian of the softmax at each point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hdcrf.compatibility import Compatibility
from hdcrf.fused import native_kernels, native_mean_field
from hdcrf.pairwise import PairwiseKernel
from hdcrf.smoothing import plain_factors, smooth_into
from voxel.backend import kernels
from voxel.fused_filter import filter_into
from voxel.memory import new_large
from voxel.precision import full_precision

__all__ = ["trained_mean_field"]


def trained_mean_field(
    logits: Tensor,
    pairwise: Sequence[PairwiseKernel],
    compatibility: Compatibility,
    own: Tensor | None,
    iterations: int,
) -> tuple[Tensor, Tensor] | None:
    """Return the marginals and logits, (P, K), or None where the operation does not apply.

    It applies to what `fused_mean_field` takes, where the logits, the kernels' weights, the compatibility or
    `own` are to be differentiated, but not a kernel's shape. Arguments are as there.
    """
    taken = native_kernels(logits, pairwise)
    if taken is None or len(taken[0]) > 1 or iterations == 0:
        return None
    lattices, smoothness = taken
    lattice = lattices[0] if lattices else None
    if (lattice is not None and not lattice.shape_is_fixed) or (
        smoothness is not None and not smoothness.shape_is_fixed
    ):
        return None

    def scalar(weight: float | Tensor) -> Tensor:
        return weight if isinstance(weight, Tensor) else logits.new_tensor(weight)

    structure = None if lattice is None else lattice.operator.structure
    values = compatibility.values
    marginals, updated, _history = mean_field_operation(
        logits,
        None if lattice is None else scalar(lattice.weight),
        None if smoothness is None else scalar(smoothness.weight),
        None if values is None else values.to(logits),
        None if own is None else own[:, 0],
        None if structure is None else structure.cells.weights,
        None if structure is None else structure.cells.cell,
        None if structure is None else structure.cell_vertices,
        None if structure is None else structure.links,
        None if lattice is None else lattice.left,
        None if lattice is None else lattice.right,
        *((None,) * 6 if smoothness is None else (*smoothness.taps, *smoothness.left, *smoothness.right)),
        1 if lattice is None else lattice.operator.order,
        1.0 if lattice is None else lattice.operator.constant,
        [] if smoothness is None else list(smoothness.shape),
        iterations,
    )
    return marginals, updated


@torch.library.custom_op("hdcrf::mean_field", mutates_args=())
def mean_field_operation(
    logits: Tensor,  # (P, K)
    appearance_weight: Tensor | None,  # () of the lattice kernel; None without one
    smoothness_weight: Tensor | None,  # () of the smoothness kernel; None without one
    compatibility: Tensor | None,  # (K,) or (K, K); None for Potts
    own: Tensor | None,  # (P,)
    weights: Tensor | None,  # the lattice, as in voxel.fused_filter
    cell: Tensor | None,
    cell_vertices: Tensor | None,
    links: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    down: Tensor | None,  # the smoothing, as in hdcrf.smoothing
    along: Tensor | None,
    rows_left: Tensor | None,
    columns_left: Tensor | None,
    rows_right: Tensor | None,
    columns_right: Tensor | None,
    order: int,
    constant: float,
    shape: list[int],  # B, H, W of the smoothing
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return marginals (P, K), logits (P, K), and the marginals before each iteration, (T, P, C).

    Differentiable in the first five arguments; C is K, or 1 for two labels under Potts.
    """
    lattice = smoothing = None
    if appearance_weight is not None:
        lattice = (
            cell,
            cell_vertices,
            weights,
            links,
            left,
            right,
            order,
            float(appearance_weight) * constant,
        )
    if smoothness_weight is not None and down is not None:
        factors = plain_factors(down, shape, rows_left, columns_left, rows_right, columns_right)
        smoothing = (down, along, *factors, float(smoothness_weight))
    field = native_mean_field(logits, [] if lattice is None else [lattice], smoothing, own, compatibility)
    history = new_large(logits, (iterations, len(logits), field.channels))
    rows = torch.contiguous_format
    updated, marginals = (torch.empty_like(logits, memory_format=rows) for _ in range(2))
    finite = field.step(None, history[0], None, True)
    for done in range(1, iterations):
        finite = field.step(history[done - 1], history[done], None, True) and finite
    finite = field.step(history[-1], marginals, updated, False) and finite
    if not finite:
        marginals = marginals.fill_(torch.nan)  # which the caller refuses
    return marginals, updated, history


@mean_field_operation.register_fake
def _(logits, a_weight, s_weight, compatibility, *rest):  # type: ignore[no-untyped-def]
    channels = 1 if logits.shape[1] == 2 and compatibility is None else logits.shape[1]
    rows = logits.new_empty(logits.shape)
    return rows, torch.empty_like(rows), logits.new_empty((rest[-1], logits.shape[0], channels))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.order, ctx.constant, ctx.shape, _iterations = inputs
    marginals, _updated, history = output
    ctx.save_for_backward(*tensors, marginals, history)
    ctx.set_materialize_grads(False)


def _backward(ctx, of_marginals, of_logits, _of_history):  # type: ignore[no-untyped-def]
    needed = list(ctx.needs_input_grad[:5])
    gradients = mean_field_backward(
        of_marginals, of_logits, list(ctx.saved_tensors), ctx.order, ctx.constant, ctx.shape, needed
    )
    some = (part if need else None for part, need in zip(gradients, needed, strict=True))
    return (*some, *(None,) * 16)


@torch.library.custom_op("hdcrf::mean_field_backward", mutates_args=())
def mean_field_backward(
    of_marginals: Tensor | None,
    of_logits: Tensor | None,
    saved: list[Tensor | None],  # the operation's tensors, and its marginals and history
    order: int,
    constant: float,
    shape: list[int],
    needed: list[bool],
) -> list[Tensor]:
    """Return the gradients with respect to the first five arguments, empty where none is needed."""
    return _gradients(of_marginals, of_logits, saved, order, constant, shape, needed)


@full_precision
def _gradients(
    of_marginals: Tensor | None,
    of_logits: Tensor | None,
    parts: Any,
    order: int,
    constant: float,
    shape: list[int],
    needed: list[bool],
) -> list[Tensor]:
    logits, appearance_weight, smoothness_weight, compatibility, own = parts[:5]
    weights, cell, cell_vertices, links, left, right = parts[5:11]
    down, along, rows_left, columns_left, rows_right, columns_right, marginals, history = parts[11:]
    pairs = history.shape[2] != logits.shape[1]
    gradient = torch.zeros_like(marginals)  # in memory row by row, as the kernels write
    if of_logits is not None:
        gradient += of_logits
    if of_marginals is not None:
        mean = (of_marginals * marginals).sum(1, keepdim=True)
        gradient += marginals * (of_marginals - mean)

    # In the same memory for each iteration: to map fresh pages costs more than to fill them.
    def appearance(rows: Tensor, out: Tensor, adjoint: bool = True) -> Tensor:
        """K_aᵀ h, or K_a Q."""
        sides = (right, left) if adjoint else (left, right)
        return filter_into(out, rows, weights, cell, cell_vertices, links, *sides, order, constant, adjoint)

    def smoothness(rows: Tensor, out: Tensor, adjoint: bool = True) -> Tensor:
        """K_sᵀ h, or K_s Q."""
        lefts, rights = (rows_left, columns_left), (rows_right, columns_right)
        sides = (*rights, *lefts) if adjoint else (*lefts, *rights)
        result, images = (part.view(*shape, rows.shape[1]) for part in (out, rows))
        return smooth_into(result, images, down, along, *sides).view_as(rows)

    def weight_of(weight: Tensor | None) -> float:
        return 0.0 if weight is None else float(weight)

    of_compatibility = torch.zeros_like(compatibility) if needed[3] else None
    of_own = torch.zeros_like(own) if needed[4] else None
    of_weights = [0.0, 0.0]
    # With one channel, of the difference x of two logits: L = (l_0, l_0 + x).
    now = gradient[:, 1:].clone(memory_format=torch.contiguous_format) if pairs else gradient
    total = now.clone()  # of g_t over all iterations
    spare, of_appearance, of_smoothness = (torch.empty_like(now) for _ in range(3))
    for done in reversed(range(len(history))):
        before = history[done]
        message_gradient = now
        if compatibility is not None:
            cost = compatibility if compatibility.dim() == 2 else None
            message_gradient = now * compatibility if cost is None else -(now @ cost)
        if of_compatibility is not None:
            message = torch.zeros_like(before)
            if own is not None:
                message.addcmul_(own[:, None], before, value=-1)
            if appearance_weight is not None:
                message.add_(appearance(before, of_appearance, False), alpha=float(appearance_weight))
            if smoothness_weight is not None:
                message.add_(smoothness(before, of_smoothness, False), alpha=float(smoothness_weight))
            of_compatibility += (now * message).sum(0) if compatibility.dim() == 1 else -(now.T @ message)
        sums = kernels().mean_field_adjoint(
            before,
            message_gradient,
            None if appearance_weight is None else appearance(message_gradient, of_appearance),
            None if smoothness_weight is None else smoothness(message_gradient, of_smoothness),
            weight_of(appearance_weight),
            weight_of(smoothness_weight),
            own,
            pairs,
            spare,
            total,
            of_own,
            torch.get_num_threads(),
        )
        of_weights = [weight + part for weight, part in zip(of_weights, sums, strict=True)]
        now, spare = spare, now
    if pairs:  # x = l_1 - l_0 at the start, and L_0 = l_0 at the end
        total = torch.cat([gradient.sum(1, keepdim=True) - total, total], 1)
    gradients = [logits.new_empty(0) for _ in needed]
    gradients[0] = total
    for place, weight in enumerate(of_weights, 1):
        if needed[place]:
            gradients[place] = logits.new_tensor(weight)
    if of_compatibility is not None:
        gradients[3] = of_compatibility
    if of_own is not None:
        gradients[4] = of_own
    return gradients


@mean_field_backward.register_fake
def _(of_marginals, of_logits, saved, order, constant, shape, needed):  # type: ignore[no-untyped-def]
    first = saved[0]
    return [
        torch.empty_like(part, memory_format=torch.contiguous_format)
        if need or i == 0
        else first.new_empty(0)
        for i, (part, need) in enumerate(zip(saved[:5], needed, strict=True))
    ]


mean_field_operation.register_autograd(_backward, setup_context=_setup_context)
