"""The loop that walks each message through its steps: step → fact → record, until it is settled.

Knows nothing of where messages come from or what the steps do. Starting after a crash is the same code as
starting fresh: a record says which step comes next, whoever brought it there.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

import structlog

from worker.core.backoff import Backoff
from worker.core.lifecycle import Ended, Fact, JobAccepted, Parked, Repeated
from worker.core.model import Entry, MessageKey, Outcome, Phase, Record, Verdict
from worker.core.repeat import not_begun
from worker.errors import DuplicateChild, Fenced, Then, WorkerError
from worker.flow.admit import Admit
from worker.flow.dispatch import CANCELLED, Dispatch
from worker.flow.instruments import Instruments
from worker.flow.message import Message
from worker.flow.repeat import Repeat
from worker.flow.settle import Settle, outcome_of
from worker.flow.watch import Watch
from worker.ports import Clock, Ledger

log = structlog.get_logger()

T = TypeVar("T")

Park = Callable[[Message], Parked | None]
"""Whether a message that was just received has to wait in Redis, rather than be dispatched now."""

_HERE_NO_MORE = frozenset({Phase.FINISHED, Phase.WAITING})
RETRIES = Backoff(first_seconds=0.1, most_seconds=5.0)
"""Without a bound on their number: what is known of a job outlasts an outage of Redis or Nomad."""


class Pipeline:
    """All messages in this worker's hands, one task each.

    Args:
        failed: called with an error that must end the process (`Then.STOP`, or a fault of ours).
        park: the rule for who waits in Redis; by default nobody does.
    """

    def __init__(
        self,
        admit: Admit,
        dispatch: Dispatch,
        watch: Watch,
        settle: Settle,
        ledger: Ledger,
        clock: Clock,
        instruments: Instruments,
        failed: Callable[[BaseException], None],
        *,
        repeat: Repeat,
        park: Park = lambda _message: None,
    ) -> None:
        self._park = park
        self._admit = admit
        self._dispatch = dispatch
        self._watch = watch
        self._repeat = repeat
        self._settle = settle
        self._ledger = ledger
        self._clock = clock
        self._instruments = instruments
        self._failed = failed
        self._messages: dict[MessageKey, Message] = {}
        self._tasks: dict[MessageKey, asyncio.Task[None]] = {}
        self._coming: dict[MessageKey, Message] = {}
        """Messages that came back out of the queue before their way into it had ended here."""
        self._undecided: set[MessageKey] = set()
        self._passing: set[MessageKey] = set()
        self.draining = False
        """Whether this worker is leaving: nothing new is begun."""
        self.freed = asyncio.Event()
        """Set whenever a message leaves."""
        self.moved = asyncio.Event()
        """The same, for whoever looks after the queue."""

    def __len__(self) -> int:
        """Messages in hand."""
        return len(self._messages)

    @property
    def passing(self) -> int:
        """How many of them are only on their way into the queue."""
        return len(self._passing)

    @property
    def carried(self) -> int:
        """The others: those in flight."""
        return len(self._messages) - self.passing

    def hunger(self) -> None:
        """Wake those up who bring messages: there are too few to keep the dispatch slots busy."""
        self.freed.set()
        self.moved.set()

    def __contains__(self, key: object) -> bool:
        """Whether a message is in hand."""
        return key in self._messages

    def holds(self, record: Record) -> bool:
        """Whether a message is in hand as this record has it, or newer."""
        return any(
            one is not None and (one.record is None or one.record.fence >= record.fence)
            for one in (self._messages.get(record.key), self._coming.get(record.key))
        )

    @property
    def to_dispatch(self) -> int:
        """How many of those in flight are still to be dispatched."""
        return len(self._undecided)

    @property
    def messages(self) -> Iterable[Message]:
        """A copy of what is in hand, for people to look at."""
        return list(self._messages.values())

    def take_entries(self, entries: Iterable[Entry], *, passing: bool = False) -> None:
        """Begin with entries just read; those already in hand are left alone.

        Args:
            entries: pending for this worker.
            passing: whether they are read to be put into the queue.
        """
        for entry in entries:
            self._begin(Message(entry.key, entry=entry, passing=passing))

    def take_picked(self, picked: Iterable[tuple[Record, Entry]]) -> None:
        """Begin with messages out of the queue."""
        for record, entry in picked:
            # Those given out to be answered only are not in flight.
            passing = not record.picked_at_ms
            self._begin(Message(record.key, entry=entry, record=record, passing=passing))

    def take_keys(self, keys: Iterable[MessageKey]) -> None:
        """Begin with entries that are pending for this worker and not in its hands."""
        for key in keys:
            self._begin(Message(key))

    def take_records(self, records: Iterable[Record]) -> None:
        """Go on with messages taken from a dead worker."""
        for record in records:
            self._begin(Message(record.key, record=record))

    def cancel(self, key: MessageKey) -> None:
        """A producer ordered this message's cancellation; one that is not in hand is left alone."""
        message = self._messages.get(key)
        if message is None or message.cancel_told:
            return
        message.cancel_told = True
        log.info("message.cancel_ordered", stream=key.stream, message_id=key.id, phase=str(message.phase))
        if message.interrupt is not None:
            message.interrupt()
        if message.record is not None:
            self._watch.look_again(message.record)

    async def revalidate(self, keys: Iterable[MessageKey]) -> None:
        """Let go of messages that another worker took or settled, as after this process was paused.

        Raises:
            RedisUnavailable.
        """
        for key in keys:
            recalled = await self._ledger.recall(key)
            message = self._messages.get(key)
            if recalled is None or message is None or message.record is None or not message.interruptible:
                continue
            if recalled.phase is Phase.SETTLED or recalled.fence > message.record.fence:
                self._instruments.let_go(Fenced.code)
                with structlog.contextvars.bound_contextvars(stream=key.stream, message_id=key.id):
                    log.warning("message.let_go", code=Fenced.code, error="another worker has it")
                self._tasks[key].cancel()

    async def drain(self, seconds: float) -> int:
        """Let what must not be interrupted come to a record; drop the rest for others to take.

        Returns:
            How many messages had to be cut off. Their takers find out from Nomad.
        """
        self.draining = True
        for key, message in list(self._messages.items()):
            if message.interruptible:
                self._tasks[key].cancel()
        remaining = set(self._tasks.values())
        if remaining:
            _, remaining = await asyncio.wait(remaining, timeout=seconds)
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining)
        return len(remaining)

    def _begin(self, message: Message) -> None:
        if self.draining:
            return
        if (before := self._messages.get(message.key)) is not None:
            if message.record and before.record and message.record.fence > before.record.fence:
                self._coming[message.key] = message
            return
        self._messages[message.key] = message
        if message.passing:
            self._passing.add(message.key)
        elif message.undecided:
            self._undecided.add(message.key)
        task = asyncio.create_task(self._carry(message), name=f"message {message.key}")
        self._tasks[message.key] = task

    async def _carry(self, message: Message) -> None:
        # For all lines of this task, whose context ends with it.
        structlog.contextvars.bind_contextvars(stream=message.key.stream, message_id=message.key.id)
        try:
            await self._walk(message)
        except WorkerError as error:
            self._dropped(message, error)
        except Exception as error:
            log.exception("message.crashed")
            self._failed(error)
        finally:
            self._dispatch.let_go(message)
            if message.record:
                self._watch.forget(message.record)
            del self._messages[message.key], self._tasks[message.key]
            self._undecided.discard(message.key)
            self._passing.discard(message.key)
            self.freed.set()
            self.moved.set()
            if (coming := self._coming.pop(message.key, None)) is not None:
                self._begin(coming)

    async def _walk(self, message: Message) -> None:
        if not await self._lasting(partial(self._admit.admit, message)) or message.record is None:
            return
        record = message.record
        log.info(
            "message.admitted", job=record.routing.job, phase=record.phase.value, takeovers=record.takeovers
        )
        while record.phase not in _HERE_NO_MORE and not self._leaves(message):
            fact = await self._lasting(partial(self._step, message, record))
            undecided = message.undecided
            before, record = record, await self._keep(message, record, fact)
            message.record = record
            if isinstance(fact, Repeated) and record.phase is Phase.RECEIVED:
                self._watch.forget(before)
                message.begin_again()
            if record.phase is Phase.RUNNING:
                self._dispatch.let_go(message)
            if not message.undecided:
                self._undecided.discard(message.key)
            self._told(message, record, fact, undecided=undecided)
            if isinstance(fact, JobAccepted):
                message.accepted()
        if record.phase is Phase.FINISHED:
            await self._finish(message, record)

    def _told(self, message: Message, record: Record, fact: Fact, *, undecided: bool) -> None:
        """Count and log what was just kept."""
        if isinstance(fact, Repeated) and record.phase is Phase.RECEIVED:
            verdict, wait_ms = fact.run.verdict, record.retry_at_ms - self._clock.now_ms()
            self._instruments.repeated(verdict)
            log.info(
                "message.repeated",
                job=record.routing.job,
                job_id=fact.run.job_id,
                verdict=verdict.value,
                attempt=fact.run.attempt,
                seconds=max(0, wait_ms) / 1000,
            )
        if undecided and not message.undecided:
            overdue_ms = max(0, self._clock.now_ms() - message.due_ms)
            self._instruments.decided(message.key.stream, overdue_ms / 1000)
        if record.phase is Phase.WAITING:
            log.info("message.parked", job=record.routing.job, tenant=record.routing.tenant)
        if record.phase is Phase.RUNNING:
            step = record.stopping or record.shown or "dispatched"
            log.info("message.advanced", step=step, job=record.routing.job, job_id=record.job_id)

    def _leaves(self, message: Message) -> bool:
        """Whether to let go now: while leaving, only a dispatch just intended is still carried out."""
        fresh_intent = message.phase is Phase.DISPATCHING and not message.failures and not message.unsure
        return self.draining and not fresh_intent

    async def _step(self, message: Message, record: Record) -> Fact:
        message.interruptible = True
        try:
            match record.phase:
                case Phase.RECEIVED if message.cancelled:
                    fact: Fact = Ended(CANCELLED)
                case Phase.RECEIVED if parked := self._park(message):
                    return parked
                case Phase.RECEIVED:
                    message.passing = False
                    self._passing.discard(message.key)
                    self._undecided.add(message.key)
                    fact = await self._prepare(message, record)
                case Phase.DISPATCHING:
                    fact = await self._dispatch.send(message, record)
                case _ if record.routing.detach and not message.cancelled:
                    return Ended(Outcome(Verdict.DETACHED))
                case _:
                    fact = await self._watch.next(message, record)
                    return await self._repeat.instead(message, record, fact)
        except WorkerError as error:
            if error.then is not Then.DEAD_LETTER:
                raise
            fact = Ended(outcome_of(error))
        finally:
            message.interruptible = False
        return not_begun(record, fact) if isinstance(fact, Ended) else fact

    async def _prepare(self, message: Message, record: Record) -> Fact:
        """Wait for the dispatch, unless the message is cancelled meanwhile."""
        task = self._tasks[message.key]
        message.interrupt = task.cancel
        try:
            return await self._dispatch.prepare(message, record)
        except asyncio.CancelledError:
            # An order came, or this worker is leaving: then the order is for the next one to carry out.
            # Or both: whoever else wants the task to end is not to be kept waiting.
            if self.draining or not message.cancelled or task.uncancel():
                raise
            return Ended(CANCELLED)
        finally:
            message.interrupt = None

    async def _keep(self, message: Message, record: Record, fact: Fact) -> Record:
        try:
            return await self._lasting(partial(self._ledger.keep, record, fact))
        except DuplicateChild as duplicate:
            if not isinstance(fact, JobAccepted):
                raise
            kept_job_id = duplicate.kept_job_id
        await self._lasting(partial(self._watch.stop_duplicate, record, fact.job_id))
        self._instruments.duplicate_stopped()
        log.error("job.duplicate_stopped", job_id=fact.job_id, kept_job_id=kept_job_id)
        if not kept_job_id:
            text = "the message was settled without a dispatched job"
            raise Fenced(text)
        return await self._keep(message, record, JobAccepted(kept_job_id, "", self._clock.now_ms()))

    async def _finish(self, message: Message, record: Record) -> None:
        record = await self._settle.complete(record)
        message.record = await self._lasting(partial(self._settle.settle, record))
        await self._settle.clean_up(message.record)
        if record.outcome:
            log.info(
                "message.settled",
                job=record.routing.job,
                job_id=record.job_id,
                verdict=record.outcome.verdict.value,
                error_code=record.outcome.error_code,
                reply_id=message.record.reply_id,
            )

    async def _lasting(self, act: Callable[[], Awaitable[T]]) -> T:
        """Repeat an act until it succeeds or fails for good."""
        failures = 0
        while True:
            try:
                return await act()
            except WorkerError as error:
                if error.then not in {Then.RETRY, Then.PAUSE} or isinstance(error, DuplicateChild):
                    raise
                failures += 1
                self._instruments.retried(error.code)
                log.warning("step.retried", code=error.code, error=str(error), failures=failures)
            await self._clock.sleep(RETRIES.delay(failures, random.random()))  # noqa: S311

    def _dropped(self, message: Message, error: WorkerError) -> None:
        if error.then is Then.LET_GO:
            self._instruments.let_go(error.code)
            log.warning("message.let_go", code=error.code, error=str(error))
            return
        log.error("message.failed", code=error.code, error=str(error), phase=str(message.phase))
        self._failed(error)
