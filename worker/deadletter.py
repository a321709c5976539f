"""Dead letters: find them, read them whole, turn them back into requests, or drop them.

Every change is one atomic step: a tool that is killed between two of them has lost and doubled nothing.

    async with DispatchClient(RedisOptions("redis://localhost")) as client:
        letters = DeadLetters(client)
        async for letter in letters.find(Filter(reason="nomad.job_unknown")):
            print(await letters.requeue(letter, Edits(meta={"tenant": "acme"})))
"""

import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain

import msgspec
from redis.exceptions import NoScriptError

from worker.client import DispatchClient
from worker.client.errors import ClientError
from worker.client.exchange import LARGEST_META_BYTES, Patience, Run, Steps, call, raised
from worker.client.scripts import Script, Word
from worker.core.instants import entry_time_ms
from worker.core.keys import Keys
from worker.core.model import MessageKey, Request
from worker.core.request import Limits, decode_request
from worker.errors import RequestRejected, Then

PAGE = 200
REMEMBERED_SECONDS = 7 * 24 * 3600
"""How long a repeated requeue of one letter is answered with the message it became."""

OWN_FIELDS = (
    "dead_stream",
    "dead_id",
    "dead_verdict",
    "dead_code",
    "dead_message",
    "dead_at",
    "dead_worker",
    "dead_attempt",
    "dead_takeovers",
    "dead_job",
    "dead_tenant",
    "dead_dispatched_job_id",
)
"""What the worker writes before the request's own fields."""
_PACKED = b"dead_fields_msgpack"

_READ, _REQUEUE = Script.load("dead_read"), Script.load("requeue")


class LetterGone(ClientError):
    """The dead letter is not there (any more): requeued or dropped by somebody, or trimmed."""

    code = "client.dead_letter_gone"
    then = Then.DEAD_LETTER


class LetterPacked(ClientError):
    """A request of more than a thousand fields is kept as evidence only; it has to be sent anew."""

    code = "client.dead_letter_packed"
    then = Then.DEAD_LETTER


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter, without the request's own fields."""

    id: str
    """Its entry ID in the dead-letter stream."""
    key: MessageKey
    """The message it was."""
    verdict: str = ""
    code: str = ""
    message: str = ""
    at: str = ""
    """RFC 3339."""
    worker: str = ""
    attempt: int = 0
    takeovers: int = 0
    job: str = ""
    tenant: str = ""
    dispatched_job_id: str = ""
    payload_bytes: int = 0
    field_count: int = 0

    @property
    def at_ms(self) -> int:
        """When it was written, Unix milliseconds on Redis's clock."""
        return entry_time_ms(self.id)


@dataclass(frozen=True, slots=True)
class WholeLetter:
    """A dead letter with the request as it was."""

    letter: DeadLetter
    fields: Mapping[bytes, bytes]

    @property
    def replay_of(self) -> str:
        """`<stream>:<id>` of the message that this one repeated; empty: it was no replay."""
        return self.fields.get(b"replay_of", b"").decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; what is empty or None does not matter. Texts are globs.

    Attributes:
        reason: an error code or a verdict, such as `nomad.*` or `poison`.
        older_seconds, newer_seconds: their age.
    """

    reason: str = ""
    job: str = ""
    tenant: str = ""
    stream: str = ""
    older_seconds: float | None = None
    newer_seconds: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every letter is meant."""
        return self == Filter()

    def matches(self, letter: DeadLetter, now_ms: int) -> bool:
        """Whether a letter is meant."""
        age = (now_ms - letter.at_ms) / 1000
        texts = ((self.job, letter.job), (self.tenant, letter.tenant), (self.stream, letter.key.stream))
        return (
            (not self.reason or any(fnmatchcase(text, self.reason) for text in (letter.code, letter.verdict)))
            and all(not glob or fnmatchcase(text, glob) for glob, text in texts)
            and (self.older_seconds is None or age >= self.older_seconds)
            and (self.newer_seconds is None or age <= self.newer_seconds)
        )


