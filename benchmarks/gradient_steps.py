"""What a step of CRF-Grad costs, part by part: a table of `speed.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import hdcrf
from hdcrf.relaxed import BilateralPotential, SpatialPotential, projected_gradient

try:
    from benchmarks.inputs import alternate, network_probabilities, photo
except ModuleNotFoundError:  # run as a script
    from inputs import alternate, network_probabilities, photo

LABELS = 21
SIZE = (240, 320)


def photo_case(height: int, width: int, labels: int) -> tuple[Tensor, Tensor]:
    """Return logits (1, K, H, W) and the guide (1, 3, H, W)."""
    guide = torch.from_numpy(photo("astronaut", height, width).astype(np.float32)).permute(2, 0, 1)[None]
    probabilities = torch.from_numpy(network_probabilities("astronaut", height, width, labels))
    return hdcrf.logits_from_probabilities(probabilities, dim=2).permute(2, 0, 1)[None], guide


def layer(labels: int, **options: object) -> hdcrf.CRFGrad:
    """Return 9x9 spatial and s = 1 bilateral potentials, none of them zero."""
    return hdcrf.CRFGrad(labels, spatial_weight=2.0, output="logits", **options)


@torch.inference_mode()
def infer(logits: Tensor, guide: Tensor) -> None:
    layer(logits.shape[1]).eval()(logits, guide)


def train(logits: Tensor, guide: Tensor) -> None:
    layer(logits.shape[1])(logits, guide).square().mean().backward()


def print_steps(rounds: int, peak_memory: Callable[..., float]) -> None:
    """Print times of the parts of a step, and the memory of whole calls."""
    height, width = SIZE
    print(f"\nCRF-Grad, 9x9 spatial and s = 1 bilateral potentials, {height}x{width}, {LABELS} labels, ms\n")
    print("| what | threads | forward | forward and backward |")
    print("|---|---|---|---|")
    logits, guide = photo_case(height, width, LABELS)
    crf = layer(LABELS)
    rows = torch.softmax(logits.movedim(1, -1).reshape(-1, LABELS), 1)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        energy = crf.energy(logits, guide)
        spatial = next(p for p in energy.potentials if isinstance(p, SpatialPotential))
        bilateral = next(p for p in energy.potentials if isinstance(p, BilateralPotential))
        parts: dict[str, Callable[[Tensor], Tensor]] = {
            "spatial message": lambda q, part=spatial: part.message(q),
            "bilateral message": lambda q, part=bilateral: part.message(q),
            "projection": lambda q: hdcrf.project_simplex(q + 0.1, 1, 0.01),
            "**a step**": lambda q, energy=energy: (
                projected_gradient(energy, q, iterations=1, step_size=0.5, leak=0.01).relaxed
            ),
        }

        def forward(call: Callable[[Tensor], Tensor]) -> None:
            with torch.no_grad():
                call(rows)

        def both(call: Callable[[Tensor], Tensor]) -> None:
            call(rows.clone().requires_grad_()).sum().backward(retain_graph=True)

        functions: dict[str, Callable[[], None]] = {}
        for name, call in parts.items():
            functions[f"{name}, forward"] = lambda call=call: forward(call)
            functions[f"{name}, both"] = lambda call=call: both(call)
        functions["building the energy, forward"] = lambda: forward(lambda q: crf.energy(logits, guide).unary)
        functions["5 steps, all of it, forward"] = lambda: infer(logits, guide)
        functions["5 steps, all of it, both"] = lambda: train(logits, guide)
        seconds = alternate(functions, min(rounds, 5))
        for name in (*parts, "building the energy", "5 steps, all of it"):
            first, second = (seconds.get(f"{name}, {what}") for what in ("forward", "both"))
            cells = [f"{1000 * value:.0f}" if value is not None else "" for value in (first, second)]
            print(f"| {name} | {threads} | {cells[0]} | {cells[1]} |", flush=True)
    size = height * width * LABELS * 4 / 2**20
    print("\nPeak memory of a call with 5 steps, MiB, inputs not counted\n")
    print("| call | MiB | of the relaxed labels (N, K) |")
    print("|---|---|---|")
    for name in ("infer", "train"):
        peak = peak_memory(f"crf-grad {name}", height, width, LABELS)
        print(f"| {name} | {peak:.0f} | {peak / size:.0f} |", flush=True)
