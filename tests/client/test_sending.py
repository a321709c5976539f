"""Sending: every request arrives once, whatever happens to the answers."""

import asyncio

import pytest

from tests.client.stage import KEYS, WAIT_SECONDS, Stage
from worker.adapters.redis.connection import RedisOptions
from worker.client import DispatchClient, NotSent, Request, RequestRejected, SyncDispatchClient
from worker.core.request import Limits, decode_request
from worker.errors import MetaInvalid, PayloadTooLarge, RedisDenied, ReplyToInvalid

pytestmark = pytest.mark.anyio


async def test_a_request_arrives_as_it_was_given(stage: Stage) -> None:
    request = Request(
        job="render",
        payload=b"\x00\xff",
        meta={"who": "ada=1"},
        namespace="default",
        priority=80,
        id_prefix="t7",
        detach=True,
        reply_to="me",
        correlation_id="c-1",
        tenant="t",
        deadline_ms=1_795_484_882_123,
        not_before_ms=1_795_484_882_001,
        timeout_seconds=1.5,
        idempotency_key="k",
    )

    async with DispatchClient(stage.options) as client:
        sent = await client.send(request, stream="high")

    [(entry_id, fields)] = await stage.admin.xrange(KEYS.stream("high"))
    assert decode_request(fields, Limits(KEYS)) == request
    assert (sent.stream, sent.id) == ("high", entry_id.decode())
    assert sent.reply_stream == "{dispatch}:replies:me"
    assert not sent.repeated


async def test_fields_make_a_request_or_change_one(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        await client.send(job="a", meta={"x": "1"})
        await client.send(Request(job="a", payload=b"p"), job="b")

    assert await stage.requests() == [
        {b"v": b"1", b"job": b"a", b"meta": b'{"x":"1"}'},
        {b"v": b"1", b"job": b"b", b"payload": b"p"},
    ]


async def test_the_reply_position_is_the_one_before_the_request(stage: Stage) -> None:
    last = await stage.admin.xadd(KEYS.replies, {"any": "thing"})

    async with DispatchClient(stage.options) as client:
        sent = await client.send(job="render")

    assert sent.replies_after == last.decode()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(job="a", payload=bytes(16_385)), PayloadTooLarge),
        (Request(job="a", meta={"n": 1}), MetaInvalid),  # type: ignore[dict-item]
        (Request(job="a", reply_to="../x"), ReplyToInvalid),
        (Request(job=""), RequestRejected),
    ],
)
async def test_what_the_worker_would_reject_is_not_sent(
    stage: Stage, request_: Request, error: type[RequestRejected]
) -> None:
    async with DispatchClient(stage.options) as client:
        with pytest.raises(error):
            await client.send_many([Request(job="fine"), request_])

    assert await stage.requests() == []


