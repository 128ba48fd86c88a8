"""Run a script that imports pydensecrf, with hdcrf in its place: python -m hdcrf.compat script.py."""

from __future__ import annotations

import os
import pkgutil
import runpy
import sys

from hdcrf.compat import install

USAGE = """Usage: python -m hdcrf.compat script.py [arguments]
       python -m hdcrf.compat -m module [arguments]

Runs a script or a module in which `import pydensecrf` means hdcrf.compat; a folder or an archive with a
__main__.py too."""


def main() -> None:
    """Run what the arguments name, as Python itself would."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if given else sys.stderr)
        sys.exit(0 if given else 2)
    if given[0] == "-m" and len(given) > 1:
        install()
        sys.argv = given[1:]
        kept = runpy.run_module(given[1], run_name="__main__", alter_sys=True)
    elif os.path.exists(given[0]):
        install()
        sys.argv = given
        kept = _run_script(os.path.abspath(given[0]))
    else:
        print(f"{given[0]}: there is no such script\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    # Threads of the script may live on, and pickle functions by their names in __main__.
    vars(sys.modules["__main__"]).update(kept)


def _run_script(script: str) -> dict[str, object]:
    """Run a script, or a folder or an archive, and return its names."""
    if not getattr(sys.flags, "safe_path", False):  # of Python 3.11
        del sys.path[0]  # the folder that this is called from
        if pkgutil.get_importer(script) is None:  # a folder or an archive comes first by itself
            sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    return runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
