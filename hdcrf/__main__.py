"""The command `hdcrf`, also `python -m hdcrf`."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Run the command line, or say in a sentence what it lacks."""
    missing = [name for module, name in (("click", "click"), ("PIL", "pillow")) if not _found(module)]
    if missing:
        needs = " and ".join(missing)
        print(f'hdcrf\'s command line needs {needs}: pip install "hdcrf[images]"', file=sys.stderr)
        sys.exit(2)
    from hdcrf.command_line import commands

    commands(prog_name="hdcrf")


def _found(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
