"""Rows F35 to F43 of the fault matrix: what happens to jobs, as one worker tells it, on each Nomad.

What the recorded outcomes show of these rows already is in `test_recorded`.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.outcomes.grounds import Ground, SimulatedGround
from tests.outcomes.situations import BRIEF, LASTING, PINNED, POLITE, RESCHEDULE, SAFE, STUBBORN, hook
from tests.outcomes.stage import Stage, stage
from tests.simulator.cluster import SECOND, group, job, mock, shell
from worker.core.reply import Reply
from worker.core.story import GAVE_WAY

pytestmark = pytest.mark.anyio

FIRST_WAITS = (
    'test -e "$NOMAD_META_who" && exec sleep 600; touch "$NOMAD_META_who"; '
    'until test -e "$NOMAD_META_who.go"; do sleep 0.1; done; exit 7'
)
FIRST_FAILS = 'test -e "$NOMAD_META_who" && exit 0; touch "$NOMAD_META_who"; exit 5'


@pytest.fixture(scope="module")
async def here(ground: Ground) -> AsyncIterator[Stage]:
    async with stage(
        ground.address, WORKER_SWEEP_SECONDS="5", WORKER_PLACEMENT_DEADLINE_SECONDS="8"
    ) as worker:
        yield worker


async def put(ground: Ground, *groups: dict[str, Any], node: str = "", **fields: Any) -> str:
    """Register a job, on this node or on one that nobody harms; returns its ID."""
    job_id = f"fault-{uuid4().hex[:8]}"
    pinned = [{**PINNED["Constraints"][0], "RTarget": node}]
    await ground.add(job(job_id, *groups, **{"Constraints": pinned if node else [SAFE], **fields}))
    return job_id


def harmful(ground: Ground) -> None:
    if not ground.may_harm:
        pytest.skip("the Nomad at NOMAD_ADDR has no node that may be harmed")


def attempts(final: Reply) -> list[tuple[str, int | None, bool]]:
    """Each allocation's status, its main task's exit code, and whether it counts."""
    return [
        (
            one["client_status"],
            next(task["exit_code"] for task in one["tasks"] if task["main"]),
            one["counts"],
        )
        for one in final.data["allocations"]
    ]


async def test_f35_the_last_attempt_decides_and_every_attempt_is_listed(
    here: Stage, ground: Ground, tmp_path: Path
) -> None:
    name = await put(ground, group(shell(FIRST_FAILS), ReschedulePolicy=RESCHEDULE))

    message = await here.send(name, meta={"who": str(tmp_path / "once")})
    retrying = await message.said("retrying")
    final = await message.final()

    assert (retrying.data["what"], retrying.data["exit_code"], retrying.data["attempt"]) == (
        "reschedule",
        5,
        2,
    )
    assert (final.verdict, final.exit_code) == ("succeeded", 0)
    assert attempts(final) == [("failed", 5, False), ("complete", 0, True)]


async def test_f36_a_task_the_oom_killer_ended_did_not_succeed_though_nomad_calls_it_complete(
    here: Stage, ground: Ground
) -> None:
    if not isinstance(ground, SimulatedGround):
        pytest.skip("no driver of a real Nomad can be told to report this")
    name = await put(ground, group(mock(oom_killed=True, exit_code=0, exit_signal=0, exit_err_msg="")))

    final = await (await here.send(name)).final()

    assert attempts(final) == [("complete", 0, True)]
    assert (final.verdict, final.exit_code, final.error_code) == ("oom_killed", None, "job.oom_killed")


async def test_f37_a_job_that_runs_into_its_own_limit_is_complete_for_nomad_and_timed_out_for_us(
    here: Stage, ground: Ground
) -> None:
    name = await put(ground, group(shell("exec sleep 60"), MaxRunDuration=SECOND))

    final = await (await here.send(name)).final()

    assert [status for status, _, _ in attempts(final)] == ["complete"]
    assert (final.verdict, final.error_code) == ("timed_out", "job.timed_out")


async def test_f37_a_job_that_runs_into_the_requests_limit_is_stopped(here: Stage, ground: Ground) -> None:
    name = await put(ground, group(shell(POLITE)))

    message = await here.send(name, timeout_seconds="1")
    final = await message.final()

    assert (final.verdict, final.error_code) == ("timed_out", "job.timed_out")
    assert "the worker stopped the job (timed_out)" in final.error_message
    assert final.data["job"]["stop"] is True


async def test_f38_a_drain_that_waits_for_the_work_does_it_no_harm(here: Stage, ground: Ground) -> None:
    harmful(ground)
    async with ground.victim() as node:
        name = await put(ground, group(shell("sleep 2")), node=node)

        message = await here.send(name)
        await message.said("running")
        await ground.drain(node, deadline_seconds=600)
        final = await message.final()

    assert (final.verdict, final.exit_code) == ("succeeded", 0)
    assert attempts(final) == [("complete", 0, True)]


async def test_f38_work_that_a_drain_ended_and_no_node_took_over_is_drained(
    here: Stage, ground: Ground
) -> None:
    harmful(ground)
    async with ground.victim() as node:
        name = await put(ground, group(shell(STUBBORN)), node=node)

        message = await here.send(name)
        await message.said("running")
        await ground.drain(node, deadline_seconds=2)
        final = await message.final()

    assert (final.verdict, final.exit_code, final.error_code) == ("drained", 137, "job.drained")
    assert attempts(final) == [("complete", 137, True)]


async def test_f39_both_copies_of_a_lost_nodes_work_are_told_of_in_one_verdict(
    here: Stage, ground: Ground
) -> None:
    harmful(ground)
    async with ground.victim() as node:
        liked = [{"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": node, "Weight": 100}]
        name = await put(ground, group(shell(LASTING), Affinities=liked), Constraints=[])

        message = await here.send(name, meta={"seconds": f"{ground.lost_within_seconds:g}"})
        first = await message.said("running")
        await ground.lose(node)
        second = await message.said("running", times=2)
        await ground.restore(node)
        final = await message.final()

    assert first.data["node"] == node != second.data["node"]
    assert (final.verdict, final.exit_code) == ("succeeded", 0)
    told = {one["allocation"]: one for one in final.data["allocations"]}
    assert set(told) == {first.data["allocation"], second.data["allocation"]}
    lost, counted = told[first.data["allocation"]], told[second.data["allocation"]]
    assert (lost["counts"], lost["replaced_by"]) == (False, counted["allocation"])
    assert (counted["counts"], counted["client_status"]) == (True, "complete")
    assert "node is down" in lost["desired_description"] or lost["desired_status"] == "stop"
    assert [reply.type for reply in await here.finals(message)] == ["result"]


async def test_f39_work_that_came_back_with_its_client_counts_and_not_what_gave_way_to_it(
    here: Stage, ground: Ground, tmp_path: Path
) -> None:
    if not isinstance(ground, SimulatedGround):
        pytest.skip("servers of 2.0 replace no batch job's allocation when its client is cut off: measured")
    async with ground.victim() as node:
        liked = [{"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": node, "Weight": 100}]
        kept = {"LostAfter": 600 * SECOND, "Replace": True, "Reconcile": "keep_original"}
        name = await put(ground, group(shell(FIRST_WAITS), Affinities=liked, Disconnect=kept), Constraints=[])
        mark = tmp_path / "first"

        message = await here.send(name, meta={"who": str(mark)})
        first = await message.said("running")
        await ground.lose(node)
        second = await ground.replacement(message.child, first.data["allocation"])
        await ground.restore(node)
        await ground.stopped(second)
        mark.with_name("first.go").touch()
        final = await message.final()

    assert first.data["node"] == node
    assert (final.verdict, final.exit_code) == ("failed", 7), final.error_message
    told = {one["allocation"]: one for one in final.data["allocations"]}
    back, gave_way = told[first.data["allocation"]], told[second]
    assert (back["counts"], back["replaced_by"]) == (True, gave_way["allocation"])
    assert gave_way["desired_description"] == GAVE_WAY


async def test_f38_a_sysbatch_job_is_drained_though_nomad_words_it_otherwise(
    here: Stage, ground: Ground
) -> None:
    harmful(ground)
    async with ground.victim() as node:
        name = await put(ground, group(shell(STUBBORN), ReschedulePolicy=None), node=node, Type="sysbatch")

        message = await here.send(name)
        await message.said("running")
        await ground.drain(node)
        final = await message.final()

    assert (final.verdict, final.exit_code) == ("drained", 137), final.error_message
    (one,) = final.data["allocations"]
    assert one["desired_description"] == "alloc not needed as node is tainted"


@pytest.mark.parametrize(("kind", "verdict"), [("batch", "succeeded"), ("sysbatch", "preempted")])
async def test_f40_preempted_work_is_followed_to_its_replacement_if_there_is_one(
    here: Stage, ground: Ground, kind: str, verdict: str
) -> None:
    harmful(ground)
    async with ground.victim() as node:
        task = shell(LASTING, Resources={"CPU": await ground.free_cpu(node) - 100, "MemoryMB": 10})
        policy: dict[str, Any] = {} if kind == "batch" else {"ReschedulePolicy": None}
        name = await put(ground, group(task, **policy), node=node, Type=kind, Priority=20)

        message = await here.send(name, meta={"seconds": "4"})
        running = await message.said("running")
        await ground.preempt(node, running.data["allocation"])
        final = await message.final()

    assert final.verdict == verdict, final.error_message
    evicted = next(
        one for one in final.data["allocations"] if one["allocation"] == running.data["allocation"]
    )
    assert evicted["desired_status"] == "evict"
    assert evicted["counts"] == (kind == "sysbatch")
    assert len(final.data["allocations"]) == (2 if kind == "batch" else 1)


async def test_f41_a_job_that_is_never_placed_is_stopped_at_its_deadline(here: Stage, ground: Ground) -> None:
    gpu = [{"LTarget": "${node.class}", "Operand": "=", "RTarget": "gpu"}]
    name = await put(ground, group(shell(BRIEF)), Constraints=gpu)

    message = await here.send(name)
    blocked = await message.said("blocked")
    final = await message.final()

    (reasons,) = blocked.data["placement"]
    assert reasons["nodes_filtered"] == reasons["nodes_evaluated"] >= 1
    assert (final.verdict, final.exit_code, final.error_code) == ("unplaced", None, "job.unplaced")
    assert final.data["job"]["stop"] is True
    assert final.data["placement"][0]["group"] == "g"


@pytest.mark.parametrize("how", ["stopped", "purged"])
async def test_f42_the_end_of_a_parent_leaves_its_childs_message_alone(
    here: Stage, ground: Ground, how: str
) -> None:
    name = await put(ground, group(shell("sleep 1.5; exit 3")))
    message = await here.send(name)
    await message.said("running")

    await ground.stop_job(name, purge=how == "purged")
    late = await here.send(name)

    final, final_of_late = await message.final(), await late.final()
    assert (final.verdict, final.exit_code) == ("failed", 3)
    assert (final_of_late.verdict, final_of_late.dispatched_job_id) == ("rejected", "")
    assert late.id in await here.dead_letters()


HELPED = {
    "a sidecar that is ended after the main task": [hook(shell(POLITE, "side"), "prestart", sidecar=True)],
    "a poststop task that fails": [hook(shell("exit 9", "post"), "poststop")],
    "a poststart task that is done": [hook(shell("true", "post"), "poststart")],
}


@pytest.mark.parametrize("helpers", HELPED.values(), ids=HELPED)
async def test_f43_helpers_do_not_decide_over_a_main_task_that_succeeded(
    here: Stage, ground: Ground, helpers: list[dict[str, Any]]
) -> None:
    name = await put(ground, group(*helpers, shell(BRIEF, "main")))

    final = await (await here.send(name)).final()

    assert (final.verdict, final.exit_code) == ("succeeded", 0), final.error_message
    assert {task["name"] for task in final.data["allocations"][0]["tasks"] if task["main"]} == {"main"}


async def test_f43_a_helper_that_keeps_the_main_task_from_starting_fails_the_job(
    here: Stage, ground: Ground
) -> None:
    name = await put(ground, group(hook(shell("exit 3", "pre"), "prestart"), shell(BRIEF, "main")))

    final = await (await here.send(name)).final()

    assert (final.verdict, final.exit_code, final.error_code) == ("failed", 3, "job.failed")
    assert final.data["deciding"]["task"] == "pre"


async def test_f43_the_end_of_a_leader_is_no_kill_of_the_others(here: Stage, ground: Ground) -> None:
    name = await put(ground, group(shell(BRIEF, "boss", Leader=True), shell(POLITE, "other")))

    final = await (await here.send(name)).final()

    assert (final.verdict, final.exit_code) == ("succeeded", 0), final.error_message


async def test_f43_all_groups_and_all_main_tasks_must_succeed(here: Stage, ground: Ground) -> None:
    pair = group(shell(BRIEF, "a"), shell("sleep 0.2", "b"), name="pair")
    good = await put(ground, pair, group(shell(BRIEF), name="single", Count=2))
    bad = await put(ground, pair, group(shell(f"{BRIEF}; exit $NOMAD_ALLOC_INDEX"), name="single", Count=2))

    finals = [await message.final() for message in [await here.send(good), await here.send(bad)]]

    assert [(final.verdict, final.exit_code) for final in finals] == [("succeeded", 0), ("failed", 1)]
    assert [len(final.data["allocations"]) for final in finals] == [3, 3]
    assert finals[1].data["deciding"]["group"] == "single"
