"""What may follow what: one fact at a time moves a message's record forward, or is refused.

Knows nothing of who finds the facts out, or of where records are kept.

    WAITING ◄──Parked── RECEIVED (and back, when it is picked out of the queue)

    RECEIVED ────Intended───► DISPATCHING ──JobAccepted──► RUNNING ◄─┐
     ▲   │                      │   │                        │   └───┘ Progressed, StopOrdered
     ├───┼──DispatchPutOff──────┘   │                        │
     └───┼──────────────────────────┼────────Repeated────────┤
         └────Ended─────────────────┴────────Ended───────────┴──Ended──► FINISHED ──ReplyPublished──► SETTLED
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from worker.core.model import Outcome, Phase, Progress, Record, Run, Verdict
from worker.errors import IllegalTransition


@dataclass(frozen=True, slots=True)
class Parked:
    """The message may not go now: it waits in Redis, and this worker lets go of it."""

    until_ms: int
    """Before this it may not go; 0, or past: it waits for its turn only."""
    deadline_ms: int
    """Then it is answered without having been dispatched; 0: it has no deadline."""


@dataclass(frozen=True, slots=True)
class Intended:
    """The next thing this worker does is to dispatch. Kept before it does, and before each repeat."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class DispatchPutOff:
    """Nomad certainly created nothing: the message may wait, or move to another worker, freely."""

    error_code: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class JobAccepted:
    """Nomad has the dispatched job."""

    job_id: str
    eval_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """The job came a step further; published as a reply that is not final."""

    step: Progress
    at_ms: int
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """The worker itself stops the job; `verdict` is why, whatever Nomad then says of the end."""

    verdict: Verdict
    at_ms: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """The run ended, for good, and is to be followed by another one: a new job with a token of its own."""

    run: Run
    at_ms: int
    """Before this, Unix milliseconds, the next run is not begun."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the message ended."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ReplyPublished:
    """The final reply is in the reply stream and the entry acknowledged."""

    reply_id: str


Fact = (
    Parked
    | Intended
    | DispatchPutOff
    | JobAccepted
    | Progressed
    | StopOrdered
    | Repeated
    | Ended
    | ReplyPublished
)

UNTRACEABLE = "job.untraceable"
"""The error code of a run that may have a job which nobody can look for."""

_NOT_INTENDED = frozenset({Phase.RECEIVED, Phase.WAITING})
_MAY_END = frozenset({Phase.RECEIVED, Phase.DISPATCHING, Phase.RUNNING})
OPEN = frozenset({Phase.RECEIVED, Phase.WAITING, Phase.DISPATCHING, Phase.RUNNING})


def advance(record: Record, fact: Fact) -> Record:  # noqa: C901 - one case per arrow of the diagram
    """Apply one fact to a record and return the new record.

    A fact the record already reflects changes nothing, so that a redelivered message is safe.

    Raises:
        IllegalTransition: the fact cannot be true in this phase. The ledger keeps the old record.
    """
    phase = record.phase
    match fact:
        case Parked() if phase in _NOT_INTENDED:
            return replace(record, phase=Phase.WAITING, picked_at_ms=0)
        case Intended(at_ms) if phase is Phase.RECEIVED:
            attempt = record.attempt + 1
            return replace(record, phase=Phase.DISPATCHING, attempt=attempt, intended_at_ms=at_ms)
        case Intended() if phase is Phase.DISPATCHING:
            return record
        case DispatchPutOff() if phase is Phase.DISPATCHING:
            # The attempt is given back: Nomad never saw it.
            return replace(record, phase=Phase.RECEIVED, attempt=record.attempt - 1, intended_at_ms=0)
        case JobAccepted(job_id, eval_id, at_ms) if phase is Phase.DISPATCHING:
            return replace(
                record,
                phase=Phase.RUNNING,
                job_id=job_id,
                eval_id=eval_id,
                dispatched_at_ms=at_ms,
                # Whoever died on it before did not die of it; and who dies while it runs does not either.
                takeovers=0,
                seq=record.seq + 1,
            )
        case JobAccepted(job_id) if phase is Phase.RUNNING and job_id == record.job_id:
            return record
        case Progressed(step, at_ms) if phase is Phase.RUNNING:
            placed_at_ms = record.placed_at_ms
            if not placed_at_ms and step is not Progress.BLOCKED:
                placed_at_ms = at_ms
            return replace(record, shown=step.value, seq=record.seq + 1, placed_at_ms=placed_at_ms)
        case StopOrdered(verdict) if phase is Phase.RUNNING:
            return replace(record, stopping=record.stopping or verdict.value)
        case Repeated(run, at_ms) if phase is Phase.RUNNING and run.attempt == record.attempt:
            return _between_runs(record, run, at_ms)
        case Repeated(run) if phase is Phase.RECEIVED and record.runs and run == record.runs[-1]:
            return record
        case Ended(outcome) if phase in _MAY_END:
            return _finished(record, outcome)
        case Ended(outcome) if phase is Phase.FINISHED and outcome == record.outcome:
            return record
        case ReplyPublished(reply_id) if phase is Phase.FINISHED:
            return replace(record, phase=Phase.SETTLED, reply_id=reply_id, seq=record.seq + 1)
        case ReplyPublished(reply_id) if phase is Phase.SETTLED and reply_id == record.reply_id:
            return record
        case _:
            message = f"{type(fact).__name__} cannot be true of a message that is {phase.value}"
            raise IllegalTransition(message)


def _between_runs(record: Record, run: Run, at_ms: int) -> Record:
    # Nothing of the ended job is left in the record: its ID would pass for the next one's.
    return replace(
        record,
        phase=Phase.RECEIVED,
        runs=(*record.runs, run),
        retry_at_ms=at_ms,
        picked_at_ms=0,
        takeovers=0,
        seq=record.seq + 1,
        job_id="",
        eval_id="",
        intended_at_ms=0,
        dispatched_at_ms=0,
        placed_at_ms=0,
        shown="",
        stopping="",
        quarantine_until_ms=0,
    )


def _finished(record: Record, outcome: Outcome) -> Record:
    finished = replace(record, phase=Phase.FINISHED, outcome=outcome)
    if record.job_id or not record.runs or outcome.error_code == UNTRACEABLE:
        return finished
    # No further run came about: the end is about the last one.
    last = record.runs[-1]
    return replace(finished, job_id=last.job_id, attempt=last.attempt)
