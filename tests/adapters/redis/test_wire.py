"""Connections that their peer closed, on the event loop that says so in words of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.dev.embedded_redis import EmbeddedRedis

WRITES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "a command": lambda connection: connection.send_command("PING"),
    "a batch": lambda connection: connection.exchange([("PING",), ("PING",)]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_to_a_connection_just_closed_is_a_failure_of_the_connection(
    write: Callable[[Any], Awaitable[Any]],
) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def story() -> None:
        async with EmbeddedRedis() as server:
            client: Any = connect(RedisOptions(server.url), Purpose.OPS)
            connection = await client.connection_pool.get_connection()
            transport = connection._writer.transport
            transport.abort()
            # uvloop closes it in a later round.
            while "closed=True" not in repr(transport):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)

            with pytest.raises((redis.ConnectionError, ConnectionResetError)):
                await write(connection)

            assert not connection.is_connected
            await client.connection_pool.release(connection)
            assert await client.ping()
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story(), 30))
