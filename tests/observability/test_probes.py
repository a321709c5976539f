"""A whole worker whose loops stall: the probes name them until they come round again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.observability.stage import Stage, stage, until
from worker.adapters.redis.cancels import RedisCancels
from worker.adapters.redis.inbox import RedisInbox
from worker.adapters.redis.leases import RedisLeases

pytestmark = pytest.mark.anyio

LOOPS: dict[str, tuple[type[Any], str]] = {
    "intake": (RedisInbox, "read"),
    "cancels": (RedisCancels, "listen"),
    "take over": (RedisLeases, "dead"),
    "heartbeat": (RedisLeases, "beat"),
}
"""Each with the call that it hangs in."""
STALLED = dict.fromkeys(LOOPS, "has not come round in time")


async def test_loops_that_stall_fail_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = asyncio.Event()
    goes_on.set()
    for kind, method in LOOPS.values():
        monkeypatch.setattr(kind, method, waiting(getattr(kind, method), goes_on))
    async with stage({"WORKER_STALL_SECONDS": "10"}) as world:
        healthy = await reasons(world, "/healthz"), await reasons(world, "/readyz")
        goes_on.clear()
        await until(lambda: tells(world, STALLED), 40, "all of them are noticed")
        ready = await reasons(world, "/readyz")
        goes_on.set()
        await until(lambda: tells(world, {}), 40, "they come round again")

    assert healthy == ({}, {})
    # It does not take new work either, and says why: the lease is over too.
    assert STALLED.items() <= ready.items()
    assert "redis" in ready


def waiting(method: Callable[..., Awaitable[Any]], goes_on: asyncio.Event) -> Callable[..., Awaitable[Any]]:
    async def call(*arguments: Any) -> Any:
        await goes_on.wait()
        return await method(*arguments)

    return call


async def tells(world: Stage, expected: dict[str, str]) -> bool:
    return await reasons(world, "/healthz") == expected


async def reasons(world: Stage, path: str) -> dict[str, str]:
    answer = await world.get(path)
    told: dict[str, str] = answer.json()["reasons"]
    assert answer.status_code == (503 if told else 200)
    return told
