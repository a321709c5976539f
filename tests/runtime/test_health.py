"""A stalled loop fails the liveness check; what serving needs fails the readiness check only."""

import asyncio
from collections.abc import Callable

import pytest

from worker.runtime.health import Health

pytestmark = pytest.mark.anyio


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_that_does_not_come_round_is_stalled_until_it_does() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    reader, _monitor = health.loop("reader"), health.loop("monitor", stall_seconds=60)

    clock.now += 31
    silent = health.stalled(), health.not_alive()
    reader()

    assert silent == (["reader"], {"reader": "has not come round in time"})
    assert health.stalled() == []
    clock.now += 61
    assert health.stalled() == ["reader", "monitor"]


def test_a_loop_that_ended_as_it_should_is_not_missed() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    ticker = health.loop("reader")

    ticker.done()
    clock.now += 31

    assert health.not_alive() == {}


def test_conditions_and_stalls_make_a_worker_unready_but_only_stalls_make_it_dead() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    health.loop("reader")

    health.condition("redis", ok=False, reason="no answer")
    health.condition("draining", ok=False)
    health.condition("nomad", ok=True)

    assert health.not_alive() == {}
    assert health.not_ready() == {"redis": "no answer", "draining": "not so"}
    health.condition("redis", ok=True)
    health.condition("draining", ok=True)
    assert health.not_ready() == {}
    clock.now += 31
    assert health.not_ready() == {"reader": "has not come round in time"}


async def test_a_loop_that_is_told_to_end_is_not_missed_however_long_the_drain_lasts() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    running = asyncio.Event()

    async def run(tick: Callable[[], None]) -> None:
        tick()
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(health.watched("reader", run))
    await running.wait()
    clock.now += 31
    stalled = health.stalled()
    task.cancel()
    await asyncio.wait([task])

    assert stalled == ["reader"]
    assert health.not_alive() == {}
