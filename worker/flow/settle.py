"""Step 5: the outcome becomes the final reply, in the same script that acknowledges the entry.

Knows nothing of how the outcome was found; settling twice gives the same reply.
"""

from worker.core.model import Outcome, Phase, Record, Verdict
from worker.errors import PayloadLost, PoisonMessage, WorkerError
from worker.flow.instruments import Instruments
from worker.ports import Clock, Ledger


class Settle:
    """Publishes outcomes."""

    def __init__(self, ledger: Ledger, clock: Clock, instruments: Instruments) -> None:
        self._ledger = ledger
        self._clock = clock
        self._instruments = instruments

    async def settle(self, record: Record) -> Record:
        """Publish a FINISHED record's outcome.

        Raises:
            Fenced, RedisUnavailable.
        """
        settled = await self._ledger.settle(record)
        if settled.phase is Phase.SETTLED and record.outcome is not None:
            seconds = max(0.0, (self._clock.now_ms() - record.received_at_ms) / 1000)
            self._instruments.settled(record, record.outcome, seconds)
        return settled


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
