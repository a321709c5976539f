"""Delays and limits with real workers: nothing is early, nothing is over, nothing is lost when one dies."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes.fleet import KEYS, STREAM, Fleet, WorkerProcess, fleet, until
from tests.processes.jobs import held, scripted
from tests.processes.test_cancel import cancel
from worker.client import Cancelled
from worker.core.instants import format_rfc3339
from worker.core.model import WAITING_CONSUMER

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

QUICK: Mapping[str, str] = {
    "WORKER_LEASE_SECONDS": "5",
    "WORKER_NOMAD_TIMEOUT_SECONDS": "1.5",
    "WORKER_SWEEP_SECONDS": "5",
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    jobs = [scripted("render"), scripted("encode-a"), scripted("encode-b"), held("held")]
    async with fleet(tmp_path, jobs, QUICK) as made:
        yield made


def limited(world: Fleet, text: str) -> dict[str, Any]:
    """Settings of a worker with this policy."""
    path = world.folder / "policy.toml"
    path.write_text(text)
    return {"WORKER_ALLOW_FILE": str(path)}


@dataclass(frozen=True)
class Run:
    """One task as Nomad has it. Seconds."""

    token: str
    job: str
    started: float
    ended: float


async def runs(world: Fleet) -> list[Run]:
    """What ran when, by Nomad's own record."""
    made = {entry["job_id"]: entry for entry in world.dispatched()}
    async with httpx.AsyncClient(base_url=world.nomad.address) as http:
        listed = (await http.get("/v1/allocations", params={"task_states": "true"})).json()
    found = []
    for alloc in listed:
        for state in (alloc["TaskStates"] or {}).values():
            started, ended = seconds(state["StartedAt"]), seconds(state["FinishedAt"])
            token = made[alloc["JobID"]]["token"]
            found.append(Run(token, alloc["JobID"].partition("/")[0], started, ended or time.time()))
    return found


def seconds(text: str | None) -> float:
    if not text or text.startswith("0001"):
        return 0.0
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def most_at_once(ran: list[Run]) -> int:
    """The largest number of runs that overlapped."""
    steps = sorted([(run.started, 1) for run in ran] + [(run.ended, -1) for run in ran])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


async def test_a_delayed_message_waits_in_redis_and_is_dispatched_on_time(world: Fleet) -> None:
    first = await world.start(WORKER_MAX_IN_FLIGHT="2")
    due_ms = round(time.time() * 1000) + 6_000
    delayed = [await world.send(job="render", not_before=format_rfc3339(due_ms)) for _ in range(5)]
    soon = await world.send(job="render")

    # Were the delayed in hand, there would be no room.
    await world.final(soon)
    assert await first.metric("jobs_in_flight") == 0
    assert await world.redis.zcard(KEYS.delayed("requests")) == 5
    first.kill()
    second = await world.start(WORKER_MAX_IN_FLIGHT="2")
    finals = await world.all_final(delayed, 30)

    ran = [run for run in await runs(world) if run.token in delayed]
    assert {final.verdict for final in finals} == {"succeeded"}
    assert {final.worker for final in finals} == {second.name}
    assert min(run.started for run in ran) * 1000 >= due_ms
    assert world.children_by_token() == Counter([*delayed, soon])
    assert await world.pending() == 0


async def test_a_waiting_message_is_cancelled_or_expires_though_no_slot_is_free(world: Fleet) -> None:
    await world.start(**limited(world, "[limits]\ncap = 1\n"))
    running = await world.holds()
    deadline_ms = round(time.time() * 1000) + 3_000
    expires = await world.send(job="render", deadline=format_rfc3339(deadline_ms))
    cancelled = await world.send(job="render", not_before=format_rfc3339(deadline_ms + 3_600_000))
    waits = await world.send(job="render")
    await until(lambda: _waiting(world, 3), 15, "three wait")

    assert await cancel(world, cancelled) is Cancelled.PREVENTED
    told = await world.final(cancelled, 5)
    expired = await world.final(expires, 10)
    late_seconds = time.time() - deadline_ms / 1000
    before_release = [run.token for run in await runs(world)]
    world.release()
    await world.all_final([running, waits], 20)

    assert (told.verdict, told.error_code) == ("cancelled", "request.cancelled")
    assert (expired.verdict, expired.error_code) == ("expired", "request.expired")
    assert late_seconds < 2
    assert before_release == [running]
    assert await world.redis.zcard(KEYS.cap("total")) == 0


