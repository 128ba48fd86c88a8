"""Memory and time of pixel-adaptive convolution and of PAC-CRF.

    python benchmarks/pac.py                    both tables, some minutes
    python benchmarks/pac.py --quick            fewer repetitions, smaller sizes
    python benchmarks/pac.py --only layers      one: layers or crf

layers: a convolution from 64 channels to 64, 5x5, one image, guided by 8 channels, float32; forward, and
forward and backward to values, guide and weights. Beside it the same with the pixels under each window
unfolded, as the authors' package has it (`unfolded_pac.py`), which gives the same numbers, and PyTorch's
plain convolution. Memory is by how much a call raises the peak of a fresh process that holds its inputs.

crf: `PacCRF` with a 5x5 window of dilation 32, and two of 16 and 64, beside `DenseCRF`, 320x320 pixels of a
photo, 21 labels, 5 iterations; each whole, with what is built for an image. Then by iterations, as in table 6
of Su et al. 2019. Runs alternate, figures are medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import hdcrf
from hdcrf.pac import PacCRF, adapting_kernel, pac_conv2d

try:
    from benchmarks.gradient_steps import photo_case
    from benchmarks.inputs import alternate, machine_line
    from benchmarks.peak_memory import added_memory
    from benchmarks.unfolded_pac import unfolded_pac_conv2d
except ModuleNotFoundError:  # run as a script
    from gradient_steps import photo_case
    from inputs import alternate, machine_line
    from peak_memory import added_memory
    from unfolded_pac import unfolded_pac_conv2d

CHANNELS, GUIDE_CHANNELS, TAPS = 64, 8, 5
LABELS = 21
CASES = ((256, 1), (256, 64), (512, 1), (512, 64))  # side, dilation
QUICK_CASES = ((64, 16),)
# Su et al. 2019, table 3: milliseconds of inference on an image, on a GPU but for the full CRF.
TABLE_3 = {"DenseCRF": 629, "PacCRF 32": 39, "PacCRF 16-64": 78}

Inputs = tuple[Tensor, Tensor, Tensor, int]


def inputs(side: int, dilation: int) -> Inputs:
    """Return values, guide and weights that gradients are wanted of, and the dilation."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, CHANNELS, side, side, generator=generator)
    guide = 0.3 * torch.randn(1, GUIDE_CHANNELS, side, side, generator=generator)
    weight = 0.05 * torch.randn(CHANNELS, CHANNELS, TAPS, TAPS, generator=generator)
    return *(tensor.requires_grad_() for tensor in (values, guide, weight)), dilation


