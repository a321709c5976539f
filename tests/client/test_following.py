"""Following replies: each once, to the final one, whatever happens to stream, connection or server."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.client.stage import KEYS, WAIT_SECONDS, Stage
from worker.client import (
    ClientClosed,
    DispatchClient,
    MessageUnknown,
    Reply,
    Request,
    Sent,
    SyncDispatchClient,
    Verdict,
    WaitTimedOut,
)
from worker.errors import RecordUnreadable, RedisDenied

pytestmark = pytest.mark.anyio

OK = Verdict.SUCCEEDED


async def collect(client: DispatchClient, sent: Sent) -> list[Reply]:
    async with asyncio.timeout(WAIT_SECONDS):
        return [reply async for reply in client.events(sent)]


def kinds(replies: Sequence[Reply]) -> list[tuple[str, int]]:
    return [(reply.type, reply.seq) for reply in replies]


async def test_the_replies_of_one_message_in_order_to_the_final_one(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent, other = await client.send_many([Request(job="a"), Request(job="b")])
        following = asyncio.create_task(collect(client, sent))
        await stage.publish(sent, "accepted", 1)
        await stage.publish(other, "accepted", 1)
        await stage.publish(sent, "dispatched", 2, data={"n": 1})
        await stage.publish(other, "result", 2, verdict=Verdict.FAILED, exit_code=3)
        await stage.publish(sent, "result", 3, verdict=OK, exit_code=0, data={"log": "x"})

        replies = await following
        failed = await client.wait(other, WAIT_SECONDS)

    assert kinds(replies) == [("accepted", 1), ("dispatched", 2), ("result", 3)]
    assert replies[1].data == {"n": 1}
    assert (replies[2].verdict, replies[2].exit_code, replies[2].data) == (OK, 0, {"log": "x"})
    assert (failed.verdict, failed.exit_code) == (Verdict.FAILED, 3)


async def test_repeats_and_strangers_entries_are_passed_over(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await stage.publish(sent, "accepted", 1)
        await stage.publish(sent, "accepted", 1)
        await stage.admin.xadd(KEYS.replies, {"some": b"\xff thing"})
        await stage.admin.xadd(KEYS.replies, {"id": sent.id, "stream": "requests", "v": "9", "type": "x"})
        await stage.publish(sent, "result", 2, verdict=OK)
        await stage.publish(sent, "result", 2, verdict=Verdict.FAILED)

        replies = await collect(client, sent)

    assert kinds(replies) == [("accepted", 1), ("result", 2)]
    assert replies[-1].verdict is OK


async def test_replies_from_before_the_wait_began_are_found(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        early = await client.send(job="a")
        await stage.publish(early, "accepted", 1)
        late = await client.send(job="b")
        following = asyncio.create_task(collect(client, late))
        await stage.publish(early, "result", 2, verdict=OK)
        await stage.publish(late, "accepted", 1)
        await stage.readers(1)

        replies = await collect(client, early)

        await stage.publish(late, "result", 2, verdict=OK)
        assert kinds(await following) == [("accepted", 1), ("result", 2)]
    assert kinds(replies) == [("accepted", 1), ("result", 2)]


async def test_replies_that_left_the_readers_memory_are_read_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.feed.RECENT_ENTRIES", 3)
    async with DispatchClient(stage.options) as client:
        early = await client.send(job="a")
        late = await client.send(job="b")
        await stage.publish(early, "accepted", 1)
        following = asyncio.create_task(collect(client, late))
        for seq in range(1, 20):
            await stage.publish(late, "running", seq)
        await stage.readers(1)

        catching_up = asyncio.create_task(collect(client, early))
        await stage.publish(early, "result", 2, verdict=OK)
        await stage.publish(late, "result", 20, verdict=OK)

        assert kinds(await catching_up) == [("accepted", 1), ("result", 2)]
        assert len(await following) == 20


async def test_a_thousand_waits_share_one_connection(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send_many(Request(job="a") for _ in range(1000))
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(client.wait(one, WAIT_SECONDS)) for one in sent]
            await stage.readers(1)
            for one in sent:
                await stage.publish(one, "result", 1, verdict=OK)

    assert [wait.result().id for wait in waits] == [one.id for one in sent]


async def test_a_broken_connection_is_made_anew(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        following = asyncio.create_task(collect(client, sent))
        await stage.publish(sent, "accepted", 1)
        await stage.readers(1)
        await stage.break_connections()
        await stage.publish(sent, "result", 2, verdict=OK)

        assert kinds(await following) == [("accepted", 1), ("result", 2)]


async def test_a_restarted_server_is_waited_for(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        following = asyncio.create_task(collect(client, sent))
        await stage.publish(sent, "accepted", 1)
        await stage.readers(1)
        await stage.server.restart(keep_data=True)
        await stage.publish(sent, "result", 2, verdict=OK)

        assert kinds(await following) == [("accepted", 1), ("result", 2)]


async def test_a_final_reply_that_was_trimmed_comes_from_the_ledger(stage: Stage) -> None:
    async with DispatchClient(stage.options, poll_seconds=0.05) as client:
        sent = await client.send(job="a")
        await stage.publish(sent, "accepted", 1)
        reply_id = await stage.publish(sent, "result", 2, verdict=Verdict.FAILED, exit_code=3)
        await stage.admin.xtrim(sent.reply_stream, maxlen=0)
        await stage.remember(
            sent,
            "settled",
            verdict="failed",
            exit_code="3",
            error_code="task.exit",
            error_message="exit 3",
            reply_id=reply_id,
            reply_stream=sent.reply_stream,
            child="render/dispatch-1-2c85d768",
            eval_id="9fff",
            attempt="1",
            seq="2",
            finished_at="1795484882123",
        )

        final = await client.wait(sent, WAIT_SECONDS)

        assert final == await client.result("requests", sent.id)
    assert final == Reply(
        type="result",
        id=sent.id,
        stream="requests",
        seq=2,
        final=True,
        job="render",
        namespace="default",
        dispatched_job_id="render/dispatch-1-2c85d768",
        eval_id="9fff",
        at="2026-11-24T01:48:02.123Z",
        attempt=1,
        verdict=Verdict.FAILED,
        exit_code=3,
        error_code="task.exit",
        error_message="exit 3",
        entry_id=reply_id,
    )


async def test_a_result_has_its_evidence_while_the_stream_keeps_it(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a", reply_to="me")
        assert await client.result("requests", sent.id) is None
        await stage.remember(sent, "running")
        assert await client.result("requests", sent.id) is None
        reply_id = await stage.publish(sent, "result", 2, verdict=OK, data={"log": "x"})
        await stage.remember(
            sent, "settled", verdict="succeeded", reply_id=reply_id, reply_stream=sent.reply_stream
        )

        final = await client.result("requests", sent.id)

    assert final is not None
    assert final.data == {"log": "x"}


async def test_a_ledger_of_a_newer_version_is_not_guessed_at(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await stage.remember(sent, "settled", v="2", verdict="succeeded")

        with pytest.raises(RecordUnreadable):
            await client.result("requests", sent.id)


async def test_what_cannot_be_read_ends_its_own_wait_alone(stage: Stage) -> None:
    async with DispatchClient(stage.options, poll_seconds=0.05) as client:
        strange, other = await client.send_many([Request(job="a"), Request(job="b")])
        waiting = asyncio.create_task(client.wait(other, WAIT_SECONDS))
        await stage.remember(strange, "settled", verdict="of_tomorrow")

        with pytest.raises(RecordUnreadable, match="of_tomorrow"):
            await client.wait(strange, WAIT_SECONDS)

        await stage.publish(other, "result", 1, verdict=OK)
        assert (await waiting).id == other.id


async def test_a_message_is_found_again_by_its_identity(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a", reply_to="me")
        from_entry = await client.find("requests", sent.id)
        await stage.remember(sent, "running", reply_to="me")
        await stage.admin.xtrim(KEYS.stream("requests"), maxlen=0)
        from_ledger = await client.find("requests", sent.id)
        await stage.publish(sent, "result", 1, verdict=OK)
        final = await client.wait(from_ledger, WAIT_SECONDS)
        with pytest.raises(MessageUnknown, match="requests:1-1"):
            await client.find("requests", "1-1")

    assert from_entry == from_ledger
    assert from_entry.reply_stream == sent.reply_stream
    assert final.id == sent.id


async def test_a_repeated_request_long_settled_is_answered_at_once(stage: Stage) -> None:
    async with DispatchClient(stage.options, poll_seconds=3600) as client:
        sent = await client.send(job="a", idempotency_key="k")
        await stage.remember(sent, "settled", verdict="succeeded")

        again = await client.send(job="a", idempotency_key="k")
        final = await client.wait(again, WAIT_SECONDS)

    assert final.verdict is OK


async def test_a_wait_without_a_reply_times_out(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")

        with pytest.raises(WaitTimedOut, match=sent.id) as caught:
            await client.wait(sent, 0.05)

    assert caught.value.code == "client.timeout"


async def test_closing_the_client_ends_its_waits(stage: Stage) -> None:
    client = DispatchClient(stage.options)
    sent = await client.send(job="a")
    waiting = asyncio.create_task(client.wait(sent))
    await stage.readers(1)

    await client.aclose()

    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        await client.wait(sent)
    with pytest.raises(ClientClosed):
        await client.send(job="a")


async def test_a_user_who_may_not_read_replies_is_told(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await stage.admin.execute_command("ACL", "SETUSER", "default", "-xread")

        with pytest.raises(RedisDenied):
            await client.wait(sent, WAIT_SECONDS)


async def test_nobody_reads_when_nobody_waits(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="a")
        await stage.publish(sent, "result", 1, verdict=OK)
        await client.wait(sent, WAIT_SECONDS)
        await stage.readers(0)

        again = await client.wait(sent, WAIT_SECONDS)

    assert again.verdict is OK


async def test_the_sync_client_follows_the_same(stage: Stage) -> None:
    with SyncDispatchClient(stage.options, poll_seconds=0.05) as client:
        sent = await asyncio.to_thread(client.send, job="a")
        following = asyncio.create_task(asyncio.to_thread(lambda: list(client.events(sent, WAIT_SECONDS))))
        await stage.publish(sent, "accepted", 1)
        await stage.readers(1)
        await stage.break_connections()
        await stage.publish(sent, "accepted", 1)
        reply_id = await stage.publish(sent, "result", 2, verdict=OK)
        assert kinds(await following) == [("accepted", 1), ("result", 2)]

        await stage.admin.xtrim(sent.reply_stream, maxlen=0)
        with pytest.raises(WaitTimedOut):
            await asyncio.to_thread(client.wait, sent, 0.05)
        await stage.remember(
            sent, "settled", verdict="succeeded", reply_id=reply_id, reply_stream=sent.reply_stream
        )
        final = await asyncio.to_thread(client.wait, sent, WAIT_SECONDS)
        found = await asyncio.to_thread(client.find, "requests", sent.id)

    assert final.verdict is OK
    assert found.reply_stream == sent.reply_stream
