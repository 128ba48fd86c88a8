"""Depth at a 4th or an 8th of the resolution, brought back with a picture as guide: RMSE in cm.

    python benchmarks/joint_upsampling.py --jobs 2 --networks DIR --out-dir DIR
    python benchmarks/joint_upsampling.py --quick
    python benchmarks/joint_upsampling.py --rates 5e-4 1e-3 2e-3 --jobs 2

Table 1 of Su et al. 2019 in small, on the rooms of `depth_scenes.py` instead of NYU Depth V2: trained on
some, checked on others. As there, low resolution is every m-th pixel, `depth[..., ::m, ::m]`; bicubic
interpolation and joint bilateral upsampling are told that their values lie there. The sigmas of the latter
are the best of a grid on training scenes.

DJF is the network of Li et al. 2016, with the parameters of `JointUpsampler`, lite: a branch for the depth,
enlarged bicubically, a branch for the picture, and a network on the two features that they give, in filters
of 9, 1 and 5 pixels. "Concatenation" is like it, but with all features of both branches passed on, and
5 x 5 filters; as wide as it takes to have the parameters of `JointUpsampler`, lite or standard. Both work at
full resolution throughout. All networks learn what to add to bicubic interpolation, from the same crops of
the same scenes in the same order, with the same loss, optimiser and number of steps.

`--rates` trains them with several learning rates, and scores them on scenes that are neither for training nor
for the table: how `RATES` was chosen.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hdcrf.pac.joint_upsampling import JointUpsampler, joint_bilateral_upsample

try:
    from benchmarks.depth_scenes import Scenes, scenes
    from benchmarks.head_tables import count
    from benchmarks.inputs import machine_line
    from benchmarks.unary_network import Progress
except ModuleNotFoundError:  # run as a script
    from depth_scenes import Scenes, scenes
    from head_tables import count
    from inputs import machine_line
    from unary_network import Progress


@dataclass(frozen=True)
class Budget:
    """How many scenes, and how long to train."""

    size: int = 128  # of a scene, along both axes
    train: int = 200
    validation: int = 20
    test: int = 40
    crop: int = 64
    batch: int = 1
    steps: int = 4000


QUICK = Budget(size=64, train=4, validation=1, test=2, crop=32, batch=2, steps=4)

SHOWN = (0, 1)  # of the test scenes, in the pictures
SCENE_SEEDS = {"train": 1, "validation": 2, "test": 3}
SIGMAS = (0.35, 0.5, 0.7, 1.0)
SIGMAS_GUIDE = (0.02, 0.05, 0.1, 0.2, 0.4)
CLIPPED = 0.3  # the norm of gradients: crops differ much
# What training scenes have, about: cm, and colours from 0 to 1.
DEPTH, DEPTH_SPREAD = 350.0, 130.0
COLOUR, COLOUR_SPREAD = 0.4, 0.2

DJF, CONCATENATION = "DJF", "concatenation"
LITE, STANDARD = "JointUpsampler, lite", "JointUpsampler, standard"
SMALL = f"{CONCATENATION}, as lite"
LARGE = f"{CONCATENATION}, as standard"
RATES = {DJF: 1e-3, SMALL: 1e-3, LITE: 1e-3, LARGE: 1e-3, STANDARD: 1e-3}


class Concatenation(nn.Module):
    """Two branches of three convolutions, and three on what they give.

    Args:
        factor: m.
        branch: Channels of each branch.
        joint: Channels after them.
    """

    def __init__(self, factor: int, branch: int, joint: int) -> None:
        super().__init__()
        self.factor = factor
        self.depth = _convolutions(1, branch, branch, branch)
        self.guide = _convolutions(3, branch, branch, branch)
        self.joint = nn.Sequential(
            *_convolutions(2 * branch, joint, joint), nn.Conv2d(joint, 1, 5, padding=2)
        )
        draw_weights(self, self.joint[-1])

    def forward(self, values: Tensor, guide: Tensor) -> Tensor:
        """Return (B, 1, m·h, m·w) of values (B, 1, h, w) and a guide (B, 3, m·h, m·w)."""
        return self.joint(torch.cat([self.depth(bicubic(values, self.factor)), self.guide(guide)], 1))


class DeepJointFilter(nn.Module):
    """The network of Li et al. 2016: two branches to a feature each, and a network on these."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.depth, self.guide = filters(1, 96, 48, 1), filters(3, 96, 48, 1)
        self.joint = filters(2, 64, 32, 1)
        draw_weights(self, self.depth[-1], self.guide[-1], self.joint[-1])

    def forward(self, values: Tensor, guide: Tensor) -> Tensor:
        """Return (B, 1, m·h, m·w) of values (B, 1, h, w) and a guide (B, 3, m·h, m·w)."""
        return self.joint(torch.cat([self.depth(bicubic(values, self.factor)), self.guide(guide)], 1))


