"""Carries out what a person orders on the status page: cancel, requeue, drop. Off unless a token is set up.

Decides who may. Nothing is remembered between two orders, not even a cookie: each brings the token along, so
that no other site can give one in somebody's name.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from worker.adapters.redis.connection import RedisOptions
from worker.client import Cancelled, DispatchClient
from worker.client.errors import MessageUnknown
from worker.core.model import MessageKey
from worker.deadletter import DeadLetters, LetterGone, LetterPacked
from worker.errors import WorkerError

log = structlog.get_logger()

TOKEN_LENGTH_MIN = 16
ACTION_SECONDS = 5.0
REFUSAL_SECONDS = 1.0
"""How long a wrong token waits for its answer. With 16 characters there is nothing to guess anyway."""

_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


class Deed(StrEnum):
    """What can be ordered."""

    CANCEL = "cancel"
    REQUEUE = "requeue"
    DROP = "drop"


class Told(StrEnum):
    """What became of an order; the page has a sentence for each."""

    PREVENTED = "prevented"
    ORDERED = "ordered"
    TOO_LATE = "too_late"
    REQUEUED = "requeued"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Order:
    """One form as it was sent. All of it is text from outside."""

    fields: Mapping[str, str]
    origin: str = ""
    """The `Origin` header: whose page the form stood on."""
    site: str = ""
    """`Sec-Fetch-Site`: the same in the browser's own words, where it says it."""
    host: str = ""
    """The `Host` header: whose page it must have stood on."""
    remote: str = ""

    @property
    def by(self) -> str:
        """Who says to have ordered it, for the log: no line breaks, nothing that a terminal obeys."""
        return "".join(filter(str.isprintable, self.fields.get("by", "")))[:80]


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of an order."""

    status: int
    """HTTP: 303 it is done, otherwise why it is not."""
    key: MessageKey | None = None
    """The message to be shown; a requeued one under its new ID."""
    told: Told | None = None
    refused: str = ""
    """A sentence."""


class Refused(Exception):
    """The order is not carried out. `reason` is one word, for logs."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Actions:
    """Carries out orders of one worker.

    Args:
        token_file: holds the token, and is read at every order, so that it can rotate; None: all is refused.
        redis: where; connected when first used.
        prefix: of the keys.
        streams: short names of the streams this worker reads.
        count: told of every order: the deed, and `done`, `refused` or `failed`.
        learn: told of the token, so that logs can mask it.
    """

    def __init__(
        self,
        token_file: Path | None,
        redis: RedisOptions,
        *,
        prefix: str,
        streams: tuple[str, ...],
        count: Callable[[str, str], None],
        learn: Callable[[str], None],
    ) -> None:
        self._token_file = token_file
        self._redis = redis
        self._prefix = prefix
        self._streams = streams
        self._count = count
        self._learn = learn
        self._client: DispatchClient | None = None
        self._deeds: Mapping[Deed, Callable[[DispatchClient, Order], Awaitable[Carried]]] = {
            Deed.CANCEL: self._cancel,
            Deed.REQUEUE: self._requeue,
            Deed.DROP: self._drop,
        }

    @property
    def enabled(self) -> bool:
        """Whether anything can be ordered at all."""
        return self._token_file is not None

    async def carry_out(self, order: Order) -> Carried:
        """Check who orders, and do it. Never raises: what went wrong is in what comes back."""
        name = order.fields.get("action", "")
        deed = Deed(name) if name in set(Deed) else None
        label = deed.value if deed else "other"
        try:
            await self._check(order)
            if deed is None:
                raise Refused(400, "unknown_action", "There is no such action.")  # noqa: TRY301
            async with asyncio.timeout(ACTION_SECONDS):
                done = await self._deeds[deed](self._connected(), order)
        except Refused as refused:
            log.warning("action.refused", action=label, code=refused.reason, by=order.by, remote=order.remote)
            self._count(label, "refused")
            return Carried(refused.status, _key_of(order, self._streams), refused=str(refused))
        except (WorkerError, TimeoutError) as error:
            code = getattr(error, "code", "timeout")
            log.warning(
                "action.failed", action=label, code=code, error=str(error), by=order.by, remote=order.remote
            )
            self._count(label, "failed")
            why = str(error) or "Redis did not answer in time; look whether it was done before trying again"
            return Carried(503, _key_of(order, self._streams), refused=f"{why}.")
        told = done.told.value if done.told else ""
        stream, message_id = done.key or ("", "")
        log.info(
            "action.done",
            action=label,
            stream=stream,
            message_id=message_id,
            result=told,
            by=order.by,
            remote=order.remote,
        )
        self._count(label, "done")
        return done

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    # Who may ------------------------------------------------------------------------------------------

    async def _check(self, order: Order) -> None:
        if self._token_file is None:
            raise Refused(403, "read_only", "This page is read-only: no token is set up.")
        if order.site not in {"", "same-origin", "none"} or not _same_origin(order.origin, order.host):
            raise Refused(403, "cross_site", "This order comes from another site's page.")
        given = order.fields.get("token", "")
        if not hmac.compare_digest(given.encode(), (await self._token(self._token_file)).encode()):
            await asyncio.sleep(REFUSAL_SECONDS)
            raise Refused(403, "wrong_token", "This is not the token.")

    async def _token(self, file: Path) -> str:
        try:
            token = (await asyncio.to_thread(file.read_text)).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(503, "token_unreadable", "The token's file cannot be read.") from error
        if len(token) < TOKEN_LENGTH_MIN:
            message = f"The token's file holds less than {TOKEN_LENGTH_MIN} characters."
            raise Refused(503, "token_too_short", message)
        self._learn(token)
        return token

    # What is done -------------------------------------------------------------------------------------

    async def _cancel(self, client: DispatchClient, order: Order) -> Carried:
        key = _key_of(order, self._streams)
        if key is None:
            raise Refused(400, "no_message", "It does not say which message is meant.")
        try:
            answer = await client.cancel(key.stream, key.id)
        except MessageUnknown as error:
            raise Refused(404, "message_unknown", "Neither the stream nor the ledger knows it.") from error
        told = {
            Cancelled.PREVENTED: Told.PREVENTED,
            Cancelled.ORDERED: Told.ORDERED,
            Cancelled.TOO_LATE: Told.TOO_LATE,
        }[answer]
        return Carried(303, key, told)

    async def _requeue(self, client: DispatchClient, order: Order) -> Carried:
        letters = DeadLetters(client)
        try:
            whole = await letters.read(_letter_of(order))
            key = await letters.requeue(whole.letter, timeout=ACTION_SECONDS)
        except (LetterGone, LetterPacked) as error:
            raise Refused(409, "letter_gone", f"{error}.") from error
        return Carried(303, key, Told.REQUEUED)

    async def _drop(self, client: DispatchClient, order: Order) -> Carried:
        if order.fields.get("sure") != "yes":
            raise Refused(400, "not_sure", "Dropping is for good: tick the box too.")
        if not await DeadLetters(client).drop(_letter_of(order)):
            raise Refused(409, "letter_gone", "It was requeued or dropped by somebody else.")
        return Carried(303, _key_of(order, self._streams), Told.DROPPED)

    def _connected(self) -> DispatchClient:
        if self._client is None:
            self._client = DispatchClient(self._redis, prefix=self._prefix)
        return self._client


def _same_origin(origin: str, host: str) -> bool:
    # Not every client says where a form stood; those that are no browsers have no one's cookies to abuse.
    return not origin or urlsplit(origin).netloc == host


def _key_of(order: Order, streams: tuple[str, ...]) -> MessageKey | None:
    stream, _, entry_id = order.fields.get("id", "").rpartition(":")
    known = stream in streams and _ENTRY_ID.fullmatch(entry_id)
    return MessageKey(stream, entry_id) if known else None


def _letter_of(order: Order) -> str:
    letter = order.fields.get("letter", "")
    if not _ENTRY_ID.fullmatch(letter):
        raise Refused(400, "no_letter", "It does not say which dead letter is meant.")
    return letter
