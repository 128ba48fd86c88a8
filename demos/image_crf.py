"""From a few brush strokes to the labels of every pixel of a photo.

    python demos/image_crf.py
    python demos/image_crf.py --reference    # the example pair of pydensecrf, fetched from the network

Needs `pip install "hdcrf[images]" scikit-image`, which brings the photo.
"""

import http.client
import sys
import time
import urllib.request
from pathlib import Path

import click
import numpy as np
import torch

import hdcrf
from hdcrf.files import whole_files
from hdcrf.image_files import read_annotation, read_photo, write_picture
from hdcrf.pictures import energy_plot, overlay

HERE = Path(__file__).parent
REFERENCE = "https://raw.githubusercontent.com/lucasb-eyer/pydensecrf/master/examples/"


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the pictures go; by default output/ beside this file.",
)
@click.option(
    "--reference", is_flag=True, help="Use the example pair of pydensecrf, fetched from the network."
)
def main(out_dir: Path, reference: bool) -> None:
    """Refine brush strokes on a photo to a label for every pixel."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error

    # Each colour of the annotation is a label, and black is unknown.
    if reference:
        photo = read_photo(fetch("im1.png", out_dir), note=click.echo)
        annotation = read_annotation(fetch("anno1.png", out_dir), photo.shape[:2], note=click.echo)
        gt_prob, iterations = 0.7, 5
    else:
        from skimage.data import rocket  # of SpaceX, CC0: comes with scikit-image, without a download

        photo = rocket()
        annotation = read_annotation(HERE / "rocket_annotation.png", photo.shape[:2])
        gt_prob, iterations = 0.9, 10
    strokes, colours = hdcrf.labels_from_annotation(annotation)  # (H, W) with -1 for unknown; (K, 3)

    # Where the labelling starts from, as logits (1, K, H, W), and the photo that guides it, (1, 3, H, W).
    logits = hdcrf.logits_from_labels(torch.from_numpy(strokes)[None], len(colours), gt_prob=gt_prob)
    guide = torch.from_numpy(photo).permute(2, 0, 1)[None]

    # The reference code lets each pixel's message to itself count.
    crf = hdcrf.DenseCRF(len(colours), iterations=iterations, exclude_self=not reference, learn=())
    with (
        torch.no_grad(),
        click.progressbar(length=iterations, label="Mean field", file=sys.stderr) as bar,
    ):
        result = crf.infer(logits, guide, track=True, progress=lambda done: bar.update(1))
    labels = result.marginals[0].argmax(0).numpy()

    refined, laid_over = colours[labels], overlay(photo, labels, colours)
    gap = np.full((len(photo), 8, 3), 255, np.uint8)
    pictures = {
        "photo.png": photo,
        "annotation.png": annotation,
        "labels.png": refined,
        "overlay.png": laid_over,
        "side_by_side.png": np.hstack([overlay(photo, strokes, colours, 1), gap, refined, gap, laid_over]),
    }
    paths = [out_dir / name for name in (*pictures, "energy.png")]
    with whole_files(paths) as files:
        for file, picture in zip(files, pictures.values(), strict=False):
            write_picture(file, picture)
        energy_plot(result.energy.numpy(), result.kl.numpy()).savefig(files[-1], format="png")

    known = (strokes >= 0).mean()
    click.echo(f"{known:.1%} of the pixels were annotated, with {len(colours)} labels; now all are labelled.")
    click.echo(f"The energy went from {result.energy[0]:,.0f} to {result.energy[-1]:,.0f}.")
    for path in paths:
        click.echo(path)
    click.echo(f"{time.perf_counter() - start:.1f} s. Look at {paths[-2].name} first.")


def fetch(name: str, folder: Path) -> Path:
    """Return the file of that name in the folder, downloaded if it is not there yet."""
    path = folder / name
    if path.exists():
        return path
    try:
        with urllib.request.urlopen(REFERENCE + name, timeout=15) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(
            f"cannot fetch {REFERENCE}{name} ({error}); leave out --reference to use the photo that is here"
        ) from error
    if not content.startswith(b"\x89PNG"):
        raise click.ClickException(
            f"{REFERENCE}{name} is no PNG picture; leave out --reference to use the photo that is here"
        )
    with whole_files([path]) as (file,):
        file.write(content)
    return path


if __name__ == "__main__":
    main()