async def test_a_key_used_again_leads_to_the_first_message(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        first = await client.send(job="render", idempotency_key="k", stream="high", reply_to="me")
        again = await client.send(job="render", idempotency_key="k", stream="low")

    assert (again.stream, again.id) == (first.stream, first.id) == ("high", first.id)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.reply_stream == first.reply_stream
    assert len(await stage.requests("high")) == 1
    assert await stage.requests("low") == []


async def test_a_key_belongs_to_a_namespace_and_a_job(stage: Stage) -> None:
    scopes = [("a", "b"), ("a/b", "c"), ("a", "b/c"), ("a:b", "c"), ("a", "{x}b"), ("a%2Fb", "c")]

    async with DispatchClient(stage.options) as client:
        sent = [
            await client.send(job=job, namespace=namespace, idempotency_key="k") for namespace, job in scopes
        ]
        default = await client.send(job="a", idempotency_key="k")
        named = await client.send(job="a", namespace="default", idempotency_key="k")

    assert not any(one.repeated for one in sent)
    assert len({one.id for one in sent}) == len(scopes)
    assert named.id == default.id


async def test_markers_live_as_long_as_promised(stage: Stage) -> None:
    async with DispatchClient(stage.options, idempotency_seconds=3600) as client:
        await client.send(job="render", idempotency_key="k")
        await client.send(job="render")

    lives = [await stage.admin.pttl(key) for key in await stage.admin.keys("{dispatch}:idempotency:*")]
    assert sorted(round(life / 60_000) for life in lives) == [10, 60]


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_lost_answer_does_not_double_the_request(stage: Stage, key: str) -> None:
    async with stage.losing_answers(3) as options, DispatchClient(options) as client:
        sent = await client.send(job="render", idempotency_key=key, timeout=WAIT_SECONDS)

    assert len(await stage.requests()) == 1
    assert not sent.repeated


async def test_lost_answers_do_not_double_a_batch(stage: Stage) -> None:
    requests = [Request(job=f"job-{number}") for number in range(250)]

    async with stage.losing_answers(3) as options, DispatchClient(options) as client:
        sent = await client.send_many(requests, timeout=WAIT_SECONDS)

    entries = await stage.admin.xrange(KEYS.stream("requests"))
    assert [entry_id.decode() for entry_id, _ in entries] == [one.id for one in sent]
    assert [fields[b"job"].decode() for _, fields in entries] == [request.job for request in requests]


async def test_a_server_that_forgot_the_script_is_told_again(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        await client.send(job="a")
        await stage.admin.script_flush()

        await client.send_many([Request(job="b"), Request(job="c")])

    assert [fields[b"job"] for fields in await stage.requests()] == [b"a", b"b", b"c"]


async def test_an_outage_shorter_than_the_timeout_is_waited_out(stage: Stage) -> None:
    await stage.admin.config_set("maxmemory", 1)

    async with DispatchClient(stage.options) as client:
        sending = asyncio.create_task(client.send(job="render", timeout=WAIT_SECONDS))
        await stage.refusals("OOM")
        await stage.admin.config_set("maxmemory", 0)
        await sending

    assert len(await stage.requests()) == 1


async def test_an_outage_longer_than_the_timeout_is_told(stage: Stage) -> None:
    await stage.admin.config_set("maxmemory", 1)

    async with DispatchClient(stage.options) as client:
        with pytest.raises(NotSent, match=r"not confirmed within 0\.2 s") as caught:
            await client.send(job="render", timeout=0.2)

    assert caught.value.code == "client.not_sent"
    assert await stage.requests() == []


async def test_a_denied_user_is_told_at_once(stage: Stage) -> None:
    await stage.admin.execute_command("ACL", "SETUSER", "p", "on", ">s3cret", "~other:*", "+@all")
    options = RedisOptions(stage.options.url, username="p", password="s3cret")

    async with DispatchClient(options) as client:
        with pytest.raises(RedisDenied):
            await client.send(job="render", timeout=WAIT_SECONDS)


@pytest.mark.parametrize("timeout", [0.0, -1.0, 301.0])
async def test_a_timeout_outside_the_markers_life_is_refused(stage: Stage, timeout: float) -> None:
    async with DispatchClient(stage.options) as client:
        with pytest.raises(ValueError, match="timeout"):
            await client.send(job="render", timeout=timeout)


async def test_the_sync_client_sends_the_same(stage: Stage) -> None:
    def send(options: RedisOptions) -> list[bool]:
        with SyncDispatchClient(options) as client:
            sent = [
                client.send(job="a", idempotency_key="k", timeout=WAIT_SECONDS),
                client.send(job="a", idempotency_key="k"),
                *client.send_many([Request(job="b"), Request(job="c")]),
            ]
            return [one.repeated for one in sent]

    async with stage.losing_answers(2) as options:
        repeated = await asyncio.to_thread(send, options)

    assert repeated == [False, True, False, False]
    assert [fields[b"job"] for fields in await stage.requests()] == [b"a", b"b", b"c"]
