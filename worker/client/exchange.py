"""What the clients say to Redis, step by step: sending with repeats that never double, and looking up.

Knows nothing of connections or event loops: generators yield what to do next and are given the answers.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar
from uuid import uuid4

from redis.exceptions import NoScriptError

from worker.adapters.redis.connection import translate
from worker.adapters.redis.records import decode_record
from worker.client.errors import MessageUnknown, NotSent
from worker.client.replies import Sent, Thread, just_before, range_entries, reply_in_ledger
from worker.client.scripts import Command, Script, Word
from worker.core.backoff import Backoff
from worker.core.keys import Keys
from worker.core.model import MessageKey, Record, Request
from worker.core.reply import Reply
from worker.core.request import Limits, decode_request, encode_request
from worker.errors import RedisUnavailable, Then

DEFAULT_PREFIX = "{dispatch}"
IDEMPOTENCY_SECONDS = 7 * 24 * 3600.0
"""How long a key leads to its first message before a worker reads it. From then on the worker sees to it that
it does so for as long as the ledger remembers the message."""
OWN_KEY_SECONDS = 600.0
"""The same for a call without a key: longer than any call may take."""
LONGEST_SEND_SECONDS = 300.0
"""Well below `OWN_KEY_SECONDS`, so that no repeat comes after its marker has gone."""
LARGEST_META_BYTES = 1 << 20
"""Workers set their own limit, usually far lower; this one protects Redis."""
BATCH = 100
"""Requests in one pipeline: at most 1.6 MB of payloads."""

_SEND = Script.load("send")


@dataclass(frozen=True, slots=True)
class Run:
    """Run commands in one pipeline. The answer: one value per command, or the exception it raised."""

    commands: Sequence[Command]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait. The answer is empty."""

    seconds: float


T = TypeVar("T")
Steps = Generator[Run | Pause, Sequence[Any], T]


class RequestFields(TypedDict, total=False):
    """The fields of a `Request`, as keyword arguments."""

    job: str
    payload: bytes
    meta: dict[str, str]
    namespace: str | None
    region: str | None
    priority: int | None
    id_prefix: str
    detach: bool
    reply_to: str
    correlation_id: str
    tenant: str
    deadline_ms: int | None
    not_before_ms: int | None
    timeout_seconds: float | None
    idempotency_key: str
    traceparent: str


def request_of(request: Request | None, fields: RequestFields) -> Request:
    """The request that a call to `send` describes."""
    return Request(**fields) if request is None else replace(request, **fields)


def call(script: Script, keys: Sequence[str], args: Sequence[Word]) -> Steps[Any]:
    """Run one script and return its answer.

    Raises:
        RedisUnavailable: no answer, or none that counts; safe to repeat.
    """
    (answer,) = yield Run((script.command(keys, args, whole=False),))
    if isinstance(answer, NoScriptError):
        (answer,) = yield Run((script.command(keys, args, whole=True),))
    return raised([answer])[0]


# Sending ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parcel:
    """One request, ready to be sent any number of times and to arrive once."""

    stream: str
    reply_stream: str
    nonce: str
    keys: tuple[str, str, str]
    retention_ms: int
    fields: tuple[bytes, ...]
    """Flat."""

    def command(self, *, whole: bool) -> Command:
        """The script's call, by its digest or, for a server that does not know it, in full."""
        args: tuple[Word, ...] = (self.retention_ms, self.stream, self.nonce, *self.fields)
        return _SEND.command(self.keys, args, whole=whole)


