"""From what matches in two photos to the depth of every pixel, with edges where the photo has them.

    python demos/bilateral_solver.py

Blocks of pixels of the left photo are looked for in the right one. How far they moved, the disparity, is
large for what is near. Where there is no texture, or something hides the place in the other photo, a match is
wrong or missing. The bilateral solver weighs each match by how far it is trusted, and fills in the rest.

Needs `pip install "hdcrf[images]" scikit-image`, which brings the photos: the motorcycle of the Middlebury
2014 benchmark, with its true disparities.
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib import colormaps
from panels import panel
from scipy.interpolate import griddata
from scipy.ndimage import gaussian_filter, uniform_filter

import hdcrf
from hdcrf.files import whole_files
from hdcrf.gaussian import bilateral_solve

HERE = Path(__file__).parent
UNKNOWN = np.array([70, 70, 70], np.uint8)


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the picture goes; by default output/ beside this file.",
)
@click.option(
    "--shrink", type=click.IntRange(1, 5), default=1, help="Make the photos so many times smaller first."
)
def main(out_dir: Path, shrink: int) -> None:
    """Complete the disparities that block matching finds in a stereo pair."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error
    from skimage.data import stereo_motorcycle  # comes with scikit-image, without a download

    left, right, truth = stereo_motorcycle()
    left, right = shrunk(left, shrink), shrunk(right, shrink)
    truth = truth[::shrink, ::shrink][: len(left), : left.shape[1]] / shrink  # infinite where not known
    most = int(np.ceil(truth[np.isfinite(truth)].max()))
    matched, confidence = match_blocks(left, right, most)

    # The points are pixels, and alike where both place and colour are.
    guide = torch.from_numpy(left).permute(2, 0, 1)[None]
    target, trust = torch.from_numpy(matched).reshape(-1, 1), torch.from_numpy(confidence).flatten()

    def joint_bilateral() -> np.ndarray:
        """Return the mean of the trusted matches in reach of a Gaussian, as wide as is best for it."""
        operator = hdcrf.build_filter(hdcrf.bilateral_features(guide, 16.0 / shrink, 8.0))
        total, reach = operator.filter(torch.stack([trust * target[:, 0], trust], 1)).unbind(1)
        found = torch.where(reach > 0, total / reach, torch.nan).reshape(matched.shape).numpy()
        return interpolated(np.nan_to_num(found), np.isfinite(found), "nearest")

    def solver() -> np.ndarray:
        """Return the solution, and say how it was reached."""
        operator = hdcrf.build_filter(hdcrf.bilateral_features(guide, 4.0, 8.0))
        solution = bilateral_solve(operator, target, trust, smoothness=4.0, tolerance=1e-3)
        click.echo(
            f"{operator.num_points} pixels, {operator.num_vertices} vertices of the lattice, "
            f"{int(solution.iterations)} iterations of the solver."
        )
        return solution.x.reshape(matched.shape).numpy()

    ways: dict[str, Callable[[], np.ndarray]] = {
        "block matching": lambda: matched,
        "nearest match": lambda: interpolated(matched, confidence > 0, "nearest"),
        "linear between matches": lambda: interpolated(matched, confidence > 0, "linear"),
        "joint bilateral filter": joint_bilateral,
        "bilateral solver": solver,
    }
    found, rows = {}, []
    for name, way in ways.items():
        begun = time.perf_counter()
        found[name] = way()
        seconds = time.perf_counter() - begun
        error = np.abs(found[name] - truth)[np.isfinite(truth)]
        rows.append(f"{name:24}{np.sqrt(np.mean(error**2)):6.2f}  {error.mean():6.2f}  {seconds:5.2f} s")
    click.echo(f"Disparities up to {most} pixels; {(confidence > 0).mean():.0%} of the pixels have a match.")
    click.echo(f"{'error in pixels':24}{'RMSE':>6}  {'mean':>6}")
    for row in rows:
        click.echo(row)

    seen = np.where(confidence > 0, matched, np.nan)
    pictures = [
        [left.round().astype(np.uint8), in_colours(seen, most), in_greys(confidence)],
        [*(in_colours(found[name], most) for name in ("linear between matches", "bilateral solver"))],
    ]
    pictures[1].append(in_colours(np.where(np.isfinite(truth), truth, np.nan), most))
    titles = [
        ["left photo", "matches", "confidence"],
        ["linear between matches", "bilateral solver", "truth"],
    ]
    names = ["far", "between", "near", "not known"]
    colours = np.vstack([colormaps["turbo"]([0.2, 0.5, 0.9])[:, :3] * 255, UNKNOWN])
    path = out_dir / "depth.png"
    with whole_files([path]) as (file,):
        panel(pictures, titles, names, colours).savefig(file, format="png")
    click.echo(path)
    click.echo(f"{time.perf_counter() - start:.1f} s.")


