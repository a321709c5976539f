"""What the flow needs of the outside, as protocols; adapters fill them and tests fake them.

Decides nothing. Each docstring is the contract, and the contract tests run it on every implementation.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from worker.core.frames import Frame
from worker.core.lifecycle import Fact
from worker.core.model import Dispatched, Entry, MessageKey, Order, Place, Record, Routing
from worker.core.observed import Job, Living, Snapshot
from worker.core.policy import Policy


class Clock(Protocol):
    """Time, as the worker sees it."""

    def now_ms(self) -> int:
        """Unix milliseconds on Redis's clock: comparable between replicas, not steady."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back and go on while the machine is suspended."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. Tests move time by hand instead."""
        ...


# Redis --------------------------------------------------------------------------------------------


class Inbox(Protocol):
    """The request streams, read through the consumer group as one consumer."""

    async def read(self, limit: int, within_seconds: float | None = None) -> Sequence[Entry]:
        """Read entries nobody was given yet; wait a short, bounded time when there are none.

        Args:
            limit: the most entries to return; must be at least 1.
            within_seconds: shortens that time.

        Returns:
            Entries, now pending for this consumer. Empty after the bounded wait.

        Raises:
            RedisUnavailable: no answer; entries may be pending for this consumer all the same, so
                reconcile with `mine`. Never cancel a read: wait it out.
        """
        ...

    async def mine(self) -> Sequence[MessageKey]:
        """All entries now pending for this consumer, oldest first, bounded per call by the adapter."""
        ...

    async def fetch(self, keys: Sequence[MessageKey]) -> Sequence[Entry]:
        """Read entries by ID, in order; `fields` is None where the entry is deleted."""
        ...


@dataclass(frozen=True, slots=True)
class Admission:
    """A message to be put into the ledger."""

    key: MessageKey
    token: str
    routing: Routing


class Ledger(Protocol):
    """The lasting memory of every message. Each call is one atomic step, safe to repeat."""

    async def admit(self, admission: Admission) -> Record | None:
        """Make this worker the owner of an entry that is pending for it.

        Returns:
            The record: new (and announced by an `accepted` reply), or as an earlier owner or this
            one left it. None when there is nothing to do here: it is settled (and was acknowledged
            again), or a live worker owns it.

        Raises:
            RecordUnreadable: written by a newer version; left alone.
            RedisUnavailable: safe to repeat.
        """
        ...

    async def keep(self, before: Record, fact: Fact) -> Record:
        """Apply a fact (see `lifecycle.advance`), store it, publish the reply it implies.

        `ReplyPublished` is not given by the flow: `keep` of a FINISHED record is `settle`.

        Returns:
            The record as it is now.

        Raises:
            Fenced: another worker owns the message.
            DuplicateChild: on `JobAccepted`: the ledger already names another dispatched job.
            IllegalTransition, RedisUnavailable.
        """
        ...

    async def settle(self, record: Record) -> Record:
        """Publish a FINISHED record's final reply, dead-letter it where due, acknowledge: all or nothing.

        Settling twice gives the first reply's ID. A record whose ledger was lost with Redis's data
        is settled from memory.

        Raises:
            Fenced, RedisUnavailable.
        """
        ...

    async def recall(self, key: MessageKey) -> Record | None:
        """The record as stored, whoever owns it; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class DeadWorker:
    """A consumer that holds entries and has no lease."""

    name: str
    pending: Sequence[MessageKey]
    """A bounded part of what it holds; another look gives the next part."""
    released: bool = False
    """Whether it left in order, rather than fell silent."""
    more: bool = False
    """Whether it may hold more than what was given so far."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """What became of old dead letters."""

    dropped: int
    announced: int
    """Those that are going to be dropped next; counted up to 1,000."""
    seconds_left: float
    """Until then; 0 when none is announced."""


class Leases(Protocol):
    """Who is alive. One lease per worker, on Redis's clock."""

    async def beat(self) -> int:
        """Renew this worker's lease. Returns Redis's time, Unix milliseconds."""
        ...

    async def release(self) -> None:
        """Give the lease up: others may take everything this worker held at once."""
        ...

    async def dead(self) -> Sequence[DeadWorker]:
        """Consumers that hold entries and whose lease is over or released."""
        ...

    async def take(self, dead: DeadWorker, limit: int) -> Sequence[Record]:
        """Become the owner of up to `limit` messages of a dead worker.

        Returns:
            The records taken; RECEIVED ones whose entry must be fetched and admitted included.
            Messages another replica took first are not among them.
        """
        ...

    async def retire(self) -> int:
        """Delete consumers without lease and without pending entries. Returns how many."""
        ...

    async def trim(self) -> int:
        """Drop entries that every group is done with. Returns how many."""
        ...

    async def expire_dead(self, retention_seconds: float, notice_seconds: float) -> Expiry:
        """Drop dead letters older than `retention_seconds`, each announced `notice_seconds` before."""
        ...


