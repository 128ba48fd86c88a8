"""What it costs to refine a video, a volume or a cloud in parts: how far labels are from those of the whole.

    python benchmarks/seams.py            some minutes
    python benchmarks/seams.py --quick    small inputs, under a minute

The whole is refined at once, and in parts that share an overlap of 0, 1 and 2.5 standard deviations of
position or time. "Near seams" is what lies within one standard deviation of a border of any part. The last
row has no parts: the whole cloud, moved by half a standard deviation, which puts the lattice elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hdcrf

try:
    from benchmarks.inputs import machine_line
except ModuleNotFoundError:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.inputs import machine_line
from demos.scenes import ROOM, damaged_labels, moving_scene, network_output, scanned_room

OVERLAPS = (0.0, 1.0, 2.5)  # standard deviations


def borders(length: float, part: float, overlap: float) -> np.ndarray:
    """Return where parts of an axis begin and end, its own two ends left out."""
    starts = np.arange(0, max(length - overlap, part - overlap), part - overlap)
    ends = np.concatenate([starts, starts + part])
    return ends[(ends > 0) & (ends < length)]


def near(places: np.ndarray, of_borders: np.ndarray, distance: float) -> np.ndarray:
    """Return which places along an axis lie within a distance of a border."""
    if not len(of_borders):
        return np.zeros(places.shape, bool)
    ends = np.sort(of_borders)
    after = np.searchsorted(ends, places).clip(0, len(ends) - 1)
    before = (after - 1).clip(0)
    return np.minimum(np.abs(places - ends[after]), np.abs(places - ends[before])) <= distance


def print_rows(
    name: str,
    whole: Tensor,  # (N, K) marginals
    in_parts: Callable[[float], Tensor],  # the same in parts that overlap by so many standard deviations
    near_seams: Callable[[float], np.ndarray],  # (N,)
) -> None:
    for overlap in OVERLAPS:
        parts = in_parts(overlap)
        seam = torch.from_numpy(near_seams(overlap))
        cells = [*differences(parts, whole), *differences(parts[seam], whole[seam])]
        print(f"| {name} | {overlap:g} σ | {' | '.join(cells)} |", flush=True)


def differences(marginals: Tensor, expected: Tensor) -> tuple[str, str]:
    """Return the mean absolute difference of (N, K), and the share of labels that differ."""
    error = (marginals - expected).abs().mean()
    labels = (marginals.argmax(1) != expected.argmax(1)).float().mean()
    return f"{float(error):.5f}", f"{float(labels):.3%}"


def print_video(quick: bool) -> None:
    frames, height, width, window, sigma = (12, 32, 48, 6, 1.0) if quick else (48, 96, 144, 16, 3.0)
    video, truth, names = moving_scene(frames, height, width)
    probabilities = torch.from_numpy(network_output(truth, len(names)))
    logits = hdcrf.logits_from_probabilities(probabilities, dim=-1).movedim(3, 1)  # (T, K, H, W)
    guide = torch.from_numpy(video).movedim(3, 1)
    crf = hdcrf.VideoCRF(
        len(names),
        appearance_sigma_xy=height / 8,
        appearance_sigma_t=sigma,
        appearance_sigma_rgb=10.0,
        learn=(),
    )
    with torch.no_grad():
        whole = crf(logits.movedim(0, 1)[None], guide.movedim(0, 1)[None])[0]

    def shared(overlap: float) -> int:
        return round(overlap * sigma)

    def in_parts(overlap: float) -> Tensor:
        pairs = zip(logits, guide, strict=True)
        refined = hdcrf.video_in_windows(crf, pairs, window=window, overlap=shared(overlap))
        return torch.stack(list(refined)).movedim(1, -1).flatten(0, 2)

    def near_seams(overlap: float) -> np.ndarray:
        middles = np.arange(frames) + 0.5
        seam = near(middles, borders(frames, window, shared(overlap)), sigma)
        return np.repeat(seam, height * width)

    print_rows("video", whole.movedim(0, -1).flatten(0, 2), in_parts, near_seams)


def nested_ellipsoids(size: int) -> tuple[Tensor, Tensor]:
    """Return logits (4, D, H, W) and intensities (1, D, H, W) of shells that hold one another, with noise."""
    random = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    labels = np.zeros((size,) * 3, np.int64)
    intensities = np.full(labels.shape, 40.0)
    for label, (centre, axes, level) in enumerate(
        [
            ((0, 0, 0), (0.9, 0.8, 0.7), 100.0),
            ((0.1, -0.1, 0), (0.65, 0.5, 0.45), 140.0),
            ((0.2, 0, 0.1), (0.3, 0.25, 0.2), 80.0),
        ],
        1,
    ):
        reach = sum(((x - c) / a) ** 2 for x, c, a in zip(place, centre, axes, strict=True))
        labels[reach < 1], intensities[reach < 1] = label, level
    intensities += 12 * random.standard_normal(labels.shape)
    given = damaged_labels(labels, flipped=0.3, unknown=0.3)
    logits = hdcrf.logits_from_labels(torch.from_numpy(given)[None], 4, gt_prob=0.7)[0]
    return logits, torch.from_numpy(intensities.astype(np.float32))[None]


def print_volume(quick: bool) -> None:
    size, block, sigma = (24, 12, 2.0) if quick else (64, 32, 4.0)
    logits, guide = nested_ellipsoids(size)
    crf = hdcrf.VolumeCRF(4, appearance_sigma_xyz=sigma, appearance_sigma_intensity=20.0, learn=())
    with torch.no_grad():
        whole = crf(logits[None], guide[None])[0]

    def shared(overlap: float) -> int:
        return round(overlap * sigma)

    def in_parts(overlap: float) -> Tensor:
        refined = hdcrf.volume_in_blocks(
            crf, logits, guide, block=(block,) * 3, overlap=(shared(overlap),) * 3
        )
        return refined.flatten(1).T

    def near_seams(overlap: float) -> np.ndarray:
        seam = near(np.arange(size) + 0.5, borders(size, block, shared(overlap)), sigma)
        return (seam[:, None, None] | seam[:, None] | seam).ravel()

    print_rows("volume", whole.flatten(1).T, in_parts, near_seams)


def print_cloud(quick: bool) -> None:
    points = 10_000 if quick else 100_000
    block, sigma = 2.0, 0.3
    positions, colours, _, truth, _ = scanned_room(points)
    given = torch.from_numpy(damaged_labels(truth))
    logits = hdcrf.logits_from_labels(given[None], len(ROOM), gt_prob=0.8)[0].T.contiguous()
    positions, colours = torch.from_numpy(positions), torch.from_numpy(colours)
    crf = hdcrf.PointCRF(len(ROOM), appearance_sigma_xyz=sigma, learn=())
    with torch.no_grad():
        whole = crf(logits, positions, colours=colours)

    def in_parts(overlap: float) -> Tensor:
        return hdcrf.points_in_blocks(
            crf, logits, positions, colours=colours, block=block, overlap=overlap * sigma
        )

    def near_seams(overlap: float) -> np.ndarray:
        offset = (positions - positions.amin(0)).numpy()
        axes = [
            near(of_axis, borders(float(of_axis.max()), block, overlap * sigma), sigma)
            for of_axis in offset.T
        ]
        return np.any(axes, axis=0)

    print_rows("cloud", whole, in_parts, near_seams)
    with torch.no_grad():
        moved = crf(logits, positions + sigma / 2, colours=colours)
    print(f"| cloud, moved | | {' | '.join(differences(moved, whole))} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small inputs")
    quick = parser.parse_args().quick
    print(machine_line())
    print("\nMean absolute difference of the marginals from those of the whole, and labels that differ\n")
    print("| input | overlap | marginals | labels | marginals near seams | labels near seams |")
    print("|---|---|---|---|---|---|")
    print_video(quick)
    print_volume(quick)
    print_cloud(quick)


if __name__ == "__main__":
    main()
