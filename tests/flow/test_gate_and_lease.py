"""The circuit breaker and the local view of the lease: time decides, so time is moved by hand."""

import asyncio

import pytest

from tests.flow.world import HandClock, settle
from worker.errors import LeaseLost, NomadDenied, NomadUnavailable
from worker.flow.gate import FAILURES_TO_CLOSE, TRIALS, Gate
from worker.flow.lease import MARGIN_SECONDS, Lease

pytestmark = pytest.mark.anyio

DOWN = NomadUnavailable("connection refused")


def closed(clock: HandClock) -> Gate:
    gate = Gate(clock)
    for _ in range(FAILURES_TO_CLOSE):
        gate.failed(DOWN)
    assert not gate.is_open
    return gate


async def test_it_takes_several_failures_in_a_row_to_close() -> None:
    gate = Gate(HandClock())
    for _ in range(FAILURES_TO_CLOSE - 1):
        assert not gate.failed(DOWN)
    gate.succeeded()
    for _ in range(FAILURES_TO_CLOSE - 1):
        gate.failed(DOWN)

    assert gate.is_open
    assert gate.failed(DOWN)
    assert gate.reason == "nomad.unavailable"


async def test_one_refusal_of_the_token_closes_at_once() -> None:
    gate = Gate(HandClock())

    assert gate.failed(NomadDenied("Permission denied"))
    assert gate.reason == "nomad.permission_denied"


async def test_one_message_at_a_time_tries_a_closed_gate() -> None:
    clock = HandClock()
    gate = closed(clock)
    clock.seconds += TRIALS.most_seconds

    tries = [asyncio.create_task(gate.enter()) for _ in range(3)]
    await settle()

    assert [task.done() for task in tries].count(True) == 1
    gate.succeeded()
    await settle()
    assert all(task.done() for task in tries)
    assert (gate.is_open, gate.reason) == (True, "")


async def test_an_open_gate_lets_everybody_through_at_once() -> None:
    gate = Gate(HandClock())

    async with asyncio.timeout(1):
        await asyncio.gather(*(gate.enter() for _ in range(100)))


async def test_a_lease_is_believed_for_less_than_it_lasts_and_from_before_it_was_asked_for() -> None:
    clock = HandClock()
    lease = Lease(clock, 9.0)
    sent_at = clock.monotonic()
    clock.seconds += 1
    lease.renewed(sent_at)

    assert lease.remaining_seconds == 9.0 - MARGIN_SECONDS - 1
    clock.seconds += lease.remaining_seconds
    with pytest.raises(LeaseLost):
        lease.require()


async def test_a_late_answer_to_an_old_heartbeat_does_not_shorten_the_lease() -> None:
    clock = HandClock()
    lease = Lease(clock, 9.0)
    lease.renewed(clock.monotonic())
    before = lease.remaining_seconds

    lease.renewed(clock.monotonic() - 5)

    assert lease.remaining_seconds == before


async def test_who_waits_for_the_lease_goes_on_when_it_is_renewed() -> None:
    clock = HandClock()
    lease = Lease(clock, 9.0)
    waiting = asyncio.create_task(lease.held())
    await settle()
    assert not waiting.done()

    lease.renewed(clock.monotonic())
    await settle()

    assert waiting.done()
