"""Step 3: Nomad is asked, at most once at a time per message, until a job certainly exists or never will.

Knows nothing of how the job fares; a crash anywhere in here is repaired by running it again.

What makes a repeat safe: the intent is on record before the request leaves; the token is the same; and
wherever an earlier request may have got through unseen, Nomad is first asked for a job with that token, and
an answered job ID counts only once that job was seen. (Of concurrent requests with one token, Nomad answers
some with an ID that never exists.)
"""

import random

from worker.core.backoff import Backoff
from worker.core.lifecycle import UNTRACEABLE, DispatchPutOff, Ended, Fact, Intended, JobAccepted
from worker.core.model import Order, Outcome, Record, Verdict
from worker.errors import (
    LeaseLost,
    NomadDenied,
    NomadRefused,
    NomadUnavailable,
    PoisonMessage,
    RequestRejected,
)
from worker.flow.children import Children
from worker.flow.gate import Gate
from worker.flow.instruments import Instruments
from worker.flow.lease import Lease
from worker.flow.message import Message
from worker.flow.slots import Slots
from worker.ports import Clock, Nomad

RETRIES = Backoff(first_seconds=0.2, most_seconds=10.0)
"""Without a bound on their number: the message is accepted, and only its deadline may end the wait."""
CANCELLED = Outcome(
    Verdict.CANCELLED,
    error_code="request.cancelled",
    error_message="the request was cancelled before it was dispatched",
)


