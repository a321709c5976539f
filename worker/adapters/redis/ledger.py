"""The ledger on Redis: one hash per message, changed only by scripts that check owner and fence.

Decides nothing: `lifecycle.advance` says what a fact means, the scripts whether it may be kept.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import structlog
from msgspec.structs import replace

from worker.adapters.redis.connection import FAILURES, translate
from worker.adapters.redis.records import decode_record, outcome_fields, routing_fields, runs_json
from worker.adapters.redis.scripts import Args, Script, ScriptRunner, pack
from worker.core.instants import format_rfc3339
from worker.core.keys import Keys
from worker.core.lifecycle import (
    DispatchPutOff,
    Fact,
    Intended,
    JobAccepted,
    Parked,
    Progressed,
    Repeated,
    ReplyPublished,
    StopOrdered,
    advance,
)
from worker.core.model import DEAD_LETTERED, LEDGER_VERSION, MessageKey, Phase, Progress, Record, Routing
from worker.core.repeat import retrying_json
from worker.core.reply import reply_fields
from worker.errors import (
    DuplicateChild,
    Fenced,
    IllegalTransition,
    RecordGone,
    RecordUnreadable,
    RedisUnconfirmed,
    WorkerError,
)
from worker.ports import Admission, Clock

log = structlog.get_logger()

CONFIRMED = {Script.INTEND: "dispatch", Script.ORDER_STOP: "stop the job of"}
"""What must be durable, if that is asked for, before Nomad is: forgotten, a stop would look like others'."""

LONGEST_OPEN_MS = 365 * 24 * 3600 * 1000
"""The longest that a message may be remembered; none is open for longer."""


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """What the ledger needs to know of this worker.

    Attributes:
        quarantine_ms: how long after an intent a dispatch may still reach Nomad: the request's
            total timeout, and the time a paused worker may believe in its lease, and a margin.
        reply_maxlen: entries kept per reply stream, approximately; 0: all.
        ui_address: Nomad's address for links in replies; empty: none.
        on_unconfirmed: told of each final reply that was not confirmed as durable in time.
    """

    worker: str
    group: str
    quarantine_ms: int
    retention_ms: int
    reply_maxlen: int
    ui_address: str = ""
    on_unconfirmed: Callable[[], None] = lambda: None