def filters(*widths: int) -> nn.Sequential:
    """Return convolutions with windows of 9, 1 and 5, ReLU between them."""
    first, second, third = (
        nn.Conv2d(*pair, size, padding=size // 2)
        for pair, size in zip(itertools.pairwise(widths), (9, 1, 5), strict=True)
    )
    return nn.Sequential(first, nn.ReLU(True), second, nn.ReLU(True), third)


def draw_weights(network: nn.Module, *linear: nn.Module) -> None:
    """Draw weights as those of `JointUpsampler`, larger but for the layers that no ReLU follows."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            gain = 1 if layer in linear else 2
            nn.init.normal_(layer.weight, std=math.sqrt(gain / layer.weight[0].numel()))
            nn.init.zeros_(layer.bias)


def _convolutions(*widths: int) -> nn.Sequential:
    pairs = itertools.pairwise(widths)
    return nn.Sequential(
        *(layer for pair in pairs for layer in (nn.Conv2d(*pair, 5, padding=2), nn.ReLU(True)))
    )


# Widths for the parameters of the variant: within 2% of them.
WIDTHS = {(SMALL, 4): (18, 16), (SMALL, 8): (18, 16), (LARGE, 4): (32, 32), (LARGE, 8): (35, 36)}


def network_of(method: str, factor: int) -> nn.Module:
    if method == DJF:
        return DeepJointFilter(factor)
    if method in (SMALL, LARGE):
        return Concatenation(factor, *WIDTHS[method, factor])
    return JointUpsampler(factor, variant=method.split(", ")[1])


def bicubic(values: Tensor, factor: int) -> Tensor:
    """Interpolate values (B, c, h, w) that lie at every m-th pixel, the first at the first.

    With Keys' kernel of a = -0.5, which keeps planes; that of PyTorch, of -0.75, does not. Its errors are
    larger here.
    """
    rows, columns = (bicubic_weights(size, factor).to(values) for size in values.shape[2:])
    return rows @ values @ columns.T


@cache
def bicubic_weights(size: int, factor: int) -> Tensor:
    """Return the weights (m·size, size) of samples for each pixel; beyond the border the last one repeats."""
    places = torch.arange(factor * size, dtype=torch.float64) / factor
    weights = torch.zeros(factor * size, size, dtype=torch.float64)
    for step in (-1, 0, 1, 2):
        at = places.floor() + step
        t = (places - at).abs()
        share = torch.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
        weights.scatter_add_(1, at.clamp(0, size - 1).long()[:, None], share[:, None])
    return weights


def bicubic_with(factor: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda low, guides: bicubic(low, factor)


def lowered(depths: Tensor, factor: int) -> Tensor:
    return depths[..., ::factor, ::factor]


@dataclass(frozen=True)
class Training:
    """One network to train."""

    method: str
    factor: int
    seed: int
    rate: float

    def __str__(self) -> str:
        return f"{self.factor}x, {self.method}, rate {self.rate:g}, seed {self.seed}"


class Upsampler:
    """A network that adds to bicubic interpolation, with the units of depths and guides around it."""

    def __init__(self, network: nn.Module, factor: int) -> None:
        self.network, self.factor = network, factor

    def __call__(self, low: Tensor, guides: Tensor) -> Tensor:
        """Return depths (B, 1, m·h, m·w) in cm of depths (B, 1, h, w), with pictures as guides."""
        added = self.network((low - DEPTH) / DEPTH_SPREAD, (guides - COLOUR) / COLOUR_SPREAD)
        return bicubic(low, self.factor) + DEPTH_SPREAD * added


def train(training: Training, known: Scenes, budget: Budget) -> nn.Module:
    """Train a network on crops; which ones is up to the seed alone."""
    torch.manual_seed(training.seed)
    # In this order plain convolutions train up to twice as fast.
    network = network_of(training.method, training.factor).to(memory_format=torch.channels_last)
    torch.manual_seed(training.seed)
    upsampler = Upsampler(network, training.factor)
    optimizer = torch.optim.Adam(network.parameters())
    optimizer.register_step_pre_hook(clipped)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.rate, total_steps=budget.steps, pct_start=0.1
    )
    progress = Progress(str(training), budget.steps)
    for _ in range(budget.steps):
        guides, depths = random_crops(known, budget)
        found = upsampler(lowered(depths, training.factor), guides)
        loss = functional.mse_loss(found / DEPTH_SPREAD, depths / DEPTH_SPREAD)
        progress.step(loss, optimizer, schedule)
    return network.eval()


def clipped(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], CLIPPED)


def random_crops(known: Scenes, budget: Budget) -> tuple[Tensor, Tensor]:
    """Draw guides and depths (B, ·, crop, crop), half of them mirrored."""
    drawn = []
    for index in torch.randint(len(known), (budget.batch,)).tolist():
        y, x = torch.randint(known.depths.shape[-1] - budget.crop + 1, (2,)).tolist()
        both = torch.cat([known.guides[index], known.depths[index]])
        both = both[:, y : y + budget.crop, x : x + budget.crop]
        drawn.append(both.flip(-1) if torch.rand(()) < 0.5 else both)
    crops = torch.stack(drawn)
    return crops[:, :3], crops[:, 3:]


@torch.inference_mode()
def rmse(upsample: Callable[[Tensor, Tensor], Tensor], factor: int, checked: Scenes) -> float:
    """Return the root mean square error of a scene in cm, the mean over scenes."""
    errors = []
    for index in range(len(checked)):
        scene = checked[index : index + 1]
        found = upsample(lowered(scene.depths, factor), scene.guides)
        errors.append(float((found - scene.depths).square().mean().sqrt()))
    return statistics.fmean(errors)


@dataclass
class Trained:
    """A network, and how it does on the scenes to check."""

    training: Training
    state: dict[str, Tensor]
    seconds: float
    rmse: float

    def upsampler(self) -> Upsampler:
        """Return it as a function of depths and pictures."""
        network = network_of(self.training.method, self.training.factor)
        network.load_state_dict(self.state)
        return Upsampler(network.eval(), self.training.factor)


def trained(training: Training, budget: Budget, checked: str, kept: Path | None) -> Trained:
    """Train a network and score it on the `checked` scenes, or read what a run before has kept."""
    described = str((training, budget, checked, float(scenes(1, budget.size, 0).guides.double().sum())))
    name = f"{training.method}-{training.factor}x-{training.seed}.pt".replace(", ", "-").replace(" ", "-")
    path = None if kept is None else kept / name
    if path is not None and path.is_file():
        held = torch.load(path, weights_only=True)
        if held["described"] != described:
            raise SystemExit(f"{path} holds a network of other scenes or another budget; remove it")
        return Trained(training, held["state"], held["seconds"], held["rmse"])
    known = scenes(budget.train, budget.size, SCENE_SEEDS["train"])
    start = time.perf_counter()
    network = train(training, known, budget)
    seconds = time.perf_counter() - start
    count_of_checked = {"validation": budget.validation, "test": budget.test}[checked]
    others = scenes(count_of_checked, budget.size, SCENE_SEEDS[checked])
    score = rmse(Upsampler(network, training.factor), training.factor, others)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        held = {"described": described, "state": network.state_dict(), "seconds": seconds, "rmse": score}
        torch.save(held, unfinished)
        unfinished.replace(path)
    return Trained(training, network.state_dict(), seconds, score)


def run_all(
    trainings: Sequence[Training], budget: Budget, checked: str, kept: Path | None, jobs: int
) -> list[Trained]:
    """Train networks, so many at a time."""
    tasks = [(training, budget, checked, kept) for training in trainings]
    if jobs == 1:
        return [trained(*task) for task in tasks]
    # Fresh processes: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        return list(pool.map(trained, *zip(*tasks, strict=True)))


def chosen_bilateral(factor: int, known: Scenes) -> tuple[dict[str, float], float]:
    """Return the sigmas that are best on some scenes, and the error there."""
    scores = {}
    for sigma, sigma_guide in itertools.product(SIGMAS, SIGMAS_GUIDE):
        options = {"sigma": sigma, "sigma_guide": sigma_guide}
        scores[rmse(bilateral_with(factor, options), factor, known)] = options
    return scores[min(scores)], min(scores)


def bilateral_with(factor: int, options: dict[str, float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda low, guides: joint_bilateral_upsample(low, guides, factor, offset=0, **options)


def print_rates(factors: Sequence[int], rates: Sequence[float], results: Sequence[Trained]) -> None:
    """Print the error on validation scenes of each network, factor and learning rate."""
    scores = {(r.training.method, r.training.factor, r.training.rate): r.rmse for r in results}
    print(f"\n| RMSE in cm of validation scenes | {' | '.join(f'{rate:g}' for rate in rates)} |")
    print("|---" * (len(rates) + 1) + "|")
    for method, factor in itertools.product(RATES, factors):
        cells = " | ".join(f"{scores[method, factor, rate]:.2f}" for rate in rates)
        print(f"| {method}, {factor}x | {cells} |")


def print_table(
    factors: Sequence[int], fixed: dict[str, dict[int, float]], results: Sequence[Trained]
) -> None:
    """Print the error of each method and factor, the mean over seeds, and parameters and seconds."""
    heads = [f"{factor}x | parameters | seconds" for factor in factors]
    print(f"\n| RMSE in cm | {' | '.join(heads)} |")
    print("|---" * (3 * len(factors) + 1) + "|")
    for method, scores in fixed.items():
        print(f"| {method} | " + " | ".join(f"{scores[factor]:.2f} | - | -" for factor in factors) + " |")
    for method in RATES:
        cells = []
        for factor in factors:
            of_seeds = [r for r in results if (r.training.method, r.training.factor) == (method, factor)]
            errors = [result.rmse for result in of_seeds]
            spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
            seconds = statistics.fmean(result.seconds for result in of_seeds)
            parameters = count(network_of(method, factor))
            cells.append(f"{statistics.fmean(errors):.2f}{spread} | {parameters:,} | {seconds:.0f}")
        print(f"| {method} | {' | '.join(cells)} |")


@torch.inference_mode()
def draw(
    path: Path,
    factor: int,
    methods: dict[str, Callable[[Tensor, Tensor], Tensor]],
    checked: Scenes,
    shown: Sequence[int],
) -> None:
    """Write a picture: for some scenes the guide, the depth, what each method makes of it, and its errors."""
    from matplotlib.figure import Figure

    columns = len(methods) + 2
    figure = Figure(figsize=(1.55 * columns, 3.2 * len(shown)), layout="constrained")
    axes = figure.subplots(2 * len(shown), columns, squeeze=False)
    for drawn in axes.flat:
        drawn.axis("off")
    for row, index in enumerate(shown):
        above, below = axes[2 * row], axes[2 * row + 1]
        scene = checked[index : index + 1]
        low, truth = lowered(scene.depths, factor), scene.depths[0, 0]
        limits = {"vmin": float(truth.min()), "vmax": float(truth.max())}
        above[0].imshow(scene.guides[0].movedim(0, 2))
        below[0].imshow(low[0, 0], **limits)
        above[1].imshow(truth, **limits)
        for upper, lower, (name, upsample) in zip(above[2:], below[2:], methods.items(), strict=True):
            found = upsample(low, scene.guides)[0, 0]
            upper.imshow(found, **limits)
            lower.imshow((found - truth).abs(), cmap="magma", vmin=0, vmax=100)
            error = float((found - truth).square().mean().sqrt())
            lower.set_title(f"{error:.1f} cm", fontsize=7)
            if row == 0:
                upper.set_title(name.replace(", ", ",\n"), fontsize=7)
        above[0].set_title("guide", fontsize=7)
        above[1].set_title("depth", fontsize=7)
        below[0].set_title(f"every {factor}th pixel", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def parsed() -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8], choices=[4, 8], help="(4 8)")
    parser.add_argument("--steps", type=int, metavar="N", help=f"of each training ({Budget.steps})")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="repetitions (1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see it run")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="folder for pictures of the first seed")
    parser.add_argument(
        "--networks", type=Path, metavar="DIR", help="folder to keep the trained networks in, and find them"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", metavar="R", help="try these learning rates, and print no table"
    )
    arguments = parser.parse_args()
    for name in ("seeds", "jobs", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, got {value}")
    if arguments.rates is not None and min(arguments.rates) <= 0:
        parser.error(f"--rates must be greater than 0, got {min(arguments.rates)}")
    return arguments


def main() -> None:
    arguments = parsed()
    budget = QUICK if arguments.quick else Budget()
    if arguments.steps is not None:
        budget = replace(budget, steps=arguments.steps)
    torch.set_num_threads(1)
    print(machine_line())
    start = time.perf_counter()
    # The slowest first, so that the jobs end together.
    slowest = (LARGE, STANDARD, LITE, DJF, SMALL)
    order = list(itertools.product(range(arguments.seeds), arguments.factors, slowest))
    if arguments.rates is not None:
        trainings = [
            Training(method, factor, seed, rate)
            for seed, factor, method in order[: len(slowest) * len(arguments.factors)]
            for rate in arguments.rates
        ]
        results = run_all(trainings, budget, "validation", None, arguments.jobs)
        print_rates(arguments.factors, arguments.rates, results)
    else:
        trainings = [Training(method, factor, seed, RATES[method]) for seed, factor, method in order]
        results = run_all(trainings, budget, "test", arguments.networks, arguments.jobs)
        compare(arguments, budget, results)
    print(
        f"\n{budget}; seeds 0 to {arguments.seeds - 1}; {time.perf_counter() - start:.0f} s in all, "
        f"{arguments.jobs} at a time"
    )


def compare(arguments: argparse.Namespace, budget: Budget, results: Sequence[Trained]) -> None:
    """Print the table of networks and of methods without training, and draw."""
    known = scenes(budget.validation, budget.size, SCENE_SEEDS["train"])
    checked = scenes(budget.test, budget.size, SCENE_SEEDS["test"])
    untrained: dict[str, dict[int, float]] = {"bicubic": {}, "joint bilateral": {}}
    remarks = []
    for factor in arguments.factors:
        options, score = chosen_bilateral(factor, known)
        methods = {"bicubic": bicubic_with(factor), "joint bilateral": bilateral_with(factor, options)}
        for name, upsample in methods.items():
            untrained[name][factor] = rmse(upsample, factor, checked)
        remarks.append(f"{factor}x, joint bilateral: {options}, {score:.2f} on training scenes")
        if arguments.out_dir is not None:
            for result in results:
                if (result.training.factor, result.training.seed) == (factor, 0):
                    methods[result.training.method] = result.upsampler()
            ordered = {name: methods[name] for name in (*untrained, *RATES)}
            draw(arguments.out_dir / f"joint_upsampling_{factor}x.png", factor, ordered, checked, SHOWN)
    print_table(arguments.factors, untrained, results)
    print()
    print("\n".join(f"- {remark}" for remark in remarks))


if __name__ == "__main__":
    main()
