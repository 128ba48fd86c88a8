"""The command line: `hdcrf`, its commands, and `hdcrf info`.

Exit codes: 0 done, 1 something failed on the way, 2 wrong usage or input, 130 interrupted, 129 or 143 ended
by SIGHUP or SIGTERM.
"""

from __future__ import annotations

import platform

import click
import torch

import hdcrf
from hdcrf.commands.batch import batch
from hdcrf.commands.failures import Commands
from hdcrf.commands.image import image
from hdcrf.commands.points import points
from hdcrf.commands.running import version_of
from hdcrf.commands.tune import tune
from hdcrf.commands.video import video
from hdcrf.commands.volume import volume
from hdcrf.machine import cpu_count
from voxel.backend import why_not

__all__ = ["commands"]

PACKAGES = (
    "torch",
    "numpy",
    "pillow",
    "click",
    "matplotlib",
    "tifffile",
    "optuna",
    "av",
    "nibabel",
    "laspy",
    "open3d",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hdcrf.__version__, prog_name="hdcrf")
def commands() -> None:
    """Dense CRFs by high-dimensional Gaussian filtering."""


commands.add_command(image)
commands.add_command(batch)
commands.add_command(video)
commands.add_command(points)
commands.add_command(volume)
commands.add_command(tune)


@commands.command()
def info() -> None:
    """Print versions, devices and back ends, for a report of a problem."""
    click.echo(f"hdcrf       {hdcrf.__version__}")
    click.echo(f"python      {platform.python_version()} ({platform.python_implementation()})")
    for package in PACKAGES:
        click.echo(f"{package:<12}{version_of(package) or 'not installed'}")
    click.echo(f"platform    {platform.platform()}")
    click.echo(f"threads     {torch.get_num_threads()} of {cpu_count()} CPUs")
    click.echo(f"device      cpu: {platform.processor() or platform.machine()}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        click.echo(
            f"device      cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
            f"CUDA {torch.version.cuda or torch.version.hip}"
        )
    if not torch.cuda.device_count():
        click.echo("device      no CUDA device found")
    click.echo("back end    PyTorch, on every device")
    click.echo(f"back end    compiled kernels, on the CPU: {f'not used, {why_not}' if why_not else 'yes'}")
