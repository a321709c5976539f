"""The queue's own script over thousands of virtual hours: a discrete-event simulation around a real Redis."""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from tests.adapters.redis.test_queue import adds, now_ms, policy
from worker.core.lifecycle import Ended, Intended, JobAccepted, Parked, advance
from worker.core.model import MessageKey, Outcome, Record, Verdict
from worker.core.policy import Policy

pytestmark = pytest.mark.anyio

HOUR = 3_600_000
DONE = Outcome(Verdict.SUCCEEDED)


@dataclass(frozen=True)
class Arrival:
    """A message that comes at a virtual time, Unix milliseconds."""

    at: int
    tenant: str
    job: str = "render"


@dataclass
class Simulation:
    """Slots, jobs of random length, and the real PICK with the virtual time as its clock."""

    bench: Bench
    worker: Worker
    limits: Policy
    chance: random.Random
    job_minutes: float
    picks: list[tuple[int, Arrival]] = field(default_factory=list)
    """When each message was picked, in the order in which it was."""
    running: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)

    async def run(self, arrivals: Sequence[Arrival]) -> None:
        by_key = await self._park(arrivals)
        events: list[tuple[int, int, Record | None]] = [(arrival.at, -1, None) for arrival in arrivals]
        heapq.heapify(events)
        number = 0
        while events:
            now, _, ended = heapq.heappop(events)
            if ended is not None:
                await self._ends(ended)
            if ended is None and events and events[0][0] == now:
                continue
            self.worker.queue.now_ms = now
            picked = await self.worker.queue.pick("requests", 100, self.limits)
            for record, _ in picked.messages:
                arrival = by_key[record.key]
                assert arrival.at <= now
                self.picks.append((now, arrival))
                self._counts(record, 1)
                number += 1
                ends = now + 1 + int(self.chance.expovariate(1 / self.job_minutes) * 60_000)
                heapq.heappush(events, (ends, number, record))
            if picked.look_again_ms > now and (not events or events[0][0] > picked.look_again_ms):
                heapq.heappush(events, (picked.look_again_ms, -1, None))

    async def _park(self, arrivals: Sequence[Arrival]) -> dict[MessageKey, Arrival]:
        """All of them are there from the beginning, each to come at its time."""
        await adds(self.bench, len(arrivals))
        by_key = {}
        for entry, arrival in zip(await self.worker.reads(len(arrivals)), arrivals, strict=True):
            record = await self.worker.admits(entry.key, tenant=arrival.tenant, job=arrival.job)
            assert record is not None
            await self.worker.ledger.keep(record, Parked(arrival.at, 0))
            by_key[entry.key] = arrival
        return by_key

    async def _ends(self, record: Record) -> None:
        self._counts(record, -1)
        record = await self.worker.ledger.keep(record, Intended(1))
        record = await self.worker.ledger.keep(record, JobAccepted(f"j/{record.key.id}", "e", 1))
        await self.worker.ledger.settle(advance(record, Ended(DONE)))

    def _counts(self, record: Record, step: int) -> None:
        for name in ("total", f"tenant {record.routing.tenant}", f"job {record.routing.job}"):
            self.running[name] += step
            self.most[name] = max(self.most[name], self.running[name])


def poisson(
    chance: random.Random, start: int, hours: float, per_hour: float, tenant: str, job: str = "render"
) -> list[Arrival]:
    at, found = float(start), list[Arrival]()
    while True:
        at += chance.expovariate(per_hour) * HOUR
        if at >= start + hours * HOUR:
            return found
        found.append(Arrival(int(at), tenant, job))


