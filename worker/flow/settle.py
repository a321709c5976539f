"""Step 5: the outcome becomes the final reply, in the same script that acknowledges the entry.

Knows nothing of how the outcome was found; settling twice gives the same reply.
"""

from typing import Any, Literal

import structlog
from msgspec.structs import replace

from worker.core.model import Outcome, Record, Verdict
from worker.core.repeat import with_runs
from worker.errors import PayloadLost, PoisonMessage, WorkerError
from worker.flow.instruments import Instruments
from worker.ports import Clock, Ledger, Nomad

log = structlog.get_logger()

NO_LOGS = frozenset({Verdict.SUCCEEDED, Verdict.DETACHED, Verdict.UNKNOWN_GC})


class Settle:
    """Publishes outcomes.

    Args:
        log_tail_bytes: how much of a failed task's output goes into the reply; 0: none.
        purge_finished: remove the job from Nomad after its reply is published.
    """

    def __init__(
        self,
        ledger: Ledger,
        nomad: Nomad,
        clock: Clock,
        instruments: Instruments,
        *,
        log_tail_bytes: int = 0,
        purge_finished: bool = False,
    ) -> None:
        self._ledger = ledger
        self._nomad = nomad
        self._clock = clock
        self._instruments = instruments
        self._log_tail_bytes = log_tail_bytes
        self._purge_finished = purge_finished

    async def complete(self, record: Record) -> Record:
        """Add to a FINISHED record what only now can be said: durations, and a failed task's last words."""
        outcome = record.outcome
        if outcome is None or not record.job_id:
            return record
        durations = self._durations(record, outcome)
        record = with_runs(record, self._clock.now_ms())
        outcome = record.outcome or outcome
        evidence = {**outcome.evidence, "durations": durations}
        if self._log_tail_bytes and outcome.verdict not in NO_LOGS:
            evidence["logs"] = await self._last_words(record, outcome)
        return replace(record, outcome=replace(outcome, evidence=evidence))

    async def settle(self, record: Record) -> Record:
        """Publish a FINISHED record's outcome.

        Raises:
            Fenced, RedisUnavailable.
        """
        settled = await self._ledger.settle(record)
        if record.outcome is not None:
            seconds = max(0.0, (self._clock.now_ms() - record.received_at_ms) / 1000)
            self._instruments.settled(record, record.outcome, seconds)
        return settled

    async def clean_up(self, record: Record) -> None:
        """Purge the settled message's jobs where that is wanted; only the ledger remembers their tokens then.

        Those of earlier runs too, and not before: while the message is open, its tokens stay taken.
        """
        if not self._purge_finished or not record.job_id or _may_still_run(record):
            return
        for job_id in dict.fromkeys([record.job_id, *(run.job_id for run in record.runs)]):
            try:
                await self._nomad.purge(record.routing.place, job_id)
            except WorkerError as error:
                # Nomad's own garbage collection will come for it.
                log.warning("job.not_purged", job_id=job_id, code=error.code, error=str(error))

    def _durations(self, record: Record, outcome: Outcome) -> dict[str, Any]:
        """Seconds, as this worker and its predecessors saw them, besides those that Nomad tells.

        All but the total are of the last run.
        """
        queued_ms = record.queued_at_ms(record.received_at_ms)
        waited_since_ms = record.runs[-1].ended_at_ms if record.runs else queued_ms
        told = dict(outcome.evidence.get("durations") or {})
        if record.dispatched_at_ms:
            # A record of an older version does not tell when the dispatch began.
            began_ms = record.intended_at_ms or record.dispatched_at_ms
            told["queue"] = max(0, began_ms - waited_since_ms) / 1000
            told["dispatch"] = max(0, record.dispatched_at_ms - began_ms) / 1000
        told["total"] = max(0, self._clock.now_ms() - queued_ms) / 1000
        return told

    async def _last_words(self, record: Record, outcome: Outcome) -> dict[str, str]:
        deciding = outcome.evidence.get("deciding") or {}
        allocation, task = deciding.get("allocation", ""), deciding.get("task", "")
        if not allocation or not task:
            return {"note": "no task to read the logs of"}
        words: dict[str, str] = {}
        streams: tuple[Literal["stderr", "stdout"], ...] = ("stderr", "stdout")
        for stream in streams:
            try:
                tail = await self._nomad.logs(
                    record.routing.place, allocation, task, stream, self._log_tail_bytes
                )
            except WorkerError as error:
                # The node may be gone with its logs: the verdict does not wait for them.
                words["note"] = f"{stream} is not to be had: {error.code}"
                break
            words[stream] = tail.decode(errors="replace")
        return words


def _may_still_run(record: Record) -> bool:
    return record.outcome is None or record.outcome.verdict is Verdict.DETACHED


def outcome_of(error: WorkerError) -> Outcome:
    """The outcome of a message that an error ended before it was dispatched."""
    match error:
        case PayloadLost():
            verdict = Verdict.PAYLOAD_LOST
        case PoisonMessage():
            verdict = Verdict.POISON
        case _:
            verdict = Verdict.REJECTED
    return Outcome(verdict, error_code=error.code, error_message=str(error))
