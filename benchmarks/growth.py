"""What a message costs with a million others around, and how soon the jobs of a dead worker are adopted."""

import asyncio
import json
import sys
import time
from typing import Any

from benchmarks.common import (
    GROUP,
    KEYS,
    STREAM,
    Measured,
    Result,
    Stub,
    all_acknowledged,
    first_line,
    process,
    redis_server,
    send,
    stub_nomad,
    worker,
)

COUNT = 5_000
FILL = """
-- As they stand in a worker's Redis: entries still to come, and ledgers of messages settled long ago.
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  redis.call('XADD', KEYS[1], '*', 'job', 'bench', 'payload', string.rep('x', 64), 'detach', '1')
  redis.call('HSET', KEYS[2] .. i .. '-0', 'v', '1', 'state', 'settled', 'token', i .. '-0', 'job', 'bench',
    'seq', '5', 'attempt', '1', 'verdict', 'succeeded', 'exit_code', '0', 'reply_id', i .. '-1',
    'reply_stream', '{dispatch}:replies', 'child', 'bench/dispatch-1795484592-' .. i,
    'eval_id', '69048121-e42c-ae4b-ff12-26691881a2a7', 'received_at', i, 'dispatched_at', i, 'finished_at', i)
  redis.call('PEXPIRE', KEYS[2] .. i .. '-0', 604800000)
end
"""
FILLED_AT_ONCE = 10_000


async def run(*, full: bool) -> Result:
    """Sizes in turns; then a worker is killed, and another takes its jobs."""
    result = Result("growth", "Cost per message with more in stream and ledger; recovery")
    sizes = (0, 100_000, 1_000_000) if full else (0, 1_000_000)
    rounds = 5 if full else 3
    told: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for number in range(rounds):
        turn = number % len(sizes)
        for size in (*sizes[turn:], *sizes[:turn]):
            told[size].append(await _cost(size))
    of_worker: dict[int, Measured] = {}
    of_redis: dict[int, Measured] = {}
    for size, figures in told.items():
        for side, found in (("worker", of_worker), ("Redis", of_redis)):
            values = [one[side] for one in figures]
            found[size] = result.add(f"{size:,} entries: {side}", "us/message", values)
    for size in sizes[1:]:
        mine = result.ratio(f"worker, {size:,} / 0", of_worker[size], of_worker[0])
        its = result.ratio(f"Redis, {size:,} / 0", of_redis[size], of_redis[0])
        result.target(f"a message's cost to the worker at {size:,}, to that at 0", mine, most=1.1)
        result.target(f"a message's cost to Redis at {size:,}, to that at 0", its, most=1.1)
    lines = {
        "worker": [(size, of_worker[size].median) for size in sizes],
        "Redis": [(size, of_redis[size].median) for size in sizes],
    }
    result.curve("Processor time per message", "entries in stream and ledger", "microseconds", lines)
    await _recovery(result, 10_000)
    return result


async def _cost(size: int) -> dict[str, float]:
    """Processor time of the worker and of Redis for COUNT messages, with `size` more around them."""
    async with redis_server() as (server, client):
        await send(client, COUNT, {"job": "bench", "payload": b"x" * 64, "detach": "1"})
        for start in range(1, size + 1, FILLED_AT_ONCE):
            keys = (STREAM, f"{KEYS.prefix}:message:requests:")
            await client.eval(FILL, 2, *keys, start, min(size, start + FILLED_AT_ONCE - 1))
        await client.config_resetstat()
        before = await _redis_cpu(client)
        environment = {
            "REDIS_URL": server.url,
            "NOMAD_ADDR": "http://127.0.0.1:1",
            "WORKER_HTTP_ADDR": "127.0.0.1:0",
            "WORKER_MAX_IN_FLIGHT": "500",
        }
        command = (sys.executable, "-m", "benchmarks.null_worker", str(COUNT))
        async with process(*command, log=None, **environment) as started:
            figures = json.loads(await first_line(started))
        spent = await _redis_cpu(client) - before
        return {"worker": 1e6 / figures["per_core"], "Redis": spent / COUNT * 1e6}


async def _redis_cpu(client: Any) -> float:
    told = await client.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


async def _recovery(result: Result, count: int) -> None:
    """Kill a worker that holds running jobs; another one, there already, takes them all."""
    async with redis_server() as (server, client), stub_nomad(ended=None) as stub:
        settings = {"WORKER_MAX_IN_FLIGHT": str(count), "WORKER_DISPATCH_CONCURRENCY": "32"}
        async with worker(server.url, stub.address, WORKER_NAME="first", **settings) as first:
            sent = await send(client, count)
            await _all_dispatched(stub, count)
            async with worker(server.url, stub.address, WORKER_NAME="second", **settings) as second:
                await asyncio.sleep(12)  # nobody takes over before it has seen a whole lease itself
                cpu, killed = second.cpu_seconds, time.perf_counter()
                first.process.kill()
                begun = await _held_by(client, "second", 1)
                taken = await _held_by(client, "second", count)
                result.add(f"{count:,} jobs: from the kill to the first one taken", "s", [begun - killed])
                result.add(f"{count:,} jobs: from the first one taken to the last", "s", [taken - begun])
                result.add(f"{count:,} jobs: the taker's processor time", "s", [second.cpu_seconds - cpu])
                await stub.release()
                ended = time.perf_counter()
                done = await all_acknowledged(client, sent[-1], 120)
                result.add(f"{count:,} jobs: from their end to the last final reply", "s", [done - ended])


async def _all_dispatched(stub: Stub, count: int) -> None:
    """Wait for the last dispatch, and some seconds more for what is told of it."""
    async with asyncio.timeout(120):
        while (await stub.stats())["dispatches"] < count:  # noqa: ASYNC110 - it tells when it is asked
            await asyncio.sleep(0.2)
    await asyncio.sleep(3)


async def _held_by(client: Any, name: str, count: int) -> float:
    """The time at which a consumer holds so many entries."""
    async with asyncio.timeout(60):
        while True:
            consumers = await client.xinfo_consumers(STREAM, GROUP)
            if any(one["name"] == name.encode() and one["pending"] >= count for one in consumers):
                return time.perf_counter()
            await asyncio.sleep(0.01)
