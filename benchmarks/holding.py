"""What it costs to hold running jobs: memory, processor, Redis commands, connections, frames of others."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httpx

from benchmarks.common import (
    KEYS,
    Result,
    Stub,
    Worker,
    all_acknowledged,
    finals,
    in_turns,
    redis_server,
    send,
    stub_nomad,
    worker,
)
from benchmarks.stub import Child, Life
from worker.core.frames import decode

SETTLING_SECONDS = 12.0
"""After the last job has started: what was put off till then is done, and memory handed back."""
WAIT_SECONDS = 900.0
"""For 50,000 dispatches on a machine that is shared."""
BATCH_FRAMES = 2_000
READ_ENTRIES = 2_000
OTHERS_PER_OWN = 19
"""95 % of the frames are about other people's jobs."""
DISPATCHES_AT_ONCE = 16
MOST_CONNECTIONS = 20


async def run(*, full: bool) -> Result:
    """Hold more and more jobs, doing nothing; then let other people's frames pass by."""
    result = Result("holding", "Jobs in flight, while nothing changes")
    idle_seconds = 100.0 if full else 50.0  # a sweep and more: every 45 s
    points: dict[str, list[tuple[float, float]]] = {"MB": [], "cpu": []}
    for count in (1_000, 10_000, 50_000) if full else (1_000, 10_000):
        held = await hold(count, idle_seconds, other_frames=100_000 if full else 40_000)
        memory = result.add(f"{count} held: memory", "MB", [held["resident_mb"]])
        result.add(f"{count} held: the most memory on the way", "MB", [held["resident_most_mb"]])
        cpu = result.add(f"{count} held: processor", "% of a core", [held["cpu_percent"]])
        commands = result.add(f"{count} held: Redis commands", "per second", [held["redis_commands"]])
        asked = result.add(f"{count} held: requests to Nomad", "per second", [held["nomad_requests"]])
        connected = result.add(f"{count} held: connections to Nomad, at most", "", [held["connections"]])
        result.add(f"{count} held: frames of others read", "frames/s of a core", [held["other_frames"]])
        result.add(f"{count} held: from their end to all verdicts", "s", [held["settling"]])
        points["MB"].append((count, memory.median))
        points["cpu"].append((count, cpu.median))
        if count == 10_000:
            result.target("memory with 10,000 in flight", memory, most=250)
            result.target("a core with 10,000 in flight", cpu, most=10)
            result.target("Redis commands with 10,000 in flight", commands, most=10)
            result.target("connections with 10,000 in flight", connected, most=MOST_CONNECTIONS)
            result.target("requests to Nomad with 10,000 in flight", asked, most=10)
    result.curve("Memory by jobs in flight", "jobs in flight", "MB", {"worker": points["MB"]})
    result.curve("Processor by jobs in flight", "jobs in flight", "% of a core", {"worker": points["cpu"]})
    await _frames(result, rounds=9 if full else 5)
    return result


async def hold(count: int, idle_seconds: float, *, other_frames: int) -> dict[str, float]:
    """Start so many jobs, look at the worker while they run, and let them end."""
    async with redis_server() as (server, client), stub_nomad(ended=None) as stub:
        settings = {
            "WORKER_MAX_IN_FLIGHT": str(count + 100),
            "WORKER_DISPATCH_CONCURRENCY": str(DISPATCHES_AT_ONCE),
            "WORKER_REPLY_MAXLEN": str(10 * count),
        }
        async with worker(server.url, stub.address, **settings) as ours:
            connections: list[int] = []
            counting = asyncio.create_task(_count_connections(ours, stub, connections))
            ids = await send(client, count)
            await _running(client, count)
            await asyncio.sleep(SETTLING_SECONDS)
            told = await _idle(client, stub, ours, idle_seconds)
            told["other_frames"] = await _others(stub, ours, other_frames)
            ended = time.perf_counter()
            assert await stub.release() == count
            told["settling"] = await all_acknowledged(client, ids[-1], WAIT_SECONDS) - ended
            counting.cancel()
            told["connections"] = max(connections)
            told["resident_most_mb"] = ours.resident_most_mb
        replies = await finals(client)
        assert {reply.id for reply in replies} == set(ids)
        assert len(replies) == count
        assert all(reply.verdict == "succeeded" for reply in replies)
        return told


