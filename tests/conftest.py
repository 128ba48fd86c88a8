"""Devices, seeds, the settings that every test runs under, labelled frames, and folders for `hdcrf batch`."""

import importlib.util
import os
import sys

# Tests in several processes, `pytest -n auto`, share the processors: told before torch starts its threads.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(threads, 1)))

import hypothesis
import numpy as np
import pytest
import torch

if "HDCRF_TEST_KERNELS" in os.environ:  # kernels of another build, as `make sanitize` makes
    spec = importlib.util.spec_from_file_location("voxel._native", os.environ["HDCRF_TEST_KERNELS"])
    sys.modules["voxel._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["voxel._native"])

from voxel.backend import why_not

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """Each available device in turn. Of session scope, so that hypothesis tests can use it."""
    return torch.device(request.param)


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    """PyTorch, and what the user gets: compiled kernels on the CPU, where they were built."""
    return request.param


@pytest.fixture(params=["reference", "native"] if not why_not else ["reference"])
def native(request, device):
    """Whether compiled kernels run."""
    if request.param == "native" and device.type != "cpu":
        pytest.skip("the kernels are for the CPU")
    return request.param == "native"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan(request):
    """Fill what `torch.empty` and its kin return with NaN, so that an output never written shows.

    PyTorch does so (`torch.utils.deterministic.fill_uninitialized_memory`) only in its deterministic mode,
    which also swaps some algorithms. A test that must see the usual ones, such as one of reproducibility,
    is marked `default_algorithms`.
    """
    if request.node.get_closest_marker("default_algorithms"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def scene(tmp_path):
    """Return folders of eight images and labels: a bright half that moves, in noise."""
    image = pytest.importorskip("PIL.Image")
    drawn = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for frame in range(8):
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 24 + 2 * frame :] = 1
        grey = 60 + 120 * labels[..., None] + drawn.normal(0, 20, (48, 64, 3))
        image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"{frame}.png")
        image.fromarray(labels).save(tmp_path / "labels" / f"{frame}.png")
    return tmp_path


@pytest.fixture
def unchanged(folder):
    """Check after the test that nothing was written, in the folder of its module, but what it named bad*."""
    from calling import contents

    before = contents(folder)
    yield
    assert contents(folder) == before


@pytest.fixture
def inputs():
    """Small photos, their true labels, and probabilities that are often wrong."""
    from batch_folder import made_inputs

    return made_inputs()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A working directory with images, probabilities, labels as PNG, and ground truth."""
    from batch_folder import write_folders

    monkeypatch.chdir(tmp_path)
    write_folders()
    return tmp_path
