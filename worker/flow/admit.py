"""Step 2: an entry becomes a message of this worker, on record, with its fate decided if it is faulty.

Knows nothing of where entries come from. A faulty one is admitted too, to be answered like any other.
"""

from collections.abc import Callable
from dataclasses import replace

from worker.core.model import Entry, MessageKey, Phase, Request
from worker.core.policy import Policy
from worker.core.request import Limits, decode_request, routing_of, salvage_routing
from worker.errors import PayloadLost, RequestRejected
from worker.flow.message import Message
from worker.ports import Admission, Inbox, Ledger

TRACE_META = "traceparent"
"""The meta key; in the task it is the variable `NOMAD_META_traceparent`."""


class Admit:
    """Decodes entries and puts them into the ledger.

    Args:
        policy: the one in force now; it may change between two messages.
        token_template: as `WORKER_TOKEN_TEMPLATE`: `{message_id}`, and `{stream}` where several are read.
        job_trace: the `traceparent` a message's job gets, for the one its request has; empty: none.
    """

    def __init__(
        self,
        inbox: Inbox,
        ledger: Ledger,
        limits: Limits,
        policy: Callable[[], Policy],
        token_template: str,
        *,
        job_trace: Callable[[MessageKey, str], str] = lambda _key, _given: "",
    ) -> None:
        self._inbox = inbox
        self._ledger = ledger
        self._limits = limits
        self._policy = policy
        self._token_template = token_template
        self._job_trace = job_trace

    async def admit(self, message: Message) -> bool:
        """Make this worker the message's owner, unless it is settled or owned elsewhere.

        Returns:
            Whether there is anything to do for it here. If so, the message has its record and,
            while it is not dispatched, its request or the fault that stands in for it.

        Raises:
            RecordUnreadable, RedisUnavailable.
        """
        if message.record is None or not message.record.token:
            return await self._admit_entry(message)
        if message.record.phase in {Phase.RECEIVED, Phase.DISPATCHING}:
            self._read(message, await self._entry(message))
        message.unsure = message.inherited = message.record.phase is Phase.DISPATCHING
        return True

    async def load(self, message: Message) -> None:
        """Give a message that was taken over while it ran its request, or the fault that stands in for it.

        Raises:
            RedisUnavailable.
        """
        if message.request is None and message.fault is None:
            self._read(message, await self._entry(message))

    async def _admit_entry(self, message: Message) -> bool:
        entry = await self._entry(message)
        self._read(message, entry)
        if message.request is not None:
            routing = routing_of(message.request, self._limits)
        else:
            routing = salvage_routing(entry.fields or {}, self._limits)
        if entry.fields is None and message.record is not None:
            # Deleted before anyone admitted it: the stub its taker made is all there will be on record.
            return True
        admission = Admission(message.key, self._token(message.key), routing)
        message.record = await self._ledger.admit(admission)
        if message.record is None:
            return False
        message.unsure = message.inherited = message.record.phase is Phase.DISPATCHING
        return True

    async def _entry(self, message: Message) -> Entry:
        if message.entry is None:
            (message.entry,) = await self._inbox.fetch([message.key])
        return message.entry

    def _read(self, message: Message, entry: Entry) -> None:
        try:
            message.request = self._decode(entry)
        except RequestRejected as fault:
            message.fault = fault

    def _decode(self, entry: Entry) -> Request:
        if entry.fields is None:
            text = "the entry was trimmed or deleted from the stream before it was dispatched"
            raise PayloadLost(text)
        request = decode_request(entry.fields, self._limits)
        place = routing_of(request, self._limits).place
        request = self._policy().admit(entry.key.stream, request, place.namespace, place.region)
        traceparent = self._job_trace(entry.key, request.traceparent)
        if not traceparent or TRACE_META in request.meta:
            return request
        return replace(request, meta={**request.meta, TRACE_META: traceparent})

    def _token(self, key: MessageKey) -> str:
        return self._token_template.replace("{message_id}", key.id).replace("{stream}", key.stream)
