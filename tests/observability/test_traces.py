"""A message is one trace, whichever workers had it, and a real receiver gets it."""

import asyncio
import importlib.util
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.observability.stage import until
from tests.processes.fleet import Fleet, fleet
from tests.processes.jobs import held, scripted
from worker.core.model import MessageKey, Outcome, Phase, Record, Routing, Run, Verdict
from worker.core.trace import own_trace_id, parse_traceparent, span_id, trace_id_of, traceparent
from worker.errors import SettingsInvalid
from worker.runtime.traces import Span, spans, traces_from_environment, wanted

pytestmark = pytest.mark.anyio

TRACE, PRODUCER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{PRODUCER}-01"
KEY = MessageKey("requests", "1700000000000-0")
ERROR, CONSUMER = 2, 5
PARTS = ["queue wait", "dispatch", "placement", "run", "settle"]
needs_otel = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.sdk") is None, reason="the extra otel is not installed"
)


# The rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{PRODUCER}-00", False),
        (f"00-{TRACE}-{PRODUCER}-03", True),
        (f"cc-{TRACE}-{PRODUCER}-01-what-comes-later", True),
    ],
)
def test_a_traceparent_names_trace_and_span(text: str, sampled: bool) -> None:  # noqa: FBT001
    parent = parse_traceparent(text)

    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (TRACE, PRODUCER)
    assert parent.sampled is sampled
    assert trace_id_of(text) == TRACE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        PARENT.upper(),
        f"ff-{TRACE}-{PRODUCER}-01",
        f"00-{TRACE}-{PRODUCER}-01-more",
        f"00-{'0' * 32}-{PRODUCER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PRODUCER}",
        f"{PARENT}\n",
    ],
)
def test_what_is_no_traceparent_is_left_aside(text: str) -> None:
    assert parse_traceparent(text) is None
    assert trace_id_of(text) == ""


@given(st.integers(1, 2**128 - 1), st.text(), st.booleans())
def test_every_worker_gives_a_span_the_same_id(trace_id: int, name: str, sampled: bool) -> None:  # noqa: FBT001
    one, again = span_id(trace_id, KEY, name), span_id(trace_id, KEY, name)
    parent = parse_traceparent(traceparent(trace_id, one, sampled=sampled))

    assert one == again != span_id(trace_id, MessageKey("other", KEY.id), name)
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.sampled) == (trace_id, one, sampled)
    assert own_trace_id("{a}", KEY) == own_trace_id("{a}", KEY) != own_trace_id("{b}", KEY)


def record(**fields: Any) -> Record:
    at = {"received_at_ms": 1_700_000_000_100, "dispatched_at_ms": 1_700_000_000_150} | fields
    return Record(KEY, Phase.FINISHED, KEY.id, Routing(job="render"), **at)


def ended_at(text: str) -> Outcome:
    task = {"main": True, "finished_at": text}
    return Outcome(Verdict.SUCCEEDED, evidence={"allocations": [{"counts": True, "tasks": [task]}]})


NOW = 1_700_000_009_000


def test_the_parts_of_a_way_follow_one_another() -> None:
    whole = list(
        spans(
            record(job_id="c", placed_at_ms=1_700_000_000_400),
            ended_at("2023-11-14T22:13:28.123456789Z"),
            NOW,
        )
    )

    assert whole == [
        Span("dispatch render", 1_700_000_000_000, NOW),
        Span("queue wait", 1_700_000_000_000, 1_700_000_000_100),
        Span("dispatch", 1_700_000_000_100, 1_700_000_000_150),
        Span("placement", 1_700_000_000_150, 1_700_000_000_400),
        Span("run", 1_700_000_000_400, 1_700_000_008_123),
        Span("settle", 1_700_000_008_123, NOW),
    ]


