"""A small map of depth brought to the size of a photo, with edges where the photo has them.

    python demos/joint_upsampling.py

Many sensors measure depth at a few pixels for which a camera has many. Interpolation blurs the edges of
things over as many pixels as there are between two measurements. Joint bilateral upsampling, a pixel-adaptive
transposed convolution, lets pixels take after the measurements that look like them.

Needs `pip install "hdcrf[images]" scikit-image`, which brings the photo: the motorcycle of the Middlebury
2014 benchmark, with its true disparities, which are large for what is near.
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from bilateral_solver import UNKNOWN, in_colours, interpolated, shrunk
from matplotlib import colormaps
from panels import panel
from scipy.ndimage import map_coordinates

from hdcrf.files import whole_files
from hdcrf.pac import joint_bilateral_upsample

HERE = Path(__file__).parent


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the picture goes; by default output/ beside this file.",
)
@click.option("--factor", type=click.IntRange(2, 32), default=8, help="By how much to enlarge.")
@click.option(
    "--shrink", type=click.IntRange(1, 5), default=1, help="Make the photo so many times smaller first."
)
def main(out_dir: Path, factor: int, shrink: int) -> None:
    """Bring disparities at every so many pixels to all pixels of a photo."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error
    from skimage.data import stereo_motorcycle  # comes with scikit-image, without a download

    photo, _, truth = stereo_motorcycle()
    photo = shrunk(photo, shrink)
    height, width = (size // factor * factor for size in photo.shape[:2])
    photo = photo[:height, :width]
    truth = truth[::shrink, ::shrink][:height, :width] / shrink  # infinite where not known
    known = np.isfinite(truth)
    # Samples where nothing is known take the nearest disparity that is; errors count where it is known.
    filled = interpolated(np.where(known, truth, 0), known, "nearest").astype(np.float32)
    small = filled[::factor, ::factor]

    def bicubic() -> np.ndarray:
        """Return a cubic spline through the measurements, which lie at every factor-th pixel."""
        return map_coordinates(small, np.indices(truth.shape) / factor, order=3, mode="nearest")

    def joint_bilateral() -> np.ndarray:
        values = torch.from_numpy(small)[None, None]
        guide = torch.from_numpy(photo).permute(2, 0, 1)[None]
        return joint_bilateral_upsample(values, guide, factor, sigma_guide=12.0, offset=0.0)[0, 0].numpy()

    ways: dict[str, Callable[[], np.ndarray]] = {
        "nearest": lambda: small.repeat(factor, 0).repeat(factor, 1),
        "bicubic": bicubic,
        "joint bilateral": joint_bilateral,
    }
    most = int(np.ceil(truth[known].max()))
    click.echo(
        f"{small.shape[1]} x {small.shape[0]} disparities for {width} x {height} pixels, up to {most}."
    )
    click.echo(f"{'error in pixels':24}{'RMSE':>6}  {'mean':>6}")
    found = {}
    for name, way in ways.items():
        begun = time.perf_counter()
        found[name] = way()
        seconds = time.perf_counter() - begun
        error = np.abs(found[name] - truth)[known]
        click.echo(f"{name:24}{np.sqrt(np.mean(error**2)):6.2f}  {error.mean():6.2f}  {seconds:5.2f} s")

    rows, columns = (slice(size // 4, size // 4 + size // 2) for size in (height, width))
    shown = [
        [photo.round().astype(np.uint8), in_colours(found["nearest"], most)],
        [in_colours(found[name], most) for name in ("bicubic", "joint bilateral")],
    ]
    shown[0].append(in_colours(np.where(known, truth, np.nan), most))
    errors = [np.abs(found[name] - filled) * known for name in ("bicubic", "joint bilateral")]
    shown[1].append(in_signs((errors[0] - errors[1]) / 4))
    titles = [
        ["photo", f"every {factor}th disparity", "truth"],
        ["bicubic", "joint bilateral", "green: joint bilateral is nearer the truth; red: bicubic"],
    ]
    names = ["far", "between", "near", "not known"]
    colours = np.vstack([colormaps["turbo"]([0.2, 0.5, 0.9])[:, :3] * 255, UNKNOWN])
    path = out_dir / "joint_upsampling.png"
    with whole_files([path]) as (file,):
        cut = [[picture[rows, columns] for picture in row] for row in shown]
        panel(cut, titles, names, colours).savefig(file, format="png")
    click.echo(path)


def in_signs(values: np.ndarray) -> np.ndarray:
    """Return a picture of values (H, W) from -1, red, over 0, grey, to 1, green."""
    values = values.clip(-1, 1)[..., None]
    grey, red, green = (np.array(colour) for colour in ((70, 70, 70), (230, 60, 40), (60, 200, 90)))
    return (grey + np.where(values > 0, green - grey, red - grey) * abs(values)).round().astype(np.uint8)


if __name__ == "__main__":
    main()
