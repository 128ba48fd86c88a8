"""Time and memory, against pydensecrf where it has a counterpart, in one process.

    python benchmarks/speed.py                 every table, half an hour
    python benchmarks/speed.py --quick         fewer repetitions, smaller images
    python benchmarks/speed.py --only build    one table: calls, build, points, million, iteration, training,
                                               crf-grad, memory, growth, large or import

Both see the same photo, the same probabilities and the same parameters (Gaussian sigma 3, weight 3;
bilateral 80 and 13, weight 10; symmetric normalisation). pydensecrf leaves the self term in, so the
comparison does too; a column of its own shows what taking it out costs. Runs alternate, figures are medians.
Before any time is printed, the labels of both are compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import hdcrf

try:
    from benchmarks import gradient_steps
    from benchmarks.inputs import (
        alternate,
        machine_line,
        moving_crop,
        network_probabilities,
        photo,
        scanned_room,
    )
    from benchmarks.peak_memory import added_memory, peak
    from benchmarks.peer import theirs
except ModuleNotFoundError:  # run as a script
    import gradient_steps
    from inputs import alternate, machine_line, moving_crop, network_probabilities, photo, scanned_room
    from peak_memory import added_memory, peak
    from peer import theirs

LEAST_AGREEMENT = 0.99


def ours(
    image: np.ndarray, probabilities: np.ndarray, iterations: int, exclude_self: bool = False
) -> np.ndarray:
    return hdcrf.refine(image, probabilities=probabilities, iterations=iterations, exclude_self=exclude_self)


def our_points(features: torch.Tensor, logits: torch.Tensor, *, smoothness_weight: float = 0.0) -> np.ndarray:
    """Label a cloud by PointCRF; its features are in units of their sigmas."""
    crf = hdcrf.PointCRF(
        logits.shape[1], appearance_sigma_xyz=1.0, appearance_sigma_rgb=1.0, smoothness_sigma=0.5,
        smoothness_weight=smoothness_weight, exclude_self=False, learn=(),
    )  # fmt: skip
    with torch.inference_mode():
        return crf(logits, features[:, :3], colours=features[:, 3:]).argmax(1).numpy()


def their_points(features: torch.Tensor, logits: torch.Tensor) -> np.ndarray:
    crf = their_crf(features.contiguous().numpy(), logits.shape[1])
    unary = -torch.log_softmax(logits, 1).numpy().T
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    return np.array(crf.inference(5)).argmax(0)


def room(points: int, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features (N, 6) of the scanned room, and random logits (N, K)."""
    logits = torch.randn((points, labels), generator=torch.Generator().manual_seed(0)).mul_(2)
    return scanned_room(points), logits


