"""One message in this worker's hands: its record, and what is only known here and now.

Knows nothing of the steps; everything in it but the record may be lost with the process.
"""

from dataclasses import dataclass

from worker.core.model import Entry, MessageKey, Phase, Record, Request, Routing
from worker.errors import RequestRejected


@dataclass(slots=True)
class Message:
    """Mutable, owned by the one task that walks the message through its steps."""

    key: MessageKey
    entry: Entry | None = None
    """As read; None until it has been fetched for a message taken over."""
    record: Record | None = None
    """None until admitted."""
    request: Request | None = None
    fault: RequestRejected | None = None
    """Why the entry cannot be dispatched, found while decoding it."""
    unsure: bool = False
    """An earlier dispatch, by whomever, may have reached Nomad: its answer was not seen here."""
    looked: bool = False
    """Whether Nomad was asked for the job of that earlier dispatch since it became uncertain."""
    failures: int = 0
    """Tries in a row that failed in a way that may pass."""
    interruptible: bool = True
    """Whether its task may be cancelled without losing what Nomad or Redis just answered."""
    slot: Routing | None = None
    """What it holds a dispatch slot for; None: it holds none."""
    stop_sent_at: float = 0.0
    """Monotonic seconds of the last stop request for its job; 0: none."""

    @property
    def phase(self) -> Phase | None:
        """The record's phase; None before admission."""
        return self.record.phase if self.record else None

    @property
    def job(self) -> str:
        """The parameterized job's name; empty before admission."""
        return self.record.routing.job if self.record else ""