def ours(values: Tensor, guide: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = dilation * (TAPS // 2)
    kernel = adapting_kernel(guide, TAPS, 1, padding, dilation)
    return pac_conv2d(values, kernel, weight, None, 1, padding, dilation)


def unfolded(values: Tensor, guide: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return unfolded_pac_conv2d(values, guide, weight, None, 1, dilation * (TAPS // 2), dilation)


def plain(values: Tensor, guide: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return functional.conv2d(values, weight, None, 1, dilation * (TAPS // 2), dilation)


METHODS = {"ours": ours, "unfolded": unfolded, "plain": plain}


def forward(method: Callable[..., Tensor], given: Inputs) -> None:
    with torch.inference_mode():
        method(*given)


def both(method: Callable[..., Tensor], given: Inputs) -> None:
    torch.autograd.grad(method(*given).sum(), given[:3], allow_unused=True)


PASSES = {"forward": forward, "forward and backward": both}


def added(name: str, passes: str, side: int, dilation: int) -> float:
    """Return the MiB that a call adds, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, passes, str(side), str(dilation)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory_of(name: str, passes: str, side: str, dilation: str) -> None:
    run, method = PASSES[passes], METHODS[name]
    given = inputs(int(side), int(dilation))
    run(method, inputs(16, 1))
    print(added_memory(lambda: run(method, given)))


def print_layers(quick: bool) -> None:
    print(f"\n{CHANNELS} channels to {CHANNELS}, {TAPS}x{TAPS}, MiB and milliseconds\n")
    print(
        "| side | dilation | passes | MiB ours | MiB unfolded | share | threads | ms ours | ms unfolded | "
        "ratio | ms Conv2d | largest difference |"
    )
    print("|---" * 12 + "|")
    for side, dilation in QUICK_CASES if quick else CASES:
        given = inputs(side, dilation)
        with torch.inference_mode():
            expected = unfolded(*given)
            difference = float((ours(*given) - expected).abs().max() / expected.abs().max())
        for passes, run in PASSES.items():
            own, other = (added(name, passes, side, dilation) for name in ("ours", "unfolded"))
            for threads in (2, 1):
                torch.set_num_threads(threads)
                seconds = alternate(
                    {
                        name: lambda method=method, run=run, given=given: run(method, given)
                        for name, method in METHODS.items()
                    },
                    1 if quick else 3,
                )
                mine, theirs, usual = (1000 * seconds[name] for name in METHODS)
                print(
                    f"| {side} | {dilation} | {passes} | {own:.0f} | {other:.0f} | {own / other:.2f} | "
                    f"{threads} | {mine:.0f} | {theirs:.0f} | {theirs / mine:.2f} | {usual:.0f} | "
                    f"{difference:.0e} |",
                    flush=True,
                )


def crfs(iterations: int) -> dict[str, torch.nn.Module]:
    layers: dict[str, torch.nn.Module] = {"DenseCRF": hdcrf.DenseCRF(LABELS, iterations=iterations, learn=())}
    for compatibility, name in (("loose", ""), ("factorised", ", factorised")):
        for dilations in ((32,), (16, 64)):
            configuration = "-".join(map(str, dilations))
            layers[f"PacCRF {configuration}{name}"] = PacCRF(
                LABELS, dilations=dilations, iterations=iterations, compatibility=compatibility, learn=()
            )
    return {name: layer.eval() for name, layer in layers.items()}


@torch.inference_mode()
def print_crfs(quick: bool) -> None:
    side, rounds = (32, 1) if quick else (320, 7)
    logits, guide = photo_case(side, side, LABELS)
    layers = crfs(5)
    print(f"\nA CRF layer on {side}x{side} pixels, {LABELS} labels, 5 iterations, milliseconds\n")
    print("| layer | threads | ms | of DenseCRF | table 3, ms | of its full CRF |")
    print("|---" * 6 + "|")
    for threads in (2, 1):
        torch.set_num_threads(threads)
        seconds = alternate(
            {name: lambda layer=layer: layer(logits, guide) for name, layer in layers.items()}, rounds
        )
        for name, value in seconds.items():
            share = value / seconds["DenseCRF"]
            known = TABLE_3.get(name)
            theirs = f"{known} | {known / TABLE_3['DenseCRF']:.2f}" if known else " | "
            print(f"| {name} | {threads} | {1000 * value:.0f} | {share:.2f} | {theirs} |", flush=True)
    print("\nBy iterations, 2 threads, milliseconds\n")
    counts = (1, 3, 5, 7)
    print(f"| layer | {' | '.join(map(str, counts))} |")
    print("|---" * (1 + len(counts)) + "|")
    torch.set_num_threads(2)
    by_count = {
        count: alternate(
            {name: lambda layer=layer: layer(logits, guide) for name, layer in crfs(count).items()}, rounds
        )
        for count in counts
    }
    for name in layers:
        print(f"| {name} | {' | '.join(f'{1000 * by_count[count][name]:.0f}' for count in counts)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller sizes")
    parser.add_argument("--only", choices=("layers", "crf"), help="one of the tables")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory_of(*arguments.memory_of)
        return
    print(machine_line())
    if arguments.only != "crf":
        print_layers(arguments.quick)
    if arguments.only != "layers":
        print_crfs(arguments.quick)


if __name__ == "__main__":
    main()
