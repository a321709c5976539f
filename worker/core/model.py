"""The values that travel through the worker: requests, ledger records, outcomes.

Knows nothing of how they are stored (`codec`) or of what may follow what (`lifecycle`). What is made anew
with every step of a message is a msgspec struct: made in a tenth of a frozen dataclass's time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from worker.core.instants import entry_time_ms

PAYLOAD_LIMIT_BYTES = 16_384
"""Nomad's limit on a dispatch payload, before base64."""

REQUEST_VERSION = 1
LEDGER_VERSION = 1

WAITING_CONSUMER = "~waiting"
"""Whose pending entries those are that wait in no worker's hands; no worker can be called so."""


class Place(NamedTuple):
    """Where a job lives: one event stream is held per place."""

    region: str
    """Empty: the region of the agent that is asked."""
    namespace: str


class MessageKey(NamedTuple):
    """A message's identity: IDs alone collide across streams."""

    stream: str
    """Short name, as in `WORKER_STREAMS`; not the Redis key."""
    id: str
    """The entry ID, e.g. `1719999999999-0`."""

    def __str__(self) -> str:
        """`<stream>:<id>`, as it stands in the ledger's key."""
        return f"{self.stream}:{self.id}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream entry as read: raw bytes, nothing checked. `fields` is None when it was deleted."""

    key: MessageKey
    fields: Mapping[bytes, bytes] | None


@dataclass(frozen=True, slots=True)
class Request:
    """A dispatch request, decoded and checked (message version 1)."""

    job: str
    payload: bytes = b""
    meta: Mapping[str, str] = field(default_factory=dict)
    namespace: str | None = None
    region: str | None = None
    priority: int | None = None
    id_prefix: str = ""
    detach: bool = False
    reply_to: str = ""
    """Name of a reply stream under the worker's prefix; empty: the shared one."""
    correlation_id: str = ""
    tenant: str = ""
    deadline_ms: int | None = None
    """Latest start, Unix milliseconds."""
    not_before_ms: int | None = None
    """Earliest start, Unix milliseconds."""
    timeout_seconds: float | None = None
    """Run limit, counted from the first allocation placed; the worker stops the job after it."""
    idempotency_key: str = ""
    traceparent: str = ""
    replay_of: str = ""
    """Lineage of a requeued dead letter: `<stream>:<id>` of the message it repeats."""


class Routing(Struct, frozen=True):
    """What a reply needs to find its reader; kept in the ledger, for the entry itself may vanish."""

    job: str = ""
    namespace: str = ""
    region: str = ""
    reply_to: str = ""
    correlation_id: str = ""
    tenant: str = ""
    detach: bool = False
    timeout_seconds: float | None = None
    traceparent: str = ""
    idempotency_key: str = ""

    @property
    def place(self) -> Place:
        """The event stream that tells about this job."""
        return Place(self.region, self.namespace)


class Phase(StrEnum):
    """How far a message has come. The diagram is in `lifecycle`."""

    RECEIVED = "received"
    """In the ledger, not yet promised to Nomad."""
    WAITING = "waiting"
    """It may not go now: in no worker's hands, it waits in Redis for its time or its turn."""
    DISPATCHING = "dispatching"
    """A dispatch was or may have been sent; whether a job exists is for Nomad to say."""
    RUNNING = "running"
    """The dispatched job is known and watched."""
    FINISHED = "finished"
    """The outcome is known here and not yet published. Never stored: a taker finds out again."""
    SETTLED = "settled"
    """The final reply is published and the entry acknowledged, in one script."""


