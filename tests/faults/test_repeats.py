"""A worker is killed at every point between two runs of a message: each run has one job, one end is told."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.faults.checker import all_is_well
from tests.faults.planned import DEAF, start_with, step
from tests.processes.fleet import Fleet, until
from worker.client import Cancelled, DispatchClient, RedisOptions

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

POLICY = """
[retries.flaky]
on = ["failed"]
max_attempts = 3
backoff_seconds = 0.3

[retries.render]
on = ["failed"]
max_attempts = 2
backoff_seconds = 20
max_backoff_seconds = 20
"""

CRASHES = {
    "about_to_repeat": step("ledger.keep:Repeated", "kill", "before"),
    "repeated": step("ledger.keep:Repeated", "kill", "after"),
    "about_to_intend_the_second": step("ledger.keep:Intended", "kill", "before", nth=2),
    "intended_the_second": step("ledger.keep:Intended", "kill", "after", nth=2),
    "about_to_send_the_second": step("nomad.dispatch", "kill", "before", nth=2),
    "sent_the_second": step("nomad.dispatch", "kill", "after", nth=2),
    "recorded_the_second": step("ledger.keep:JobAccepted", "kill", "after", nth=2),
    "about_to_settle": step("ledger.settle", "kill", "before"),
    "lost_answer_of_the_repeat": step("ledger.keep:Repeated", "lose", "after"),
    "lost_answer_of_the_second": step("nomad.dispatch", "lose", "after", nth=2),
}


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return str(path)


async def sends_flaky(world: Fleet) -> str:
    """A request whose job fails with 7 at its first run and succeeds at the next."""
    return await world.send(job="flaky", meta=json.dumps({"file": str(world.folder / "ran-before")}))


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES.keys())
async def test_a_worker_killed_between_two_runs(world: Fleet, policy: str, crash: dict[str, str]) -> None:
    first, _ = await asyncio.gather(
        start_with(world, crash, WORKER_ALLOW_FILE=policy), start_with(world, DEAF, WORKER_ALLOW_FILE=policy)
    )
    message_id = await sends_flaky(world)
    if crash["do"] == "kill":
        assert await first.ended(20) == -signal.SIGKILL

    final = await world.final(message_id, 40)

    assert (final.verdict, final.exit_code, final.attempt) == ("succeeded", 0, 2)
    assert [(run["attempt"], run["verdict"], run.get("exit_code")) for run in final.data["runs"]] == [
        (1, "failed", 7),
        (2, "succeeded", 0),
    ]
    assert dict(world.children_by_token()) == {message_id: 1, f"{message_id}/2": 1}
    jobs = [entry["job_id"] for entry in world.dispatched()]
    assert [run["dispatched_job_id"] for run in final.data["runs"]] == jobs
    await all_is_well(world, {message_id: 0})


async def test_cancelled_while_it_waits_for_its_next_run_it_has_none(world: Fleet, policy: str) -> None:
    await world.start(WORKER_ALLOW_FILE=policy)
    message_id = await world.send(job="render", meta=json.dumps({"exit_code": "3"}))
    await world.reply_of(message_id, "retrying")

    async with DispatchClient(RedisOptions(world.server.url)) as client:
        cancelled = await client.cancel("requests", message_id)
    final = await world.final(message_id)

    assert cancelled is Cancelled.PREVENTED
    assert (final.verdict, final.error_code) == ("cancelled", "request.cancelled")
    assert [run["verdict"] for run in final.data["runs"]] == ["failed"]
    assert len(world.dispatched()) == 1


async def test_a_purging_worker_purges_the_jobs_of_all_runs_and_only_at_the_end(
    world: Fleet, policy: str
) -> None:
    await world.start(WORKER_ALLOW_FILE=policy, WORKER_PURGE_FINISHED="true")
    message_id = await sends_flaky(world)
    await world.final(message_id)

    async def purged() -> bool:
        return not any(job.parent_id for job in world.nomad.state.jobs.values())

    await until(purged, 10, "the jobs of both runs are purged")
    assert dict(world.children_by_token()) == {message_id: 1, f"{message_id}/2": 1}


async def test_the_wait_for_the_next_run_goes_on_with_another_worker(world: Fleet, policy: str) -> None:
    first = await world.start(WORKER_ALLOW_FILE=policy)
    message_id = await world.send(job="render", meta=json.dumps({"exit_code": "3"}))
    await world.reply_of(message_id, "retrying")
    await world.start(WORKER_ALLOW_FILE=policy)

    first.kill()
    final = await world.final(message_id, 60)

    assert (final.verdict, final.exit_code, final.attempt) == ("failed", 3, 2)
    begun = [entry["at"] for entry in world.dispatched()]
    assert len(begun) == 2
    assert begun[1] - begun[0] >= 10
