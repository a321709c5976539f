"""Runs that follow one another: how many, under which tokens, and what the last reply tells of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.lifecycle import Ended, Intended, JobAccepted, Progressed, Repeated, StopOrdered, advance
from worker.core.model import MessageKey, Outcome, Phase, Progress, Record, Routing, Run, Verdict
from worker.core.policy import Policy, Retry
from worker.core.repeat import NEVER_BEGUN, not_begun, repeat, retrying_json, with_runs
from worker.errors import IllegalTransition

KEY = MessageKey("requests", "7-0")
REFUSED = Outcome(
    Verdict.REJECTED, error_code="nomad.job_unknown", error_message="parameterized job not found"
)
LOST = Outcome(Verdict.LOST, error_code="job.lost", error_message="the node was lost")


def rule(**more: object) -> Retry:
    tables = {"retries": {"*": {"on": ["lost", "failed"], "max_attempts": 3, "backoff_seconds": 10, **more}}}
    retry = Policy.parse(tables).retry("render")
    assert retry is not None
    return retry


def running(attempt: int = 1, **more: object) -> Record:
    record = Record(KEY, Phase.RECEIVED, "7-0", Routing(job="render"), attempt=attempt - 1, **more)  # type: ignore[arg-type]
    record = advance(record, Intended(0))
    return advance(record, JobAccepted(f"render/dispatch-{attempt}", "eval", 1_000))


def repeated(record: Record, outcome: Outcome = LOST) -> Record:
    fact = repeat(record, outcome, rule(), now_ms=5_000, chance=0.5, deadline_ms=None)
    assert fact is not None
    return advance(record, fact)


def test_between_two_runs_nothing_is_left_of_the_first_ones_job() -> None:
    record = running()
    record = advance(record, Progressed(Progress.PLACED, 2_000))
    record = advance(record, StopOrdered(Verdict.TIMED_OUT, 3_000))

    waiting = repeated(record)

    assert waiting.phase is Phase.RECEIVED
    assert (waiting.job_id, waiting.eval_id, waiting.shown, waiting.stopping) == ("", "", "", "")
    assert (waiting.dispatched_at_ms, waiting.placed_at_ms) == (0, 0)
    assert waiting.runs == (
        Run(1, "render/dispatch-1", Verdict.LOST, None, "job.lost", "the node was lost", 1_000, 5_000),
    )
    assert 5_000 + 5_000 <= waiting.retry_at_ms <= 5_000 + 10_000


def test_each_run_has_a_token_of_its_own_that_a_repeat_of_its_dispatch_keeps() -> None:
    first = running()
    waiting = repeated(first)
    second = advance(waiting, Intended(0))

    assert [first.run_token, second.run_token, advance(second, Intended(0)).run_token] == [
        "7-0",
        "7-0/2",
        "7-0/2",
    ]
    assert advance(second, JobAccepted("render/dispatch-2", "e", 9)).attempt == 2


def test_the_same_fact_again_changes_nothing_and_another_run_s_is_refused() -> None:
    fact = repeat(running(), LOST, rule(), now_ms=5_000, chance=0.5, deadline_ms=None)
    assert fact is not None
    waiting = advance(running(), fact)

    assert advance(waiting, fact) == waiting
    with pytest.raises(IllegalTransition):
        advance(running(2), fact)


@pytest.mark.parametrize(
    ("outcome", "attempt", "deadline_ms"),
    [
        (Outcome(Verdict.OOM_KILLED), 1, None),
        (Outcome(Verdict.CANCELLED), 1, None),
        (Outcome(Verdict.STOPPED), 1, None),
        (Outcome(Verdict.SUCCEEDED, 0), 1, None),
        (LOST, 3, None),
        (LOST, 1, 9_999),
    ],
    ids=["another verdict", "cancelled", "stopped", "succeeded", "the last run", "past the deadline"],
)
def test_what_is_not_repeated(outcome: Outcome, attempt: int, deadline_ms: int | None) -> None:
    found = repeat(running(attempt), outcome, rule(), now_ms=5_000, chance=0, deadline_ms=deadline_ms)

    assert found is None
    assert repeat(running(), LOST, None, now_ms=5_000, chance=0, deadline_ms=None) is None


def test_when_the_next_run_cannot_begin_the_last_one_s_end_stands() -> None:
    waiting = repeated(running())

    finished = with_runs(advance(waiting, not_begun(waiting, Ended(REFUSED))), 9_000)

    assert finished.outcome is not None
    assert (finished.outcome.verdict, finished.outcome.error_code) == (Verdict.LOST, "job.lost")
    assert finished.outcome.evidence["retry_not_begun"]["code"] == "nomad.job_unknown"
    assert [run["dispatched_job_id"] for run in finished.outcome.evidence["runs"]] == ["render/dispatch-1"]
    assert (finished.job_id, finished.attempt) == ("render/dispatch-1", 1)


def test_cancelled_while_it_waited_it_is_cancelled() -> None:
    waiting = repeated(running())

    ended = not_begun(waiting, Ended(Outcome(Verdict.CANCELLED, error_code="request.cancelled")))

    assert (ended.outcome.verdict, ended.outcome.error_code) == (Verdict.CANCELLED, "request.cancelled")
    assert "before its next run" in ended.outcome.error_message


def test_a_message_that_was_never_run_ends_as_it_was_told() -> None:
    received = Record(KEY, Phase.RECEIVED, "7-0")

    assert not_begun(received, Ended(REFUSED)) == Ended(REFUSED)


def test_the_announcement_names_the_ended_run_and_the_coming_one() -> None:
    fact = repeat(running(), LOST, rule(), now_ms=5_000, chance=0.5, deadline_ms=None)
    assert fact is not None

    told = retrying_json(fact)

    assert (told["what"], told["attempt"], told["verdict"]) == ("run", 2, "lost")
    assert (told["dispatched_job_id"], told["next_at"]) == ("render/dispatch-1", "1970-01-01T00:00:12.500Z")


ends = st.sampled_from([Verdict.LOST, Verdict.FAILED, Verdict.SUCCEEDED, Verdict.OOM_KILLED, Verdict.STOPPED])
faults = st.sampled_from([*sorted(NEVER_BEGUN), Verdict.CANCELLED])


@given(verdicts=st.lists(ends, min_size=1, max_size=6), most=st.integers(2, 4), fault=st.none() | faults)
def test_whatever_the_runs_end_with_there_is_one_honest_end(
    verdicts: list[Verdict], most: int, fault: Verdict | None
) -> None:
    retry = rule(max_attempts=most)
    record = Record(KEY, Phase.RECEIVED, "7-0", Routing(job="render"))
    tokens, ended_with = [], []
    for number, verdict in enumerate([*verdicts, *[Verdict.SUCCEEDED] * 10], 1):
        if fault is not None and number > len(verdicts):
            record = advance(record, not_begun(record, Ended(Outcome(fault, error_code="x"))))
            break
        record = advance(record, Intended(0))
        tokens.append(record.run_token)
        record = advance(record, JobAccepted(f"render/dispatch-{number}", "e", number))
        ended_with.append(verdict)
        outcome = Outcome(verdict)
        fact = repeat(record, outcome, retry, now_ms=number, chance=0.1, deadline_ms=None)
        record = advance(record, fact or Ended(outcome))
        if not isinstance(fact, Repeated):
            break
    record = with_runs(record, 100)

    assert record.phase is Phase.FINISHED
    assert record.outcome is not None
    assert len(set(tokens)) == len(tokens) <= most
    if tokens:
        assert record.outcome.verdict not in NEVER_BEGUN
        assert record.job_id == f"render/dispatch-{len(tokens)}"
        assert record.attempt == len(tokens)
    if len(tokens) > 1:
        runs = record.outcome.evidence["runs"]
        assert [run["attempt"] for run in runs] == list(range(1, len(tokens) + 1))
        assert [run["verdict"] for run in runs] == ended_with
        assert all(verdict in {Verdict.LOST, Verdict.FAILED} for verdict in ended_with[:-1])
