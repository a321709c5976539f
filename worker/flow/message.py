"""One message in this worker's hands: its record, and what is only known here and now.

Knows nothing of the steps; everything in it but the record may be lost with the process.
"""

from collections.abc import Callable
from dataclasses import dataclass

from worker.core.instants import entry_time_ms
from worker.core.model import Entry, MessageKey, Phase, Record, Request, Routing
from worker.errors import RequestRejected

_UNDECIDED = frozenset({Phase.RECEIVED, Phase.WAITING, Phase.DISPATCHING})


@dataclass(slots=True)
class Message:
    """Mutable, owned by the one task that walks the message through its steps."""

    key: MessageKey
    entry: Entry | None = None
    """As read; None until it has been fetched for a message taken over."""
    record: Record | None = None
    """None until admitted."""
    request: Request | None = None
    """None once its job exists."""
    fault: RequestRejected | None = None
    """Why the entry cannot be dispatched, found while decoding it."""
    made_here: bool = False
    """Whether this worker had Nomad's answer to its dispatch."""
    unsure: bool = False
    """An earlier dispatch, by whomever, may have reached Nomad: its answer was not seen here."""
    inherited: bool = False
    """That dispatch was an earlier owner's, which may be paused rather than dead, and send yet."""
    looked: bool = False
    """Whether Nomad was asked for the job of that earlier dispatch since it became uncertain."""
    blind: bool = False
    """Whether that look was denied: the token lacks `list-jobs` there."""
    failures: int = 0
    """Tries in a row that failed in a way that may pass."""
    passed: bool = False
    """Whether the gate let it through since it last failed: one trial is one request."""
    interruptible: bool = True
    """Whether its task may be cancelled without losing what Nomad or Redis just answered."""
    passing: bool = False
    """Whether it is only on its way into the queue, and counts for nothing in flight."""
    has_slot: bool = False
    """Whether it holds a dispatch slot."""
    expects: Routing | None = None
    """Whose events are kept for it until its child is known; None: nobody's."""
    stop_sent_at: float = 0.0
    """Monotonic seconds of the last stop request for its job; 0: none."""
    cancel_told: bool = False
    """Whether this worker heard of an order to cancel it."""
    interrupt: Callable[[], object] | None = None
    """Ends the wait it is in, for the order to take effect; None: it is in none that may be ended."""

    def accepted(self) -> None:
        """Its job exists: what it was made from, up to 16 KiB of payload, need not be held while it runs."""
        self.made_here = True
        self.entry = self.request = None

    @property
    def cancelled(self) -> bool:
        """Whether its cancellation was ordered."""
        return self.cancel_told or (self.record is not None and self.record.cancel)

    @property
    def phase(self) -> Phase | None:
        """The record's phase; None before admission."""
        return self.record.phase if self.record else None

    @property
    def job(self) -> str:
        """The parameterized job's name; empty before admission."""
        return self.record.routing.job if self.record else ""

    @property
    def undecided(self) -> bool:
        """Whether it is still open if there will be a job."""
        return self.record is None or self.record.phase in _UNDECIDED

    @property
    def due_ms(self) -> int:
        """Since when it could be dispatched, Unix milliseconds.

        By its entry, its `not_before`, its retry, or since it came out of the queue: what a limit makes it
        wait is no delay of this worker's.
        """
        not_before_ms = (self.request.not_before_ms if self.request else None) or 0
        retry_at_ms, picked_at_ms = 0, 0
        if self.record:
            retry_at_ms, picked_at_ms = self.record.retry_at_ms, self.record.picked_at_ms
        return max(entry_time_ms(self.key.id), not_before_ms, retry_at_ms, picked_at_ms)

    def begin_again(self) -> None:
        """Forget what was known of the run that ended: the next one is another job."""
        self.made_here = self.unsure = self.inherited = self.looked = self.blind = self.passed = False
        self.failures, self.stop_sent_at = 0, 0.0