def test_what_never_began_has_no_part() -> None:
    rejected = list(spans(record(dispatched_at_ms=0), Outcome(Verdict.REJECTED), NOW))
    unplaced = list(spans(record(job_id="c"), Outcome(Verdict.UNPLACED), NOW))

    assert [part.name for part in rejected] == ["dispatch render", "queue wait", "dispatch", "settle"]
    assert [part.name for part in unplaced] == ["dispatch render", "queue wait", "dispatch", "settle"]


def test_waiting_for_one_s_turn_is_waiting() -> None:
    late = record(job_id="c", received_at_ms=1_700_000_000_100, intended_at_ms=1_700_000_003_000)

    _, queue, dispatch, *_ = spans(replace(late, dispatched_at_ms=1_700_000_003_020), ended_at("x"), NOW)

    assert queue == Span("queue wait", 1_700_000_000_000, 1_700_000_003_000)
    assert dispatch == Span("dispatch", 1_700_000_003_000, 1_700_000_003_020)


def test_a_message_that_ran_twice_shows_both_runs_and_the_wait_in_between() -> None:
    first = Run(1, "c1", Verdict.FAILED, 1, dispatched_at_ms=1_700_000_000_200, ended_at_ms=1_700_000_002_000)
    again = record(
        job_id="c2",
        attempt=2,
        runs=(first,),
        intended_at_ms=1_700_000_005_000,
        dispatched_at_ms=1_700_000_005_100,
        placed_at_ms=1_700_000_005_200,
    )

    _, *parts = spans(again, ended_at("2023-11-14T22:13:28Z"), NOW)

    assert parts == [
        Span("queue wait", 1_700_000_000_000, 1_700_000_000_200),
        Span("attempt 1", 1_700_000_000_200, 1_700_000_002_000),
        Span("retry wait", 1_700_000_002_000, 1_700_000_005_000),
        Span("dispatch", 1_700_000_005_000, 1_700_000_005_100),
        Span("placement", 1_700_000_005_100, 1_700_000_005_200),
        Span("run", 1_700_000_005_200, 1_700_000_008_000),
        Span("settle", 1_700_000_008_000, NOW),
    ]


times = st.just(0) | st.integers(1_600_000_000_000, 1_800_000_000_000)


@given(
    times,
    times,
    times,
    times,
    times,
    st.sampled_from(["", "0001-01-01T00:00:00Z", "2023-11-14T22:13:28Z", "x"]),
)
def test_no_part_ends_before_it_begins_whatever_the_clocks_say(
    received: int, intended: int, dispatched: int, placed: int, now: int, ended: str
) -> None:
    made = record(
        received_at_ms=received,
        intended_at_ms=intended,
        dispatched_at_ms=dispatched,
        placed_at_ms=placed,
        job_id="c",
        runs=(Run(1, "b", Verdict.FAILED, dispatched_at_ms=placed, ended_at_ms=now),) if intended % 2 else (),
    )
    whole, *parts = spans(made, ended_at(ended), now or NOW)

    assert all(part.start_ms <= part.end_ms for part in (whole, *parts))
    assert all(one.end_ms == other.start_ms for one, other in pairwise(parts))


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_traces_are_off_unless_the_standard_variables_ask_for_them(
    environment: dict[str, str],
    on: bool,  # noqa: FBT001
) -> None:
    assert wanted(environment) is on