@dataclass(frozen=True, slots=True)
class Edits:
    """What the new request has otherwise than the old one."""

    meta: Mapping[str, str] = field(default_factory=dict)
    meta_unset: Sequence[str] = ()
    fields: Mapping[str, bytes] = field(default_factory=dict)
    """Whole fields, such as `job`."""
    unset: Sequence[str] = ()
    """Names of fields to leave out, such as `deadline`."""

    def apply(self, fields: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], list[str]]:
        """The fields to put in, and the names of those to leave out.

        Raises:
            ValueError: the meta to be edited is no JSON object of strings.
        """
        put = {name.encode(): value for name, value in self.fields.items()}
        if self.meta or self.meta_unset:
            try:
                meta = msgspec.json.decode(fields.get(b"meta") or b"{}", type=dict[str, str])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                message = "its meta is no JSON object of strings; set it as a whole"
                raise ValueError(message) from error
            kept = {name: value for name, value in meta.items() if name not in self.meta_unset}
            put[b"meta"] = msgspec.json.encode(kept | dict(self.meta))
        return put, list(self.unset)


class DeadLetters:
    """The dead letters of one prefix, over a client that the caller closes.

    All methods raise RedisUnavailable (safe to repeat) and RedisDenied.
    """

    def __init__(self, client: DispatchClient) -> None:
        self._client = client
        self._keys = client.keys

    async def count(self) -> int:
        """How many there are."""
        return await self._client.perform(_count(self._keys))

    async def find(self, wanted: Filter | None = None) -> AsyncGenerator[DeadLetter, None]:
        """The letters that a filter means, the oldest first, page by page."""
        first, now_ms = "-", int(time.time() * 1000)
        while True:
            page = await self._client.perform(_page(self._keys, first))
            for letter in page:
                if wanted is None or wanted.matches(letter, now_ms):
                    yield letter
            if len(page) < PAGE:
                return
            first = f"({page[-1].id}"

    async def read(self, letter_id: str) -> WholeLetter:
        """One letter with the request's own fields.

        Raises:
            LetterGone.
        """
        return await self._client.perform(_read(self._keys, letter_id))

    async def fault(self, letter: DeadLetter, edits: Edits | None = None) -> str:
        """Why the request, edited, would be rejected again before it reaches Nomad; empty: it would not.

        Raises:
            LetterGone.
        """
        whole = await self.read(letter.id)
        if _PACKED in whole.fields:
            return str(_packed(letter.id))
        try:
            put, unset = (edits or Edits()).apply(whole.fields)
            _check(self._keys, whole.fields, put, unset)
        except (RequestRejected, ValueError) as error:
            return str(error)
        return ""

    async def requeue(
        self, letter: DeadLetter, edits: Edits | None = None, *, timeout: float = 30.0
    ) -> MessageKey:
        """Make a new request of a letter, which is then gone. Repeating it gives the same message.

        The new message has an ID, and so a Nomad token, of its own; `replay_of` tells where it is from.

        Args:
            letter: as found or read.
            edits: what to change.
            timeout: seconds to keep trying while Redis is away.

        Raises:
            LetterGone, LetterPacked.
            NotSent: not confirmed in time.
            ValueError: see `Edits.apply`.
        """
        put, unset = dict[bytes, bytes](), list[str]()
        if edits is not None:
            # An entry never changes, so what is read now is what the script finds.
            put, unset = edits.apply((await self.read(letter.id)).fields)
        patience = Patience(timeout, time.monotonic, random.random)
        return await self._client.perform(_requeue(self._keys, letter, put, unset, patience))

    async def drop(self, letter_id: str) -> bool:
        """Remove a letter for good. Returns whether it was there."""
        return await self._client.perform(_drop(self._keys, letter_id))


