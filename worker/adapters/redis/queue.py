"""The queue on Redis: messages that wait for their time or their turn, and the slots of those in flight.

Decides nothing: the script PICK knows the order, the policy the limits. The pending list and the ledger are
the truth about what waits; what is kept besides is an index, which `mend` makes again.
"""

from collections.abc import Sequence
from typing import Any

from worker.adapters.redis.connection import FAILURES, translate
from worker.adapters.redis.records import decode_record
from worker.adapters.redis.scripts import Script, ScriptRunner
from worker.core.keys import SCOPES, Keys
from worker.core.model import LEDGER_VERSION, WAITING_CONSUMER, Entry, MessageKey, Record
from worker.core.policy import Policy
from worker.core.queueing import encode_limits, slots_text
from worker.errors import Fenced, GroupMissing
from worker.ports import Picked

PICK_MOST = 100
"""Messages per PICK script, each with its ledger entry and its request: some milliseconds of the server's
time, and 2 MB of an answer at worst."""
PAGE = 200
"""Entries or slots per script that mends or recounts."""


class RedisQueue:
    """Implements `ports.Queue`.

    Args:
        ops: for reads.
        worker: this worker's name, as a consumer.
        ages: whether `pick` tells since when a stream's oldest message waits that may go.
    """

    def __init__(
        self, ops: Any, runner: ScriptRunner, keys: Keys, *, worker: str, group: str, ages: bool = False
    ) -> None:
        self._ops = ops
        self._runner = runner
        self._keys = keys
        self._worker = worker
        self._group = group
        self._ages = int(ages)
        self._begin: dict[str, tuple[int, str]] = {}
        """By stream, where the next look begins when one could not look at everybody."""
        self._limits: tuple[Policy, bytes] | None = None
        self.now_ms = 0
        """Time, where it is not Redis's own: for simulations."""

    async def pick(self, stream: str, limit: int, policy: Policy) -> Picked:
        """See `ports.Queue.pick`. Gives at most `PICK_MOST` at once."""
        pass_over, begin_after = self._begin.get(stream, (0, ""))
        answer = await self._runner.run(
            Script.PICK,
            [
                *(self._keys.stream(stream), *self._keys.waiting(stream), *self._keys.caps),
                *(self._keys.rates, self._keys.message(MessageKey(stream, ""))),
            ],
            [
                *(self._group, self._worker, LEDGER_VERSION, stream, min(limit, PICK_MOST)),
                *(self.now_ms, pass_over, begin_after, self._encoded(policy), self._ages),
            ],
        )
        look_again, queued, delayed, since, pass_over, begin_after = answer[:6]
        if limit:
            # A mere look gets nowhere, and must not lose the place.
            self._begin[stream] = (int(pass_over), begin_after)
        return Picked(
            messages=[_picked(stream, *found) for found in answer[6:]],
            queued=int(queued),
            delayed=int(delayed),
            since_ms=int(float(since)),
            look_again_ms=int(look_again),
        )

    async def mend(self, stream: str) -> Sequence[Record | MessageKey]:
        """See `ports.Queue.mend`. Reads all that waits, where its number is not that of the index."""
        try:
            await self._hurry_the_lost(stream)
            if not await self._differs(stream):
                return []
            found: list[Record | MessageKey] = []
            start = "-"
            while page := await self._pending(stream, start):
                found += await self._mend(stream, page)
                start = f"({page[-1]}"
        except FAILURES as error:
            named = translate(error)
            if isinstance(named, GroupMissing):
                return []
            raise named from error
        return found

    async def occupy(self, record: Record, policy: Policy) -> None:
        """See `ports.Queue.occupy`."""
        slots = slots_text(policy.caps(record.key.stream, record.routing))
        keys = [self._keys.message(record.key), *self._keys.caps]
        answer = await self._runner.run(Script.OCCUPY, keys, [self._worker, record.fence, slots])
        if answer[0] == b"fenced":
            message = f"{record.key} is not this worker's"
            raise Fenced(message)

    async def recount(self) -> int:
        """See `ports.Queue.recount`."""
        freed = 0
        for scope in SCOPES:
            freed += await self._recount(scope)
        return freed

    async def _recount(self, scope: str) -> int:
        freed, start = 0, b"-"
        while True:
            try:
                members = await self._ops.zrangebylex(self._keys.cap(scope), start, "+", 0, PAGE)
            except FAILURES as error:
                raise translate(error) from error
            if not members:
                return freed
            ledgers = [member.rpartition(b"\t")[2].decode() for member in members]
            freed += await self._runner.run(
                Script.RECOUNT, [self._keys.cap(scope), *ledgers], [scope, *members]
            )
            start = b"(" + members[-1]

    async def _hurry_the_lost(self, stream: str) -> None:
        """What was trimmed off the stream waits in vain: it is given out at once, to be answered so."""
        first = await self._ops.xrange(self._keys.stream(stream), count=1)
        before = f"({first[0][0].decode()}" if first else "+"
        start = "-"
        while lost := await self._pending(stream, start, before):
            # Those that were picked meanwhile are dropped from the index by the next look.
            await self._ops.zadd(self._keys.deadlines(stream), dict.fromkeys(lost, 1))
            start = f"({lost[-1]}"

    async def _differs(self, stream: str) -> bool:
        pipeline = self._ops.pipeline(transaction=False)
        pipeline.xpending(self._keys.stream(stream), self._group)
        pipeline.zcard(self._keys.delayed(stream))
        pipeline.zcard(self._keys.queue(stream))
        summary, delayed, queued = await pipeline.execute()
        waiting = sum(
            int(consumer["pending"])
            for consumer in summary["consumers"] or []
            if consumer["name"] == WAITING_CONSUMER.encode()
        )
        return bool(waiting != delayed + queued)

    async def _pending(self, stream: str, start: str, end: str = "+") -> list[str]:
        page = await self._ops.xpending_range(
            self._keys.stream(stream), self._group, start, end, PAGE, WAITING_CONSUMER
        )
        return [item["message_id"].decode() for item in page]

    async def _mend(self, stream: str, ids: Sequence[str]) -> list[Record | MessageKey]:
        answer = await self._runner.run(
            Script.MEND,
            [
                *(self._keys.stream(stream), self._keys.workers, *self._keys.waiting(stream)),
                *(self._keys.message(MessageKey(stream, entry_id)) for entry_id in ids),
            ],
            [self._group, self._worker, LEDGER_VERSION, *ids],
        )
        found: list[Record | MessageKey] = []
        for entry_id, *ledger in answer[1:]:
            key = MessageKey(stream, entry_id.decode())
            found.append(decode_record(key, ledger[0]) if ledger else key)
        return found

    def _encoded(self, policy: Policy) -> bytes:
        if self._limits is None or self._limits[0] is not policy:
            self._limits = (policy, encode_limits(policy))
        return self._limits[1]


def _picked(stream: str, entry_id: bytes, ledger: Any, fields: Any = None) -> tuple[Record, Entry]:
    key = MessageKey(stream, entry_id.decode())
    entry = None if fields is None else dict(zip(fields[::2], fields[1::2], strict=True))
    return decode_record(key, ledger), Entry(key, entry)
