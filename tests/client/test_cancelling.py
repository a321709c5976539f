"""Ordering a cancellation: what is promised at which moment, and what is written for the workers."""

import pytest

from tests.client.stage import KEYS, Stage
from worker.client import Cancelled, DispatchClient, MessageUnknown, SyncDispatchClient
from worker.core.model import MessageKey

pytestmark = pytest.mark.anyio


async def test_a_request_nobody_has_read_will_never_be_dispatched(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")

        answers = [await client.cancel(sent.stream, sent.id) for _ in range(2)]

    assert answers == [Cancelled.PREVENTED] * 2
    assert await stage.admin.zrange(KEYS.cancels, 0, -1) == [KEYS.message(sent.key).encode()]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("received", Cancelled.PREVENTED),
        ("dispatching", Cancelled.ORDERED),
        ("running", Cancelled.ORDERED),
        ("settled", Cancelled.TOO_LATE),
    ],
)
async def test_the_ledger_tells_what_cancelling_still_means(
    stage: Stage, state: str, expected: Cancelled
) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await stage.remember(sent, state)

        assert await client.cancel(sent.stream, sent.id) is expected

    marked = await stage.admin.hexists(KEYS.message(sent.key), "cancel")
    assert bool(marked) is (expected is not Cancelled.TOO_LATE)
    assert await stage.admin.zcard(KEYS.cancels) == int(bool(marked))


async def test_a_message_that_is_not_there_is_named(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        with pytest.raises(MessageUnknown, match="requests:1-1"):
            await client.cancel("requests", "1-1")

    assert await stage.admin.keys("*") == []


async def test_a_message_long_done_and_forgotten_is_not_cancelled(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        done, later = await client.send(job="a"), await client.send(job="b")
        await stage.admin.set(KEYS.floor("requests"), done.id)

        with pytest.raises(MessageUnknown):
            await client.cancel("requests", done.id)

        assert await client.cancel("requests", later.id) is Cancelled.PREVENTED


async def test_an_order_wakes_the_workers_up(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await client.cancel(sent.stream, sent.id)

    [(_, fields)] = await stage.admin.xrange(KEYS.control)
    assert KEYS.message_of(fields[b"cancel"].decode()) == MessageKey("requests", sent.id)


async def test_orders_nobody_can_carry_out_are_dropped_in_the_end(stage: Stage) -> None:
    await stage.admin.zadd(KEYS.cancels, {KEYS.message(MessageKey("requests", "1-1")): 1})
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await client.cancel(sent.stream, sent.id)

    assert await stage.admin.zrange(KEYS.cancels, 0, -1) == [KEYS.message(sent.key).encode()]


async def test_the_synchronous_client_cancels_too(stage: Stage) -> None:
    with SyncDispatchClient(stage.options) as client:
        sent = client.send(job="a")

        assert client.cancel(sent.stream, sent.id) is Cancelled.PREVENTED
