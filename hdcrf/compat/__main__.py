"""Run a script that imports pydensecrf, with hdcrf in its place: python -m hdcrf.compat script.py."""

from __future__ import annotations

import os
import runpy
import sys

from hdcrf.compat import install

USAGE = """Usage: python -m hdcrf.compat script.py [arguments]
       python -m hdcrf.compat -m module [arguments]

Runs a script or a module in which `import pydensecrf` means hdcrf.compat."""


def main() -> None:
    """Run what the arguments name, as Python itself would."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if given else sys.stderr)
        sys.exit(0 if given else 2)
    install()
    if given[0] == "-m" and len(given) > 1:
        sys.argv = given[1:]
        runpy.run_module(given[1], run_name="__main__", alter_sys=True)
        return
    script = given[0]
    if not os.path.isfile(script):
        print(f"{script}: there is no such script\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    sys.argv = given
    script = os.path.abspath(script)
    if not getattr(sys.flags, "safe_path", False):  # of Python 3.11
        sys.path[0] = os.path.dirname(script)  # was the folder it is called from
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