@dataclass(frozen=True, slots=True)
class Picked:
    """What one look into a stream's queue gave, and how the queue is after it."""

    messages: Sequence[tuple[Record, Entry]]
    """This worker's now."""
    queued: int
    """Messages that wait for their turn."""
    delayed: int
    """Messages that wait for their time."""
    since_ms: int
    """Since when the oldest one waits that may go, Unix milliseconds; 0: none may, or ages are not told."""
    look_again_ms: int
    """When more may go, as far as is known now, Unix milliseconds; 0: not by time alone."""


class Queue(Protocol):
    """The messages that wait in Redis, in no worker's hands; see `docs/queueing.md`."""

    async def pick(self, stream: str, limit: int, policy: Policy) -> Picked:
        """Become the owner of messages that may go now, in the order of their turns.

        Args:
            stream: short name.
            limit: the most to take; 0 only looks.
            policy: its limits hold.

        Returns:
            Messages with their slots taken; and those whose deadline has passed or whose cancellation
            was ordered, which have none (their `picked_at_ms` is 0).

        Raises:
            RedisUnavailable: messages may be this worker's all the same: reconcile.
        """
        ...

    async def mend(self, stream: str) -> Sequence[Record | MessageKey]:
        """Put back into the queue's index what waits by the ledger, where the two differ.

        Returns:
            Messages that turned out to be in nobody's hands, now this worker's: to be taken up.
        """
        ...

    async def occupy(self, record: Record, policy: Policy) -> None:
        """Make a message in hand hold the slots it should by the policy's caps, be they full or not.

        Raises:
            Fenced, RedisUnavailable.
        """
        ...

    async def recount(self) -> int:
        """Give back slots whose message does not hold them. Returns how many."""
        ...


class Cancels(Protocol):
    """Orders to cancel messages. They outlast this process; an order ends when its message is settled."""

    async def open(self) -> Sequence[MessageKey]:
        """All orders whose message is not settled, whoever owns it.

        Raises:
            RedisUnavailable.
        """
        ...

    async def listen(self) -> Sequence[MessageKey]:
        """Orders given since the last call; waits a short, bounded time when there are none.

        May miss some: only `open` is certain.

        Raises:
            RedisUnavailable.
        """
        ...


# Nomad --------------------------------------------------------------------------------------------


class Nomad(Protocol):
    """One Nomad cluster over its HTTP API. Every call has a timeout and at most one try.

    All methods raise NomadUnavailable (or a kind of it) and NomadDenied.
    """

    async def dispatch(self, order: Order) -> Dispatched:
        """Start one run of a parameterized job.

        Args:
            order: `payload` is raw bytes, at most 16 KiB before encoding; `token` is the stream
                message ID, e.g. "1719999999999-0".

        Returns:
            The dispatched job's ID; the same ID again while the job of an earlier call still exists.
            Of concurrent calls with one token some get an ID that never exists: after any repeat
            the ID counts only once `job` has returned it.

        Raises:
            NomadRefused: (or a kind of it) the same order would be refused again.
            NomadUnavailable: `maybe_applied` tells whether Nomad may have created the job.

        Source: Nomad HTTP API, POST /v1/job/:job_id/dispatch.
        """
        ...

    async def job(self, place: Place, job_id: str) -> Job | None:
        """One job; None when Nomad does not have it (404)."""
        ...

    async def find_by_token(self, place: Place, parent: str, token: str) -> str | None:
        """The ID of the dispatched job of `parent` that carries `token`, dead or alive.

        Raises:
            NomadDenied: the token lacks `list-jobs`.
        """
        ...

    async def live_children(self, place: Place, parent: str) -> Mapping[str, Living]:
        """The dispatched jobs of `parent` that are not dead, all pages, by ID."""
        ...

    async def snapshot(self, place: Place, job_id: str) -> Snapshot:
        """Job, evaluations and allocations read one after another; `whole` is True, `gone` on 404."""
        ...

    async def stop(self, place: Place, job_id: str) -> None:
        """Deregister a dispatched job without purging it. A job that is not there is no error."""
        ...

    async def purge(self, place: Place, job_id: str) -> None:
        """Remove a dead dispatched job at once. That frees its token: only the ledger remembers it then."""
        ...

    async def logs(
        self, place: Place, alloc: str, task: str, stream: Literal["stdout", "stderr"], tail_bytes: int
    ) -> bytes:
        """The end of what a task wrote; empty when it wrote nothing or never started.

        Raises:
            ChildUnknown: the allocation is not there (any more).
            NomadRefused: it has no such task.
        """
        ...

    def events(
        self, place: Place, index: int, wanted: Callable[[str], bool]
    ) -> AsyncGenerator[Sequence[Frame], None]:
        """Follow Job, Evaluation and Allocation events of one place, heartbeats included.

        Args:
            place: region and namespace of the stream.
            index: the first index wanted, inclusive; 0: from now on.
            wanted: asked with a dispatched job's ID; events of the others are dropped.

        Yields:
            The frames that came at once, in order, never none; the very first one is a heartbeat, which means
            that the stream was accepted. Close the generator (`aclosing`).

        Raises:
            FeedRefused: no first line in time, which is how Nomad refuses a stream.
            FeedLost: it ended, broke, or missed its heartbeats.
        """
        ...
