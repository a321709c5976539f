"""The step from one run to the next, on a real Redis: kept whole or not at all, by the owner, once."""

import pytest
from msgspec.structs import replace

from tests.adapters.redis.conftest import KEYS, Bench, Worker
from worker.core.lifecycle import Ended, Intended, JobAccepted, Progressed, Repeated, StopOrdered, advance
from worker.core.model import Outcome, Phase, Progress, Record, Run, Verdict
from worker.core.repeat import with_runs
from worker.errors import DuplicateChild, Fenced

pytestmark = pytest.mark.anyio

FIRST = Run(1, "render/dispatch-1-aaaa", Verdict.LOST, None, "job.lost", "gone", 1_000, 2_000)
FACT = Repeated(FIRST, 60_000)


async def ran_once(bench: Bench, worker: Worker) -> Record:
    key = await bench.request()
    await worker.reads()
    record = await worker.admits(key)
    assert record is not None
    record = await worker.ledger.keep(record, Intended(0))
    record = await worker.ledger.keep(record, JobAccepted(FIRST.job_id, "eval-1", 1_000))
    record = await worker.ledger.keep(record, Progressed(Progress.PLACED, 1_500))
    return await worker.ledger.keep(record, StopOrdered(Verdict.TIMED_OUT, 1_600))


async def stored(bench: Bench, record: Record) -> dict[str, str]:
    flat = await bench.redis.hgetall(KEYS.message(record.key))
    return {name.decode(): value.decode() for name, value in flat.items()}


async def test_the_ended_run_is_stored_and_nothing_else_is_left_of_it(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await ran_once(bench, worker)

    waiting = await worker.ledger.keep(record, FACT)

    assert (waiting.phase, waiting.attempt, waiting.retry_at_ms) == (Phase.RECEIVED, 1, 60_000)
    assert await worker.ledger.recall(record.key) == waiting
    assert not {"child", "eval_id", "placed_at", "shown", "stopping"} & set(await stored(bench, record))
    retrying = (await bench.replies())[-1]
    assert (retrying["type"], retrying["final"], retrying["attempt"]) == ("retrying", "0", "1")
    assert retrying["dispatched_job_id"] == FIRST.job_id
    assert retrying["seq"] == str(waiting.seq)


async def test_kept_again_after_a_lost_answer_it_is_the_first_keeping_that_counts(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await ran_once(bench, worker)
    first = await worker.ledger.keep(record, FACT)

    again = await worker.ledger.keep(record, Repeated(FIRST, 99_000))

    assert (again.phase, again.seq, again.retry_at_ms) == (first.phase, first.seq, 60_000)
    assert [reply["type"] for reply in await bench.replies()].count("retrying") == 1


async def test_workers_that_died_while_a_run_was_under_way_do_not_count_against_the_next(
    bench: Bench,
) -> None:
    first, second = await bench.worker("a"), await bench.worker("b")
    await ran_once(bench, first)
    await bench.dies(first)
    (dead,) = await second.leases.dead()
    (taken,) = await second.leases.take(dead, 10)

    waiting = await second.ledger.keep(taken, FACT)

    assert (taken.takeovers, waiting.takeovers) == (1, 0)
    assert await second.ledger.recall(taken.key) == waiting


async def test_only_the_owner_repeats(bench: Bench) -> None:
    first, second = await bench.worker("a"), await bench.worker("b")
    record = await ran_once(bench, first)
    await bench.dies(first)
    (dead,) = await second.leases.dead()
    (taken,) = await second.leases.take(dead, 10)

    with pytest.raises(Fenced):
        await first.ledger.keep(record, FACT)

    waiting = await second.ledger.keep(taken, FACT)
    assert waiting.runs == (FIRST,)


async def test_a_cancelled_message_is_not_repeated(bench: Bench) -> None:
    worker = await bench.worker("a")
    record = await ran_once(bench, worker)
    await bench.redis.hset(KEYS.message(record.key), "cancel", 1)

    kept = await worker.ledger.keep(record, FACT)

    assert (kept.phase, kept.cancel, kept.runs) == (Phase.RUNNING, True, ())
    assert (await stored(bench, record))["state"] == "running"


async def test_a_taker_goes_on_where_the_dead_worker_waited(bench: Bench) -> None:
    first, second = await bench.worker("a"), await bench.worker("b")
    waiting = await first.ledger.keep(await ran_once(bench, first), FACT)
    await bench.dies(first)
    (dead,) = await second.leases.dead()

    (taken,) = await second.leases.take(dead, 10)
    begun = await second.ledger.keep(taken, Intended(0))

    assert (taken.runs, taken.retry_at_ms) == (waiting.runs, 60_000)
    assert (begun.attempt, begun.run_token) == (2, f"{waiting.token}/2")


async def test_the_second_run_has_its_own_job_and_the_end_tells_of_both(bench: Bench) -> None:
    worker = await bench.worker("a")
    waiting = await worker.ledger.keep(await ran_once(bench, worker), FACT)
    record = await worker.ledger.keep(waiting, Intended(0))
    record = await worker.ledger.keep(record, JobAccepted("render/dispatch-2-bbbb", "eval-2", 70_000))

    finished = with_runs(advance(record, Ended(Outcome(Verdict.SUCCEEDED, 0))), 80_000)
    await worker.ledger.settle(finished)

    recalled = await worker.ledger.recall(record.key)
    assert recalled is not None
    assert [(run.attempt, run.job_id, run.verdict.value) for run in recalled.runs] == [
        (1, FIRST.job_id, "lost"),
        (2, "render/dispatch-2-bbbb", "succeeded"),
    ]
    assert (recalled.job_id, recalled.attempt) == ("render/dispatch-2-bbbb", 2)
    kinds = [(reply["type"], reply.get("attempt")) for reply in await bench.replies()]
    assert kinds[-3:] == [("retrying", "1"), ("dispatched", "2"), ("result", "2")]
    assert "retry_at" not in await stored(bench, record)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_job_of_the_first_run_that_is_told_late_is_known_or_one_too_many(
    bench: Bench, *, begun: bool
) -> None:
    worker = await bench.worker("a")
    record = await ran_once(bench, worker)
    waiting = await worker.ledger.keep(record, FACT)
    if begun:
        waiting = await worker.ledger.keep(waiting, Intended(0))
    before = replace(record, phase=Phase.DISPATCHING, job_id="", eval_id="")

    with pytest.raises(Fenced):
        await worker.ledger.keep(before, JobAccepted(FIRST.job_id, "eval-1", 1_000))
    with pytest.raises(DuplicateChild) as caught:
        await worker.ledger.keep(before, JobAccepted("render/dispatch-1-cccc", "eval-1", 1_000))

    assert caught.value.kept_job_id == ""
    assert (await worker.ledger.recall(record.key)) == waiting