@dataclass(frozen=True, slots=True)
class Sender:
    """How requests become parcels.

    Attributes:
        keys: the key names.
        namespace: the worker's default namespace: where a request without one goes, and so a part
            of the scope of its idempotency key.
        idempotency_seconds: how long an idempotency key leads to its first message.
    """

    keys: Keys
    namespace: str = "default"
    idempotency_seconds: float = IDEMPOTENCY_SECONDS

    def parcel(self, request: Request, stream: str) -> Parcel:
        """Check a request as the worker will, and pack it.

        Raises:
            RequestRejected: the worker would reject it too.
        """
        fields = encode_request(request)
        limits = Limits(
            self.keys, (request.namespace or "",), (request.region or "",), max_meta_bytes=LARGEST_META_BYTES
        )
        reply_to = decode_request(fields, limits).reply_to
        nonce = uuid4().hex
        reply_stream = self.keys.reply_stream(reply_to)
        if request.idempotency_key:
            namespace = request.namespace or self.namespace
            marker = self.keys.idempotency_in(namespace, request.job, request.idempotency_key)
            retention_ms = int(self.idempotency_seconds * 1000)
        else:
            marker = self.keys.idempotency("once", nonce)
            retention_ms = int(OWN_KEY_SECONDS * 1000)
        return Parcel(
            stream=stream,
            reply_stream=reply_stream,
            nonce=nonce,
            keys=(self.keys.stream(stream), marker, reply_stream),
            retention_ms=retention_ms,
            fields=tuple(part for pair in fields.items() for part in pair),
        )


class Patience:
    """How long a call goes on trying, and how long it waits in between."""

    _backoff = Backoff(first_seconds=0.05, most_seconds=2.0)

    def __init__(self, timeout: float, monotonic: Callable[[], float], chance: Callable[[], float]) -> None:
        if not 0 < timeout <= LONGEST_SEND_SECONDS:
            message = f"timeout must be above 0 and at most {LONGEST_SEND_SECONDS:g} seconds, not {timeout:g}"
            raise ValueError(message)
        self._timeout = timeout
        self._monotonic = monotonic
        self._chance = chance
        self._until = monotonic() + timeout
        self._failures = 0

    def pause(self, error: Exception) -> Pause:
        """What to do after a failed try.

        Raises:
            NotSent: no time is left.
            WorkerError: trying again would not help.
        """
        named = translate(error)
        if named.then is not Then.RETRY:
            raise named from error
        self._failures += 1
        seconds = self._backoff.delay(self._failures, self._chance())
        if self._monotonic() + seconds >= self._until:
            message = f"not confirmed within {self._timeout:g} s: {named}"
            # Whether a lost answer was a yes cannot be told from the kind of error alone.
            raise NotSent(message, maybe_sent=True) from error
        return Pause(seconds)


def deliver(keys: Keys, parcels: Sequence[Parcel], patience: Patience) -> Steps[list[Sent]]:
    """Send parcels in order; each arrives once however often an answer is lost."""
    sent: dict[int, Sent] = {}
    for start in range(0, len(parcels), BATCH):
        waiting = list(range(start, min(start + BATCH, len(parcels))))
        whole = False
        while waiting:
            # In full once; the others of the pipeline then find the script loaded.
            commands = [
                parcels[index].command(whole=whole and place == 0) for place, index in enumerate(waiting)
            ]
            answers = yield Run(commands)
            failed = {
                index: answer for index, answer in zip(waiting, answers, strict=True) if _is_error(answer)
            }
            for index, answer in zip(waiting, answers, strict=True):
                if index not in failed:
                    sent[index] = _sent(parcels[index], answer)
            waiting = list(failed)
            whole = any(isinstance(error, NoScriptError) for error in failed.values())
            failures = [error for error in failed.values() if not isinstance(error, NoScriptError)]
            if failures:
                yield patience.pause(failures[0])
    repeated = [index for index, one in sent.items() if one.repeated]
    for start in range(0, len(repeated), BATCH):
        part = repeated[start : start + BATCH]
        first = yield from _first_uses(keys, [sent[index] for index in part])
        sent.update(zip(part, first, strict=True))
    return [sent[index] for index in range(len(parcels))]


