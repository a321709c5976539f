"""The event stream: how it begins, how its death is noticed, and that its connection goes with it."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from tests.adapters.nomad.agent import Agent
from tests.frames import one_by_one
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.adapters.nomad.events import NEWEST_INDEX
from worker.core.frames import HEARTBEAT, Frame
from worker.core.model import Place
from worker.errors import FeedLost, FeedRefused, NomadDenied, NomadUnavailable

pytestmark = pytest.mark.anyio

HERE = Place("", "")
CHILD = "render/dispatch-1-aaaaaaaa"

Write = Callable[[bytes], Awaitable[None]]
Script = Callable[[Write], Awaitable[None]]


def job_line(index: int, job_id: str = CHILD, **fields: object) -> bytes:
    event = {"Topic": "Job", "Key": job_id, "FilterKeys": None, "Payload": {"Job": {"ID": job_id, **fields}}}
    return json.dumps({"Events": [event], "Index": index}).encode() + b"\n"


def streams(agent: Agent, script: Script, headers: dict[str, str] | None = None) -> None:
    """Answer with a stream whose bytes the script writes; it ends when the script ends."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Connection": "close", **(headers or {})})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await script(response.write)
        return response

    agent.handler = handler


async def for_ever() -> None:
    await asyncio.Event().wait()


def client(agent: Agent, **options: object) -> NomadClient:
    return NomadClient(NomadOptions(address=agent.address, **options))  # type: ignore[arg-type]


def everything(nomad: NomadClient, index: int = 0) -> AsyncGenerator[Frame, None]:
    return one_by_one(nomad.events(HERE, index, lambda _: True))


