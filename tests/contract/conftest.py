"""The Nomads the contract is checked on: the simulator, and a real one where there is one.

A real one is the agent at NOMAD_ADDR, else `nomad` on PATH, started once per session in dev mode.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.nomad_cluster import Cluster
from tests.nomad_agent import dev_agent
from worker.dev.simulator import Simulator


@pytest.fixture(scope="session")
def real_nomad() -> Iterator[str]:
    """The address of a real Nomad."""
    if address := os.environ.get("NOMAD_ADDR"):
        yield address.rstrip("/")
        return
    program = shutil.which("nomad")
    if not program:
        pytest.skip("no real Nomad: NOMAD_ADDR is not set and there is no `nomad` on PATH")
    with dev_agent(program) as agent:
        yield agent.address


@pytest.fixture(params=["simulator", pytest.param("nomad", marks=pytest.mark.nomad)])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    if request.param == "nomad":
        nomad = Cluster(await asyncio.to_thread(request.getfixturevalue, "real_nomad"))
        try:
            yield nomad
        finally:
            await nomad.clean()
        return
    async with Simulator(heartbeat_seconds=0.2) as simulated:
        yield Cluster(simulated.address, heartbeat_seconds=0.2)
