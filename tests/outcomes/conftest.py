"""The Nomads the outcomes are played on, one worker per module, and the event loop they share."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.outcomes.grounds import Ground, foreign, real, simulated


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """As in `tests/conftest.py`, but for fixtures that last as long as a module."""
    return "asyncio"


@pytest.fixture(scope="module", params=["simulator", pytest.param("nomad", marks=pytest.mark.nomad)])
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    address, program = os.environ.get("NOMAD_ADDR"), shutil.which("nomad")
    async with AsyncExitStack() as opened:
        if request.param == "simulator":
            yield await opened.enter_async_context(simulated())
        elif address:
            yield await opened.enter_async_context(foreign(address.rstrip("/")))
        elif program:
            yield await opened.enter_async_context(real(program))
        else:
            pytest.skip("no real Nomad: NOMAD_ADDR is not set and there is no `nomad` on PATH")