async def _idle(client: Any, stub: Stub, ours: Worker, seconds: float) -> dict[str, float]:
    """What the worker takes while nothing happens to its jobs."""
    cpu, commands = ours.cpu_seconds, await _commands(client)
    requests, began = (await stub.stats())["requests"], time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    return {
        "cpu_percent": 100 * (ours.cpu_seconds - cpu) / took,
        # The look at the counter is a command itself.
        "redis_commands": (await _commands(client) - commands - 1) / took,
        "nomad_requests": ((await stub.stats())["requests"] - requests - 1) / took,
        "resident_mb": ours.resident_mb,
    }


async def _others(stub: Stub, ours: Worker, count: int) -> float:
    """Frames per second of processor time, all of jobs that nobody here asked for."""
    read, cpu = await _frames_read(ours), ours.cpu_seconds
    for _ in range(0, count, BATCH_FRAMES):
        await stub.others(BATCH_FRAMES)
        read += BATCH_FRAMES
        async with asyncio.timeout(WAIT_SECONDS):
            while await _frames_read(ours) < read:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
    return count / (ours.cpu_seconds - cpu)


async def _frames_read(ours: Worker) -> float:
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{ours.http}/metrics")).text
    samples = [line for line in text.splitlines() if line.startswith("dispatch_worker_event_frames_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in samples if 'kind="heartbeat"' not in line)


async def _commands(client: Any) -> int:
    """Commands that Redis has run, those inside of scripts included."""
    return int((await client.info("stats"))["total_commands_processed"])


async def _running(client: Any, count: int) -> None:
    """Wait until so many jobs were told to run."""
    last, running = "0", 0
    async with asyncio.timeout(WAIT_SECONDS):
        while running < count:
            answer = await client.xread({KEYS.replies: last}, count=READ_ENTRIES, block=1_000)
            for entry_id, fields in answer[0][1] if answer else ():
                last = entry_id
                running += fields[b"type"] == b"running"


async def _count_connections(ours: Worker, stub: Stub, counted: list[int]) -> None:
    while True:
        counted.append(ours.connections(stub.port))
        await asyncio.sleep(0.25)


# Frames by themselves -----------------------------------------------------------------------------


async def _frames(result: Result, rounds: int) -> None:
    """The reader of frames against a JSON decoder that reads them whole, line by line, in turns."""
    lines, own = mixed_lines(10_000)
    sides: dict[str, Callable[[bytes], object]] = {
        "as the worker does": lambda line: decode(line, own.__contains__),
        "read whole by the standard library": json.loads,
    }
    rates = await in_turns(rounds, {name: partial(_rate, lines, read) for name, read in sides.items()})
    ours, theirs = (
        result.add(f"95 % frames of others, {name}", "frames/s", values) for name, values in rates.items()
    )
    result.ratio("reading frames / a whole read", ours, theirs)


def mixed_lines(count: int) -> tuple[list[bytes], frozenset[str]]:
    """Lines of an event stream as recorded, one life of ours among so many of others; and our jobs' IDs."""
    life, number = Life(0.0, 0.0, 0.0), 0
    lines: list[bytes] = []
    own: set[str] = set()
    while len(lines) < count:
        ours = number % (OTHERS_PER_OWN + 1) == 0
        parent, tail = "bench" if ours else "somebody-elses", f"{number:012x}"
        job_id = f"{parent}/dispatch-1795484592-{tail[4:]}"
        values = {
            b"child": job_id.encode(),
            b"parent": parent.encode(),
            b"token": tail.encode(),
            b"eval": f"69048121-e42c-ae4b-ff13-{tail}".encode(),
            b"alloc": f"d0d2643d-e69f-5725-0c60-{tail}".encode(),
            b"created": 1_000 + number,
            b"index": 1_000 + number,
        }
        lines += _written(life, Child(values, parent))
        if ours:
            own.add(job_id)
        number += 1
    return lines, frozenset(own)


def _written(life: Life, child: Child) -> list[bytes]:
    templates = [template for _, _, frames in life.steps for template in frames] + life.end
    return [template % child.values for template in templates]


async def _rate(lines: Sequence[bytes], read: Callable[[bytes], object]) -> float:
    began = time.perf_counter()
    for line in lines:
        read(line)
    return len(lines) / (time.perf_counter() - began)