def shrunk(photo: np.ndarray, factor: int) -> np.ndarray:
    """Return a photo (H, W, 3) as float32, each pixel the mean of a square of factor x factor."""
    height, width = (size // factor for size in photo.shape[:2])
    squares = photo[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return squares.mean((1, 3), dtype=np.float32)


def match_blocks(left: np.ndarray, right: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the disparity of each pixel of the left photo, up to `most`, and how far to trust it.

    A match is that of least mean difference in a window of 7 x 7, without slow changes of brightness. It is
    trusted if the right photo's match leads back to it, and the more, the worse the second-best match is.
    """
    grey, other = (photo.mean(2) - gaussian_filter(photo.mean(2), 4) for photo in (left, right))
    height, width = grey.shape
    count = most + 4
    cost = np.full((count, height, width), np.inf, np.float32)
    back = np.full_like(cost, np.inf)  # the same, for the pixels of the right photo
    for moved in range(count):
        difference = np.full_like(grey, 30)
        difference[:, moved:] = np.minimum(np.abs(grey[:, moved:] - other[:, : width - moved]), 30)
        cost[moved] = uniform_filter(difference, 7)
        back[moved, :, : width - moved] = cost[moved, :, moved:]
    match = cost.argmin(0)
    rows, columns = np.indices(match.shape)
    returned = back.argmin(0)[rows, np.maximum(columns - match, 0)]
    # Windows at the right photo's edge reach beyond it.
    agreed = (np.abs(returned - match) <= 1) & (columns - match > 3)

    def at(place: np.ndarray) -> np.ndarray:
        return np.take_along_axis(cost, place[None], 0)[0]

    # Between whole pixels, the vertex of the parabola through the best match and its neighbours.
    inner = np.clip(match, 1, count - 2)
    before, best, after = at(inner - 1), at(inner), at(inner + 1)
    bend = np.maximum(before - 2 * best + after, 1e-6)
    offset = np.where(inner == match, np.clip((before - after) / (2 * bend), -0.5, 0.5), 0)

    best = at(match)
    for step in (-1, 0, 1):
        np.put_along_axis(cost, np.clip(match + step, 0, count - 1)[None], np.inf, 0)
    second = cost.min(0)
    distinct = np.clip((second - best) / (0.3 * second), 0.02, 1)
    return (match + offset).astype(np.float32), (agreed * distinct).astype(np.float32)


def interpolated(values: np.ndarray, known: np.ndarray, method: str) -> np.ndarray:
    """Return (H, W) values, those not known interpolated from the others: "linear" or "nearest"."""
    filled = values.copy()
    filled[~known] = griddata(np.argwhere(known), values[known], np.argwhere(~known), method)
    around = np.isnan(filled)  # outside of all that is known
    return interpolated(filled, ~around, "nearest") if around.any() else filled


def in_colours(disparities: np.ndarray, most: int) -> np.ndarray:
    """Return a picture of disparities (H, W), NaN where not known."""
    known = np.isfinite(disparities)
    colours = colormaps["turbo"](np.where(known, disparities, 0) / most)[..., :3] * 255
    return np.where(known[..., None], colours.round(), UNKNOWN).astype(np.uint8)


def in_greys(values: np.ndarray) -> np.ndarray:
    """Return a picture of values (H, W) from 0 to 1."""
    return (values[..., None] * 255).round().astype(np.uint8).repeat(3, 2)


if __name__ == "__main__":
    main()
