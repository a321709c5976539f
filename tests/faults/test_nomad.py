"""Nomad is down, leaderless, slow, crowded, or does not know the worker's token any more."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.checker import all_is_well
from tests.faults.conftest import QUICK
from tests.faults.proxy import proxied
from tests.processes.fleet import KEYS, Fleet, WorkerProcess, fleet, until
from tests.processes.jobs import held, scripted
from worker.dev.simulator.jobfile import canonical_job

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

RULES = {"default": ["list-jobs", "read-job", "dispatch-job", "submit-job", "read-logs"]}
FIRST, SECOND, WEAK = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "123")


async def gate_is(worker: WorkerProcess, *, closed: bool) -> bool:
    return ("nomad" in await worker.not_ready()) is closed


@pytest.mark.parametrize("trouble", ["500", "no_leader", "reset", "429", "refused"])
async def test_F25_F28_a_nomad_that_does_not_serve_stops_intake_and_costs_no_attempt(
    world: Fleet, trouble: str
) -> None:
    worker = await world.start(WORKER_MAX_IN_FLIGHT="20", WORKER_DISPATCH_CONCURRENCY="4")
    running = await world.holds()
    faults = world.nomad.faults
    match trouble:
        case "500":
            faults.respond("dispatch", 500, "rpc error: internal")
        case "no_leader":
            faults.leaderless_seconds = 0.2
        case "reset":
            faults.drop("dispatch", times=None)
        case "429":
            faults.respond("dispatch", 429, "Your IP is issuing too many concurrent connections")
        case _:
            await world.nomad.stop_server()

    sent = [await world.send(job="render") for _ in range(60)]
    await until(lambda: gate_is(worker, closed=True), 20, "the breaker is open and /readyz says so")
    in_flight = await worker.metric("jobs_in_flight")
    if trouble in {"500", "reset", "429"}:
        # Only dispatching is ill: the end of what runs is seen and answered meanwhile.
        world.release()
        assert (await world.final(running)).verdict == "succeeded"
    if trouble == "refused":
        await world.nomad.start_server()
    faults.clear()
    world.release()
    finals = await world.all_final([running, *sent], 60)

    assert in_flight <= 20
    assert {(final.verdict, final.attempt) for final in finals} == {("succeeded", 1)}
    assert await until(lambda: gate_is(worker, closed=False), 10, "the breaker is closed") < 10
    await all_is_well(world, dict.fromkeys([running, *sent], 0))


async def test_F26_answers_lost_after_nomad_accepted_make_no_second_job(world: Fleet) -> None:
    world.nomad.faults.lose_answer("dispatch", times=3)
    await world.start()

    sent = [await world.send(job="render") for _ in range(6)]
    finals = await world.all_final(sent, 60)

    assert {final.verdict for final in finals} == {"succeeded"}
    await all_is_well(world, dict.fromkeys(sent, 0))


async def test_F26_a_network_that_cuts_answers_off_in_their_middle_makes_no_second_job(world: Fleet) -> None:
    async with proxied(int(world.nomad.address.rpartition(":")[2])) as network:
        await world.start(NOMAD_ADDR=f"http://127.0.0.1:{network.port}")
        sent = []
        for _ in range(8):
            network.reset_on_answer = b"DispatchedJobID"
            sent.append(await world.send(job="render"))
            await world.final(sent[-1], 30)

        assert network.resets == 8
        await all_is_well(world, dict.fromkeys(sent, 0))


async def test_F25_a_nomad_behind_a_slow_network_is_slow_and_nothing_else(world: Fleet) -> None:
    async with proxied(int(world.nomad.address.rpartition(":")[2])) as network:
        await world.start(NOMAD_ADDR=f"http://127.0.0.1:{network.port}")
        network.delay_seconds = 0.3
        sent = [await world.send(job="render") for _ in range(20)]
        await world.all_final(sent, 40)

        await all_is_well(world, dict.fromkeys(sent, 0))


async def test_F25_a_nomad_that_went_silent_is_noticed_and_watched_again_when_it_is_back(
    world: Fleet,
) -> None:
    async with proxied(int(world.nomad.address.rpartition(":")[2])) as network:
        worker = await world.start(
            NOMAD_ADDR=f"http://127.0.0.1:{network.port}", WORKER_EVENT_HEARTBEAT_SECONDS="5"
        )
        running = await world.holds()
        network.swallow = True
        sent = [await world.send(job="render") for _ in range(8)]
        await until(lambda: gate_is(worker, closed=True), 30, "the breaker is open")
        world.release()
        network.swallow = False
        network.cut()
        finals = await world.all_final([running, *sent], 60)

        assert {final.verdict for final in finals} == {"succeeded"}
        await all_is_well(world, dict.fromkeys([running, *sent], 0))


@pytest.mark.slow
async def test_F28_a_thousand_running_jobs_are_watched_over_a_handful_of_connections(tmp_path: Path) -> None:
    jobs, count = [scripted("render"), held("held")], 1_000
    async with fleet(tmp_path, jobs, QUICK, max_connections_per_client=30) as world:
        worker = await world.start(WORKER_MAX_IN_FLIGHT="1200")
        meta = json.dumps({"run_for": "30s"})
        sent = [await world.send(job="render", meta=meta) for _ in range(count)]
        finals = await world.all_final(sent, 150)

        assert {final.verdict for final in finals} == {"succeeded"}
        assert await worker.metric("nomad_requests_total", code="429") == 0
        # Events tell the ends: reading each job would have been thousands of requests.
        assert await worker.metric("nomad_requests_total", operation="allocations") < count / 2
        await all_is_well(world, dict.fromkeys(sent, 0))


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A Nomad with ACLs, and workers with the token in a file."""
    acl = {"bootstrap_token": "root", "policies": {"worker": RULES}}
    (tmp_path / "token").write_text(FIRST)
    environment = {**QUICK, "NOMAD_TOKEN_FILE": str(tmp_path / "token")}
    async with fleet(tmp_path, [scripted("render"), held("held")], environment, acl=acl) as world:
        world.nomad.acl.create(["worker"], world.nomad.cluster.now(), secret=FIRST)
        yield world


