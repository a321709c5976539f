"""What a final reply carries beyond the verdict, and what happens to the job afterwards."""

import pytest

from tests.flow.world import FakeNomad, HandClock, message
from worker.core.lifecycle import Fact, ReplyPublished, advance
from worker.core.model import MessageKey, Outcome, Phase, Record, Run, Verdict
from worker.errors import JobUnknown, NomadUnavailable, PayloadLost, PoisonMessage
from worker.flow.instruments import NoInstruments
from worker.flow.settle import Settle, outcome_of
from worker.ports import Admission

pytestmark = pytest.mark.anyio

DECIDING = {"deciding": {"allocation": "a1", "task": "t"}, "durations": {"run": 2.0}}


class MemoryLedger:
    """Settles, and nothing else."""

    def __init__(self) -> None:
        self.settled: list[Record] = []

    async def admit(self, admission: Admission) -> Record | None:
        raise NotImplementedError

    async def keep(self, before: Record, fact: Fact) -> Record:
        raise NotImplementedError

    async def settle(self, record: Record) -> Record:
        self.settled.append(record)
        return advance(record, ReplyPublished("9-0"))

    async def recall(self, key: MessageKey) -> Record | None:
        raise NotImplementedError


class World:
    def __init__(self, *, log_tail_bytes: int = 0, purge_finished: bool = False) -> None:
        self.clock, self.nomad, self.ledger = HandClock(), FakeNomad(), MemoryLedger()
        self.settle = Settle(
            self.ledger,
            self.nomad,
            self.clock,
            NoInstruments(),
            log_tail_bytes=log_tail_bytes,
            purge_finished=purge_finished,
        )

    async def ends(
        self,
        verdict: Verdict,
        *,
        job_id: str = "render/dispatch-1-a",
        intended_ms_ago: int = 4_250,
        **fields: object,
    ) -> Outcome:
        """Settle a message with this verdict; returns the outcome as it was published."""
        now_ms = self.clock.now_ms()
        record = message(
            Phase.FINISHED,
            entry_id=f"{now_ms - 6_000}-0",
            job_id=job_id,
            received_at_ms=now_ms - 5_000,
            intended_at_ms=now_ms - intended_ms_ago if intended_ms_ago else 0,
            dispatched_at_ms=now_ms - 4_000 if job_id else 0,
            outcome=Outcome(verdict, evidence=DECIDING),
            **fields,
        ).record
        assert record is not None
        settled = await self.settle.settle(await self.settle.complete(record))
        await self.settle.clean_up(settled)
        outcome = self.ledger.settled[-1].outcome
        assert outcome is not None
        return outcome


async def test_durations_tell_the_wait_the_run_and_the_whole() -> None:
    outcome = await World().ends(Verdict.SUCCEEDED)

    assert outcome.evidence["durations"] == {"run": 2.0, "queue": 1.75, "dispatch": 0.25, "total": 6.0}


async def test_a_record_that_does_not_tell_when_its_dispatch_began_counts_it_as_waiting() -> None:
    outcome = await World().ends(Verdict.SUCCEEDED, intended_ms_ago=0)

    assert outcome.evidence["durations"] == {"run": 2.0, "queue": 2.0, "dispatch": 0.0, "total": 6.0}


async def test_the_durations_of_a_repeated_run_are_its_own() -> None:
    world = World()
    first = Run(1, "render/dispatch-1-0", Verdict.FAILED, ended_at_ms=world.clock.now_ms() - 4_500)

    outcome = await world.ends(Verdict.SUCCEEDED, runs=(first,))

    assert outcome.evidence["durations"] == {"run": 2.0, "queue": 0.25, "dispatch": 0.25, "total": 6.0}


async def test_a_failed_tasks_last_words_are_cut_to_size_and_need_not_be_text() -> None:
    world = World(log_tail_bytes=8)
    world.nomad.words = {"stdout": b"0123456789", "stderr": b"\xffoops"}

    outcome = await world.ends(Verdict.FAILED)

    assert outcome.evidence["logs"] == {"stderr": "\ufffdoops", "stdout": "23456789"}


async def test_a_verdict_does_not_wait_for_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(log_tail_bytes=8)

    async def gone(*_: object) -> bytes:
        text = "node down"
        raise NomadUnavailable(text)

    monkeypatch.setattr(world.nomad, "logs", gone)

    outcome = await world.ends(Verdict.FAILED)

    assert outcome.evidence["logs"] == {"note": "stderr is not to be had: nomad.unavailable"}


@pytest.mark.parametrize("verdict", [Verdict.SUCCEEDED, Verdict.DETACHED])
async def test_logs_are_not_asked_for_when_nothing_went_wrong(verdict: Verdict) -> None:
    assert "logs" not in (await World(log_tail_bytes=8).ends(verdict)).evidence


@pytest.mark.parametrize(
    ("verdict", "purged"),
    [(Verdict.SUCCEEDED, True), (Verdict.FAILED, True), (Verdict.DETACHED, False)],
)
async def test_only_a_job_that_has_ended_is_purged(verdict: Verdict, *, purged: bool) -> None:
    world = World(purge_finished=True)

    await world.ends(verdict)

    assert world.nomad.purged == (["render/dispatch-1-a"] if purged else [])


async def test_nothing_is_purged_unless_wanted_or_without_a_job() -> None:
    world = World()
    await world.ends(Verdict.SUCCEEDED)
    other = World(purge_finished=True)
    await other.ends(Verdict.REJECTED, job_id="")

    assert world.nomad.purged == other.nomad.purged == []


async def test_a_purge_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(purge_finished=True)

    async def denied(*_: object) -> None:
        text = "Permission denied"
        raise NomadUnavailable(text)

    monkeypatch.setattr(world.nomad, "purge", denied)

    assert (await world.ends(Verdict.SUCCEEDED)).verdict is Verdict.SUCCEEDED


def test_errors_before_the_dispatch_have_verdicts_of_their_own() -> None:
    assert outcome_of(PayloadLost("x")).verdict is Verdict.PAYLOAD_LOST
    assert outcome_of(PoisonMessage("x")).verdict is Verdict.POISON
    rejected = outcome_of(JobUnknown("no such job"))
    assert rejected == Outcome(Verdict.REJECTED, error_code="nomad.job_unknown", error_message="no such job")
