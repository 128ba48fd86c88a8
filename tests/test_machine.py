"""How many CPUs and how much memory a process has."""

import os

import pytest
import torch

from hdcrf import machine

CPU = torch.device("cpu")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system shares out no CPUs")
def test_cpus_that_the_process_may_not_run_on_do_not_count():
    own = os.sched_getaffinity(0)
    assert machine.cpu_count() == len(own)
    try:
        os.sched_setaffinity(0, {min(own)})
        assert machine.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, own)


@pytest.mark.parametrize("name", ["memory.max", "memory.limit_in_bytes"])
def test_memory_is_what_the_container_has(name, tmp_path, monkeypatch):
    whole = machine.memory_of(CPU)
    if whole is None:
        pytest.skip("the system does not say how much memory it has")
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr(machine, "_own_groups", lambda: [inner])
    (inner / name).write_text("max\n" if name == "memory.max" else f"{1 << 63}\n")
    assert machine.memory_of(CPU) >= whole
    (tmp_path / "outer" / name).write_text(f"{1 << 20}\n")
    assert machine.memory_of(CPU) == 1 << 20
    (inner / name).write_text(f"{1 << 19}\n")
    assert machine.memory_of(CPU) == 1 << 19


def test_groups_are_those_of_this_process():
    assert machine._CGROUPS in machine._own_groups()
    assert machine.memory_of(CPU) is None or machine.memory_of(CPU) > 1 << 28