def _count(keys: Keys) -> Steps[int]:
    (number,) = raised((yield Run((("XLEN", keys.dead),))))
    return int(number)


def _page(keys: Keys, first: str) -> Steps[list[DeadLetter]]:
    answer = yield from call(_READ, [keys.dead], [first, "+", PAGE, 0, *OWN_FIELDS])
    return [_letter(*entry[:4]) for entry in answer]


def _read(keys: Keys, letter_id: str) -> Steps[WholeLetter]:
    answer = yield from call(_READ, [keys.dead], [letter_id, letter_id, 1, 1, *OWN_FIELDS])
    if not answer:
        raise _gone(letter_id)
    *head, flat = answer[0]
    return WholeLetter(_letter(*head), dict(zip(flat[::2], flat[1::2], strict=True)))


def _requeue(
    keys: Keys, letter: DeadLetter, put: Mapping[bytes, bytes], unset: Sequence[str], patience: Patience
) -> Steps[MessageKey]:
    names = [keys.dead, keys.stream(letter.key.stream), keys.idempotency("requeue", letter.id)]
    args: list[Word] = [letter.id, letter.key.stream, REMEMBERED_SECONDS * 1000, str(letter.key)]
    args += [len(OWN_FIELDS), *OWN_FIELDS, len(unset), *unset, *chain.from_iterable(put.items())]
    whole = False
    while True:
        (answer,) = yield Run((_REQUEUE.command(names, args, whole=whole),))
        whole = isinstance(answer, NoScriptError)
        if whole:
            continue
        if isinstance(answer, Exception):
            yield patience.pause(answer)
            continue
        if answer[0] == b"gone":
            raise _gone(letter.id)
        if answer[0] == b"packed":
            raise _packed(letter.id)
        stream, _, message_id = answer[1].decode().rpartition(":")
        return MessageKey(stream, message_id)


def _drop(keys: Keys, letter_id: str) -> Steps[bool]:
    (number,) = raised((yield Run((("XDEL", keys.dead, letter_id),))))
    return bool(number)


def _check(
    keys: Keys, fields: Mapping[bytes, bytes], put: Mapping[bytes, bytes], unset: Sequence[str]
) -> Request:
    left_out = {name.encode() for name in unset}
    edited = {name: value for name, value in fields.items() if name not in left_out} | dict(put)
    # Which places and how much meta are served is for the worker to say.
    namespace, region = (edited.get(name, b"").decode(errors="replace") for name in (b"namespace", b"region"))
    return decode_request(edited, Limits(keys, (namespace,), (region,), LARGEST_META_BYTES))


def _letter(entry_id: bytes, head: Sequence[bytes], payload_bytes: int, field_count: int) -> DeadLetter:
    own = {
        name.decode(): value.decode(errors="replace")
        for name, value in zip(head[::2], head[1::2], strict=True)
    }

    def text(name: str) -> str:
        return own.get(f"dead_{name}", "")

    return DeadLetter(
        id=entry_id.decode(),
        key=MessageKey(text("stream"), text("id")),
        verdict=text("verdict"),
        code=text("code"),
        message=text("message"),
        at=text("at"),
        worker=text("worker"),
        attempt=int(text("attempt") or "0"),
        takeovers=int(text("takeovers") or "0"),
        job=text("job"),
        tenant=text("tenant"),
        dispatched_job_id=text("dispatched_job_id"),
        payload_bytes=payload_bytes,
        field_count=field_count,
    )


def _gone(letter_id: str) -> LetterGone:
    return LetterGone(
        f"no dead letter {letter_id}: requeued, dropped or trimmed; see: dispatch-worker dlq list"
    )


def _packed(letter_id: str) -> LetterPacked:
    text = f"the dead letter {letter_id} has more than a thousand fields, so it is kept as evidence only"
    return LetterPacked(f"{text}; send a new request, then: dispatch-worker dlq drop {letter_id}")