class Dispatch:
    """What is done while a dispatch slot is held.

    Args:
        slots: how many requests to Nomad may be under way at once.
        max_takeovers: how many workers may die on a message before it is taken to be the cause.
    """

    def __init__(
        self,
        nomad: Nomad,
        children: Children,
        lease: Lease,
        gate: Gate,
        clock: Clock,
        instruments: Instruments,
        *,
        slots: Slots,
        max_takeovers: int,
    ) -> None:
        self._nomad = nomad
        self._children = children
        self._lease = lease
        self._gate = gate
        self._clock = clock
        self._instruments = instruments
        self._slots = slots
        self._max_takeovers = max_takeovers

    async def prepare(self, message: Message, record: Record) -> Fact:
        """The step from RECEIVED: wait for one's turn, then intend.

        Raises:
            RequestRejected: (or a kind of it) it will not be dispatched.
        """
        if message.fault is not None:
            raise message.fault
        self._refuse_poison(record)
        if expired := self._expired(message):
            return expired
        not_before_ms = (message.request.not_before_ms if message.request else None) or 0
        if begins_ms := max(not_before_ms, record.retry_at_ms):
            await self._clock.sleep((begins_ms - self._clock.now_ms()) / 1000)
        if message.failures:
            await self._pause(message)
        if expired := self._expired(message):
            return expired
        await self._take_slot(message, record)
        await self._lease.held()
        if expired := self._expired(message):
            return expired
        return Intended(self._clock.now_ms())

    async def send(self, message: Message, record: Record) -> Fact:
        """The step from DISPATCHING: one look or one request. `Intended` as its fact means: again.

        Raises:
            RequestRejected, NomadRefused: it will never be dispatched, and certainly was not.
        """
        try:
            return await self._try(message, record)
        except (RequestRejected, NomadRefused) as error:
            if not (message.unsure and message.blind):
                raise
            # There is no repeat, which alone could have told whether an earlier request got through. (Nomad
            # looks at the job before it looks for the token's: it refuses for what became of the job since.)
            return Ended(_untraceable(error))

    async def _try(self, message: Message, record: Record) -> Fact:
        if message.cancelled and not message.unsure:
            # Nothing was sent since the intent.
            return Ended(CANCELLED)
        if expired := self._too_late(message):
            return expired
        if message.cancelled and not message.blind:
            # What was sent may still make a job: it is looked for once more, after the quarantine.
            message.looked = False
        await self._take_slot(message, record)
        # The wait for the gate may have been long.
        if expired := self._too_late(message):
            return expired
        if message.unsure and not message.looked:
            return await self._find_out(message, record)
        if message.fault is not None:
            raise message.fault
        try:
            # No await between this check and the request: a paused process must not send late.
            self._lease.require()
            answer = await self._request(message, record)
        except LeaseLost:
            await self._lease.held()
            return Intended(self._clock.now_ms())
        except (NomadUnavailable, NomadDenied) as error:
            self._failed(message, error)
            if not message.unsure:
                self.let_go(message)
                return DispatchPutOff(error.code, self._clock.now_ms())
            await self._wait_out(message)
            # Not through a new intent: what may still arrive was sent after the last one, and the
            # quarantine counts from there.
            return Intended(self._clock.now_ms()) if message.looked else await self._find_out(message, record)
        self._gate.succeeded()
        message.failures = 0
        # Nomad is done with it: the next one need not wait until Redis has it too.
        self._give_back(message)
        return answer

    def let_go(self, message: Message) -> None:
        """Give the slot back, whatever became of the message; events of its child are kept no more."""
        self._give_back(message)
        if message.expects is not None:
            self._children.expect_no_more(message.expects.place, message.expects.job)
            message.expects = None

    def _give_back(self, message: Message) -> None:
        if message.has_slot:
            message.has_slot = False
            self._slots.give_back()

    async def _take_slot(self, message: Message, record: Record) -> None:
        if not message.has_slot:
            await self._slots.take()
            message.has_slot = True
        if message.expects is None:
            # Nomad's events can overtake its answer: from here until the child is known, they are kept.
            message.expects = record.routing
            self._children.expect(record.routing.place, record.routing.job)
        # Inside the slot: while the gate is closed the few who hold one wait, and the rest behind them.
        await self._enter(message)

    async def _enter(self, message: Message) -> None:
        """Wait for the gate, once per request: a trial spent on the way to the request would try nothing."""
        if not message.passed:
            await self._gate.enter()
            message.passed = True

    async def _request(self, message: Message, record: Record) -> Fact:
        started = self._clock.monotonic()
        # From here on the answer must come to a record: a taker would have to wait out the quarantine.
        message.interruptible = False
        try:
            answer = await self._nomad.dispatch(_order(message, record))
        except NomadRefused as refusal:
            self._gate.succeeded()
            self._instruments.dispatched(record.routing.job, refusal.code, self._clock.monotonic() - started)
            raise
        except NomadUnavailable:
            self._slots.failed(self._clock.monotonic() - started)
            raise
        seconds = self._clock.monotonic() - started
        if not answer.repeated:
            # Refusals and repeats cost Nomad less, and would pass for an unloaded one.
            self._slots.answered(seconds)
        self._instruments.dispatched(
            record.routing.job, "repeated" if answer.repeated else "created", seconds
        )
        if self._lease.remaining_seconds <= 0:
            # It ran out under way: this process was paused, and another may have sent meanwhile.
            message.unsure, message.looked = True, False
        if message.unsure and await self._nomad.job(record.routing.place, answer.job_id) is None:
            raise NomadUnavailable(f"the answered job {answer.job_id} does not exist")  # noqa: EM102, TRY003
        return JobAccepted(answer.job_id, answer.eval_id, self._clock.now_ms())

    async def _find_out(self, message: Message, record: Record) -> Fact:
        """Look until Nomad answers."""
        while True:
            try:
                return await self._look(message, record)
            except NomadUnavailable as error:
                self._failed(message, error)
            await self._wait_out(message)

    async def _look(self, message: Message, record: Record) -> Fact:
        """The job of an earlier request; if there is none, a new intent once none can appear unseen."""
        job_id = await self._find(message, record)
        quarantine_ms = record.quarantine_until_ms - self._clock.now_ms()
        expired = self._expired(message)
        ends_undispatched = message.cancelled or message.fault is not None or expired is not None
        if job_id is None and (message.inherited or ends_undispatched):
            # An earlier owner, paused rather than dead, may still send until then, and Nomad may still be
            # at a request it was sent. Only a repeat of this worker's own request need not wait for that:
            # it carries the same token.
            await self._clock.sleep(max(0, quarantine_ms) / 1000)
            job_id = await self._find(message, record)
            message.inherited = False
        if job_id is not None:
            self._gate.succeeded()
            return JobAccepted(job_id, record.eval_id, self._clock.now_ms())
        if message.cancelled and ends_undispatched and not message.blind:
            return Ended(CANCELLED)
        if expired is not None and not message.blind:
            return expired
        self._refuse_poison(record)
        message.looked = True
        return Intended(self._clock.now_ms())

    async def _find(self, message: Message, record: Record) -> str | None:
        try:
            found = await self._nomad.find_by_token(
                record.routing.place, record.routing.job, record.run_token
            )
        except NomadDenied:
            # Without list-jobs the dispatch itself tells: it answers with the job that has the token. That
            # holds for a cancelled message too, whose job is then stopped.
            message.blind = True
            return None
        message.blind = False
        return found

    def _failed(self, message: Message, error: NomadUnavailable | NomadDenied) -> None:
        message.failures += 1
        message.interruptible, message.passed = True, False
        self._gate.failed(error)
        if isinstance(error, NomadUnavailable) and error.maybe_applied:
            message.unsure, message.looked = True, False

    async def _wait_out(self, message: Message) -> None:
        await self._pause(message)
        await self._enter(message)

    def _refuse_poison(self, record: Record) -> None:
        if record.takeovers >= self._max_takeovers:
            text = f"{record.takeovers} workers died while holding this message before it was dispatched"
            raise PoisonMessage(text)

    def _too_late(self, message: Message) -> Fact | None:
        """The end of a message whose deadline passed before anything was sent since the intent.

        Where something was, it is looked for once more, and `_look` decides.
        """
        expired = self._expired(message)
        if expired is not None and message.unsure:
            message.looked = message.looked and message.blind
            return None
        return expired

    def _expired(self, message: Message) -> Fact | None:
        deadline_ms = message.request.deadline_ms if message.request else None
        if deadline_ms is None or self._clock.now_ms() <= deadline_ms:
            return None
        return Ended(
            Outcome(
                Verdict.EXPIRED,
                error_code="request.expired",
                error_message="the request's deadline passed before it could be dispatched",
            )
        )

    async def _pause(self, message: Message) -> None:
        await self._clock.sleep(RETRIES.delay(message.failures, random.random()))  # noqa: S311


def _untraceable(why: Exception) -> Outcome:
    return Outcome(
        Verdict.UNKNOWN_GC,
        error_code=UNTRACEABLE,
        error_message="an earlier request may have started a job, which the token may not look for (it lacks "
        f"list-jobs), and there is no repeating the request: {why}",
    )


def _order(message: Message, record: Record) -> Order:
    request = message.request
    if request is None:
        text = "the request of this message is not known"
        raise RequestRejected(text)
    return Order(
        place=record.routing.place,
        job=request.job,
        token=record.run_token,
        payload=request.payload,
        meta=request.meta,
        id_prefix=request.id_prefix,
        priority=request.priority,
    )
