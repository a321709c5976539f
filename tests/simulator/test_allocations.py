"""How a simulated client runs an allocation, and what lost nodes, drains and evictions make of it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.simulator import outcomes
from tests.simulator.cluster import (
    SECOND,
    Tape,
    client_status,
    ends_dead,
    group,
    job,
    latest,
    mock,
    on_node,
    restarts,
    shell,
    status,
    until,
)
from tests.simulator.transcripts import exchange
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio

POLITE = "exec sleep 60"
DISCONNECT = {"LostAfter": 60 * SECOND, "Replace": False, "Reconcile": "best_score"}


@pytest.fixture
async def nomad() -> AsyncIterator[Simulator]:
    async with Simulator(update_seconds=0.02, task_speed=10) as simulator:
        yield simulator


def hook(task: dict[str, Any], when: str, *, sidecar: bool = False) -> dict[str, Any]:
    return task | {"Lifecycle": {"Hook": when, "Sidecar": sidecar}}


def task_ends(shown: dict[str, Any]) -> dict[str, list[str]]:
    """The words of each task's events."""
    return {
        name: [f"{event['Type']}: {event['DisplayMessage']}" for event in task["Events"]]
        for name, task in shown["TaskStates"].items()
    }


async def test_lifecycle_hooks_run_in_their_order_and_a_failed_main_task_ends_the_sidecar(
    nomad: Simulator,
) -> None:
    recorded = exchange("04-outcome-lifecycle", "final: allocations")["response"]["json"][0]
    tasks = [
        hook(mock("pre"), "prestart"),
        hook(shell(POLITE, "side"), "prestart", sidecar=True),
        mock("main", exit_code=6),
        hook(mock("post", run_for="10ms"), "poststop"),
    ]
    nomad.register(job("p", group(*tasks)))

    child = nomad.dispatch("p").job_id

    await ends_dead(nomad, child)
    alloc = latest(nomad, child).stub("batch", 0)
    states = {"TaskStates": json.loads(msgspec.json.encode(alloc["TaskStates"]))}
    ours, theirs = task_ends(states), task_ends(recorded)
    # The recorded read came before the last task, `post`, had ended.
    assert ours.pop("post")[:2] == theirs.pop("post")
    assert ours == theirs
    assert alloc["ClientStatus"] == recorded["ClientStatus"] == "failed"
    runs = {run["task"]: run for run in nomad.engine.clients.runs}
    assert runs["pre"]["ended_at"] <= runs["main"]["started_at"]
    assert runs["main"]["ended_at"] <= runs["post"]["started_at"]


async def test_a_failed_prestart_task_keeps_the_main_task_from_starting(nomad: Simulator) -> None:
    nomad.register(job("p", group(hook(mock("pre", exit_code=3), "prestart"), mock("main"))))

    child = nomad.dispatch("p").job_id

    await ends_dead(nomad, child)
    tasks = latest(nomad, child).task_states or {}
    assert [event.type for event in tasks["main"].events] == ["Received", "Sibling Task Failed", "Killing"]
    assert [run["task"] for run in nomad.engine.clients.runs] == ["pre"]


async def test_the_end_of_a_leader_ends_the_others(nomad: Simulator) -> None:
    nomad.register(job("p", group(mock("boss", Leader=True), mock("other", run_for="60s"))))

    child = nomad.dispatch("p").job_id

    await ends_dead(nomad, child)
    alloc = latest(nomad, child)
    events = [event.type for event in (alloc.task_states or {})["other"].events]
    assert events[-4:] == ["Leader Task Dead", "Killing", "Terminated", "Killed"]
    assert alloc.client_status == "complete"


async def test_an_artifact_that_cannot_be_fetched_fails_the_task(nomad: Simulator) -> None:
    recorded = exchange("04-outcome-artifact-fail", "final: allocations")["response"]["json"][0]
    artifact = {"GetterSource": "http://127.0.0.1:9/none.tgz", "RelativeDest": "local/"}
    nomad.register(job("p", group(mock(Artifacts=[artifact]))))

    child = nomad.dispatch("p").job_id

    await ends_dead(nomad, child)
    task = (latest(nomad, child).task_states or {})["t"]
    assert [event.type for event in task.events] == [
        event["Type"] for event in recorded["TaskStates"]["t"]["Events"]
    ]
    assert task.failed