def test_a_protocol_that_is_not_spoken_is_told_at_start() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}

    with pytest.raises(SettingsInvalid, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"):
        traces_from_environment("{p}", "w", "1", lambda: 0, environment)


# The receiver -------------------------------------------------------------------------------------


class Collector:
    """The receiver's view."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def spans(self) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(timeout=5) as http:
            spans: list[dict[str, Any]] = (await http.get(f"{self.address}/spans")).json()
            return spans

    async def listening(self) -> bool:
        try:
            await self.spans()
        except httpx.TransportError:
            return False
        return True

    async def trace(self, number: int) -> dict[str, dict[str, Any]]:
        """The spans by name, once so many came."""

        async def all_there() -> bool:
            return len(await self.spans()) >= number

        await until(all_there, 20, f"{number} spans")
        found = await self.spans()
        assert len(found) == number
        return {span["name"]: span for span in found}


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.observability.collector", str(port), cwd=Path(__file__).parents[2]
    )
    try:
        receiver = Collector(f"http://127.0.0.1:{port}")
        await until(receiver.listening, 20, "the collector listens")
        yield receiver
    finally:
        process.kill()
        await process.wait()


def traced(job: dict[str, Any]) -> dict[str, Any]:
    """The job, allowed to be told its trace."""
    job["ParameterizedJob"]["MetaOptional"].append("traceparent")
    return job


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[Fleet, Collector]]:
    async with collector() as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "WORKER_TRACE_META": "true",
        }
        jobs = [traced(held("held")), traced(scripted("render"))]
        async with fleet(folder, jobs, environment) as made:
            yield made, receiver


async def told_to_jobs(workers: Fleet) -> list[str]:
    """The `traceparent` in the meta of each dispatched job, in the order of their dispatch."""
    told = []
    async with httpx.AsyncClient(base_url=workers.nomad.address, timeout=5) as http:
        for dispatched in workers.dispatched():
            job = (await http.get(f"/v1/job/{quote(dispatched['job_id'], safe='')}")).json()
            told.append(job["Meta"].get("traceparent", ""))
    return told


@needs_otel
@pytest.mark.processes
async def test_one_trace_survives_the_death_of_the_worker_that_began_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (workers, receiver):
        first = await workers.start()
        message_id = await workers.send(
            job="held", meta=json.dumps({"file": str(tmp_path / "release")}), traceparent=PARENT
        )
        await workers.reply_of(message_id, "running")
        await workers.start()
        first.kill()
        await workers.owned_by_other(message_id, "w1")
        workers.release(exit_code=7)
        await workers.final(message_id)

        trace = await receiver.trace(6)

        message = trace.pop("dispatch held")
        assert list(trace) == PARTS
        assert {span["trace_id"] for span in (message, *trace.values())} == {TRACE}
        assert message["parent"] == PRODUCER
        assert {span["parent"] for span in trace.values()} == {message["span_id"]}
        assert (message["status"], message["kind"]) == (ERROR, CONSUMER)
        assert message["attributes"]["messaging.message.id"] == message_id
        assert message["attributes"]["dispatch_worker.exit_code"] == 7
        assert message["attributes"]["dispatch_worker.fence"] == 2
        assert message["resource"]["service.instance.id"] == "w2"
        assert message["resource"]["service.name"] == "dispatch-worker"
        assert message["resource"]["deployment.environment.name"] == "test"
        assert message["start"] == int(message_id.split("-")[0]) * 1_000_000
        # The first worker died meanwhile, and yet its part is told.
        assert trace["dispatch"]["end"] <= trace["placement"]["end"] <= trace["run"]["end"]
        assert trace["run"]["end"] - trace["run"]["start"] > 1_000_000_000
        (told,) = await told_to_jobs(workers)
        assert told == f"00-{TRACE}-{trace['run']['span_id']}-01"


@needs_otel
@pytest.mark.processes
async def test_a_message_without_a_trace_begins_one_and_an_unsampled_one_is_not_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as (workers, receiver):
        worker = await workers.start()
        unsampled = await workers.send(job="render", traceparent=f"00-{TRACE}-{PRODUCER}-00")
        await workers.final(unsampled)
        message_id = await workers.send(job="render")
        await workers.final(message_id)

        worker.terminate()
        code = await worker.ended(20)
        trace = await receiver.trace(6)

        assert code == 0
        assert trace["dispatch render"]["parent"] == ""
        assert trace["dispatch render"]["attributes"]["messaging.message.id"] == message_id
        told = await told_to_jobs(workers)
        assert told[0].startswith(f"00-{TRACE}-")
        assert told[0].endswith("-00")
        assert told[1] == ""
