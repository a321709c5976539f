"""Whatever happens in whatever order, nothing is lost, doubled or over its cap: walks at random on Redis."""

import random
from collections import Counter
from typing import Any

import pytest

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from tests.adapters.redis.test_queue import cancel, now_ms, policy
from worker.core.lifecycle import Ended, Intended, JobAccepted, Parked, advance
from worker.core.model import MessageKey, Outcome, Phase, Record, Verdict
from worker.errors import Fenced, GroupMissing, RecordGone

pytestmark = pytest.mark.anyio

LIMITS = policy(
    cap=6,
    jobs={"r*": {"cap": 3, "shared": True}},
    tenants={"a": {"cap": 2, "weight": 3}, "*": {"cap": 3}},
)
CAPS = {"total\t": 6, "job\tr*": 3, "tenant\ta": 2, "tenant\tb": 3, "tenant\tc": 3}
DONE = Outcome(Verdict.SUCCEEDED)
CANCELLED = Outcome(Verdict.CANCELLED)


class Walk:
    """Three workers that do one thing after another, as chance has it."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.chance = random.Random(seed)
        self.workers: list[Worker] = []
        self.hands: dict[str, dict[MessageKey, Record]] = {}
        self.sent: list[MessageKey] = []
        self.virtual_ms = now_ms()
        self._numbers = 0

    async def begins(self) -> None:
        for _ in range(3):
            await self.new_worker()

    async def new_worker(self) -> None:
        self._numbers += 1
        worker = await self.bench.worker(f"w{self._numbers}")
        self.workers.append(worker)
        self.hands[worker.name] = {}

    def any_worker(self) -> Worker:
        return self.chance.choice(self.workers)

    def held(self, worker: Worker, *phases: Phase) -> list[Record]:
        return [record for record in self.hands[worker.name].values() if record.phase in phases]

    async def sends(self) -> None:
        self.sent.append(await self.bench.request(job=b"render"))

    async def reads(self) -> None:
        worker = self.any_worker()
        for entry in await worker.reads(self.chance.randrange(1, 4)):
            await self.admits(worker, entry.key)

    async def admits(self, worker: Worker, key: MessageKey) -> None:
        # The request's own fields are of no matter here: what they say comes from the ID.
        about = random.Random(str(key))
        tenant, job = about.choice("abc"), about.choice(["render", "remux", "zip"])
        record = await worker.admits(key, tenant=tenant, job=job)
        if record is not None:
            self.hands[worker.name][key] = record
            # One in four is not got to at once: its worker may die before.
            if record.phase is Phase.RECEIVED and not record.picked_at_ms and self.chance.random() < 0.75:
                await self.parks(worker, record)

    async def parks(self, worker: Worker, record: Record) -> None:
        about = random.Random(f"{record.key} times")
        until_ms = self.virtual_ms + about.randrange(5_000) if about.random() < 0.3 else 0
        deadline_ms = self.virtual_ms + about.randrange(20_000) if about.random() < 0.1 else 0
        await self.keeps(worker, record, Parked(until_ms, deadline_ms))

    async def keeps(self, worker: Worker, record: Record, fact: Any) -> None:
        hand = self.hands[worker.name]
        try:
            hand[record.key] = await worker.ledger.keep(record, fact)
        except (Fenced, RecordGone):
            hand.pop(record.key)
        else:
            if hand[record.key].phase is Phase.WAITING:
                hand.pop(record.key)

    async def picks(self) -> None:
        worker = self.any_worker()
        worker.queue.now_ms = self.virtual_ms
        picked = await worker.queue.pick("requests", self.chance.randrange(5), LIMITS)
        for record, _ in picked.messages:
            self.hands[worker.name][record.key] = record

    async def works(self) -> None:
        """One step of one message in somebody's hands."""
        worker = self.any_worker()
        records = self.held(worker, Phase.RECEIVED, Phase.DISPATCHING, Phase.RUNNING)
        if not records:
            return
        record = self.chance.choice(records)
        match record.phase:
            case Phase.RECEIVED if record.cancel:
                await self.settles(worker, record, CANCELLED)
            case Phase.RECEIVED if not record.picked_at_ms:
                await self.overdue_or_parks(worker, record)
            case Phase.RECEIVED:
                await self.keeps(worker, record, Intended(1))
            case Phase.DISPATCHING:
                await self.keeps(worker, record, JobAccepted(f"render/dispatch-{record.key.id}", "e", 1))
            case _:
                await self.settles(worker, record, DONE)

    async def overdue_or_parks(self, worker: Worker, record: Record) -> None:
        deadline = await self.bench.redis.hget(KEYS.message(record.key), "deadline")
        if deadline and 0 < int(deadline) <= self.virtual_ms:
            await self.settles(worker, record, Outcome(Verdict.EXPIRED))
        else:
            await self.parks(worker, record)

    async def settles(self, worker: Worker, record: Record, outcome: Outcome) -> None:
        self.hands[worker.name].pop(record.key)
        try:
            await worker.ledger.settle(advance(record, Ended(outcome)))
        except Fenced:
            return

    async def dies(self) -> None:
        worker = self.any_worker()
        await self.bench.dies(worker)
        self.workers.remove(worker)
        self.hands.pop(worker.name)
        await self.new_worker()

    async def takes_over(self) -> None:
        worker = self.any_worker()
        for dead in await worker.leases.dead():
            for record in await worker.leases.take(dead, 100):
                if record.token:
                    self.hands[worker.name][record.key] = record
                else:
                    await self.admits(worker, record.key)

    async def tidies(self) -> None:
        worker = self.any_worker()
        for found in await worker.queue.mend("requests"):
            if isinstance(found, Record):
                self.hands[worker.name][found.key] = found
            else:
                await self.admits(worker, found)
        await worker.queue.recount()
        await worker.leases.trim()

    async def reconciles(self) -> None:
        worker = self.any_worker()
        for key in await worker.inbox.mine():
            if key not in self.hands[worker.name]:
                await self.admits(worker, key)

    async def cancels(self) -> None:
        if self.sent:
            key = self.chance.choice(self.sent)
            state = await self.bench.redis.hget(KEYS.message(key), "state")
            if state in {b"waiting", b"received"}:
                await cancel(self.bench, key)

    async def loses_the_index(self) -> None:
        await self.bench.redis.delete(*KEYS.waiting("requests"))

    async def loses_the_group(self) -> None:
        await self.bench.redis.xgroup_destroy(KEYS.stream("requests"), "workers")
        await self.workers[0].inbox.prepare()

    async def time_passes(self) -> None:
        self.virtual_ms += self.chance.randrange(2_000)

    async def steps(self, number: int) -> None:
        weighted = {
            self.sends: 20,
            self.reads: 15,
            self.picks: 20,
            self.works: 60,
            self.time_passes: 10,
            self.dies: 2,
            self.takes_over: 6,
            self.tidies: 4,
            self.reconciles: 4,
            self.cancels: 2,
            self.loses_the_index: 1,
            self.loses_the_group: 1,
        }
        for step in self.chance.choices(list(weighted), list(weighted.values()), k=number):
            try:
                await step()
            except GroupMissing:
                await self.workers[0].inbox.prepare()
            await self.caps_hold()

    async def caps_hold(self) -> None:
        """By the ledger's own account of who holds what, not by the sets that are checked against it."""
        used: Counter[str] = Counter()
        pipeline = self.bench.redis.pipeline(transaction=False)
        for key in self.sent:
            pipeline.hmget(KEYS.message(key), "state", "slots")
        for key, (state, slots) in zip(self.sent, await pipeline.execute(), strict=True):
            if state in {b"received", b"dispatching", b"running"} and slots:
                used.update(slots.decode().split("\n"))
            elif state in {b"dispatching", b"running"}:
                pytest.fail(f"{key} is {state!r} without slots")
        assert all(used[name] <= cap for name, cap in CAPS.items()), used

    async def ends(self) -> None:
        """Everything comes to its end, and to one only."""
        await self.sends()
        for _ in range(500):
            self.virtual_ms += 200
            for step in (self.reads, self.picks, self.works, self.works, self.works, self.reconciles):
                await step()
            if self._numbers % 2 == 0 or self.chance.random() < 0.2:
                await self.takes_over()
                await self.tidies()
            finals = await self.bench.redis.xrange(KEYS.replies)
            if sum(fields[b"final"] == b"1" for _, fields in finals) >= len(self.sent):
                break


@pytest.mark.parametrize("seed", range(5))
async def test_a_random_walk_loses_nothing_doubles_nothing_and_exceeds_no_cap(
    bench: Bench, seed: int
) -> None:
    walk = Walk(bench, seed)
    await walk.begins()

    await walk.steps(250)
    await walk.ends()

    finals = Counter(reply["id"] for reply in await bench.replies() if reply["final"] == "1")
    assert finals == Counter(key.id for key in walk.sent)
    assert await bench.pending() == 0
    # Tenants without anything left are forgotten when their turn comes.
    await walk.any_worker().queue.pick("requests", 1, LIMITS)
    assert await walk.any_worker().queue.recount() == 0
    for key in (*KEYS.caps, *KEYS.waiting("requests")):
        members = await bench.redis.zrange(key, 0, -1)
        assert [member for member in members if key != KEYS.served("requests")] == [], key