class RedisLedger:
    """Implements `ports.Ledger`."""

    def __init__(
        self, redis: Any, runner: ScriptRunner, keys: Keys, clock: Clock, options: LedgerOptions
    ) -> None:
        self._redis = redis
        self._runner = runner
        self._keys = keys
        self._caps = keys.caps
        self._clock = clock
        self._options = options

    async def admit(self, admission: Admission) -> Record | None:
        """See `ports.Ledger.admit`."""
        key, options = admission.key, self._options
        # Before the ledger knows the message, so that its key never leads nowhere while the ledger does.
        await self._keep_key(key, admission.routing, LONGEST_OPEN_MS)
        fresh = Record(key, Phase.RECEIVED, admission.token, admission.routing)
        args: Args = [
            options.group,
            options.worker,
            key.id,
            LEDGER_VERSION,
            options.reply_maxlen,
            pack(routing_fields(admission.token, admission.routing)),
            self._reply(fresh, "accepted"),
        ]
        stream, ledger = self._keys.stream(key.stream), self._keys.message(key)
        answer = await self._runner.run(
            Script.ADMIT,
            [stream, ledger, self._reply_key(fresh), self._keys.workers, self._keys.cancels],
            args,
        )
        match answer[0]:
            case b"new":
                # All that is in the ledger of a new message was given just now.
                return replace(fresh, seq=1, received_at_ms=int(answer[1]), cancel=bool(answer[2]))
            case b"mine":
                return decode_record(key, answer[1])
            case b"unreadable":
                message = f"the ledger of {key} has version {answer[1].decode()!r}"
                raise RecordUnreadable(message)
            case _:
                await self._key_of_nothing(key, admission.routing)
                return None

    async def keep(self, before: Record, fact: Fact) -> Record:
        """See `ports.Ledger.keep`."""
        after = advance(before, fact)
        try:
            return await self._keep(before, fact, after)
        except RecordGone:
            if before.phase is Phase.RECEIVED:
                raise
            # A job may be running for it: what this worker holds in memory carries it to its reply.
            return after

    async def _keep(self, before: Record, fact: Fact, after: Record) -> Record:
        match fact:
            case Parked():
                return await self._park(before, fact, after)
            case Intended():
                args: Args = [after.attempt, self._options.quarantine_ms, after.intended_at_ms]
                answer = await self._owned(Script.INTEND, before, args)
                if answer[0] == b"cancelled":
                    return replace(before, cancel=True)
                return replace(after, quarantine_until_ms=int(answer[1]), cancel=bool(answer[2]))
            case DispatchPutOff():
                await self._owned(Script.PUT_OFF, before, [after.attempt])
            case JobAccepted():
                return await self._keep_child(before, after)
            case Progressed(step, at_ms, data):
                reply = self._reply(after, step.value, at_ms=at_ms, data=data)
                args = [after.seq, after.shown, after.placed_at_ms, self._options.reply_maxlen, reply]
                await self._owned(Script.PROGRESS, before, args, reply_to=self._reply_key(after))
            case StopOrdered(verdict):
                answer = await self._owned(Script.ORDER_STOP, before, [verdict.value])
                return replace(after, stopping=answer[1].decode())
            case Repeated():
                return await self._repeat(before, fact, after)
            case _:
                # `Ended` is stored by `settle` alone: if this worker dies before, its taker finds out again.
                pass
        return after

    async def settle(self, record: Record) -> Record:
        """See `ports.Ledger.settle`."""
        options, key = self._options, record.key
        reply_key = self._reply_key(record)
        args: Args = [
            options.group,
            key.id,
            options.worker,
            record.fence,
            record.seq,
            options.reply_maxlen,
            options.retention_ms,
            pack(outcome_fields(record, reply_key)),
            pack(self._dead_letter(record)),
            self._reply(record, "result"),
        ]
        stream, ledger = self._keys.stream(key.stream), self._keys.message(key)
        keys = [stream, ledger, reply_key, self._keys.dead, self._keys.cancels, *self._caps]
        answer, confirmed = await self._runner.run_confirmed(Script.SETTLE, keys, args)
        if answer[0] == b"fenced":
            raise _refused(record, answer)
        if not confirmed:
            # The reply is out and may have been read: nothing but telling is left to do.
            options.on_unconfirmed()
            log.warning("ledger.settled_unconfirmed", stream=key.stream, message_id=key.id)
        # Should this fail, the key is kept longer than it must be.
        with suppress(WorkerError):
            await self._keep_key(key, record.routing, options.retention_ms)
        return advance(record, ReplyPublished(reply_id=answer[1].decode()))

    async def recall(self, key: MessageKey) -> Record | None:
        """See `ports.Ledger.recall`."""
        try:
            stored = await self._redis.hgetall(self._keys.message(key))
        except FAILURES as error:
            raise translate(error) from error
        return decode_record(key, stored) if stored else None

    async def _key_of_nothing(self, key: MessageKey, routing: Routing) -> None:
        """The producer's key of a message that is not admitted; of a settled one it is kept no longer."""
        if not routing.idempotency_key:
            return
        known = await self.recall(key)
        if known is None or known.phase is Phase.SETTLED:
            await self._keep_key(key, routing, self._options.retention_ms)

    async def _repeat(self, before: Record, fact: Repeated, after: Record) -> Record:
        # About the run that ended, and so with its job.
        reply = self._reply(before, Progress.RETRYING.value, data=retrying_json(fact))
        runs = runs_json(after.runs)
        args: Args = [before.attempt, runs, after.retry_at_ms, self._options.reply_maxlen, reply]
        answer = await self._owned(Script.REPEAT, before, args, reply_to=self._reply_key(before))
        if answer[0] == b"cancelled":
            return replace(before, cancel=True)
        return replace(after, seq=int(answer[1]), retry_at_ms=int(answer[2]))

    async def _keep_key(self, key: MessageKey, routing: Routing, milliseconds: int) -> None:
        """Let the producer's key, where there is one, lead to this message for so long."""
        if routing.idempotency_key:
            name = self._keys.idempotency_in(routing.namespace, routing.job, routing.idempotency_key)
            await self._runner.run(Script.KEEP_KEY, [name], [str(key), milliseconds])

    async def _park(self, before: Record, fact: Parked, after: Record) -> Record:
        options, key = self._options, before.key
        answer = await self._runner.run(
            Script.PARK,
            [
                *(self._keys.stream(key.stream), self._keys.message(key)),
                *(*self._keys.waiting(key.stream), *self._caps),
            ],
            [options.group, options.worker, before.fence, key.id, fact.until_ms, fact.deadline_ms],
        )
        match answer[0]:
            case b"ok":
                return replace(after, fence=before.fence + 1)
            case b"cancelled":
                return replace(before, cancel=True)
            case b"fenced":
                raise _refused(before, answer)
            case _:
                raise _moved(before, answer)

    async def _keep_child(self, before: Record, after: Record) -> Record:
        options = self._options
        args: Args = [
            options.worker,
            before.fence,
            before.attempt,
            after.job_id,
            after.eval_id,
            after.dispatched_at_ms,
            options.reply_maxlen,
            self._reply(after, "dispatched", at_ms=after.dispatched_at_ms),
        ]
        keys = [self._keys.message(before.key), self._reply_key(before)]
        answer = await self._runner.run(Script.DISPATCHED, keys, args)
        match answer[0]:
            case b"ok":
                return replace(after, seq=int(answer[1]))
            case b"conflict":
                kept = answer[1].decode()
                message = (
                    f"{before.key} already has the dispatched job {kept!r}; {after.job_id!r} is one too many"
                )
                raise DuplicateChild(message, kept_job_id=kept)
            case _:
                raise _refused(before, answer)

    async def _owned(
        self,
        script: Script,
        record: Record,
        args: Args,
        reply_to: str | None = None,
    ) -> Any:
        keys = [self._keys.message(record.key), *([reply_to] if reply_to else [])]
        args = [self._options.worker, record.fence, *args]
        confirmed = True
        if script in CONFIRMED:
            answer, confirmed = await self._runner.run_confirmed(script, keys, args)
        else:
            answer = await self._runner.run(script, keys, args)
        if answer[0] == b"fenced":
            raise _refused(record, answer)
        if answer[0] == b"state":
            raise _moved(record, answer)
        if not confirmed:
            # Were it lost in a failover, nobody would know that Nomad was asked: so it is not, yet.
            message = (
                f"the intent to {CONFIRMED[script]} {record.key} is written, but not confirmed as durable"
            )
            raise RedisUnconfirmed(message)
        return answer

    def _reply_key(self, record: Record) -> str:
        return self._keys.reply_stream(record.routing.reply_to)

    def _reply(self, record: Record, kind: str, *, at_ms: int = 0, data: Any = None) -> bytes:
        """The packed fields of a reply."""
        ui_url = ""
        if record.job_id and self._options.ui_address:
            namespace = record.routing.namespace or "default"
            ui_url = f"{self._options.ui_address}/ui/jobs/{_quoted(record.job_id)}@{namespace}"
        return pack(
            reply_fields(
                record,
                kind,
                at_ms=at_ms or self._clock.now_ms(),
                worker=self._options.worker,
                data=data,
                ui_url=ui_url,
            )
        )

    def _dead_letter(self, record: Record) -> list[str]:
        outcome = record.outcome
        if outcome is None or outcome.verdict not in DEAD_LETTERED:
            return []
        fields = {
            "dead_stream": record.key.stream,
            "dead_id": record.key.id,
            "dead_verdict": outcome.verdict.value,
            "dead_code": outcome.error_code,
            "dead_message": outcome.error_message,
            "dead_at": format_rfc3339(self._clock.now_ms()),
            "dead_worker": self._options.worker,
            "dead_attempt": str(record.attempt),
            "dead_takeovers": str(record.takeovers),
            "dead_job": record.routing.job,
            "dead_tenant": record.routing.tenant,
            "dead_dispatched_job_id": record.job_id,
        }
        return [part for name, value in fields.items() if value for part in (name, value)]


def _quoted(job_id: str) -> str:
    """For a URL; asked for each reply about a job."""
    parent, mark, name = job_id.rpartition("/dispatch-")
    if name.isascii() and name.replace("-", "").isalnum():
        # As Nomad names them all. What is left is the same for each of a job's children.
        return f"{_quoted_whole(parent + mark)}{name}"
    return _quoted_whole(job_id)


@lru_cache(maxsize=1_024)
def _quoted_whole(text: str) -> str:
    return quote(text, safe="")


def _moved(record: Record, answer: Sequence[bytes]) -> IllegalTransition:
    return IllegalTransition(
        f"the ledger has {record.key} as {answer[1].decode()}, not as {record.phase.value}"
    )


def _refused(record: Record, answer: Sequence[bytes]) -> Fenced | RecordGone:
    owner, fence, state = (part.decode() for part in answer[1:4])
    if not state:
        return RecordGone(f"the ledger of {record.key} is gone")
    return Fenced(f"{record.key} is {state}, owned by {owner!r} with fence {fence}, not {record.fence}")