async def test_F29_a_revoked_token_pauses_intake_and_a_renewed_file_ends_the_pause(guarded: Fleet) -> None:
    world = guarded
    worker = await world.start()
    running = await world.holds()

    world.nomad.acl.revoke(FIRST)
    world.nomad.faults.close_streams()
    sent = [await world.send(job="render") for _ in range(10)]
    await until(lambda: gate_is(worker, closed=True), 20, "dispatching is paused")
    world.release()
    reason = (await worker.not_ready())["nomad"]
    before = await world.finals()
    world.nomad.acl.create(["worker"], world.nomad.cluster.now(), secret=SECOND)
    (world.folder / "token").write_text(SECOND)
    finals = await world.all_final([running, *sent], 60)

    assert "nomad.permission_denied" in reason
    assert before == []
    assert {final.verdict for final in finals} == {"succeeded"}
    assert worker.running
    await all_is_well(world, dict.fromkeys([running, *sent], 0))


REFUSED: dict[str, tuple[dict[str, str | bytes], str]] = {
    "no such job": ({"job": "nowhere"}, "nomad.job_unknown"),
    "not parameterized": ({"job": "plain"}, "nomad.job_not_parameterized"),
    "meta missing": ({"job": "strict", "payload": b"x"}, "nomad.meta_missing"),
    "meta not permitted": (
        {"job": "strict", "payload": b"x", "meta": '{"who": "a", "odd": "b"}'},
        "nomad.meta_unpermitted",
    ),
    "payload missing": ({"job": "strict", "meta": '{"who": "a"}'}, "nomad.payload_required"),
    "payload forbidden": ({"job": "silent", "payload": b"x"}, "nomad.payload_forbidden"),
    "payload too large": ({"job": "render", "payload": bytes(16_385)}, "request.payload_too_large"),
}


@pytest.mark.telling
async def test_F30_what_nomad_refuses_for_good_is_buried_at_once(world: Fleet) -> None:
    plain = scripted("plain")
    plain["ParameterizedJob"] = None
    strict, silent = scripted("strict"), scripted("silent")
    strict["ParameterizedJob"] = {"Payload": "required", "MetaRequired": ["who"], "MetaOptional": []}
    silent["ParameterizedJob"] = {"Payload": "forbidden", "MetaRequired": [], "MetaOptional": []}
    for job in (plain, strict, silent):
        world.nomad.register(canonical_job(job))
    before = len(world.dispatched())
    await world.start()

    sent = {name: await world.send(**fields) for name, (fields, _) in REFUSED.items()}
    finals = await world.all_final(list(sent.values()), 20)

    assert {name: final.error_code for name, final in zip(sent, finals, strict=True)} == {
        name: code for name, (_, code) in REFUSED.items()
    }
    assert {(final.verdict, final.attempt <= 1) for final in finals} == {("rejected", True)}
    assert len(world.dispatched()) == before
    assert await world.redis.xlen(KEYS.dead) == len(REFUSED)
    requests = world.nomad.record.requests["dispatch"]
    assert requests == len(REFUSED) - 1  # none was repeated; the oversize payload never left
    await all_is_well(world, dict.fromkeys(sent.values()))


async def test_F29_a_token_without_the_right_to_dispatch_pauses_and_names_it(tmp_path: Path) -> None:
    acl = {
        "bootstrap_token": "root",
        "policies": {"weak": {"default": ["list-jobs", "read-job"]}, "worker": RULES},
        "tokens": [{"secret": WEAK, "policies": ["weak"]}],
    }
    async with fleet(tmp_path, [scripted("render")], QUICK, acl=acl) as world:
        worker = await world.start(NOMAD_TOKEN=WEAK)
        message_id = await world.send(job="render")
        await until(lambda: gate_is(worker, closed=True), 15, "dispatching is paused")

        assert await world.finals() == []
        world.nomad.acl.policies["weak"] = world.nomad.acl.policies["worker"]
        assert (await world.final(message_id, 40)).verdict == "succeeded"