async def test_a_flood_delays_nobodys_first_message_by_more_than_a_turn_of_each(bench: Bench) -> None:
    chance = random.Random(11)
    start = now_ms() + HOUR
    # The flood alone is what all slots can do in 270 hours; eleven small tenants come now and then.
    arrivals = [Arrival(start, "flood") for _ in range(800)]
    for number in range(10):
        arrivals += poisson(chance, start, 2_000, 0.015, f"small-{number}")
    arrivals += poisson(chance, start, 2_000, 0.1, "steady")
    arrivals.sort(key=lambda arrival: arrival.at)
    limits = policy(cap=3, tenants={"*": {}})
    simulation = Simulation(bench, await bench.worker("a"), limits, chance, job_minutes=60)

    await simulation.run(arrivals)

    assert len(simulation.picks) == len(arrivals)
    assert simulation.most["total"] == 3
    assert max(turns_until_first(simulation)) <= 12
    waits = [at - arrival.at for at, arrival in simulation.picks if arrival.tenant.startswith("small")]
    # Three slots of an hour: a turn of each is some hours at worst, and a slot comes free every 20 minutes.
    assert sorted(waits)[len(waits) // 2] < HOUR
    virtual_hours = (simulation.picks[-1][0] - start) / HOUR
    assert virtual_hours > 1_500


def turns_until_first(simulation: Simulation) -> list[int]:
    """For each message that found its tenant's queue empty: how many others were picked before it."""
    picked_at: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for number, (at, arrival) in enumerate(simulation.picks):
        picked_at[arrival.tenant].append((arrival.at, at, number))
    turns = []
    for tenant, picks in picked_at.items():
        if tenant == "flood":
            continue
        before = 0
        for came, _, number in sorted(picks):
            if came > before:
                others = [
                    index
                    for index, (at, arrival) in enumerate(simulation.picks[:number])
                    if at >= came and arrival.tenant != tenant
                ]
                turns.append(len(others))
            before = max(before, next(at for c, at, n in picks if n == number))
    assert turns
    return turns


async def test_weights_hold_over_hundreds_of_hours(bench: Bench) -> None:
    chance = random.Random(12)
    start = now_ms() + HOUR
    arrivals = [Arrival(start, tenant) for tenant in ("a", "b", "c") for _ in range(500)]
    limits = policy(cap=2, tenants={"a": {"weight": 5}, "b": {"weight": 3}, "*": {"weight": 2}})
    simulation = Simulation(bench, await bench.worker("a"), limits, chance, job_minutes=60)

    await simulation.run(arrivals)

    # Until the first of them has nothing left.
    busy = Counter(arrival.tenant for _, arrival in simulation.picks[:1_000])
    for tenant, share in {"a": 500, "b": 300, "c": 200}.items():
        assert busy[tenant] == pytest.approx(share, abs=2)


async def test_caps_and_rates_hold_at_every_moment_and_are_used_up(bench: Bench) -> None:
    chance = random.Random(13)
    start = now_ms() + HOUR
    arrivals = [
        *poisson(chance, start, 120, 4, "a"),
        *poisson(chance, start, 120, 4, "b", "encode"),
        *poisson(chance, start, 120, 2, "c", "mail"),
    ]
    arrivals.sort(key=lambda arrival: arrival.at)
    limits = policy(
        cap=6,
        jobs={"encode": {"cap": 2}, "mail": {"per_second": 1 / 3600, "burst": 2}},
        tenants={"*": {"cap": 4}},
    )
    simulation = Simulation(bench, await bench.worker("a"), limits, chance, job_minutes=60)

    await simulation.run(arrivals)

    assert len(simulation.picks) == len(arrivals)
    assert simulation.most["total"] == 6
    assert simulation.most["job encode"] == 2
    assert simulation.most["tenant a"] == 4
    mails = [at for at, arrival in simulation.picks if arrival.job == "mail"]
    for first, third in zip(mails, mails[2:], strict=False):
        assert third - first >= HOUR - 2
    # Two mails an hour were asked for, one an hour is let through: the rate is used to the full.
    assert (mails[-1] - mails[0]) / HOUR == pytest.approx(len(mails) - 2, abs=2)
    for scope in ("total", "job", "tenant"):
        assert await bench.redis.zcard(KEYS.cap(scope)) == 0
