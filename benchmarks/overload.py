"""A long queue and a Nomad that slows down under load, then more so: what the adaptive pace makes of it."""

import statistics
import time
from dataclasses import dataclass

from benchmarks.common import (
    Result,
    all_acknowledged,
    finals,
    percentile,
    redis_server,
    send,
    stub_nomad,
    worker,
)

UNLOADED_SECONDS = 0.02
"""What an answer takes with one request at a time."""
KNEES = (8.0, 4.0)
"""So many requests at once take twice as long, and the most are served: first, and from the middle."""
FIXED = (2, 4, 6, 8, 12, 16)
MOST = 16
LATENCY_FACTOR = 4.0
"""How much slower than unloaded the answers may be, on the average."""


@dataclass
class Ran:
    """One run."""

    rate: float
    mean: float
    """Of Nomad's answers, in multiples of the unloaded one."""
    p95: float
    most_at_once: int


async def run(*, full: bool) -> Result:
    """The adaptive pace against every fixed one, on the same Nomad."""
    result = Result("overload", "A long queue and a Nomad that slows down")
    count, each = (50_000, 2_000) if full else (4_000, 1_200)
    fixed = {limit: await drained(each, "fixed", limit) for limit in FIXED}
    adaptive = await drained(count, "adaptive", MOST)
    best = max(fixed, key=lambda limit: fixed[limit].rate)
    for limit, ran in fixed.items():
        result.add(f"{limit} at a time, always", "messages/s", [ran.rate])
        result.add(f"{limit} at a time, always: answers", "x unloaded", [ran.mean])
    rate = result.add(f"adaptive, {count} messages", "messages/s", [adaptive.rate])
    mean = result.add("adaptive: answers", "x unloaded", [adaptive.mean])
    result.add("adaptive: answers, 95 % of them", "x unloaded", [adaptive.p95])
    result.add("adaptive: most requests at once", "", [adaptive.most_at_once])
    share = result.add(f"adaptive / best fixed ({best})", "x", [rate.median / fixed[best].rate])
    result.target("throughput of the best fixed setting", share, least=0.8)
    result.target("time of an answer", mean, most=LATENCY_FACTOR)
    points = [(float(limit), ran.rate) for limit, ran in fixed.items()]
    result.curve("Throughput by dispatches at once", "at once", "messages/s", {"fixed": points})
    result.remarks.append("Every message has exactly one final reply, or the run fails.")
    return result


async def drained(count: int, pace: str, concurrency: int) -> Ran:
    """Queue messages, then start a worker and let it work them off; in the middle Nomad slows down."""
    settings = {"WORKER_DISPATCH_PACE": pace, "WORKER_DISPATCH_CONCURRENCY": str(concurrency)}
    async with redis_server() as (server, client), stub_nomad() as stub:
        ids = await send(client, count)
        await stub.load(UNLOADED_SECONDS, KNEES[0])
        async with worker(server.url, stub.address, WORKER_REPLY_MAXLEN=str(10 * count), **settings):
            started = time.perf_counter()
            await all_acknowledged(client, ids[count // 2], 900, partly=True)
            await stub.load(UNLOADED_SECONDS, KNEES[1])
            wall = await all_acknowledged(client, ids[-1], 900) - started
        stats = await stub.stats()
        replies = await finals(client)
    assert {reply.id for reply in replies} == set(ids), "messages were lost"
    assert len(replies) == count, "a message was answered twice"
    assert all(reply.verdict == "succeeded" for reply in replies)
    assert stats["children"] == count, "a message was run twice"
    took = [seconds / UNLOADED_SECONDS for seconds in stats["took"]]
    return Ran(count / wall, statistics.mean(took), percentile(took, 0.95), stats["most_at_once"])