async def test_frames_and_heartbeats_come_in_order_and_the_wanted_events_only(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n" + job_line(7, Status="pending"))
        await write(job_line(8, "other/dispatch-1-b") + b"{}\n")
        await for_ever()

    streams(agent, script)

    async with (
        client(agent, token="t") as nomad,
        aclosing(one_by_one(nomad.events(Place("eu", "team"), 7, CHILD.__eq__))) as feed,
    ):
        frames = [await anext(feed) for _ in range(4)]

    assert [frame.heartbeat for frame in frames] == [True, False, False, True]
    assert [(frame.index, [job.id for job in frame.jobs]) for frame in frames[1:3]] == [(7, [CHILD]), (8, [])]
    [asked] = agent.asked
    assert parse_qs(urlsplit(asked.raw_path).query) == {
        "topic": ["Job", "Evaluation", "Allocation"],
        "index": ["7"],
        "region": ["eu"],
        "namespace": ["team"],
    }
    assert asked.headers["X-Nomad-Token"] == "t"


async def test_index_zero_asks_for_now_and_not_for_the_whole_buffer(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n")
        await for_ever()

    streams(agent, script)

    async with client(agent) as nomad, aclosing(everything(nomad)) as feed:
        assert await anext(feed) is HEARTBEAT

    assert f"index={NEWEST_INDEX}" in agent.asked[0].raw_path


async def test_a_stream_that_stays_silent_from_the_start_is_refused(agent: Agent) -> None:
    async def script(_: Write) -> None:
        await for_ever()

    streams(agent, script)

    async with client(agent, first_line_seconds=0.2) as nomad:
        with pytest.raises(FeedRefused):
            await anext(everything(nomad))

        async with asyncio.timeout(5):
            await agent.gone.wait()


async def test_a_stream_that_ends_before_its_first_line_is_refused(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{")

    streams(agent, script)

    async with client(agent) as nomad:
        with pytest.raises(FeedRefused):
            await anext(everything(nomad))


async def test_a_stream_that_falls_silent_is_lost(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n")
        await for_ever()

    streams(agent, script)

    async with client(agent, silence_seconds=0.2) as nomad:
        feed = everything(nomad)
        await anext(feed)
        with pytest.raises(FeedLost):
            await anext(feed)

        async with asyncio.timeout(5):
            await agent.gone.wait()


async def test_bytes_that_never_become_a_line_do_not_count_as_life(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n")
        while True:
            await write(b"x")
            await asyncio.sleep(0.01)

    streams(agent, script)

    async with client(agent, silence_seconds=0.2) as nomad:
        feed = everything(nomad)
        await anext(feed)
        with pytest.raises(FeedLost):
            await anext(feed)


async def test_a_stream_that_ends_is_lost(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n" + job_line(3))

    streams(agent, script)

    async with client(agent) as nomad:
        feed = everything(nomad)
        assert [(await anext(feed)).index, (await anext(feed)).index] == [0, 3]
        with pytest.raises(FeedLost):
            await anext(feed)


async def test_a_connection_that_breaks_is_a_stream_that_is_lost(agent: Agent) -> None:
    read = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{}\n")
        await read.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    agent.handler = handler

    async with client(agent) as nomad:
        feed = everything(nomad)
        await anext(feed)
        read.set()
        with pytest.raises(FeedLost):
            await anext(feed)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (403, "Permission denied", NomadDenied),
        (500, "No cluster leader", NomadUnavailable),
        (400, "Unable to parse index", NomadUnavailable),
    ],
)
async def test_a_stream_refused_with_a_status_is_named_by_it(
    agent: Agent, status: int, text: str, kind: type[Exception]
) -> None:
    agent.answers(status, text)

    async with client(agent) as nomad:
        with pytest.raises(kind, match=text):
            await anext(everything(nomad))


async def test_a_refusal_that_comes_compressed_is_read_all_the_same(agent: Agent) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        body = gzip.compress(b"Permission denied")
        return web.Response(status=403, body=body, headers={"Content-Encoding": "gzip"})

    agent.handler = handler

    async with client(agent) as nomad:
        with pytest.raises(NomadDenied, match="Permission denied"):
            await anext(everything(nomad))


async def test_a_stream_whose_compression_is_broken_is_lost(agent: Agent) -> None:
    read = asyncio.Event()

    async def script(write: Write) -> None:
        squeeze = zlib.compressobj(wbits=31)
        await write(squeeze.compress(b"{}\n") + squeeze.flush(zlib.Z_SYNC_FLUSH))
        await read.wait()
        await write(b"\xff" * 100)
        await for_ever()

    streams(agent, script, {"Content-Encoding": "gzip"})

    async with client(agent) as nomad:
        feed = everything(nomad)
        await anext(feed)
        read.set()
        with pytest.raises(FeedLost, match="broke"):
            await anext(feed)


async def test_where_nobody_listens_there_is_no_stream() -> None:
    async with NomadClient(NomadOptions(address="http://127.0.0.1:1")) as nomad:
        with pytest.raises(NomadUnavailable):
            await anext(everything(nomad))


async def test_closing_the_feed_closes_its_connection(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n")
        await for_ever()

    streams(agent, script)

    async with client(agent) as nomad:
        feed = everything(nomad)
        await anext(feed)

        await feed.aclose()

        async with asyncio.timeout(5):
            await agent.gone.wait()


async def test_cancelling_the_reader_closes_the_connection(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n")
        await for_ever()

    streams(agent, script)
    begun = asyncio.Event()

    async def read(nomad: NomadClient) -> None:
        async with aclosing(everything(nomad)) as feed:
            async for _ in feed:
                begun.set()

    async with client(agent) as nomad:
        reader = asyncio.create_task(read(nomad))
        async with asyncio.timeout(5):
            await begun.wait()

            reader.cancel()

            await asyncio.wait([reader])
            await agent.gone.wait()
    assert reader.cancelled()


async def test_streams_take_no_connection_from_requests(agent: Agent) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if not request.path.startswith("/v1/event"):
            return web.Response(status=404, text="job not found")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{}\n")
        await for_ever()
        return response

    agent.handler = handler

    async with client(agent, pool_size=1) as nomad:
        feeds = [everything(nomad) for _ in range(3)]
        for feed in feeds:
            await anext(feed)

        assert await nomad.job(HERE, CHILD) is None

        for feed in feeds:
            await feed.aclose()


async def test_a_compressed_stream_is_read_as_it_comes(agent: Agent) -> None:
    async def script(write: Write) -> None:
        squeeze = zlib.compressobj(wbits=31)
        for line in (b"{}\n", job_line(4)):
            await write(squeeze.compress(line) + squeeze.flush(zlib.Z_SYNC_FLUSH))
        await for_ever()

    streams(agent, script, {"Content-Encoding": "gzip"})

    async with client(agent) as nomad, aclosing(everything(nomad)) as feed:
        assert [(await anext(feed)).index, (await anext(feed)).index] == [0, 4]


async def test_a_line_of_a_megabyte_is_read_and_a_longer_one_than_allowed_asks_for_a_sweep(
    agent: Agent,
) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n")
        await write(job_line(5, Meta={"x": "y" * 1_000_000}))
        await write(job_line(6, Meta={"x": "y" * 3_000_000}))
        await write(job_line(7))
        await for_ever()

    streams(agent, script)

    async with client(agent, line_limit_bytes=2_000_000) as nomad, aclosing(everything(nomad)) as feed:
        frames = [await anext(feed) for _ in range(4)]

    assert [(frame.index, len(frame.jobs), frame.incomplete) for frame in frames] == [
        (0, 0, False),
        (5, 1, False),
        (6, 0, True),
        (7, 1, False),
    ]


async def test_a_slow_reader_is_not_taken_for_a_silent_server(agent: Agent) -> None:
    more = asyncio.Event()

    async def script(write: Write) -> None:
        await write(b"{}\n")
        await more.wait()
        await write(job_line(2))
        await for_ever()

    streams(agent, script)

    async with client(agent, silence_seconds=0.3) as nomad, aclosing(everything(nomad)) as feed:
        await anext(feed)
        # Longer than the silence allowed, between two frames.
        await asyncio.sleep(0.5)
        more.set()

        assert (await anext(feed)).index == 2
        with pytest.raises(FeedLost, match="silent"):
            await anext(feed)


async def test_lines_that_come_at_once_are_told_at_once(agent: Agent) -> None:
    async def script(write: Write) -> None:
        await write(b"{}\n" + job_line(2) + job_line(3)[:10])
        await for_ever()

    streams(agent, script)

    async with client(agent) as nomad, aclosing(nomad.events(HERE, 0, bool)) as feed:
        assert [frame.index for frame in await anext(feed)] == [0, 2]
