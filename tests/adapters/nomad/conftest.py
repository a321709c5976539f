"""An agent for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.adapters.nomad.agent import Agent, running_agent


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with running_agent() as running:
        yield running
