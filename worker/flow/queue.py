"""Step 2½: a message that may not go now waits in Redis; those whose turn it is come into this worker's hand.

Knows nothing of the order among the messages of one stream, which is the queue's own; which stream comes
first is decided by `core.turns`.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from worker.core.backoff import Backoff
from worker.core.lifecycle import Parked
from worker.core.model import Phase, Record
from worker.core.policy import Policy
from worker.core.queueing import limited
from worker.core.turns import Shares, Strict
from worker.errors import Fenced, RedisUnavailable
from worker.flow.gate import Gate
from worker.flow.instruments import Instruments
from worker.flow.lease import Lease
from worker.flow.message import Message
from worker.flow.pipeline import Pipeline
from worker.flow.slots import Slots
from worker.ports import Clock, Picked, Queue

log = structlog.get_logger()

RETRIES = Backoff(first_seconds=0.1, most_seconds=5.0)
SOON_MS = 2_000
"""Where nothing is limited, a message due within this is waited for in memory: a way through the queue and
back would cost more."""
LOOK_SECONDS = 0.5
"""Between two looks without a reason: other workers put messages into the queue and free slots unheard."""
DELAYS_LOOK_SECONDS = SOON_MS / 2_000
"""The same where nothing is limited, so that slots keep nobody waiting: what others put into the queue is due
in `SOON_MS` at the earliest, and is heard of before that."""
GATHER_SECONDS = 0.005
"""After a look in vain: what happens within it is one reason for the next look."""
REST_PER_LOOK = 4.0
"""After a look in vain, in lengths of it: with thousands of tenants at their caps it takes milliseconds
of the server, and each message that is settled is a reason for another."""
AT_ONCE = 16
"""Messages a stream gives before the turn passes on, where there are several streams."""
OCCUPIED_AT_ONCE = 200
"""Messages whose slots are set in one batch of scripts."""

IN_FLIGHT = frozenset({Phase.DISPATCHING, Phase.RUNNING})


def _takes_slots(record: Record, *, passing: bool) -> bool:
    """Whether it counts against the limits: what is to be dispatched without another look at the queue."""
    to_be_dispatched = record.phase is Phase.RECEIVED and not passing
    return bool(record.picked_at_ms) or to_be_dispatched or record.phase in IN_FLIGHT


@dataclass(frozen=True, slots=True)
class Turns:
    """How streams share this worker: their weights, and whether these are shares or levels."""

    weights: Mapping[str, int]
    strict: bool = False
    ageing_seconds: float = 0.0


class Waiting:
    """Puts messages into the queue and takes them out of it again while there is room.

    Args:
        policy: the one in force now.
        slots: those of the dispatches: what cannot be dispatched soon is left where it is.
        max_in_flight: messages carried at once.
    """

    def __init__(
        self,
        queue: Queue,
        lease: Lease,
        gate: Gate,
        clock: Clock,
        instruments: Instruments,
        policy: Callable[[], Policy],
        turns: Turns,
        *,
        slots: Slots,
        max_in_flight: int,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._gate = gate
        self._clock = clock
        self._instruments = instruments
        self._policy = policy
        self._streams = tuple(turns.weights)
        self._shares = Shares(turns.weights)
        self._strict = Strict(turns.weights, turns.ageing_seconds) if turns.strict else None
        self._slots = slots
        self._max_in_flight = max_in_flight
        self._pipeline: Pipeline | None = None
        self._turn = asyncio.Lock()
        self._look_at_ms: float = 0
        self._stopping = False
        self._stopped = asyncio.Event()
        self._occupied = policy()
        """The policy by which what is in hand holds its slots."""
        self.queued: dict[str, int] = dict.fromkeys(self._streams, 0)
        """By stream, how many wait for their turn, as of the last look."""

    def serve(self, pipeline: Pipeline) -> None:
        """Say where messages out of the queue go."""
        self._pipeline = pipeline
        self._slots.on_hunger = pipeline.hunger

    @property
    def orders(self) -> bool:
        """Whether every message goes through the queue: something is limited or shared."""
        return limited(self._policy())

    @property
    def room(self) -> int:
        """How many messages more this worker may carry, and dispatch soon."""
        soon = self._slots.room(self._in_hand.to_dispatch)
        if not soon:
            return 0
        # A read of several streams brings one of each.
        return min(self._max_in_flight - self._in_hand.carried, max(soon, len(self._streams)))

    def park(self, message: Message) -> Parked | None:
        """Whether a received message has to wait in Redis."""
        request, record = message.request, message.record
        if request is None or message.fault is not None or record is None or record.picked_at_ms:
            return None
        now_ms = self._clock.now_ms()
        if request.deadline_ms is not None and request.deadline_ms < now_ms:
            return None
        until_ms = max(request.not_before_ms or 0, record.retry_at_ms)
        if not self.orders and until_ms - now_ms <= SOON_MS:
            return None
        return Parked(until_ms, request.deadline_ms or 0)

    def look_soon(self) -> None:
        """Something happened that the queue may be waiting for."""
        self._look_at_ms = 0
        self._in_hand.moved.set()

    def stop(self) -> None:
        """Take no more out of the queue."""
        self._stopping = True
        self._stopped.set()
        self.look_soon()

    async def run(self, tick: Callable[[], None]) -> None:
        """While messages queue, take out those that may go, until told to stop; else rest."""
        failures = 0
        while not self._stopping:
            tick()
            self._in_hand.moved.clear()
            began, policy = self._clock.monotonic(), self._policy()
            try:
                if policy is not self._occupied:
                    await self._occupy(tick)
                    self._occupied = policy
                if not self.orders:
                    # Intake takes out what was delayed.
                    await self._rest(self._stopped, LOOK_SECONDS)
                    continue
                taken = await self.fill()
            except RedisUnavailable as error:
                failures += 1
                self._instruments.retried(error.code)
                log.warning("queue.read_failed", code=error.code, error=str(error), failures=failures)
                await self._clock.sleep(RETRIES.delay(failures, random.random()))  # noqa: S311
                continue
            failures = 0
            if not taken:
                looked_seconds = self._clock.monotonic() - began
                await self._rest(self._in_hand.moved, max(0.01, self.look_again_seconds))
                await self._clock.sleep(min(LOOK_SECONDS, GATHER_SECONDS + REST_PER_LOOK * looked_seconds))

    async def tidy(self) -> None:
        """Make the index and the slots agree with the ledger again, wherever they should differ.

        Raises:
            RedisUnavailable.
        """
        for stream in self._streams:
            found = await self._queue.mend(stream)
            if found:
                log.warning("queue.adopted", stream=stream, count=len(found))
                self._in_hand.take_records(one for one in found if isinstance(one, Record))
                self._in_hand.take_keys(one for one in found if not isinstance(one, Record))
        if self.orders:
            await self._occupy(lambda: None)
        freed = await self._queue.recount()
        if freed:
            log.warning("queue.slots_recounted", freed=freed)
            self.look_soon()

    async def _occupy(self, tick: Callable[[], None]) -> None:
        """What is in hand holds its slots by the limits as they are now: the policy may have changed."""
        policy = self._policy()
        records = [
            message.record
            for message in self._in_hand.messages
            if message.record is not None and _takes_slots(message.record, passing=message.passing)
        ]
        for begin in range(0, len(records), OCCUPIED_AT_ONCE):
            tick()
            at_once = records[begin : begin + OCCUPIED_AT_ONCE]
            answers = await asyncio.gather(
                *(self._queue.occupy(record, policy) for record in at_once),
                return_exceptions=True,
            )
            for answer in answers:
                # Fenced: settled, or another worker's, since.
                if isinstance(answer, BaseException) and not isinstance(answer, Fenced):
                    raise answer

    async def fill_if_due(self) -> int:
        """`fill`, unless the last look told that there is nothing yet. Returns how many came.

        Raises:
            RedisUnavailable.
        """
        return await self.fill() if self._clock.now_ms() >= self._look_at_ms else 0

    async def fill(self) -> int:
        """Take messages out of the queue while there are some that may go, and room. Returns how many.

        Raises:
            RedisUnavailable: some may be this worker's all the same: reconcile.
        """
        async with self._turn:
            self._look_at_ms = self._clock.now_ms() + self._look_seconds * 1000
            if self._stopping or self._lease.remaining_seconds <= 0:
                return 0
            taken = 0
            heads = await self._look()
            while heads and (room := self._may_take()) > 0:
                stream = self._strict.next(heads) if self._strict else self._shares.next(heads)
                limit = min(room, AT_ONCE) if len(heads) > 1 else room
                picked = await self._pick(stream, limit)
                taken += len(picked.messages)
                self._shares = self._shares.charged(stream, len(picked.messages))
                if not picked.messages or not picked.queued:
                    del heads[stream]
                else:
                    heads[stream] = picked.since_ms or self._clock.now_ms()
            return taken

    @property
    def look_again_seconds(self) -> float:
        """How long until something may have come to be due."""
        return max(0.0, min(self._look_seconds, (self._look_at_ms - self._clock.now_ms()) / 1000))

    @property
    def _look_seconds(self) -> float:
        return LOOK_SECONDS if self.orders else DELAYS_LOOK_SECONDS

    async def _look(self) -> dict[str, int]:
        """The streams with something in the queue, and since when what may go waits there."""
        now_ms = self._clock.now_ms()
        if len(self._streams) == 1 and self._may_take() > 0:
            return dict.fromkeys(self._streams, now_ms)
        looks = await asyncio.gather(*(self._pick(stream, 0) for stream in self._streams))
        return {
            stream: look.since_ms or now_ms
            for stream, look in zip(self._streams, looks, strict=True)
            if look.queued or 0 < look.look_again_ms <= now_ms
        }

    async def _pick(self, stream: str, limit: int) -> Picked:
        picked = await self._queue.pick(stream, limit, self._policy())
        self.queued[stream] = picked.queued
        if picked.look_again_ms:
            self._look_at_ms = min(self._look_at_ms, picked.look_again_ms)
        self._in_hand.take_picked(picked.messages)
        return picked

    def _may_take(self) -> int:
        if self._gate.is_open:
            return self.room
        # Only a dispatch can find out that Nomad is back: without one in hand, a message is needed to try.
        tries = any(message.undecided and not message.passing for message in self._in_hand.messages)
        return 0 if tries else min(1, self.room)

    async def _rest(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    @property
    def _in_hand(self) -> Pipeline:
        if self._pipeline is None:
            message = "no pipeline was given"
            raise RuntimeError(message)
        return self._pipeline
