"""The ledger's contract, on a real Redis: one owner, one final reply, nothing lost on the way."""

import pytest
from msgspec.structs import replace

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from worker.core.lifecycle import (
    DispatchPutOff,
    Ended,
    Intended,
    JobAccepted,
    Progressed,
    StopOrdered,
    advance,
)
from worker.core.model import MessageKey, Outcome, Phase, Progress, Record, Verdict
from worker.errors import (
    DuplicateChild,
    Fenced,
    IllegalTransition,
    RecordGone,
    RecordUnreadable,
    RedisUnavailable,
)

pytestmark = pytest.mark.anyio

CHILD = "render/dispatch-1795484882-2c85d768"
SUCCESS = Ended(Outcome(Verdict.SUCCEEDED, exit_code=0, evidence={"allocations": []}))


async def admitted(bench: Bench, worker: Worker, **routing: object) -> Record:
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key, **routing)
    assert record is not None
    return record


async def running(bench: Bench, worker: Worker, **routing: object) -> Record:
    record = await admitted(bench, worker, **routing)
    record = await worker.ledger.keep(record, Intended(1))
    return await worker.ledger.keep(record, JobAccepted(CHILD, "e1", 1_700_000_000_000))


async def test_a_message_goes_all_the_way_and_leaves_one_final_reply(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker, correlation_id="c-1")

    record = await worker.ledger.keep(record, Progressed(Progress.RUNNING, 1_700_000_001_000, {"node": "n1"}))
    record = await worker.ledger.settle(await worker.ledger.keep(record, SUCCESS))

    replies = await bench.replies()
    assert [(reply["type"], reply["seq"], reply["final"]) for reply in replies] == [
        ("accepted", "1", "0"),
        ("dispatched", "2", "0"),
        ("running", "3", "0"),
        ("result", "4", "1"),
    ]
    assert {reply["correlation_id"] for reply in replies} == {"c-1"}
    assert replies[-1]["verdict"] == "succeeded"
    assert replies[-1]["exit_code"] == "0"
    assert replies[-1]["ui_url"] == (
        "http://nomad:4646/ui/jobs/render%2Fdispatch-1795484882-2c85d768@default"
    )
    assert record.phase is Phase.SETTLED
    assert record.seq == 4
    assert await bench.pending() == 0
    assert await bench.dead_letters() == []


async def test_a_new_message_is_answered_as_it_stands_in_the_ledger(bench: Bench) -> None:
    worker = await bench.worker("a")

    record = await admitted(
        bench, worker, namespace="ops", correlation_id="c-1", tenant="t", detach=True, timeout_seconds=1.5
    )

    assert record == await worker.ledger.recall(record.key)
    assert record.seq == record.fence == 1


async def test_a_settled_message_is_remembered_with_its_outcome_and_forgotten_in_time(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)

    settled = await worker.ledger.settle(advance(record, SUCCESS))

    recalled = await worker.ledger.recall(record.key)
    assert recalled is not None
    assert recalled.phase is Phase.SETTLED
    assert recalled.outcome == Outcome(Verdict.SUCCEEDED, exit_code=0)
    assert (recalled.job_id, recalled.reply_id) == (CHILD, settled.reply_id)
    assert 3_500_000 < await bench.redis.pttl(KEYS.message(record.key)) <= 3_600_000


async def test_settling_twice_gives_the_first_reply(bench: Bench) -> None:
    worker = await bench.worker("a")
    finished = advance(await running(bench, worker), SUCCESS)

    first = await worker.ledger.settle(finished)
    second = await worker.ledger.settle(finished)

    assert first.reply_id == second.reply_id
    assert [reply["final"] for reply in await bench.replies()].count("1") == 1


async def test_admitting_again_gives_the_same_record_and_no_second_reply(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)

    again = await worker.admits(record.key)

    assert again == replace(record, quarantine_until_ms=0)
    assert [reply["type"] for reply in await bench.replies()] == ["accepted", "dispatched"]


async def test_an_entry_that_is_not_pending_for_this_worker_is_not_admitted(bench: Bench) -> None:
    reader, other = await bench.worker("a"), await bench.worker("b")
    key = await bench.request()
    await reader.reads()

    assert await other.admits(key) is None
    assert await other.admits(MessageKey("requests", "1-1")) is None
    assert await bench.replies() == []


