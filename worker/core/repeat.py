"""Whether a run that ended is followed by another, and what is told when the other one cannot begin.

Knows nothing of the rules' file (`policy`), of when a run has ended (`verdict`), or of clocks.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from worker.core.instants import format_rfc3339
from worker.core.lifecycle import Ended, Repeated
from worker.core.model import Outcome, Record, Run, Verdict
from worker.core.policy import Retry

MESSAGE_LENGTH = 300
"""Of an earlier run's sentence in a later reply: a hundred of them must not make it large."""

NEVER_BEGUN = frozenset({Verdict.REJECTED, Verdict.EXPIRED, Verdict.POISON, Verdict.PAYLOAD_LOST})
"""Verdicts of a message that was never dispatched: no message that was run may have one."""


def repeat(
    record: Record,
    outcome: Outcome,
    retry: Retry | None,
    *,
    now_ms: int,
    chance: float,
    deadline_ms: int | None,
) -> Repeated | None:
    """The fact that the run ended and another is to follow; None when this outcome is the message's.

    Args:
        record: RUNNING.
        outcome: of its run.
        retry: the rule for its job.
        now_ms: Unix milliseconds.
        chance: uniform in [0, 1), for the wait.
        deadline_ms: the request's latest start, which holds for every run.
    """
    if retry is None or not retry.again(outcome, record.attempt):
        return None
    at_ms = now_ms + int(retry.delay_seconds(record.attempt, chance) * 1000)
    if deadline_ms is not None and at_ms > deadline_ms:
        return None
    return Repeated(run_of(record, outcome, now_ms), at_ms)


def run_of(record: Record, outcome: Outcome, now_ms: int) -> Run:
    """A run that ended, as it is remembered beside the next one."""
    return Run(
        attempt=record.attempt,
        job_id=record.job_id,
        verdict=outcome.verdict,
        exit_code=outcome.exit_code,
        error_code=outcome.error_code,
        error_message=outcome.error_message[:MESSAGE_LENGTH],
        dispatched_at_ms=record.dispatched_at_ms,
        ended_at_ms=now_ms,
    )


def not_begun(record: Record, ended: Ended) -> Ended:
    """The end of a message whose next run could not begin: the last run's own, saying why it stands.

    A message that was never run ends as it was told, and one cancelled while it waited is `cancelled`.
    """
    if not record.runs:
        return ended
    if ended.outcome.verdict is Verdict.CANCELLED:
        text = "the request was cancelled before its next run"
        return Ended(replace(ended.outcome, error_message=text))
    if ended.outcome.verdict not in NEVER_BEGUN:
        return ended
    last = record.runs[-1]
    reason = {"code": ended.outcome.error_code, "message": ended.outcome.error_message}
    return Ended(
        Outcome(
            last.verdict,
            exit_code=last.exit_code,
            error_code=last.error_code,
            error_message=last.error_message,
            evidence={"retry_not_begun": reason},
        )
    )


def with_runs(record: Record, now_ms: int) -> Record:
    """A FINISHED record whose outcome tells of every run, when there was more than one."""
    outcome = record.outcome
    if not record.runs or outcome is None:
        return record
    runs = list(record.runs)
    if record.job_id and record.job_id != runs[-1].job_id:
        runs.append(run_of(record, outcome, now_ms))
    evidence = {**outcome.evidence, "runs": [run_json(run) for run in runs]}
    return replace(record, runs=tuple(runs), outcome=replace(outcome, evidence=evidence))


def retrying_json(fact: Repeated) -> Mapping[str, Any]:
    """The `data` of the reply that announces the next run."""
    told = {"what": "run", "next_at": format_rfc3339(fact.at_ms), **run_json(fact.run)}
    return told | {"attempt": fact.run.attempt + 1}


def run_json(run: Run) -> Mapping[str, Any]:
    """One run in a reply's `data`."""
    told: dict[str, Any] = {
        "attempt": run.attempt,
        "dispatched_job_id": run.job_id,
        "verdict": run.verdict.value,
        "exit_code": run.exit_code,
        "error_code": run.error_code,
        "error_message": run.error_message,
        "dispatched_at": format_rfc3339(run.dispatched_at_ms),
        "ended_at": format_rfc3339(run.ended_at_ms),
    }
    return {name: value for name, value in told.items() if value not in (None, "")}
