"""Dispatches are answered as recorded from a real Nomad: statuses, exact texts, shapes and token rules."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.simulator.cluster import Tape, group, job, mock, status
from tests.simulator.transcripts import Caller, assert_like, exchange, exchanges, words
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio

RULES = {
    "fb": {"Payload": "forbidden", "MetaOptional": [], "MetaRequired": []},
    "rq": {"Payload": "required", "MetaOptional": [], "MetaRequired": ["tenant", "bucket"]},
}
# What could not be recorded as it was sent: made anew.
BODIES: dict[str, Any] = {
    "JSON null": b"null",
    "payload of exactly 16384": {"Payload": base64.b64encode(b"a" * 16384).decode()},
    "payload of 16385": {"Payload": base64.b64encode(b"a" * 16385).decode()},
    "payload of 3000000": {"Payload": base64.b64encode(b"a" * 3_000_000).decode()},
    "20000-char token": {},
    "1.2 MB URL": {},
    "1 MB meta value": {"Meta": {"who": "z" * 1_000_000}},
}
PATHS = {
    "20000-char token": "/v1/job/render/dispatch?idempotency_token=" + "y" * 20_000,
    "1.2 MB URL": "/v1/job/render/dispatch?idempotency_token=" + "y" * 1_200_000,
}
ERRORS = list(exchanges("02-dispatch-errors"))


def special(table: dict[str, Any], note: str, default: Any) -> Any:
    return next((value for start, value in table.items() if note.startswith(start)), default)


def body_of(entry: dict[str, Any]) -> Any:
    request = entry["request"]
    if "body_raw" in request:
        return request["body_raw"].encode()
    return special(BODIES, entry["note"], request["body"])


@pytest.fixture
async def nomad() -> AsyncIterator[Simulator]:
    plain = job("plain")
    del plain["ParameterizedJob"]
    jobs = [
        job("render"),
        job("stoppedp"),
        plain,
        *(job(name, ParameterizedJob=RULES[name]) for name in RULES),
    ]
    async with Simulator(jobs, update_seconds=0) as simulator:
        simulator.stop_job("stoppedp")
        yield simulator


@pytest.fixture
async def caller(nomad: Simulator) -> AsyncIterator[Caller]:
    caller = Caller(nomad.address)
    yield caller
    await caller.close()


@pytest.mark.parametrize("entry", ERRORS, ids=[entry["note"] for entry in ERRORS])
async def test_a_dispatch_is_answered_as_recorded(entry: dict[str, Any], caller: Caller) -> None:
    request = entry["request"]
    path = special(PATHS, entry["note"], request["path"])

    answer = await caller.send(request["method"], path, body_of(entry), **request["headers"])

    assert_like(entry, answer)


@pytest.mark.parametrize("kind", ["service", "system"])
async def test_a_parameterized_job_of_another_type_is_refused_as_recorded(kind: str, caller: Caller) -> None:
    entry = exchange("02-register-errors", kind)

    answer = await caller.send("PUT", "/v1/jobs", entry["request"]["body"])

    assert_like(entry, answer)


async def test_the_answers_to_first_and_repeated_dispatches_have_the_recorded_shape(caller: Caller) -> None:
    child = ""
    for entry in exchanges("01-dispatch-ok"):
        request = entry["request"]
        path = request["path"]
        if request["method"] == "GET":
            path = path.replace("render/dispatch-1795483181-151703d7", child).replace(
                "render%2Fdispatch-1795483181-151703d7", child.replace("/", "%2F")
            )

        answer = await caller.send(request["method"], path, request["body"], **request["headers"])

        assert_like(entry, answer)
        if "json" in entry["response"] and "EvalID" in entry["response"]["json"]:
            child = child or answer.json["DispatchedJobID"]
            assert bool(answer.json["EvalID"]) == bool(entry["response"]["json"]["EvalID"]), entry["note"]
            assert (answer.json["EvalCreateIndex"] == 0) == (not answer.json["EvalID"]), entry["note"]


async def test_a_repeat_gives_the_first_child_and_its_modify_index(nomad: Simulator, caller: Caller) -> None:
    first = await caller.dispatch("render", "1-0", Meta={"who": "ada"})
    job = await status(nomad, first["DispatchedJobID"], "dead")

    repeat = await caller.dispatch("render", "1-0", Meta={"who": "bob"}, Payload="T1RIRVI=")

    assert repeat == {
        "DispatchedJobID": first["DispatchedJobID"],
        "EvalCreateIndex": 0,
        "EvalID": "",
        "Index": job.modify_index,
        "JobCreateIndex": first["JobCreateIndex"],
    }
    assert job.meta is not None
    assert job.meta["who"] == "ada"


@pytest.mark.parametrize("how", ["purge", "collect"])
async def test_a_token_is_free_again_once_its_child_is_gone(
    how: str, nomad: Simulator, caller: Caller
) -> None:
    first = (await caller.dispatch("render", "1-0"))["DispatchedJobID"]
    await status(nomad, first, "dead")
    if how == "purge":
        nomad.stop_job(first, purge=True)
    else:
        assert first in nomad.collect_garbage()

    second = await caller.dispatch("render", "1-0")

    assert second["EvalID"]
    assert second["DispatchedJobID"] != first


async def test_a_token_belongs_to_one_parent(nomad: Simulator, caller: Caller) -> None:
    nomad.register(job("other"))

    answers = [await caller.dispatch(parent, "1-0") for parent in ("render", "other")]

    assert all(answer["EvalID"] for answer in answers)


async def test_the_payload_reads_back_plain_and_travels_packed_in_events(
    nomad: Simulator, caller: Caller
) -> None:
    tape = Tape(nomad)

    child = (await caller.dispatch("render", Payload="aGVsbG8="))["DispatchedJobID"]

    assert (await caller.get(f"/v1/job/{child}"))["Payload"] == "aGVsbG8="
    assert tape.of(child)[0]["Events"][0]["Payload"]["Job"]["Payload"] == "BRBoZWxsbw=="


async def test_concurrent_dispatches_of_one_token_can_be_phantoms(nomad: Simulator, caller: Caller) -> None:
    nomad.faults.phantoms = True

    answers = await asyncio.gather(*(caller.dispatch("render", "race-1") for _ in range(20)))

    real = [answer for answer in answers if ("default", answer["DispatchedJobID"]) in nomad.state.jobs]
    assert len({answer["DispatchedJobID"] for answer in answers}) == 20
    assert len(real) == 1
    assert len(nomad.record.dispatches) == 1
    later = await caller.dispatch("render", "race-1")
    assert (later["DispatchedJobID"], later["EvalID"]) == (real[0]["DispatchedJobID"], "")


async def test_the_parents_summary_counts_its_children(nomad: Simulator, caller: Caller) -> None:
    nomad.register(job("slow", group(mock(run_for="60s"))))
    running = (await caller.dispatch("slow"))["DispatchedJobID"]
    await status(nomad, running, "running")

    summary = await caller.send("GET", "/v1/job/slow/summary")

    assert_like(exchange("02-register-errors", "summary of the parent"), summary)
    assert summary.json["Children"] == {"Dead": 0, "Pending": 0, "Running": 1}


def test_key_lists_are_compared_without_their_order() -> None:
    assert words("keys: [b a]") == words("keys: [a b]") != words("keys: [a c]")
