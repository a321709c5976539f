"""How long a message waits for its dispatch, and a job's end for its reply, at three loads.

Both by the same machine's clock: from the time in the entry's ID to the request's arrival at the stub, and
from the frame that tells the end to the time in the final reply's ID. IDs are whole milliseconds. The pace is
fixed: the adaptive one gives way where answers slow down, and here they wait for a core and not for Nomad.
"""

import asyncio
import time
from typing import Any

from benchmarks.common import (
    Result,
    Stub,
    all_acknowledged,
    finals,
    percentile,
    redis_server,
    send,
    stub_nomad,
    worker,
)

BURST = 3_000
LOADS = (0.1, 0.5, 0.9)
TICK_SECONDS = 0.01
SETTINGS = {
    "WORKER_DISPATCH_CONCURRENCY": "32",
    "WORKER_DISPATCH_PACE": "fixed",
    # Every reply is looked at in the end, and a long run makes more than are kept by default.
    "WORKER_REPLY_MAXLEN": "1000000",
}


async def run(*, full: bool) -> Result:
    """Find the rate that is the most, then send at shares of it."""
    result = Result("latency", "Waiting times at 10, 50 and 90 % load")
    rounds, seconds = (5, 20.0) if full else (2, 6.0)
    told: dict[float, list[dict[str, float]]] = {load: [] for load in LOADS}
    most = []
    for _ in range(rounds):
        async with (
            redis_server() as (server, client),
            stub_nomad() as stub,
            worker(server.url, stub.address, **SETTINGS),
        ):
            most.append(await _most(client))
            for load in LOADS:
                told[load].append(await _at(load * most[-1], seconds, client, stub))
    result.add("the most, a burst", "messages/s", most)
    for load, figures in told.items():
        for name, title in (("dispatch", "XADD to request"), ("reply", "job's end to final reply")):
            for share in ("p50", "p99"):
                values = [one[f"{name}_{share}"] for one in figures]
                measured = result.add(f"{load:.0%} load, {title}, {share}", "ms", values)
                if share == "p99" and name == "dispatch" and load == 0.5:
                    result.target("XADD to request, p99 at half load", measured, most=20)
                if share == "p99" and name == "reply" and load == 0.5:
                    result.target("job's end to final reply, p99 at half load", measured, most=50)
    lines = {
        f"{title}, {share}": [
            (load * 100, sum(one[f"{name}_{share}"] for one in figures) / len(figures))
            for load, figures in told.items()
        ]
        for name, title in (("dispatch", "XADD to request"), ("reply", "end to reply"))
        for share in ("p50", "p99")
    }
    result.curve("Waiting times by load", "% of the most", "ms", lines)
    return result


async def _most(client: Any) -> float:
    await all_acknowledged(client, (await send(client, BURST // 10))[-1], 30)
    started = time.perf_counter()
    ids = await send(client, BURST)
    return BURST / (await all_acknowledged(client, ids[-1], 120) - started)


async def _at(rate: float, seconds: float, client: Any, stub: Stub) -> dict[str, float]:
    """Send at a steady rate, and look at each of the messages sent."""
    sent: list[str] = []
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        due = int(rate * elapsed) - len(sent)
        if due > 0:
            sent += await send(client, due)
        await asyncio.sleep(TICK_SECONDS)
    await all_acknowledged(client, sent[-1], 60)
    stats, replied = await stub.stats(), {reply.id: reply.entry_id for reply in await finals(client)}
    dispatch = [stats["arrivals"][one] * 1000 - _ms(one) for one in sent]
    reply = [_ms(replied[one]) - stats["ends"][one] * 1000 for one in sent]
    return {
        "dispatch_p50": percentile(dispatch, 0.5),
        "dispatch_p99": percentile(dispatch, 0.99),
        "reply_p50": percentile(reply, 0.5),
        "reply_p99": percentile(reply, 0.99),
    }


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])