async def test_a_disconnected_allocation_is_unknown_and_goes_on_when_its_client_is_back(
    nomad: Simulator,
) -> None:
    nomad.register(
        job(
            "p",
            group(mock(run_for="700ms"), Disconnect=DISCONNECT),
            Constraints=on_node(2),
        )
    )
    tape = Tape(nomad)
    child = nomad.dispatch("p").job_id
    await client_status(nomad, child, "running")

    nomad.lose_node("node-2")
    alloc = await client_status(nomad, child, "unknown")
    assert nomad.job(child).status == "running"
    nomad.return_node("node-2")
    await ends_dead(nomad, child)

    told = [
        (event.get("Status"), event.get("TriggeredBy"), event.get("StatusDescription", ""))
        for frame in tape.of(child)
        for event in map(outcomes.flat, frame["Events"])
        if event["Topic"] == "Evaluation"
    ]
    assert ("canceled", "max-disconnect-timeout", "allocs reconnected") in told
    assert ("complete", "reconnect", "") in told
    assert [event.type for event in (alloc.task_states or {})["t"].events] == [
        "Received",
        "Task Setup",
        "Started",
        "Reconnected",
        "Terminated",
    ]
    assert [state.value for state in alloc.alloc_states or []] == ["unknown", "running"]
    assert len(nomad.engine.clients.runs) == 1


async def test_a_lost_client_that_comes_back_ends_its_work_which_ran_twice(nomad: Simulator) -> None:
    nomad.register(job("p", group(mock(run_for="60s")), Constraints=on_node(2)))
    child = nomad.dispatch("p").job_id
    first = await client_status(nomad, child, "running")
    nomad.lose_node("node-2")
    await status(nomad, child, "pending")

    nomad.return_node("node-2")

    await until(nomad, lambda: latest(nomad, child) is not first and first.client_status == "complete")
    second = await client_status(nomad, child, "running")
    assert (first.desired_status, first.next_allocation) == ("stop", second.id)
    assert nomad.job(child).status == "running"
    assert [run["ended_at"] is None for run in nomad.engine.clients.runs] == [False, True]


async def test_a_finished_job_flips_to_pending_and_back_when_its_node_is_lost(nomad: Simulator) -> None:
    nomad.register(job("p", group(), Constraints=on_node(2)))
    child = nomad.dispatch("p").job_id
    await status(nomad, child, "dead")
    tape = Tape(nomad)

    nomad.lose_node("node-2")

    await until(nomad, lambda: nomad.job(child).open_evals == 0)
    frames = [{"Events": [outcomes.flat(event) for event in frame["Events"]]} for frame in tape.of(child)]
    assert outcomes.job_story(frames, child) == ["pending", "dead"]


async def test_a_preempted_allocation_is_evicted_and_replaced(nomad: Simulator) -> None:
    nomad.register(job("p", group(mock(run_for="60s"))))
    child = nomad.dispatch("p").job_id
    first = await client_status(nomad, child, "running")

    nomad.preempt_alloc(first.id)

    await until(nomad, lambda: first.client_status == "complete" and latest(nomad, child) is not first)
    assert first.desired_status == "evict"
    assert first.desired_description == f"Preempted by alloc ID {first.preempted_by_allocation}"
    assert first.next_allocation == latest(nomad, child).id


async def test_a_drain_with_a_deadline_lets_batch_work_finish(nomad: Simulator) -> None:
    nomad.register(job("p", group(mock(run_for="100ms")), Constraints=on_node(2)))
    child = nomad.dispatch("p").job_id
    alloc = await client_status(nomad, child, "running")

    nomad.drain_node("node-2", deadline_seconds=600)

    await status(nomad, child, "dead")
    assert (alloc.client_status, alloc.desired_status) == ("complete", "run")


async def test_only_the_latest_ten_events_of_a_task_are_kept(nomad: Simulator) -> None:
    nomad.register(job("p", group(mock(exit_code=1, run_for="1ms"), **restarts(4))))

    child = nomad.dispatch("p").job_id

    await status(nomad, child, "dead")
    task = (latest(nomad, child).task_states or {})["t"]
    assert (len(task.events), task.restarts) == (10, 4)
    assert task.events[-1].type == "Not Restarting"
