"""Installing with a compiler, and without one."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("hdcrf", "lattice", "voxel", "native", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what a release holds, so that no build leaves anything in the working tree."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(path, folder)
    return folder


def wheel(sources, folder, **environment):
    """Build a wheel, unpack it, and return where it lies and what pip printed."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--verbose", "--wheel-dir", folder, sources]
    command += ["-C", "cmake.build-type=Debug"]  # to optimise takes three times as long
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.glob("hdcrf-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return built.name, folder / "unpacked", result.stdout + result.stderr


def python(unpacked, program):
    """Run a program that imports the unpacked wheel rather than the working tree."""
    program = f"""
import sys
# The finder of an editable installation would come first.
sys.meta_path = [finder for finder in sys.meta_path if "ditable" not in type(finder).__module__]
sys.path.insert(0, {str(unpacked)!r})
{textwrap.dedent(program)}
assert hdcrf.__file__.startswith({str(unpacked)!r}), hdcrf.__file__
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=unpacked, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


REFINE = """
    import numpy as np
    import hdcrf
    from hdcrf.__main__ import main
    photo = np.zeros((20, 30, 3), np.uint8)
    photo[:, 15:] = 200
    strokes = np.full((20, 30), -1)
    strokes[10, 3], strokes[10, 27] = 0, 1
    labels = hdcrf.refine(photo, labels=strokes)
    assert (labels == (np.arange(30) >= 15)).all()
    sys.argv = ["hdcrf", "info"]
    try:
        main()
    except SystemExit:
        pass
"""


def test_with_a_compiler(sources, tmp_path):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no compiler here")
    name, unpacked, _ = wheel(sources, tmp_path)
    assert not name.endswith("-none-any.whl")
    assert len(list((unpacked / "voxel").glob("_native*"))) == 1
    assert "compiled kernels, on the CPU: yes" in python(unpacked, REFINE)


def test_without_a_compiler(sources, tmp_path):
    # Where no compiler is: CMake finds none in the folders that are left, nor by name.
    missing = str(tmp_path / "no-compiler")
    name, unpacked, output = wheel(sources, tmp_path, CXX=missing, CC=missing)
    assert name.endswith("-none-any.whl")
    assert "The compiled kernels could not be built" in output
    assert not list((unpacked / "voxel").glob("_native*"))
    assert (unpacked / "hdcrf" / "folders" / "report.html").is_file()
    information = python(unpacked, REFINE)
    assert "compiled kernels, on the CPU: not used, they were not built" in information
    forced = """
        import torch
        import hdcrf
        try:
            hdcrf.build_filter(torch.rand(5, 2), backend="native")
        except ValueError as error:
            print(error)
    """
    assert "`backend='native'` needs the compiled kernels" in python(unpacked, forced)
