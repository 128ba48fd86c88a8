"""What there is to compute on: CPUs and memory, of which a process may be allowed a part."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["cpu_count", "memory_of"]

_CGROUPS = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Return how many CPUs this process may run on: of a shared machine, often fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of a device's whole memory, or what a container has of it; None if that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([memory, *_limits(_own_groups())])


def _own_groups() -> list[Path]:
    """Return the control groups of this process that may limit its memory, of either version of them."""
    groups = [_CGROUPS, _CGROUPS / "memory"]  # what a container sees of its own
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                groups.append(_CGROUPS / controllers / path.strip().lstrip("/"))
    return groups


def _limits(groups: Sequence[Path]) -> Iterator[int]:
    """Yield the limits of memory of control groups, and of those that they are in."""
    for folder in {folder for group in groups for folder in (group, *group.parents)}:
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # there is none, or "max"
                yield int((folder / name).read_text())
