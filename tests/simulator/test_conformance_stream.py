"""The event stream behaves as recorded: complete frames, index rules, filters, heartbeats, refusals."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from tests.simulator.cluster import Tape, group, job, mock, on_node, status
from tests.simulator.transcripts import Caller, assert_like, differences, exchange, load
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio

TOPICS = "topic=Job&topic=Evaluation&topic=Allocation"


@pytest.fixture
async def nomad() -> AsyncIterator[Simulator]:
    async with Simulator([job("evj", Constraints=on_node(1))], update_seconds=0.03) as simulator:
        yield simulator


@pytest.fixture
async def caller(nomad: Simulator) -> AsyncIterator[Caller]:
    caller = Caller(nomad.address)
    yield caller
    await caller.close()


class Listener:
    """Reads a stream line by line."""

    def __init__(self, caller: Caller, url: str) -> None:
        self._caller = caller
        self._url = url
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self.status = 0
        self.headers: Any = None

    async def __aenter__(self) -> Self:
        opened = asyncio.Event()
        self._task = asyncio.create_task(self._read(opened))
        async with asyncio.timeout(5):
            await opened.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, opened: asyncio.Event) -> None:
        async with self._caller.session.get(self._url) as response:
            self.status, self.headers = response.status, response.headers
            opened.set()
            async for line in response.content:
                self._lines.put_nowait(line.decode().strip())
        self._lines.put_nowait(None)

    async def line(self) -> str | None:
        """The next line; None at the end of the stream."""
        async with asyncio.timeout(5):
            return await self._lines.get()

    async def frame(self) -> dict[str, Any]:
        line = await self.line()
        while line == "{}":
            line = await self.line()
        assert line is not None
        found: dict[str, Any] = json.loads(line)
        return found

    async def indexes(self) -> list[int]:
        """The indexes of the frames that are there at once, after the first `{}`."""
        assert await self.line() == "{}"
        found = []
        try:
            async with asyncio.timeout(0.15):
                while True:
                    found.append(json.loads(await self._lines.get() or "{}").get("Index"))
        except TimeoutError:
            return found


def stream(caller: Caller, nomad: Simulator, query: str) -> Listener:
    return Listener(caller, f"{nomad.address}/v1/event/stream?{query}")


def shown(frame: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event["Topic"], event["Type"]) for event in frame["Events"]]


async def test_a_life_is_told_in_the_recorded_frames(nomad: Simulator, caller: Caller) -> None:
    nomad.engine.node("node-2").node_class = "victim"
    recorded = [
        entry["frame"] for entry in load("05-event-stream-full-life")["exchanges"] if "frame" in entry
    ]
    async with stream(caller, nomad, f"{TOPICS}&index=99999999") as listener:
        assert await listener.line() == "{}"
        await listener.line()
        child = nomad.dispatch("evj", token="1-7", payload=b"hello", meta={"who": "ada"}).job_id
        ours = [await listener.frame() for _ in range(4)]
        await status(nomad, child, "dead")
        while shown(ours[-1])[-1] != ("Job", "AllocationUpdated"):
            ours.append(await listener.frame())
        nomad.stop_job(child, purge=True)
        ours += [await listener.frame() for _ in range(3)]

    # Which client reports come between placement and end is chance; compare the last one.
    for frames in (recorded, ours):
        frames[4:-4] = []
    assert [shown(frame) for frame in ours] == [shown(frame) for frame in recorded]
    assert [bool(differences(*pair)) for pair in zip(recorded, ours, strict=True)] == [False] * len(ours)
    assert ours[0]["Index"] == ours[1]["Index"]
    for frame in ours:
        for event, example in zip(frame["Events"], recorded[ours.index(frame)]["Events"], strict=True):
            assert event["Payload"].keys() == example["Payload"].keys()
            assert (event["FilterKeys"] is None) == (example["FilterKeys"] is None)
            assert event["Index"] == frame["Index"]


async def test_the_answer_has_the_recorded_headers_and_no_length(nomad: Simulator, caller: Caller) -> None:
    async with stream(caller, nomad, TOPICS) as listener:
        headers = listener.headers

    assert listener.status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-cache"
    assert headers["Connection"] == "close"
    assert "Content-Length" not in headers
    assert "Transfer-Encoding" not in headers


async def test_where_a_stream_begins_depends_on_its_index(nomad: Simulator, caller: Caller) -> None:
    tape = Tape(nomad)
    child = nomad.dispatch("evj").job_id
    await status(nomad, child, "dead")
    newest = tape.frames[-1]["Index"]
    registered = tape.of(child)[0]["Index"]
    after = [frame["Index"] for frame in tape.frames if frame["Index"] >= registered]

    begins = {}
    for index in (registered, newest, newest + 1, newest + 100_000):
        async with stream(caller, nomad, f"{TOPICS}&index={index}") as listener:
            begins[index] = await listener.indexes()
    async with stream(caller, nomad, TOPICS) as listener:
        everything = await listener.indexes()

    # Inclusive; beyond the newest, the newest once more; none: all there is.
    assert begins[registered] == after
    assert begins[registered][:2] == [registered, registered]
    assert begins[newest] == begins[newest + 1] == begins[newest + 100_000] == [newest]
    assert everything[-len(after) :] == after
    assert len(everything) > len(after)


async def test_an_index_older_than_the_buffer_leaves_a_silent_gap() -> None:
    async with Simulator([job("evj")], event_buffer_size=5) as nomad:
        caller = Caller(nomad.address)
        children = [nomad.dispatch("evj").job_id for _ in range(12)]
        for child in children:
            await status(nomad, child, "dead")
        async with stream(caller, nomad, f"{TOPICS}&index=3") as listener:
            indexes = await listener.indexes()
        await caller.close()

    recorded = load("05-event-stream-small-buffer")["exchanges"][0]["indexes_received"]
    assert len(indexes) == len(recorded)
    assert indexes[0] > 3


async def test_topics_and_keys_select_events(nomad: Simulator, caller: Caller) -> None:
    child = nomad.dispatch("evj").job_id
    await status(nomad, child, "dead")
    alloc_id = next(iter(nomad.job(child).allocs))
    escaped = child.replace("/", "%2F")
    expected = {
        f"topic=Job:{escaped}": {"Job"},
        f"topic=Allocation:{escaped}": {"Allocation"},
        f"topic=Allocation:{alloc_id}": {"Allocation"},
        f"topic=Evaluation:{escaped}": {"Evaluation"},
        "topic=Job:evj": {"Job"},
        "topic=Allocation:evj": set(),
        "topic=Allocation:*": {"Allocation"},
        f"topic=Job:{escaped}&topic=Allocation:{escaped}": {"Job", "Allocation"},
        "topic=Bogus": set(),
        "topic=*": {"Job", "Evaluation", "Allocation", "Node"},
        "": {"Job", "Evaluation", "Allocation", "Node"},
        "namespace=nope&topic=Job": set(),
        "namespace=*&topic=Job": {"Job"},
    }

    found = {}
    for query in expected:
        async with stream(caller, nomad, query) as listener:
            topics: set[str] = set()
            assert await listener.line() == "{}"
            try:
                async with asyncio.timeout(0.1):
                    while True:
                        topics |= {topic for topic, _ in shown(await listener.frame())}
            except TimeoutError:
                found[query] = topics

    assert found == expected


@pytest.mark.parametrize("note", ["bad index", "topic with two colons", "POST"])
async def test_a_bad_query_is_refused_as_recorded(note: str, caller: Caller) -> None:
    entry = exchange("05-event-stream-index", note)

    answer = await caller.send(entry["request"]["method"], entry["request"]["path"], entry["request"]["body"])

    assert_like(entry, answer)


async def test_another_region_is_answered_with_silence(nomad: Simulator, caller: Caller) -> None:
    async with stream(caller, nomad, "region=mars&topic=Job") as listener:
        assert listener.status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await listener._lines.get()


async def test_a_repeated_dispatch_makes_no_event(nomad: Simulator) -> None:
    child = nomad.dispatch("evj", token="1-0").job_id
    await status(nomad, child, "dead")
    tape = Tape(nomad)

    nomad.dispatch("evj", token="1-0")

    assert tape.frames == []


async def test_heartbeats_come_at_once_and_then_regularly(caller: Caller, nomad: Simulator) -> None:
    assert nomad.cluster.options.heartbeat_seconds == 30
    async with (
        Simulator(heartbeat_seconds=0.05) as quick,
        Listener(caller, f"{quick.address}/v1/event/stream?topic=Job") as listener,
    ):
        lines = [await listener.line() for _ in range(4)]

    assert lines == ["{}"] * 4


async def test_running_is_missed_when_clients_report_slowly() -> None:
    async with Simulator([job("evj", group(mock(run_for="1ms")))], update_seconds=0.1) as nomad:
        tape = Tape(nomad)
        child = nomad.dispatch("evj").job_id
        await status(nomad, child, "dead")

    statuses = [
        event["Payload"]["Allocation"]["ClientStatus"]
        for frame in tape.of(child)
        for event in frame["Events"]
        if event["Topic"] == "Allocation"
    ]
    assert statuses == ["pending", "complete"]
