"""Worlds to cause faults in: a Redis, a Nomad, and workers with short leases."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.processes.fleet import Fleet, fleet
from tests.processes.jobs import flaky, held, scripted

QUICK: Mapping[str, str] = {
    "WORKER_LEASE_SECONDS": "5",
    "WORKER_NOMAD_TIMEOUT_SECONDS": "1.5",
    "WORKER_BLOCK_SECONDS": "0.5",
    "WORKER_SWEEP_SECONDS": "5",
}
"""Everything that is waited out after a fault, as short as a busy machine allows."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    """One Redis, one Nomad with the jobs `render`, `held` and `flaky`, no workers yet."""
    async with fleet(tmp_path, [scripted("render"), held("held"), flaky("flaky")], QUICK) as made:
        yield made


@pytest.fixture
async def patient_world(tmp_path: Path) -> AsyncIterator[Fleet]:
    """The same with every time as it is shipped, to measure against the promise."""
    async with fleet(tmp_path, [scripted("render"), held("held")]) as made:
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole processes are killed, paused, cut off: by `make test-slow`, but for those marked `telling`."""
    for item in items:
        is_process = item.get_closest_marker("processes") is not None
        if "faults" in item.path.parent.name and is_process and item.get_closest_marker("telling") is None:
            item.add_marker(pytest.mark.slow)
