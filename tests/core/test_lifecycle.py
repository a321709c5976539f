"""What may follow what: every pair of phase and fact has one answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from worker.core.lifecycle import (
    OPEN,
    UNTRACEABLE,
    DispatchPutOff,
    Ended,
    Fact,
    Intended,
    JobAccepted,
    Parked,
    Progressed,
    ReplyPublished,
    StopOrdered,
    advance,
)
from worker.core.model import MessageKey, Outcome, Phase, Progress, Record, Run, Verdict
from worker.errors import IllegalTransition

KEY = MessageKey("requests", "1-0")
SUCCESS = Outcome(Verdict.SUCCEEDED, exit_code=0)
FACTS: list[Fact] = [
    Intended(1),
    DispatchPutOff("nomad.busy", 1),
    JobAccepted("render/dispatch-1-a", "e1", 1),
    Progressed(Progress.RUNNING, 1),
    StopOrdered(Verdict.TIMED_OUT, 1),
    Parked(2, 3),
    Ended(SUCCESS),
    ReplyPublished("9-0"),
]
ALLOWED = {
    (Phase.RECEIVED, Parked): Phase.WAITING,
    (Phase.WAITING, Parked): Phase.WAITING,
    (Phase.RECEIVED, Intended): Phase.DISPATCHING,
    (Phase.RECEIVED, Ended): Phase.FINISHED,
    (Phase.DISPATCHING, Intended): Phase.DISPATCHING,
    (Phase.DISPATCHING, DispatchPutOff): Phase.RECEIVED,
    (Phase.DISPATCHING, JobAccepted): Phase.RUNNING,
    (Phase.DISPATCHING, Ended): Phase.FINISHED,
    (Phase.RUNNING, JobAccepted): Phase.RUNNING,
    (Phase.RUNNING, Progressed): Phase.RUNNING,
    (Phase.RUNNING, StopOrdered): Phase.RUNNING,
    (Phase.RUNNING, Ended): Phase.FINISHED,
    (Phase.FINISHED, Ended): Phase.FINISHED,
    (Phase.FINISHED, ReplyPublished): Phase.SETTLED,
    (Phase.SETTLED, ReplyPublished): Phase.SETTLED,
}


def in_phase(phase: Phase) -> Record:
    return Record(
        KEY,
        phase,
        token="1-0",
        attempt=1,
        job_id="render/dispatch-1-a" if phase is Phase.RUNNING else "",
        outcome=SUCCESS if phase in {Phase.FINISHED, Phase.SETTLED} else None,
        reply_id="9-0" if phase is Phase.SETTLED else "",
    )


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
@pytest.mark.parametrize("phase", Phase)
def test_every_pair_of_phase_and_fact_is_decided(phase: Phase, fact: Fact) -> None:
    expected = ALLOWED.get((phase, type(fact)))

    if expected is None:
        with pytest.raises(IllegalTransition):
            advance(in_phase(phase), fact)
    else:
        assert advance(in_phase(phase), fact).phase is expected


def test_an_attempt_that_nomad_never_saw_is_given_back() -> None:
    record = Record(KEY, Phase.RECEIVED, token="1-0")

    dispatching = advance(record, Intended(1))
    put_off = advance(dispatching, DispatchPutOff("nomad.busy", 2))

    assert (dispatching.attempt, put_off.attempt) == (1, 0)
    assert advance(put_off, Intended(3)).attempt == 1


def test_the_dispatch_begins_with_the_first_intent_that_was_not_put_off() -> None:
    record = advance(Record(KEY, Phase.RECEIVED, token="1-0"), Intended(1))
    record = advance(record, DispatchPutOff("nomad.busy", 2))
    waiting = record.intended_at_ms

    record = advance(advance(record, Intended(3)), Intended(4))

    assert (waiting, record.intended_at_ms) == (0, 3)


def test_another_job_cannot_become_the_child_of_a_running_message() -> None:
    with pytest.raises(IllegalTransition):
        advance(in_phase(Phase.RUNNING), JobAccepted("render/dispatch-1-b", "e2", 1))


def test_another_outcome_cannot_replace_the_first() -> None:
    with pytest.raises(IllegalTransition):
        advance(in_phase(Phase.FINISHED), Ended(Outcome(Verdict.FAILED)))


def test_the_placement_time_is_the_first_progress_that_is_not_blocked() -> None:
    record = in_phase(Phase.RUNNING)

    record = advance(record, Progressed(Progress.BLOCKED, 5))
    assert record.placed_at_ms == 0
    record = advance(record, Progressed(Progress.PLACED, 7))
    record = advance(record, Progressed(Progress.RUNNING, 9))

    assert (record.placed_at_ms, record.shown, record.seq) == (7, "running", 3)


def test_a_further_run_that_cannot_be_traced_is_not_taken_for_the_one_before() -> None:
    first = Run(1, "render/dispatch-1-a", Verdict.LOST, None, "job.lost", "gone", 1, 2)
    record = Record(KEY, Phase.DISPATCHING, token="1-0", attempt=2, runs=(first,))

    untraceable = advance(record, Ended(Outcome(Verdict.UNKNOWN_GC, error_code=UNTRACEABLE)))
    expired = advance(record, Ended(Outcome(Verdict.EXPIRED)))

    assert (untraceable.job_id, untraceable.attempt) == ("", 2)
    assert (expired.job_id, expired.attempt) == (first.job_id, 1)


@given(st.lists(st.sampled_from(FACTS), max_size=12))
def test_no_order_of_facts_leaves_settled_or_counts_replies_backwards(facts: list[Fact]) -> None:
    record = Record(KEY, Phase.RECEIVED, token="1-0")
    for fact in facts:
        try:
            after = advance(record, fact)
        except IllegalTransition:
            continue
        assert after.seq >= record.seq
        assert record.phase is not Phase.SETTLED or after == record
        assert (after.outcome is None) == (after.phase in OPEN)
        record = after


@given(st.sampled_from(FACTS), st.sampled_from(list(Phase)))
def test_a_fact_already_reflected_changes_nothing(fact: Fact, phase: Phase) -> None:
    try:
        once = advance(in_phase(phase), fact)
        twice = advance(once, fact)
    except IllegalTransition:
        return
    # Progress is numbered, so that each is published; the ledger drops a number it already has.
    assert replace(twice, seq=once.seq) == once
