"""A real Redis for the client's tests."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client.stage import Stage
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.dev.embedded_redis import EmbeddedRedis


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with EmbeddedRedis() as server:
        admin: Any = connect(RedisOptions(server.url), Purpose.OPS)
        try:
            yield Stage(server, admin)
        finally:
            await admin.aclose()
