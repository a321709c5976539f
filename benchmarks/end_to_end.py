"""Messages per second from XADD to the acknowledged final reply: the worker, and what one would write."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from benchmarks.common import (
    Process,
    Result,
    all_acknowledged,
    finals,
    in_turns,
    process,
    redis_server,
    send,
    stub_nomad,
    worker,
)

WARM_UP = 200
SETTINGS = {"WORKER_DISPATCH_CONCURRENCY": "32"}
WITHOUT_UVLOOP = (
    "-c",
    "import sys; sys.modules['uvloop'] = None; sys.argv[1:] = ['run']; from worker.cli import main; main()",
)
PAYLOADS = (64, 1_024, 4_096, 16_384)
WORKERS = (1, 2, 4)
IN_FLIGHT = (50, 500, 5_000)


async def run(*, full: bool) -> Result:
    """The worker and the naive worker in turns, against the same stub."""
    result = Result("end_to_end", "From XADD to the acknowledged final reply, against a stub")
    rounds, count = (7, 10_000) if full else (3, 3_000)
    sides: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
        "worker": partial(run_worker, count),
        "naive": partial(run_naive, count // 10),
        "without uvloop": partial(run_worker, count, uvloop=False),
    }
    ours, naive, bare = (await in_turns(rounds, sides)).values()
    rate = result.add("worker, of the wall clock", "messages/s", [one["rate"] for one in ours])
    per_core = result.add("worker, per core it took", "messages/s", [one["per_core"] for one in ours])
    theirs = result.add("naive worker, of the wall clock", "messages/s", [one["rate"] for one in naive])
    their_core = result.add(
        "naive worker, per core it took", "messages/s", [one["per_core"] for one in naive]
    )
    without = result.add("worker without uvloop, per core", "messages/s", [one["per_core"] for one in bare])
    times = result.ratio("worker / naive worker, of the wall clock", rate, theirs)
    result.ratio("worker / naive worker, per core", per_core, their_core)
    result.ratio("worker with uvloop / without, per core", per_core, without)
    result.target("messages per second and core", per_core, least=1_500)
    result.target("times the naive worker", times, least=5)
    if full:
        await _curves(result)
    return result


async def _curves(result: Result) -> None:
    """Throughput by payload, by messages in flight, and by workers that share the cores there are."""
    payloads = [(size, (await run_worker(3_000, payload=size))["per_core"]) for size in PAYLOADS]
    result.curve("Throughput by payload", "bytes", "messages/s and core", {"worker": payloads})
    in_flight = [(most, (await run_worker(3_000, most=most))["per_core"]) for most in IN_FLIGHT]
    result.curve("Throughput by limit in flight", "messages", "messages/s and core", {"worker": in_flight})
    rates = [(number, (await run_worker(4_000, workers=number))["rate"]) for number in WORKERS]
    result.curve("Throughput by workers", "workers", "messages/s", {"all together": rates})


async def run_worker(
    count: int, *, uvloop: bool = True, payload: int = 64, most: int = 5_000, workers: int = 1
) -> dict[str, float]:
    """One round of so many workers against the stub; every message must have succeeded, once."""
    fields: dict[str, str | bytes] = {"job": "bench", "payload": b"x" * payload, "meta": '{"who":"ada"}'}
    settings = SETTINGS | {"WORKER_MAX_IN_FLIGHT": str(most)}
    program = ("-m", "worker", "run") if uvloop else WITHOUT_UVLOOP
    async with redis_server() as (server, client), stub_nomad() as stub:
        async with AsyncExitStack() as stack:
            ours = await asyncio.gather(
                *(
                    stack.enter_async_context(worker(server.url, stub.address, program=program, **settings))
                    for _ in range(workers)
                )
            )
            await all_acknowledged(client, (await send(client, WARM_UP, fields))[-1], 30)
            figures = await _timed(client, count, fields, *ours)
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
            return await _timed(client, count, None, naive)


async def _timed(
    client: Any, count: int, fields: dict[str, str | bytes] | None, *measured: Process
) -> dict[str, float]:
    cpu, started = sum(one.cpu_seconds for one in measured), time.perf_counter()
    ids = await send(client, count, fields)
    wall = await all_acknowledged(client, ids[-1], 180) - started
    cpu = sum(one.cpu_seconds for one in measured) - cpu
    return {"rate": count / wall, "per_core": count / cpu}