class Verdict(StrEnum):
    """How a message ended: a closed set. `docs/verdicts.md` tells what each one rests on."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OOM_KILLED = "oom_killed"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    DRAINED = "drained"
    PREEMPTED = "preempted"
    STOPPED = "stopped"
    UNPLACED = "unplaced"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DETACHED = "detached"
    POISON = "poison"
    UNKNOWN_GC = "unknown_gc"
    PAYLOAD_LOST = "payload_lost"


DEAD_LETTERED = frozenset({Verdict.REJECTED, Verdict.POISON, Verdict.UNKNOWN_GC, Verdict.PAYLOAD_LOST})
"""Verdicts after which a person must look: the work was never run, or nobody can say how it ended."""


class Progress(StrEnum):
    """The steps between `dispatched` and `result` that a reply may announce."""

    BLOCKED = "blocked"
    PLACED = "placed"
    RUNNING = "running"
    RETRYING = "retrying"


class Outcome(Struct, frozen=True):
    """The end of a message, with what it rests on."""

    verdict: Verdict
    exit_code: int | None = None
    """The deciding task's exit code, where a task ended with one."""
    error_code: str = ""
    error_message: str = ""
    evidence: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """JSON: allocations, tasks, events and sentences of Nomad that the verdict rests on."""


class Run(Struct, frozen=True):
    """One run of a message that ended and was followed by another: which job it was, and how it ended."""

    attempt: int
    job_id: str
    verdict: Verdict
    exit_code: int | None = None
    error_code: str = ""
    error_message: str = ""
    dispatched_at_ms: int = 0
    ended_at_ms: int = 0


class Record(Struct, frozen=True):
    """One message as the ledger knows it. Times are Unix milliseconds on Redis's clock."""

    key: MessageKey
    phase: Phase
    token: str
    """Nomad's idempotency token of the first run, fixed at admission and never computed again."""
    routing: Routing = msgspec.field(default_factory=Routing)
    fence: int = 1
    """Raised by every change of owner; a script refuses an older one."""
    attempt: int = 0
    """Number of the run that was begun last; 0: none was."""
    takeovers: int = 0
    """How many owners died on it since its last run began. Releases at shutdown do not count."""
    seq: int = 0
    """Number of the last reply entry written."""
    job_id: str = ""
    """The dispatched job, e.g. `render/dispatch-1795484882-2c85d768`."""
    eval_id: str = ""
    received_at_ms: int = 0
    intended_at_ms: int = 0
    """When the waiting was over and the dispatch began."""
    dispatched_at_ms: int = 0
    placed_at_ms: int = 0
    quarantine_until_ms: int = 0
    """Before this, an earlier owner's dispatch may still reach Nomad: look up, but do not dispatch."""
    shown: str = ""
    """The last `Progress` published, so that a new owner does not repeat it."""
    stopping: str = ""
    """The verdict for which the worker itself stopped the job (`timed_out`, `cancelled`, `unplaced`)."""
    picked_at_ms: int = 0
    """When it was last given out of the queue; 0: never. Such a message does not wait again by itself."""
    cancel: bool = False
    """Whether a producer ordered its cancellation."""
    runs: tuple[Run, ...] = ()
    """Runs that ended and were, or are to be, followed by another; the oldest first."""
    retry_at_ms: int = 0
    """Before this the next run is not begun."""
    outcome: Outcome | None = None
    reply_id: str = ""

    @property
    def run_token(self) -> str:
        """The idempotency token of the run begun last: Nomad answers one with the job it made, dead or not.

        No message ID holds a slash, so no message's first token is another one's second.
        """
        return f"{self.token}/{self.attempt}" if self.attempt > 1 else self.token

    def queued_at_ms(self, received_at_ms: int) -> int:
        """When the entry was added; `received_at_ms` where its ID, made by a producer, tells no time."""
        added_ms = entry_time_ms(self.key.id)
        return added_ms if 0 < received_at_ms - added_ms < _LONGEST_WAIT_MS else received_at_ms


_LONGEST_WAIT_MS = 366 * 86_400_000


class Order(Struct, frozen=True):
    """What Nomad is asked to dispatch."""

    place: Place
    job: str
    token: str
    payload: bytes = b""
    meta: Mapping[str, str] = msgspec.field(default_factory=dict)
    id_prefix: str = ""
    priority: int | None = None


class Dispatched(Struct, frozen=True):
    """Nomad's answer to an order."""

    job_id: str
    eval_id: str
    """Empty: a job of this token was already there, possibly dead, and this is its ID."""

    @property
    def repeated(self) -> bool:
        """Whether Nomad answered with an earlier call's job."""
        return not self.eval_id