def _first_uses(keys: Keys, repeats: Sequence[Sent]) -> Steps[list[Sent]]:
    """The same with the reply streams that the first requests asked for, as far as that can be told now."""
    answers = yield Run([command for one in repeats for command in _asking_where(keys, one.key)])
    first = []
    for one, state, entries in zip(repeats, answers[::2], answers[1::2], strict=True):
        try:
            found = _where(keys, one.key, raised([state, entries]))
        except (MessageUnknown, RedisUnavailable):
            first.append(one)
        else:
            first.append(replace(one, reply_stream=found.reply_stream))
    return first


def _sent(parcel: Parcel, answer: Sequence[bytes]) -> Sent:
    stream, message_id, nonce = answer[0].decode().rsplit(":", 2)
    # Our own nonce on a repeat: this call's first try had arrived and only its answer was lost.
    repeated = nonce != parcel.nonce
    after = answer[1].decode() if len(answer) > 1 else just_before(message_id)
    return Sent(stream, message_id, parcel.reply_stream, after, repeated)


# Looking up ---------------------------------------------------------------------------------------


def locate(keys: Keys, key: MessageKey) -> Steps[Sent]:
    """Where to follow a message that was sent earlier, by its identity alone.

    Raises:
        MessageUnknown: neither ledger nor stream knows it.
    """
    return _where(keys, key, raised((yield Run(_asking_where(keys, key)))))


def _asking_where(keys: Keys, key: MessageKey) -> tuple[Command, Command]:
    return (
        ("HMGET", keys.message(key), "state", "reply_to", "reply_stream"),
        ("XRANGE", keys.stream(key.stream), key.id, key.id),
    )


def _where(keys: Keys, key: MessageKey, answers: Sequence[Any]) -> Sent:
    (state, reply_to, reply_stream), entries = answers
    if not state and not entries:
        message = f"no message {key}: neither the stream nor the ledger knows it"
        raise MessageUnknown(message)
    if not reply_stream:
        if not state:
            reply_to = dict(range_entries(entries)[0][1]).get(b"reply_to")
        name = keys.reply_name((reply_to or b"").decode(errors="replace")) or ""
        reply_stream = keys.reply_stream(name).encode()
    return Sent(key.stream, key.id, reply_stream.decode(), just_before(key.id))


def look_up(keys: Keys, key: MessageKey) -> Steps[Reply | None]:
    """The final reply, with its evidence while the reply stream still has it; None while there is none.

    Raises:
        RecordUnreadable: the ledger entry was written by a newer version.
    """
    (stored,) = raised((yield Run((("HGETALL", keys.message(key)),))))
    remembered = reply_in_ledger(key, stored)
    if remembered is None or not remembered.entry_id or b"reply_stream" not in stored:
        return remembered
    reply_id = remembered.entry_id
    (entries,) = raised((yield Run((("XRANGE", stored[b"reply_stream"], reply_id, reply_id),))))
    for entry in range_entries(entries):
        reply = Thread(key).take(entry)
        if reply is not None and reply.final:
            return reply
    return remembered


def recall(keys: Keys, key: MessageKey) -> Steps[Record | None]:
    """The ledger's record of a message as it is now; None when the ledger does not know it.

    Raises:
        RecordUnreadable: written by a newer version.
    """
    (stored,) = raised((yield Run((("HGETALL", keys.message(key)),))))
    return decode_record(key, stored) if stored else None


def settled(keys: Keys, messages: Iterable[MessageKey]) -> Steps[list[MessageKey]]:
    """Which of the messages have their final reply."""
    asked = list(messages)
    done = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        answers = raised((yield Run([("HGET", keys.message(key), "state") for key in part])))
        done += [key for key, state in zip(part, answers, strict=True) if state == b"settled"]
    return done


def page(stream: str, after: str, last: str) -> Steps[list[Any]]:
    """One page of a reply stream: entries after one ID up to and with another."""
    (entries,) = raised((yield Run((("XRANGE", stream, f"({after}", last, "COUNT", 500),))))
    return list(entries)


def _is_error(answer: Any) -> bool:
    return isinstance(answer, Exception)


def raised(answers: Sequence[Any]) -> Sequence[Any]:
    """The answers, when none of them is an error."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise translate(answer) from answer
    return answers