async def _waiting(world: Fleet, number: int) -> bool:
    summary = await world.redis.xpending(STREAM, "workers")
    held = {item["name"].decode(): int(item["pending"]) for item in summary["consumers"] or []}
    return held.get(WAITING_CONSUMER, 0) == number


async def test_limits_that_change_hold_at_once(world: Fleet) -> None:
    settings = limited(world, "[limits]\ncap = 2\n")
    await world.start(**settings)
    meta = json.dumps({"file": str(world.folder / "release")})
    sent = [await world.send(job="held", meta=meta) for _ in range(6)]
    await until(lambda: _dispatched(world, 2), 20, "two run")
    await asyncio.sleep(1)
    by_first = len(world.dispatched())

    limited(world, "[limits]\ncap = 4\n")
    await until(lambda: _dispatched(world, 4), 20, "four run")
    await asyncio.sleep(1)
    by_second = len(world.dispatched())
    world.release()
    await world.all_final(sent, 30)

    assert (by_first, by_second) == (2, 4)


async def _dispatched(world: Fleet, number: int) -> bool:
    return len(world.dispatched()) >= number


async def test_a_group_that_is_recreated_loses_nothing_that_waits(world: Fleet) -> None:
    await world.start(**limited(world, "[limits]\ncap = 1\n"))
    running = await world.holds()
    sent = [await world.send(job="render") for _ in range(20)]
    await until(lambda: _waiting(world, 20), 15, "twenty wait")

    await world.redis.xgroup_destroy(STREAM, "workers")
    world.release()
    finals = await world.all_final([running, *sent], 40)

    assert {final.verdict for final in finals} == {"succeeded"}
    assert world.children_by_token() == Counter([running, *sent])
    assert most_at_once(await runs(world)) == 1


CAPS = """
[limits]
cap = 12
[limits.jobs."encode-*"]
cap = 4
shared = true
[limits.tenants."*"]
cap = 5
[limits.tenants.small]
cap = 2
weight = 3
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_caps_hold_exactly_and_are_used_up_while_workers_are_killed(world: Fleet, seed: int) -> None:
    chance = random.Random(seed)
    settings = limited(world, CAPS)
    workers = list(await asyncio.gather(*(world.start(**settings) for _ in range(4))))
    about: dict[str, dict[str, str]] = {}
    for _ in range(240):
        fields = {
            "job": chance.choice(["render", "render", "encode-a", "encode-b"]),
            "tenant": chance.choice(["a", "b", "c", "small"]),
        }
        meta = json.dumps({"run_for": f"{chance.randrange(1_000, 4_000)}ms"})
        about[await world.send(meta=meta, **fields)] = fields

    used: list[int] = []
    watching = asyncio.create_task(_watch_slots(world, used))
    killing = asyncio.create_task(_kill_at_random(world, workers, settings, chance))
    finals = await world.all_final(list(about), 240)
    killing.cancel()
    watching.cancel()
    await asyncio.wait([killing, watching])

    ran = await runs(world)
    assert {final.verdict for final in finals} == {"succeeded"}
    assert world.children_by_token() == Counter(about.keys())
    assert sum(worker.process.returncode == -9 for worker in world.workers) >= 4
    assert most_at_once(ran) <= 12
    assert most_at_once([run for run in ran if run.job.startswith("encode-")]) <= 4
    for tenant, cap in {"a": 5, "b": 5, "c": 5, "small": 2}.items():
        assert most_at_once([run for run in ran if about[run.token]["tenant"] == tenant]) <= cap
    assert sum(used) / (12 * len(used)) >= 0.95
    for scope in ("total", "job", "tenant"):
        assert await world.redis.zcard(KEYS.cap(scope)) == 0
    assert await world.pending() == 0


async def _watch_slots(world: Fleet, used: list[int]) -> None:
    """Look how many slots of all are taken while enough waits that every one could be."""
    while True:
        queued = await world.redis.zrange(KEYS.flows("requests"), 0, -1)
        free_jobs = Counter(member.split(b"\t")[0] for member in queued if b"\trender\t" in member)
        if sum(count >= 5 for count in free_jobs.values()) >= 3:
            used.append(await world.redis.zcard(KEYS.cap("total")))
        await asyncio.sleep(0.02)


async def _kill_at_random(
    world: Fleet, workers: list[WorkerProcess], settings: dict[str, Any], chance: random.Random
) -> None:
    while True:
        await asyncio.sleep(chance.uniform(2, 5))
        victim = workers.pop(chance.randrange(len(workers)))
        victim.kill()
        workers.append(await world.start(**settings, wait=False))
