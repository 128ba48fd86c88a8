"""CRF-Grad and mean field against graph cuts, on the same Potts energies.

    python benchmarks/graph_cuts.py                    every table, a quarter of an hour
    python benchmarks/graph_cuts.py --quick            two photos, and smaller
    python benchmarks/graph_cuts.py --only spatial     one energy: spatial, bilateral or five

With two labels a cut is the optimum; with five, alpha expansion (Boykov, Veksler and Zabih 2001) is no worse
than twice the optimum, and what is "above" it may be below. The three energies are those of `CRFGrad`:

    spatial      two labels, a Gaussian window of 9x9 pixels, 120x160 pixels
    bilateral    two labels, the same window and the bilateral potentials, 40x53 pixels: each pair, by the
                 messages of unit vectors, is an edge of the graph
    five         five labels, the window alone, 60x80 pixels

The photos are scikit-image's. Where the labels come from decides how hard an energy is, so there are three
kinds of unary costs:

    noise      the bands of brightness, by a classifier that errs for each pixel by itself
    network    regions, by a classifier of low resolution: right inside, wrong along borders
    colours    histograms of the colours in concentric rings of the photo: whole regions are ambiguous

Pairs cost 0 or more; a unary cost -log(z + 0.01) is at least -log(1.01), and is counted from there, so that
percentages mean something. Each table has a row for an image, then the worst percentage, the share of pixels
labelled unlike the cut, the messages that rounding took at most, and the seconds of inference and rounding,
or of the cut without writing out its pairs, on one thread. Labels are rounded by `round_labels`; mean field's
also by the largest share, "argmax". CRF-Grad is counted as no higher than mean field by the better of these
two after as many iterations.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import maxflow
import numpy as np
import torch
from torch import Tensor

import hdcrf
from hdcrf.relaxed import RelaxedEnergy, SpatialPotential, round_labels

try:
    from benchmarks.inputs import machine_line, network_probabilities, noisy_probabilities, photo
except ModuleNotFoundError:  # run as a script
    from inputs import machine_line, network_probabilities, noisy_probabilities, photo

PHOTOS = (
    "astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "immunohistochemistry", "page",
    "retina", "rocket",
)  # fmt: skip
KINDS = ("noise", "network", "colours")
BINS = 8  # of a histogram, along each colour
ITERATIONS = (5, 50)
GRADUATED = (50, 200)


@dataclass(frozen=True)
class Problem:
    """A Potts model on photos.

    Attributes:
        height, width: Of the photos in pixels.
        num_labels: K.
        options: Of `CRFGrad`, but for those of inference.
    """

    height: int
    width: int
    num_labels: int
    options: dict

    def layer(self, **inference: object) -> hdcrf.CRFGrad:
        return hdcrf.CRFGrad(self.num_labels, learn=(), **self.options, **inference).eval()

    def inputs(self, name: str, kind: str) -> tuple[Tensor, Tensor]:
        """Return logits (1, K, H, W) and the guide (1, 3, H, W), float64."""
        image = photo(name, self.height, self.width)
        seed = PHOTOS.index(name)
        if kind == "noise":
            probabilities = noisy_probabilities(image, self.num_labels, seed)
        elif kind == "network":
            probabilities = network_probabilities(name, self.height, self.width, self.num_labels)
        else:
            probabilities = colour_models(image, self.num_labels)
        logits = torch.from_numpy(np.log(probabilities.astype(np.float64)))
        guide = torch.from_numpy(image.astype(np.float64))
        return logits.permute(2, 0, 1)[None], guide.permute(2, 0, 1)[None]


SPATIAL = {"spatial_weight": 2.0, "neighbourhood": None}
BILATERAL = {"spatial_weight": 1.0, "bilateral_weight": 4.0}
PROBLEMS = {
    "spatial": Problem(120, 160, 2, SPATIAL),
    "bilateral": Problem(40, 53, 2, BILATERAL),
    "five": Problem(60, 80, 5, SPATIAL),
}
QUICK = {
    "spatial": Problem(48, 64, 2, SPATIAL),
    "bilateral": Problem(18, 24, 2, BILATERAL),
    "five": Problem(24, 32, 5, SPATIAL),
}


def colour_models(image: np.ndarray, num_labels: int) -> np.ndarray:
    """Return probabilities (H, W, K) by histograms of the colours in K concentric rings of equal area."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    radius = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2
    ring = np.digitize(radius, np.quantile(radius, np.linspace(0, 1, num_labels + 1)[1:-1]))
    colour = (image // (256 // BINS)).astype(int) @ (BINS**2, BINS, 1)
    likelihoods = []
    for label in range(num_labels):
        counts = 1.0 + np.bincount(colour[ring == label], minlength=BINS**3)
        likelihoods.append((counts / counts.sum())[colour])
    likelihood = np.stack(likelihoods, 2)
    return likelihood / likelihood.sum(2, keepdims=True)


@dataclass(frozen=True)
class Pairs:
    """The terms of a Potts model: `weight` (E,) where points `first` and `second` (E,) differ."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def window_pairs(potential: SpatialPotential) -> Pairs:
    """Return the pairs of one grid (1, H, W), from a window of Potts potentials."""
    window = potential.filters[0, 1].numpy()
    _, height, width = potential.shape
    index = np.arange(height * width).reshape(height, width)
    reach = window.shape[0] // 2
    parts = []
    for dy in range(min(reach + 1, height)):
        for dx in range(max(-reach, 1 - width) if dy else 1, min(reach + 1, width)):
            first = index[: height - dy, max(0, -dx) : width - max(0, dx)].ravel()
            second = index[dy:, max(0, dx) : width + min(0, dx)].ravel()
            parts.append((first, second, np.full(first.shape, window[dy + reach, dx + reach])))
    return Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def written_pairs(energy: RelaxedEnergy) -> Pairs:
    """Return the pairs of any Potts model of two labels, from the messages of unit vectors.

    Label 0 hears of those labelled 1 alone, and 1 of those labelled 0: a message holds two columns.
    """
    points, labels = energy.unary.shape
    if labels != 2:
        raise ValueError(f"two labels are written out, got {labels}")
    columns = []
    for point in range(0, points, 2):
        q = torch.zeros_like(energy.unary)
        q[point, 1] = 1
        q[point + 1 : point + 2, 0] = 1
        columns.append(energy.message(q).numpy())
    matrix = np.concatenate(columns, 1)[:, :points]
    first, second = np.nonzero(np.triu(matrix, 1))
    return Pairs(first, second, matrix[first, second])


def best_change(
    energy: RelaxedEnergy, pairs: Pairs, labels: np.ndarray, alpha: int
) -> tuple[np.ndarray, float]:
    """Return the best of the labellings in which each point keeps its label or takes alpha, by a cut.

    A pair of points that keep or take costs A, B, C and 0, in the order keep-keep, keep-take, take-keep and
    take-take. That is a constant A, ½ (A + B - C) less where the first takes, ½ (A + C - B) less where the
    second does, and ½ (B + C - A) where one of them does, which is not negative.

    Returns:
        The labels (P,), and the energy as the flow has it.
    """
    unary = energy.unary.numpy()
    points = len(unary)
    keep, take = unary[np.arange(points), labels].copy(), unary[:, alpha].copy()
    first, second = labels[pairs.first], labels[pairs.second]
    a, b, c = (pairs.weight * d for d in (first != second, first != alpha, alpha != second))
    take -= 0.5 * np.bincount(pairs.first, a + b - c, points)
    take -= 0.5 * np.bincount(pairs.second, a + c - b, points)
    graph = maxflow.Graph[float](points, len(a))
    nodes = graph.add_nodes(points)
    graph.add_grid_tedges(nodes, take, keep)  # what is cut off from the source takes
    capacity = 0.5 * (b + c - a)
    graph.add_edges(pairs.first, pairs.second, capacity, capacity)
    flow = graph.maxflow()
    return np.where(graph.get_grid_segments(nodes), alpha, labels), flow + float(a.sum())


def by_cuts(energy: RelaxedEnergy, pairs: Pairs) -> Tensor:
    """Return the optimum (P,) of two labels, or of more what alpha expansion finds."""
    labels = np.zeros(len(energy.unary), dtype=np.int64)
    count = energy.unary.shape[1]
    lowest, unchanged, alpha = np.inf, 0, 0
    while unchanged < count:
        alpha = (alpha + 1) % count
        changed, value = best_change(energy, pairs, labels, alpha)
        if value < lowest - 1e-9 * abs(value):
            labels, lowest, unchanged = changed, value, 0
        else:
            unchanged += 1
        if count == 2:
            break  # from all 0, keeping or taking 1 is any labelling
    found = torch.from_numpy(labels)
    counted = float(energy.of_labels(found))
    if abs(counted - lowest) > 1e-9 * (len(found) + abs(counted)):
        raise SystemExit(f"the graph has energy {lowest}, the CRF {counted}: nothing is compared")
    return found


def rounded(energy: RelaxedEnergy, q: Tensor) -> tuple[Tensor, int]:
    """Return the labels that q rounds to, and how many messages that took."""
    same = RelaxedEnergy(energy.unary, energy.potentials)
    messages = []

    def message(q: Tensor) -> Tensor:
        messages.append(1)
        return energy.message(q)

    same.message = message  # type: ignore[method-assign]
    return round_labels(same, q), len(messages)


@dataclass
class Outcome:
    """A labelling: percent above the cut, percent of pixels unlike it, messages of rounding, seconds."""

    above: float
    unlike: float
    messages: int
    seconds: float


def methods() -> dict[str, dict]:
    """Return the options of each inference by its name in the tables."""
    table: dict[str, dict] = {}
    for count in ITERATIONS:
        table[f"mean field, {count}"] = {"inference": "mean_field", "iterations": count}
    for count in ITERATIONS:
        table[f"CRF-Grad, {count}"] = {"iterations": count}
    for count in GRADUATED:
        table[f"graduated, {count}"] = {"inference": "graduated", "iterations": count}
    return table


@torch.no_grad()
def compare(problem: Problem, name: str, kind: str) -> tuple[float, dict]:
    """Return the energy of the cut, and the outcome of each method on a photo."""
    logits, guide = problem.inputs(name, kind)
    energy = problem.layer().energy(logits, guide)
    potentials = energy.potentials
    pairs = window_pairs(potentials[0]) if len(potentials) == 1 else written_pairs(energy)
    if pairs.weight.min() < 0:
        raise SystemExit("some pairs cost less than nothing: a cut is not the optimum")
    start = time.perf_counter()
    cut = by_cuts(energy, pairs)
    seconds = time.perf_counter() - start
    least = -len(cut) * math.log1p(problem.layer().epsilon)
    optimum = float(energy.of_labels(cut)) - least
    outcomes = {"cut": Outcome(0.0, 0.0, 0, seconds)}

    def add(method: str, labels: Tensor, messages: int = 0, seconds: float = 0.0) -> None:
        above = 100 * ((float(energy.of_labels(labels)) - least) / optimum - 1)
        unlike = 100 * float((labels != cut).double().mean())
        outcomes[method] = Outcome(above, unlike, messages, seconds)

    add("unary", energy.unary.argmin(1))
    for method, options in methods().items():
        start = time.perf_counter()
        relaxed = problem.layer(**options).infer(logits, guide).relaxed
        q = relaxed.movedim(1, -1).reshape(energy.unary.shape)
        labels, messages = rounded(energy, q)
        add(method, labels, messages, time.perf_counter() - start)
        if "mean field" in method:
            add(f"{method}, argmax", q.argmax(1))
    return optimum, outcomes


def no_higher(outcomes: dict[str, Outcome], count: int, method: str = "CRF-Grad") -> bool:
    """Say whether a method is no higher than mean field after as many iterations."""
    mean_field = [outcomes[f"mean field, {count}{how}"].above for how in ("", ", argmax")]
    return outcomes[f"{method}, {count}"].above <= min(mean_field) + 1e-7  # percent: both may be optimal


def print_table(title: str, problem: Problem, kind: str, names: tuple[str, ...]) -> None:
    size = f"{problem.height}x{problem.width} pixels, {problem.num_labels} labels"
    print(f"\n{title}, {size}, unary costs: {kind}. Percent above the cut\n")
    results = {}
    for name in names:
        results[name] = compare(problem, name, kind)
        _, outcomes = results[name]
        if len(results) == 1:
            shown = [method for method in outcomes if method != "cut"]
            print("| image | energy | " + " | ".join(shown) + " |")
            print("|---" * (len(shown) + 2) + "|")
        above = " | ".join(f"{outcomes[method].above:.3f}" for method in shown)
        print(f"| {name} | {results[name][0]:.1f} | {above} |", flush=True)
    every = [outcomes for _, outcomes in results.values()]

    def row(what: str, cell: Callable[[str], str]) -> None:
        print(f"| {what} | " + " | ".join(cell(method) for method in ("cut", *shown)) + " |")

    def values(method: str, field: str) -> list[float]:
        return [getattr(outcomes[method], field) for outcomes in every]

    row("at worst", lambda m: f"{max(values(m, 'above')):.3f}" if m != "cut" else "")
    row("pixels, mean %", lambda m: f"{np.mean(values(m, 'unlike')):.2f}" if m != "cut" else "")
    row("messages", lambda m: f"{max(values(m, 'messages'))}" if max(values(m, "messages")) else "")
    row(
        "seconds, mean", lambda m: f"{np.mean(values(m, 'seconds')):.3f}" if any(values(m, "seconds")) else ""
    )
    print()
    for method in [f"CRF-Grad, {count}" for count in ITERATIONS] + [
        f"graduated, {count}" for count in GRADUATED
    ]:
        above = values(method, "above")
        near = sum(part <= 1 for part in above)
        line = f"{method}: at most 1 % above the cut on {near} of {len(names)} images"
        kind_of_steps, count = method.split(", ")
        if int(count) in ITERATIONS:
            wins = sum(no_higher(outcomes, int(count), kind_of_steps) for outcomes in every)
            line += f", no higher than mean field on {wins}"
        print(f"{line}; at worst {max(above):.3f} %.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two photos, and smaller")
    parser.add_argument("--only", choices=tuple(PROBLEMS), help="this energy")
    parser.add_argument("--unary", choices=KINDS, help="this kind of unary costs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine_line())
    names = PHOTOS[:2] if arguments.quick else PHOTOS
    for title, problem in (QUICK if arguments.quick else PROBLEMS).items():
        for kind in KINDS:
            if arguments.only in (None, title) and arguments.unary in (None, kind):
                print_table(title, problem, kind, names)


if __name__ == "__main__":
    main()
