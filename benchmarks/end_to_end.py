"""Messages per second from XADD to the acknowledged final reply: the worker, and what one would write."""

import sys
import time
from typing import Any

from benchmarks.common import (
    Process,
    Result,
    all_acknowledged,
    finals,
    process,
    redis_server,
    send,
    stub_nomad,
    worker,
)

WARM_UP = 200


async def run(*, full: bool) -> Result:
    """The worker and the naive worker in turns, against the same stub."""
    result = Result("end_to_end", "From XADD to the acknowledged final reply, against a stub")
    rounds, count = (7, 10_000) if full else (3, 3_000)
    ours, naive = [], []
    for _ in range(rounds):
        ours.append(await run_worker(count))
        naive.append(await run_naive(count // 10))
    rate = result.add("worker, of the wall clock", "messages/s", [one["rate"] for one in ours])
    per_core = result.add("worker, per core it took", "messages/s", [one["per_core"] for one in ours])
    theirs = result.add("naive worker, of the wall clock", "messages/s", [one["rate"] for one in naive])
    result.add("naive worker, per core it took", "messages/s", [one["per_core"] for one in naive])
    times = result.ratio("worker / naive worker", rate, theirs)
    result.target("messages per second and core", per_core, least=1_500)
    result.target("times the naive worker", times, least=5)
    return result


async def run_worker(count: int, **settings: str) -> dict[str, float]:
    """One round of the worker against the stub."""
    async with redis_server() as (server, client), stub_nomad() as stub:
        async with worker(server.url, stub.address, WORKER_DISPATCH_CONCURRENCY="32", **settings) as ours:
            await all_acknowledged(client, (await send(client, WARM_UP))[-1], 30)
            figures = await _timed(client, count, ours)
        replies = await finals(client)
        assert len({reply.id for reply in replies}) == len(replies) == count + WARM_UP
        assert all(reply.verdict == "succeeded" for reply in replies)
        return figures


async def run_naive(count: int) -> dict[str, float]:
    """One round of the naive worker against the stub."""
    async with redis_server() as (server, client), stub_nomad() as stub:
        command = (sys.executable, "-m", "benchmarks.naive", server.url, stub.address)
        async with process(*command) as naive:
            await all_acknowledged(client, (await send(client, WARM_UP))[-1], 30)
            return await _timed(client, count, naive)


async def _timed(client: Any, count: int, measured: Process) -> dict[str, float]:
    cpu, started = measured.cpu_seconds, time.perf_counter()
    ids = await send(client, count)
    wall = await all_acknowledged(client, ids[-1], 120) - started
    cpu = measured.cpu_seconds - cpu
    return {"rate": count / wall, "per_core": count / cpu}
