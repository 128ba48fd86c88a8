"""From what a network says of each frame of a video to labels that keep still.

    python demos/video_crf.py

`DenseCRF` refines frame after frame on its own; `VideoCRF` connects the pixels of all frames, in windows.

Needs `pip install "hdcrf[images]"`; with `"hdcrf[video]"` there is a video to look at too.
"""

import importlib.util
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from panels import panel
from scenes import flicker, mean_iou, moving_scene, network_output

import hdcrf
from hdcrf.files import whole_files
from hdcrf.pictures import overlay, palette
from hdcrf.video_files import VideoWriter

HERE = Path(__file__).parent
RATE = 12  # frames a second of the video


@click.command()
@click.option(
    "--out-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "output",
    help="Where the pictures go; by default output/ beside this file.",
)
@click.option("--frames", type=click.IntRange(min=2), default=36, help="How many frames to refine.")
@click.option("--size", type=click.IntRange(min=24), default=144, help="Height of a frame, in pixels.")
def main(out_dir: Path, frames: int, size: int) -> None:
    """Refine the labels of a filmed street, frame by frame and as a video."""
    start = time.perf_counter()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {out_dir} ({error.strerror})") from error

    video, truth, names = moving_scene(frames, size, size * 3 // 2)
    probabilities = network_output(truth, len(names))
    logits = hdcrf.logits_from_probabilities(torch.from_numpy(probabilities), dim=-1)
    logits = logits.permute(0, 3, 1, 2).contiguous()  # (T, K, H, W)
    guide = torch.from_numpy(video).permute(0, 3, 1, 2).contiguous()  # (T, 3, H, W)

    shared = {
        "appearance_weight": 10.0,  # as it comes
        "appearance_sigma_xy": size / 10,  # half a car; wider ones join things that only share a colour
        "appearance_sigma_rgb": 8.0,  # a little more than the noise of the camera
        "smoothness_weight": 1.0,  # less than as it comes, as people are but a few pixels wide
        "smoothness_sigma": size / 72,  # an arm, for the same reason
    }
    single = hdcrf.DenseCRF(len(names), **shared, learn=())
    together = hdcrf.VideoCRF(
        len(names),
        **shared,
        appearance_sigma_t=3.0,  # after more frames, what moves has left its place
        learn=(),
    )
    with torch.no_grad(), click.progressbar(length=2 * frames, label="Mean field", file=sys.stderr) as bar:
        labels = {"network": probabilities.argmax(-1), "each frame alone": [], "as a video": []}
        for of_frame, image in zip(logits, guide, strict=True):
            labels["each frame alone"].append(single(of_frame[None], image[None])[0].argmax(0).numpy())
            bar.update(1)
        # 2.5 sigma_t and more of overlap leave seams that cannot be seen.
        windows = hdcrf.video_in_windows(together, zip(logits, guide, strict=True), window=16, overlap=8)
        for marginals in windows:
            labels["as a video"].append(marginals.argmax(0).numpy())
            bar.update(1)
    labels = {name: np.asarray(found) for name, found in labels.items()}

    click.echo(f"{frames} frames of {video.shape[2]} x {size} pixels.")
    click.echo(f"{'':18}mean IoU  flicker")
    for name, found in labels.items():
        iou, changing = mean_iou(found, truth, len(names)), flicker(found, truth).mean()
        click.echo(f"{name:18}{iou:8.1%}  {changing:7.2%}")
    click.echo("Flicker: the pixels whose label changes from a frame to the next though the truth does not.")

    colours = palette(6)[[5, 1, 2, 3, 4, 0]]  # the sky light blue, and people dark
    shown = labels | {"truth": truth}
    chosen = np.linspace(0.2, 0.8, 3) * (frames - 1)
    rows = [
        [video[frame], *(overlay(video[frame], found[frame], colours, 0.6) for found in shown.values())]
        for frame in chosen.astype(int)
    ]
    titles = [["frame", *shown], *[[""] * (len(shown) + 1)] * (len(rows) - 1)]
    paths = [out_dir / "street.png", out_dir / "street_frames.png", out_dir / "street.mp4"]
    if importlib.util.find_spec("av") is None:
        click.echo('No video, as PyAV is missing: pip install "hdcrf[video]"')
        paths.pop()
    with whole_files(paths) as files:
        panel(rows, titles, names, colours).savefig(files[0], format="png")
        frames_plot(labels, truth, len(names)).savefig(files[1], format="png")
        if len(files) == 3:
            write_video(files[2], video, labels, colours)
    for path in paths:
        click.echo(path)
    if len(paths) == 3:
        click.echo("In the video: the frame and the network above, each frame alone and as a video below.")
    click.echo(f"{time.perf_counter() - start:.1f} s. Look at {paths[0].name} first.")


def frames_plot(labels: dict[str, np.ndarray], truth: np.ndarray, num_classes: int) -> Figure:
    """Plot mean IoU and flicker over the frames."""
    figure = Figure(figsize=(7.2, 5.0), dpi=110, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    frames = np.arange(len(truth))
    for (name, found), colour in zip(labels.items(), palette(4)[[3, 1, 0]] / 255, strict=True):
        ious = [mean_iou(*pair, num_classes) for pair in zip(found, truth, strict=True)]
        top.plot(frames, 100 * np.array(ious), label=name, color=tuple(colour))
        bottom.plot(frames[1:], 100 * flicker(found, truth), label=name, color=tuple(colour))
    top.set_ylabel("mean IoU, %")
    bottom.set_ylabel("pixels that flicker, %")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("frame")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def write_video(
    file: BinaryIO, video: np.ndarray, labels: dict[str, np.ndarray], colours: np.ndarray
) -> None:
    """Write the frames and, over them, the three labellings: two by two, at twice the size."""
    _, height, width, _ = video.shape
    with VideoWriter(file, (4 * height, 4 * width), RATE) as writer:
        for number, frame in enumerate(video):
            network, alone, together = (
                overlay(frame, found[number], colours, 0.6) for found in labels.values()
            )
            picture = np.vstack([np.hstack([frame, network]), np.hstack([alone, together])])
            writer.write(picture.repeat(2, 0).repeat(2, 1))


if __name__ == "__main__":
    main()
