"""What a TrilateralCRF adds to a small 4D network: held-out IoU on made-up streets in space and time.

    python benchmarks/trilateral_head.py                 three seeds, some minutes
    python benchmarks/trilateral_head.py --quick         a tiny run that shows that it works
    python benchmarks/trilateral_head.py --scenes 6      twice the scenes to train on, in as many steps
    python benchmarks/trilateral_head.py --shape cube    kernels of 3^4 taps in place of 9

Each seed has its own scenes, to train on and held out, and its own weights. All networks start from the same
trained backbone; where more training follows, it is as many steps, in the same order of scenes. The control
learns at a higher rate than the backbone does below a head.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, when run as a script

from benchmarks.inputs import machine_line
from demos.scenes import CITY
from demos.train_head import (
    BACKBONE_RATE,
    CHANNELS,
    HEAD_RATE,
    JOINT_RATE,
    LABELS,
    LEARN_ALL,
    Scene,
    WithHead,
    class_iou,
    make_scenes,
    new_head,
    train,
)
from demos.unet_4d import SparseUNet
from voxel import SparseTensor

HELD_OUT = 6  # scenes
CONTROL_RATE = 2e-3  # at the joint rate it would hardly move
Results = dict[str, torch.Tensor]  # the IoU of each class, by the name of the model


class Frozen(nn.Module):
    """A trained network that learns no more: its batch normalisation too stays as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)

    def forward(self, voxels: SparseTensor) -> SparseTensor:
        return self.net.eval()(voxels)


def run(seed: int, scenes: int, frames: int, epochs: int, more: int, shape: str) -> Results:
    """Train and test every model of one seed."""
    training = make_scenes(seed, scenes, frames)
    held_out = make_scenes(seed, HELD_OUT, frames, held_out=True)
    torch.manual_seed(seed)
    backbone = SparseUNet(CHANNELS, LABELS, shape=shape)
    learn(backbone, training, epochs, {backbone: BACKBONE_RATE}, seed)
    results = {"(a) backbone": class_iou(backbone, held_out)}

    longer = copy.deepcopy(backbone)
    learn(longer, training, more, {longer: CONTROL_RATE}, seed)
    results["(b) backbone, trained as long as (c)"] = class_iou(longer, held_out)

    joint = WithHead(copy.deepcopy(backbone), new_head(**LEARN_ALL))
    learn(joint, training, more, {joint.backbone: JOINT_RATE, joint.head: HEAD_RATE}, seed)
    results["(c) backbone and head, trained jointly"] = class_iou(joint, held_out)

    fixed = WithHead(Frozen(backbone), new_head(learn=()))
    results["(d) frozen backbone, fixed head"] = class_iou(fixed, held_out)

    learned = WithHead(Frozen(backbone), new_head(**LEARN_ALL))
    learn(learned, training, more, {learned.head: HEAD_RATE}, seed)
    results["(e) frozen backbone, learned head"] = class_iou(learned, held_out)
    return results


def learn(net: nn.Module, scenes: list[Scene], epochs: int, rates: dict[nn.Module, float], seed: int) -> None:
    torch.manual_seed(seed)  # the same order of the scenes for all
    for _ in train(net, scenes, epochs, rates):
        pass


def print_table(runs: list[Results]) -> None:
    print(f"| held-out IoU, % | mean | {' | '.join(CITY)} |")
    print("|---" * (len(CITY) + 2) + "|")
    for name in runs[0]:
        iou = 100 * torch.stack([results[name] for results in runs])  # (seeds, K)
        columns = [iou.nanmean(1), *iou.T]
        print(f"| {name} | {' | '.join(spread(column.tolist()) for column in columns)} |")
    print("\n| mIoU, % | " + " | ".join(f"seed {seed}" for seed in range(len(runs))) + " |")
    print("|---" * (len(runs) + 1) + "|")
    for name in runs[0]:
        print(f"| {name} | {' | '.join(f'{100 * results[name].nanmean():.1f}' for results in runs)} |")


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many runs, 1 or more")
    parser.add_argument("--scenes", type=int, default=3, help="how many to train on, 1 or more")
    parser.add_argument("--quick", action="store_true", help="short scenes, a few epochs")
    parser.add_argument("--shape", choices=("cross", "cube"), default="cross", help="of the kernels")
    arguments = parser.parse_args()
    for name in ("seeds", "scenes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    scenes = arguments.scenes
    frames, steps, more_steps = (2, 9, 6) if arguments.quick else (5, 240, 60)
    epochs, more = -(-steps // scenes), -(-more_steps // scenes)
    print(machine_line())
    size = sum(p.numel() for p in SparseUNet(CHANNELS, LABELS, shape=arguments.shape).parameters())
    print(
        f"U-Net of {size:,} parameters; {scenes} scenes of {frames} frames to train on, {HELD_OUT} held out; "
        f"{epochs} epochs alone, then {more} more\n",
        flush=True,
    )
    runs = []
    for seed in range(arguments.seeds):
        runs.append(run(seed, scenes, frames, epochs, more, arguments.shape))
        print(f"seed {seed} of {arguments.seeds} done", file=sys.stderr)
    print_table(runs)


if __name__ == "__main__":
    main()
