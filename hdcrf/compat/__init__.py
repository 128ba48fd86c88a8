"""The interface of pydensecrf: a script runs after changing its import lines, or without changing any.

    import hdcrf.compat.densecrf as dcrf                # was: import pydensecrf.densecrf as dcrf
    from hdcrf.compat.utils import unary_from_softmax   # was: from pydensecrf.utils import …

`python -m hdcrf.compat script.py` runs a script as it is, and `install` does the same for a notebook. New
code is better off with `hdcrf.refine` and `hdcrf.DenseCRF`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

import torch

from hdcrf.compat import densecrf, eigen, utils

__all__ = ["densecrf", "eigen", "install", "utils"]

_STAND_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stand_in")


def _on_one_thread() -> None:
    torch.set_num_threads(1)


def _forked() -> bool:
    """Return whether `multiprocessing` has forked this process from another."""
    if sys.platform == "win32" or multiprocessing.parent_process() is None:
        return False
    process = multiprocessing.current_process()
    if isinstance(process, multiprocessing.Process):  # started in the default way
        return multiprocessing.get_start_method(allow_none=True) == "fork"
    return isinstance(process, multiprocessing.context.ForkProcess)


# Scripts share out pictures to a pool of processes. PyTorch's threads do not survive a fork: the child would
# wait for them for ever. It may be forked from here, or import this itself.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_on_one_thread)
if _forked():
    _on_one_thread()


def install() -> None:
    """Let `import pydensecrf` and its modules mean this package, here and in processes started from here.

    It changes `sys.path` and the environment's PYTHONPATH, which those processes go by.

    Raises:
        RuntimeError: If pydensecrf itself has been imported already.
    """
    package = sys.modules[__name__]
    if sys.modules.get("pydensecrf", package) is not package:
        raise RuntimeError(
            "pydensecrf has been imported already; call hdcrf.compat.install() before anything imports it"
        )
    sys.modules["pydensecrf"] = package
    for module in (densecrf, eigen, utils):
        sys.modules[f"pydensecrf.{module.__name__.rpartition('.')[2]}"] = module
    if _STAND_IN not in sys.path:
        sys.path.insert(1, _STAND_IN)  # after the script's own folder
    inherited = os.environ.get("PYTHONPATH", "")
    if _STAND_IN not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = _STAND_IN + (os.pathsep + inherited if inherited else "")
