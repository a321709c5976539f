"""A queue longer than Nomad likes, and a Nomad that suffers: the worker finds its pace and loses nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.checker import all_is_well
from tests.processes.fleet import Fleet, fleet, until
from tests.processes.jobs import scripted

pytestmark = [pytest.mark.anyio, pytest.mark.processes, pytest.mark.slow]

UNLOADED_SECONDS = 0.1
KNEE = 4
"""So many at once are served best: 20 a second, each in twice the unloaded time."""
COUNT = 600


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, [scripted("render")]) as made:
        yield made


async def drained(world: Fleet, count: int, pace: str) -> tuple[float, float]:
    """Queue messages, then start a worker.

    Returns:
        Dispatches a second of Nomad's own time, and how long one took (unloaded: 1). How fast this machine
        is at everything else does not count.
    """
    (load,) = world.nomad.faults.planned
    held, busy = load.held_seconds, load.busy_seconds
    before = {reply.id for reply in await world.finals()}
    ids = [await world.send(job="render") for _ in range(count)]
    worker = await world.start(WORKER_DISPATCH_PACE=pace)
    await world.all_final(ids, 240)
    worker.terminate()
    assert await worker.ended(30) == 0
    await all_is_well(world, dict.fromkeys([*before, *ids], 0))
    return count / (load.busy_seconds - busy), (load.held_seconds - held) / count / UNLOADED_SECONDS


async def test_a_nomad_that_suffers_under_load_is_asked_at_the_pace_that_serves_it_best(world: Fleet) -> None:
    world.nomad.faults.load("dispatch", UNLOADED_SECONDS, KNEE)
    best = KNEE / (2 * UNLOADED_SECONDS)

    rate, slowness = await drained(world, COUNT, "adaptive")
    most, suffering = await drained(world, COUNT // 3, "fixed")

    assert rate >= 0.8 * best
    # 3.3 in theory. What the worker measures has the delays of a busy machine in it, unloaded answers too.
    assert slowness <= 5
    assert most <= 0.6 * best
    assert suffering > 8


async def test_while_nomad_has_too_much_waiting_no_more_is_read(world: Fleet) -> None:
    nodes = [node.name for node in world.nomad.state.nodes.values()]
    for name in nodes:
        world.nomad.lose_node(name)
    worker = await world.start(WORKER_NOMAD_WAITING_LIMIT="40")
    early = [await world.send(job="render") for _ in range(40)]

    async def full() -> bool:
        return await worker.metric("dispatch_concurrency_brake", reason="evaluations") == 1

    await until(full, 40, "the worker has seen what waits")
    late = [await world.send(job="render") for _ in range(200)]
    unread = await worker.metric("stream_lag_entries")
    dispatched = len(world.dispatched())
    for name in nodes:
        world.nomad.return_node(name)
    await world.all_final([*early, *late], 120)

    # A read that was under way when the worker saw it still brings what it brings.
    assert unread >= 190
    assert dispatched <= 50
    await all_is_well(world, dict.fromkeys([*early, *late], 0))
