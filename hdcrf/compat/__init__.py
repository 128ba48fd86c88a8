"""The interface of pydensecrf: a script runs after changing its import lines, or without changing any.

    import hdcrf.compat.densecrf as dcrf                # was: import pydensecrf.densecrf as dcrf
    from hdcrf.compat.utils import unary_from_softmax   # was: from pydensecrf.utils import …

`python -m hdcrf.compat script.py` runs a script as it is, and `install` does the same for a notebook. New
code is better off with `hdcrf.refine` and `hdcrf.DenseCRF`.
"""

from __future__ import annotations

import os
import sys

import torch

from hdcrf.compat import densecrf, eigen, utils

__all__ = ["densecrf", "eigen", "install", "utils"]

# Scripts share out pictures to a pool of processes. PyTorch's threads do not survive the fork: a child would
# wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def install() -> None:
    """Let `import pydensecrf` and its modules mean this package, from now on in this process.

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