def photo_and_probabilities(height: int, width: int, labels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the photo, probabilities, and the number of iterations."""
    probabilities = network_probabilities("astronaut", height, width, labels)
    return photo("astronaut", height, width), probabilities, 10


# For each call whose memory is measured: what makes its inputs from sizes, and the call.
MEMORY_CASES: dict[str, tuple[Callable[..., tuple], Callable[..., object]]] = {
    "ours": (photo_and_probabilities, ours),
    "theirs": (photo_and_probabilities, theirs),
    "our points": (room, our_points),
    "their points": (room, their_points),
    "crf-grad infer": (gradient_steps.photo_case, gradient_steps.infer),
    "crf-grad train": (gradient_steps.photo_case, gradient_steps.train),
}


def peak_memory(call: str, *sizes: int) -> float:
    """Return by how many MiB a call raises the peak memory of a fresh process that holds its inputs."""
    command = [sys.executable, __file__, "--memory-of", call, *map(str, sizes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory_of(call: str, *sizes: int) -> None:
    make, function = MEMORY_CASES[call]
    inputs = make(*sizes)
    torch.set_num_threads(2)
    small = (1000, 2) if len(sizes) == 2 else (32, 32, 2)
    function(*make(*small))  # imports, and the threads' own memory
    print(added_memory(lambda: function(*inputs)))


def print_calls(rounds: int) -> None:
    print("\nWhole call: the filter is built and mean field run, milliseconds\n")
    print("| image | labels | iterations | threads | ours | pydensecrf | ratio | ours without self term | "
          "labels agree |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [(375, 500, labels, 10, rounds) for labels in (21, 5, 2)]
    if rounds > 3:
        cases.append((2048, 2048, 5, 5, 3))
    for height, width, labels, iterations, times in cases:
        image = photo("astronaut", height, width)
        probabilities = network_probabilities("astronaut", height, width, labels)
        own, other = (call(image, probabilities, iterations) for call in (ours, theirs))
        agreement = check_agreement(own, other)
        for threads in (2, 1):
            torch.set_num_threads(threads)
            seconds = alternate(
                {
                    "ours": lambda i=image, p=probabilities, n=iterations: ours(i, p, n),
                    "theirs": lambda i=image, p=probabilities, n=iterations: theirs(i, p, n),
                    "no self": lambda i=image, p=probabilities, n=iterations: ours(i, p, n, True),
                },
                times,
            )
            call, peer, no_self = (1000 * value for value in seconds.values())
            print(
                f"| {height}x{width} | {labels} | {iterations} | {threads} | {call:.0f} | {peer:.0f} | "
                f"{peer / call:.2f} | {no_self:.0f} | {agreement:.2%} |",
                flush=True,
            )


def check_agreement(own: np.ndarray, other: np.ndarray) -> float:
    agreement = float((own == other).mean())
    if agreement < LEAST_AGREEMENT:
        raise SystemExit(f"labels agree on {agreement:.2%} only; no times for a wrong result")
    return agreement


def our_kernel(features: torch.Tensor) -> hdcrf.PairwiseKernel:
    return hdcrf.pairwise_kernel(hdcrf.build_filter(features), 10.0, "symmetric")


def their_crf(features: np.ndarray, labels: int):  # type: ignore[no-untyped-def]
    """Build pydensecrf's lattice and its normalisation over (N, d) features."""
    import pydensecrf.densecrf as densecrf

    crf = densecrf.DenseCRF(len(features), labels)
    crf.addPairwiseEnergy(np.ascontiguousarray(features.T), compat=10)
    return crf


def clouds() -> dict[str, torch.Tensor]:
    """Return the features of a photo, of a video with and without a depth, and of a scanned room."""
    image = torch.from_numpy(photo("astronaut", 375, 500).astype(np.float32)).permute(2, 0, 1)[None]
    return {
        "photo, d = 5": hdcrf.bilateral_features(image, 80.0, 13.0),
        "video, d = 6": moving_crop(24, 90, 160, depth=False),
        "video with depth, d = 7": moving_crop(24, 90, 160, depth=True),
        "room, d = 6": scanned_room(400_000),
    }


def print_build(rounds: int) -> None:
    print("\nBuilding alone: lattice and normalisation, milliseconds\n")
    print("| points | N | vertices | threads | ours | pydensecrf | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, features in clouds().items():
        array = features.contiguous().numpy()
        vertices = hdcrf.build_filter(features).num_vertices
        for threads in (2, 1):
            torch.set_num_threads(threads)
            seconds = alternate(
                {"ours": lambda f=features: our_kernel(f), "theirs": lambda a=array: their_crf(a, 2)}, rounds
            )
            own, peer = (1000 * value for value in seconds.values())
            print(
                f"| {name} | {len(features):,} | {vertices:,} | {threads} | {own:.0f} | {peer:.0f} | "
                f"{peer / own:.2f} |",
                flush=True,
            )


def print_points(rounds: int) -> None:
    print("\nThe scanned room, 13 labels, 5 iterations: building and mean field, milliseconds\n")
    print("| threads | ours | pydensecrf | ratio | labels agree |")
    print("|---|---|---|---|---|")
    features = scanned_room(400_000)
    array = features.contiguous().numpy()
    logits = torch.randn((len(features), 13), generator=torch.Generator().manual_seed(0)).mul_(2)
    unary = np.ascontiguousarray(-torch.log_softmax(logits, 1).numpy().T)
    potts = hdcrf.Compatibility(13)

    def own() -> np.ndarray:
        with torch.inference_mode():
            result = hdcrf.mean_field(
                logits, [our_kernel(features)], potts, iterations=5, exclude_self=False, return_logits=False
            )
        return result.marginals.argmax(1).numpy()

    def peer() -> np.ndarray:
        crf = their_crf(array, 13)
        crf.setUnaryEnergy(unary)
        return np.array(crf.inference(5)).argmax(0)

    agreement = check_agreement(own(), peer())
    for threads in (2, 1):
        torch.set_num_threads(threads)
        seconds = alternate({"ours": own, "theirs": peer}, min(rounds, 5))
        call, other = (1000 * value for value in seconds.values())
        print(f"| {threads} | {call:.0f} | {other:.0f} | {other / call:.2f} | {agreement:.2%} |", flush=True)


def print_million(points: int) -> None:
    print(f"\nPointCRF on the scanned room with {points:,} points, 13 labels, 5 iterations, d = 6")
    print("(memory: MiB that a call adds at its peak; smoothness: with its second, 3D kernel)\n")
    print("| threads | ours, s | with smoothness, s | pydensecrf, s | ratio | ours, MiB | pydensecrf, MiB | "
          "labels agree |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    inputs = room(points, 13)
    agreement = check_agreement(our_points(*inputs), their_points(*inputs))
    own_peak, peer_peak = (peak_memory(call, points, 13) for call in ("our points", "their points"))
    for threads in (2, 1):
        torch.set_num_threads(threads)
        seconds = alternate(
            {
                "ours": lambda: our_points(*inputs),
                "smooth": lambda: our_points(*inputs, smoothness_weight=3.0),
                "theirs": lambda: their_points(*inputs),
            },
            3,
        )
        own, smooth, peer = seconds.values()
        print(
            f"| {threads} | {own:.2f} | {smooth:.2f} | {peer:.2f} | {peer / own:.2f} | {own_peak:.0f} | "
            f"{peer_peak:.0f} | {agreement:.2%} |",
            flush=True,
        )


def print_iteration() -> None:
    print("\nOne iteration at 375x500, in copies of the (N, K) marginals\n")
    print("| labels | threads | iteration, ms | copy, ms | copies |")
    print("|---|---|---|---|---|")
    image = torch.from_numpy(photo("astronaut", 375, 500).astype(np.float32)).permute(2, 0, 1)[None]
    for labels in (21, 5, 2):
        probabilities = torch.from_numpy(network_probabilities("astronaut", 375, 500, labels))
        logits = hdcrf.logits_from_probabilities(probabilities, dim=2).permute(2, 0, 1)[None]
        source = torch.rand(375 * 500, labels)
        target = torch.empty_like(source)
        for threads in (2, 1):
            torch.set_num_threads(threads)

            def run(iterations: int, logits=logits, labels=labels) -> None:
                crf = hdcrf.DenseCRF(labels, iterations=iterations, exclude_self=False, learn=())
                with torch.inference_mode():
                    crf.infer(logits, image, return_logits=False)

            seconds = alternate(
                {
                    "short": lambda: run(5),
                    "long": lambda: run(25),
                    "copy": lambda t=target, s=source: t.copy_(s),
                },
                9,
            )
            iteration, copy = (seconds["long"] - seconds["short"]) / 20 * 1000, seconds["copy"] * 1000
            print(
                f"| {labels} | {threads} | {iteration:.2f} | {copy:.2f} | {iteration / copy:.1f} |",
                flush=True,
            )


def print_training(rounds: int) -> None:
    print("\nTraining: forward and backward through 5 iterations at 240x320, 21 labels, milliseconds\n")
    print("| learned | threads | kernels | PyTorch reference | ratio |")
    print("|---|---|---|---|---|")
    logits, guide = gradient_steps.photo_case(240, 320, 21)
    truth = logits.argmax(1)
    for learned in (("weights",), ("weights", "bandwidths")):

        def run(backend: str, learned=learned) -> None:
            crf = hdcrf.DenseCRF(21, iterations=5, output="logits", learn=learned, backend=backend)
            inputs = logits.clone().requires_grad_()
            torch.nn.functional.cross_entropy(crf(inputs, guide), truth).backward()

        for threads in (2, 1):
            torch.set_num_threads(threads)
            seconds = alternate(
                {"kernels": lambda: run("auto"), "reference": lambda: run("reference")}, min(rounds, 5)
            )
            own, reference = (1000 * value for value in seconds.values())
            print(
                f"| {' and '.join(learned)} | {threads} | {own:.0f} | {reference:.0f} | "
                f"{reference / own:.2f} |",
                flush=True,
            )


def print_memory() -> None:
    print("\nPeak memory of a call at 375x500, 10 iterations, MiB, inputs not counted\n")
    print("| labels | marginals (N, K) | ours | of the marginals | pydensecrf |")
    print("|---|---|---|---|---|")
    peaks = {}
    for labels in (21, 2):
        size = 375 * 500 * labels * 4 / 2**20
        own, peer = (peak_memory(call, 375, 500, labels) for call in ("ours", "theirs"))
        peaks[labels] = own
        print(f"| {labels} | {size:.1f} | {own:.0f} | {own / size:.2f} | {peer:.0f} |", flush=True)
    print("\nWhat a call holds at its peak, 21 labels, MiB\n")
    print("| what | MiB |")
    print("|---|---|")
    parts = {name: elements * 4 / 2**20 for name, elements in composition(375, 500, 21).items()}
    parts["the rest: labels, threads' rows, allocator"] = peaks[21] - sum(parts.values())
    for name, size in parts.items():
        print(f"| {name} | {size:.1f} |")


def composition(height: int, width: int, labels: int) -> dict[str, int]:
    """Return how many 4-byte numbers each part of a call takes."""
    guide = torch.from_numpy(photo("astronaut", height, width).astype(np.float32)).permute(2, 0, 1)[None]
    lattice = hdcrf.build_filter(hdcrf.bilateral_features(guide, 80.0, 13.0))
    parts, points = lattice.structure, height * width
    padded = -(-labels // 8) * 8 if labels > 2 else 1
    sets = torch.get_num_threads() + 1
    return {
        "logits (N, K)": points * labels,
        "marginals before and after an iteration, 2 (N, K)": 2 * points * (labels if labels > 2 else 1),
        "interpolation weights and cells (N, d + 2)": parts.cells.weights.numel() + points,
        "image and its features (N, 3 + d)": guide.numel() + lattice.features.numel(),
        f"values of the vertices, {sets} (V, {padded})": sets * lattice.num_vertices * padded,
        "corners, ranks and neighbours": parts.cell_vertices.numel() * 3 // 2 + parts.links.numel(),
    }


def print_large() -> None:
    height, width, labels = 30_000, 2_000, 3
    print(f"\nAn image of {height:,} x {width:,} with {labels} labels, 5 iterations\n")
    tile = photo("astronaut", 1000, 1000)
    image = np.tile(tile, (height // 1000, width // 1000, 1))
    probabilities = np.tile(
        network_probabilities("astronaut", 1000, 1000, labels), (height // 1000, width // 1000, 1)
    )
    torch.set_num_threads(2)
    start = time.perf_counter()
    result = ours(image, probabilities, 5)
    seconds = time.perf_counter() - start
    gigabytes = peak() / 2**20
    changed = (result != probabilities.argmax(2)).mean()
    print(
        f"{seconds:.0f} s; peak memory of the process {gigabytes:.1f} GiB; "
        f"{changed:.2%} of the labels changed."
    )


def print_import() -> None:
    program = (
        "import time, torch; start = time.perf_counter(); import hdcrf; print(time.perf_counter() - start)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
        for _ in range(7)
    ]
    print(f"\nImporting hdcrf once torch is imported: {statistics.median(seconds):.2f} s.")


def print_growth(megapixels: list[float], rounds: int) -> None:
    torch.set_num_threads(2)
    print("\nGrowth with the image, 5 labels, 10 iterations, two threads, seconds\n")
    print("| megapixels | size | vertices | ours | pydensecrf | ratio |")
    print("|---|---|---|---|---|---|")
    points, times = [], []
    for size in megapixels:
        height = round(math.sqrt(size * 1e6 * 3 / 4))
        width = round(size * 1e6 / height)
        image = photo("astronaut", height, width)
        probabilities = network_probabilities("astronaut", height, width, 5)
        guide = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        lattice = hdcrf.build_filter(hdcrf.bilateral_features(guide, 80.0, 13.0))
        vertices = lattice.num_vertices
        del lattice
        seconds = alternate(
            {
                "ours": lambda i=image, p=probabilities: ours(i, p, 10),
                "theirs": lambda i=image, p=probabilities: theirs(i, p, 10),
            },
            rounds if size < 4 else 1,
        )
        points.append(height * width)
        own, peer = seconds["ours"], seconds["theirs"]
        times.append(own)
        print(
            f"| {size:g} | {height}x{width} | {vertices:,} | {own:.2f} | {peer:.2f} | {peer / own:.2f} |",
            flush=True,
        )
    exponent = np.polyfit(np.log(points), np.log(times), 1)[0]
    print(f"\nTime grows as pixels to the power of {exponent:.2f}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller images")
    parser.add_argument("--only", metavar="TABLE", action="append", help="print this table; may be repeated")
    parser.add_argument("--memory-of", nargs="+", metavar="CALL SIZE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        call, *sizes = arguments.memory_of
        print_memory_of(call, *map(int, sizes))
        return
    try:
        import pydensecrf  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit('the peer is missing: pip install "hdcrf[bench]"') from None
    rounds = 3 if arguments.quick else 9
    sizes = [0.1, 0.5, 1] if arguments.quick else [0.1, 0.25, 0.5, 1, 2, 4, 8, 16]
    tables: dict[str, Callable[[], None]] = {
        "calls": lambda: print_calls(rounds),
        "build": lambda: print_build(rounds),
        "points": lambda: print_points(rounds),
        "million": lambda: print_million(100_000 if arguments.quick else 1_000_000),
        "iteration": print_iteration,
        "training": lambda: print_training(rounds),
        "crf-grad": lambda: gradient_steps.print_steps(rounds, peak_memory),
        "memory": print_memory,
        "growth": lambda: print_growth(sizes, min(rounds, 5)),
        "large": print_large,
        "import": print_import,
    }
    if arguments.quick:
        del tables["large"]
    unknown = set(arguments.only or ()) - set(tables)
    if unknown:
        raise SystemExit(f"no table {', '.join(sorted(unknown))}; choose from {', '.join(tables)}")
    print(machine_line())
    for name in arguments.only or tables:
        tables[name]()


if __name__ == "__main__":
    main()
