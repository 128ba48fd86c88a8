"""By how much a call raises the peak memory of a process, which should be a fresh one."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable

import numpy as np


def added_memory(call: Callable[[], object]) -> float:
    """Return the MiB. Its inputs are held already, and a small call like it has been made.

    That one has loaded what is imported, and the threads have got their own memory.
    """
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what the call takes
    # The peak so far was reached while the inputs were made: fill up to it, so that any growth shows.
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize() // 1024
    filler = np.ones(max(0, peak() - resident) * 1024, dtype=np.uint8)
    before = peak()
    call()
    after = peak()
    del filler
    return (after - before) / 1024


def peak() -> int:
    """Return the largest memory, in KiB, that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
