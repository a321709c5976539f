"""Thousands of jobs in flight on one worker while its event streams are cut: every verdict is right.

The worker and the simulator are processes of their own.
"""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.outcomes.crowd import Crowd, crowd
from tests.processes.jobs import scripted

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.processes,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor time from /proc"),
]

SLOTS = 16
MORE_CONNECTIONS = 4
STOP_CONCURRENCY = 8
MOST_SECONDS = 120.0
"""Several times what each part takes on two cores that are not shared."""

KINDS = {
    "good": ("succeeded", 0, ""),
    "bad": ("failed", 3, "job.failed"),
    "oom": ("oom_killed", 137, "job.oom_killed"),
    "stopped": ("stopped", None, "job.stopped"),
}
"""Verdict, exit code and error code of each kind of request."""
SHARES = (72, 15, 8, 5)


def oom(job_id: str) -> dict[str, Any]:
    """A job whose task is ended by the out-of-memory killer after a time."""
    job = scripted(job_id)
    task = job["TaskGroups"][0]["Tasks"][0]
    task["Config"] = {"run_for": "${NOMAD_META_run_for}", "oom_killed": True}
    return job


def request(kind: str, seconds: float) -> tuple[str, dict[str, str]]:
    """One request of a kind, whose job runs that long unless an operator stops it."""
    run_for = "3600s" if kind == "stopped" else f"{seconds:.2f}s"
    job = "oom" if kind == "oom" else "render"
    return job, {"run_for": run_for, **({"exit_code": "3"} if kind == "bad" else {})}


@pytest.mark.parametrize(
    ("count", "most_seconds_between_cuts"),
    [
        pytest.param(500, 1.0, id="500"),
        pytest.param(10_000, 3.0, id="10000", marks=pytest.mark.slow),
    ],
)
async def test_every_verdict_is_right_while_event_streams_are_cut(
    tmp_path: Path, count: int, most_seconds_between_cuts: float
) -> None:
    chance = random.Random(count)
    kinds = chance.choices(list(KINDS), SHARES, k=count)
    # Those that run until they are stopped come first: they show how fast this machine is.
    kinds.sort(key=lambda kind: kind != "stopped")
    first = kinds.count("stopped")
    settings = {
        "WORKER_MAX_IN_FLIGHT": str(count),
        "WORKER_DISPATCH_CONCURRENCY": str(SLOTS),
        "WORKER_SWEEP_SECONDS": "10",
    }
    async with crowd(tmp_path, [scripted("render"), oom("oom")], **settings) as here:
        cutting = asyncio.create_task(here.cut_streams(chance, most_seconds_between_cuts))
        ids = await here.send([request(kind, 0) for kind in kinds[:first]])
        await here.until("dispatched", 1, MOST_SECONDS)
        began = time.monotonic()
        await here.until("dispatched", first, MOST_SECONDS)
        seconds = 2 + 1.8 * (time.monotonic() - began) * count / first
        ids += await here.send([request(kind, seconds * chance.uniform(1, 1.2)) for kind in kinds[first:]])
        kind_of = dict(zip(ids, kinds, strict=True))
        await here.until("dispatched", count, MOST_SECONDS)
        assert here.told["result"] == 0, "some jobs ended before all were under way: the machine slowed down"
        await stop_all(here, [message_id for message_id, kind in kind_of.items() if kind == "stopped"])
        await here.until("result", count, MOST_SECONDS)
        cutting.cancel()
        await asyncio.wait({cutting})
        assert cutting.cancelled(), cutting.exception()

        told = {
            message_id: (final.verdict, final.exit_code, final.error_code)
            for message_id, final in here.finals.items()
        }
        assert told == {message_id: KINDS[kind] for message_id, kind in kind_of.items()}
        assert here.told["result"] == count
        assert await here.dispatches() == Counter(kind_of.keys())
        assert here.cuts >= 3
        connections = await here.most_connections()
        assert 0 < connections <= SLOTS + MORE_CONNECTIONS
        print(  # noqa: T201 - the figures are what one wants to see of this test with -s
            f"\n{count} in flight: {here.cpu_seconds:.1f} s CPU, {here.resident_mb:.0f} MB resident, "
            f"{connections} connections at most, {here.cuts} cuts"
        )


async def stop_all(here: Crowd, message_ids: list[str]) -> None:
    """Stop the jobs of these messages as an operator does, a few at a time."""
    places = asyncio.Semaphore(STOP_CONCURRENCY)

    async def stop(message_id: str) -> None:
        async with places:
            await here.stop_job(here.children[message_id])

    async with asyncio.TaskGroup() as stopping:
        for message_id in message_ids:
            stopping.create_task(stop(message_id))
