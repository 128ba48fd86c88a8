"""The command `hdcrf`, also `python -m hdcrf`."""

from __future__ import annotations

import gc
import importlib
import os
import sys


def main() -> None:
    """Run the command line, or say in a sentence what it lacks."""
    _open_closed_streams()
    missing = [name for module, name in (("click", "click"), ("PIL", "pillow")) if not _found(module)]
    if missing:
        needs = " and ".join(missing)
        print(f'hdcrf\'s command line needs {needs}: pip install "hdcrf[images]"', file=sys.stderr)
        sys.exit(2)
    from hdcrf.commands.main import commands

    gc.freeze()  # what PyTorch's import made stays: to look through it all at the end takes half a second
    commands(prog_name="hdcrf")


def _open_closed_streams() -> None:
    """Stand in for closed streams, or else the next file opened would get their number and the messages."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _found(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