async def test_a_settled_message_delivered_again_is_acknowledged_without_a_reply(
    bench: Bench,
) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)
    await worker.ledger.settle(advance(record, SUCCESS))
    await bench.redis.xgroup_setid(KEYS.stream("requests"), "workers", "0")
    await worker.reads()
    assert await bench.pending() == 1

    assert await worker.admits(record.key) is None

    assert await bench.pending() == 0
    assert [reply["final"] for reply in await bench.replies()].count("1") == 1


async def test_a_message_put_off_may_be_intended_again_as_the_same_attempt(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await worker.ledger.keep(await admitted(bench, worker), Intended(1))
    assert record.quarantine_until_ms > 0

    record = await worker.ledger.keep(record, DispatchPutOff("nomad.busy", 1))
    assert (record.phase, record.attempt) == (Phase.RECEIVED, 0)

    record = await worker.ledger.keep(record, Intended(7))
    assert (record.phase, record.attempt) == (Phase.DISPATCHING, 1)
    assert await worker.ledger.recall(record.key) == record


async def test_an_intent_may_be_repeated_and_moves_the_quarantine(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await worker.ledger.keep(await admitted(bench, worker), Intended(1))
    await bench.redis.hset(KEYS.message(record.key), "quarantine_until", "1")

    record = await worker.ledger.keep(record, Intended(1))

    assert record.attempt == 1
    assert (
        int(await bench.redis.hget(KEYS.message(record.key), "quarantine_until"))
        == record.quarantine_until_ms
    )


async def test_progress_told_twice_is_published_once(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)
    placed = Progressed(Progress.PLACED, 1_700_000_001_000)

    after = await worker.ledger.keep(record, placed)
    again = await worker.ledger.keep(record, placed)

    assert after == again
    assert after.placed_at_ms == 1_700_000_001_000
    assert [reply["type"] for reply in await bench.replies()].count("placed") == 1


async def test_the_first_reason_to_stop_a_job_counts(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)

    stopped = await worker.ledger.keep(record, StopOrdered(Verdict.TIMED_OUT, 1))
    again = await worker.ledger.keep(record, StopOrdered(Verdict.CANCELLED, 2))

    assert (stopped.stopping, again.stopping) == ("timed_out", "timed_out")


async def test_a_former_owner_can_do_nothing_but_bring_a_fact(bench: Bench) -> None:
    former, owner = await bench.worker("a"), await bench.worker("b")
    record = await former.ledger.keep(await admitted(bench, former), Intended(1))
    await bench.dies(former)
    (dead,) = await owner.leases.dead()
    (taken,) = await owner.leases.take(dead, 10)
    assert (taken.fence, taken.takeovers, taken.phase) == (2, 1, Phase.DISPATCHING)

    with pytest.raises(Fenced):
        await former.ledger.keep(record, Intended(2))
    with pytest.raises(Fenced):
        await former.ledger.keep(record, DispatchPutOff("x", 2))
    with pytest.raises(Fenced):
        await former.ledger.settle(advance(record, SUCCESS))
    with pytest.raises(Fenced):
        await former.ledger.keep(record, JobAccepted(CHILD, "e1", 3))

    # The fact was kept all the same: the owner goes on from the job that its predecessor started.
    assert (await owner.ledger.recall(record.key) or record).job_id == CHILD
    assert (await owner.ledger.keep(taken, JobAccepted(CHILD, "", 4))).phase is Phase.RUNNING
    assert [reply["type"] for reply in await bench.replies()] == ["accepted", "dispatched"]


async def test_a_second_child_of_one_message_is_named_as_such(bench: Bench) -> None:
    worker = await bench.worker("a")
    before = await worker.ledger.keep(await admitted(bench, worker), Intended(1))
    await worker.ledger.keep(before, JobAccepted(CHILD, "e1", 1))

    with pytest.raises(DuplicateChild) as caught:
        await worker.ledger.keep(before, JobAccepted("render/dispatch-1-other", "e2", 2))

    assert caught.value.kept_job_id == CHILD


async def test_a_child_of_a_message_settled_without_one_is_one_too_many(bench: Bench) -> None:
    worker = await bench.worker("a")
    before = await worker.ledger.keep(await admitted(bench, worker), Intended(1))
    await worker.ledger.settle(advance(before, Ended(Outcome(Verdict.POISON, error_code="request.poison"))))

    with pytest.raises(DuplicateChild) as caught:
        await worker.ledger.keep(before, JobAccepted(CHILD, "e1", 1))

    assert caught.value.kept_job_id == ""


async def test_a_rejected_message_becomes_a_dead_letter_with_its_fields_as_they_were(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await bench.request(job=b"nope", payload=b"\xff\x00raw", extra=b"kept")
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None

    rejected = Outcome(Verdict.REJECTED, error_code="nomad.job_unknown", error_message="no such job")
    await worker.ledger.settle(advance(record, Ended(rejected)))

    (letter,) = await bench.dead_letters()
    assert letter[b"payload"] == b"\xff\x00raw"
    assert letter[b"extra"] == b"kept"
    assert letter[b"dead_id"] == key.id.encode()
    assert letter[b"dead_code"] == b"nomad.job_unknown"
    assert (await bench.replies())[-1]["error_code"] == "nomad.job_unknown"
    assert await bench.pending() == 0


async def test_a_dead_letter_of_thousands_of_fields_is_kept_whole(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await bench.request(**{f"f{n}": b"x" for n in range(5_000)})
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None

    await worker.ledger.settle(
        advance(record, Ended(Outcome(Verdict.REJECTED, error_code="request.invalid")))
    )

    (letter,) = await bench.dead_letters()
    assert letter[b"dead_fields_msgpack"].count(b"x") == 5_000
    assert await bench.pending() == 0


async def test_replies_go_to_the_stream_the_request_names(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker, reply_to="billing")

    await worker.ledger.settle(advance(record, SUCCESS))

    assert await bench.replies() == []
    assert [reply["type"] for reply in await bench.replies("billing")] == ["accepted", "dispatched", "result"]


async def test_a_record_of_a_newer_version_is_left_alone(bench: Bench) -> None:
    worker, other = await bench.worker("a"), await bench.worker("b")
    record = await running(bench, worker)
    await bench.redis.hset(KEYS.message(record.key), "v", "2")

    with pytest.raises(RecordUnreadable):
        await worker.admits(record.key)
    await bench.dies(worker)
    (dead,) = await other.leases.dead()
    assert await other.leases.take(dead, 10) == []

    assert await bench.pending() == 1


async def test_when_redis_lost_the_ledger_a_running_job_is_still_answered_from_memory(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)
    await bench.redis.flushall()

    record = await worker.ledger.keep(record, Progressed(Progress.RUNNING, 5))
    settled = await worker.ledger.settle(advance(record, SUCCESS))
    again = await worker.ledger.settle(advance(record, SUCCESS))

    assert settled.reply_id == again.reply_id
    assert [reply["verdict"] for reply in await bench.replies()] == ["succeeded"]


async def test_when_redis_lost_the_ledger_nothing_new_is_dispatched(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await admitted(bench, worker)
    await bench.redis.flushall()

    with pytest.raises(RecordGone):
        await worker.ledger.keep(record, Intended(1))


async def test_a_fact_that_cannot_be_true_changes_nothing(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await running(bench, worker)

    with pytest.raises(IllegalTransition):
        await worker.ledger.keep(record, Intended(1))

    assert await worker.ledger.recall(record.key) == replace(record, quarantine_until_ms=0)


async def test_scripts_survive_a_server_that_has_forgotten_them(bench: Bench) -> None:
    worker = await bench.worker("a")
    await bench.redis.script_flush()

    record = await running(bench, worker)
    await bench.redis.script_flush()

    assert (await worker.ledger.settle(advance(record, SUCCESS))).phase is Phase.SETTLED


async def test_a_dead_letter_stream_that_is_none_publishes_nothing_by_halves(bench: Bench) -> None:
    worker = await bench.worker("a")
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None
    await bench.redis.set(KEYS.dead, "not a stream")
    rejected = advance(record, Ended(Outcome(Verdict.REJECTED, error_code="request.invalid")))

    for _ in range(3):
        with pytest.raises(RedisUnavailable):
            await worker.ledger.settle(rejected)
    await bench.redis.delete(KEYS.dead)
    await worker.ledger.settle(rejected)

    assert [reply["type"] for reply in await bench.replies()] == ["accepted", "result"]
    assert len(await bench.dead_letters()) == 1
