"""What a job that is not over announces, and the evidence of one that is."""

from itertools import permutations

import msgspec
import pytest

from tests.core.stories import (
    allocation,
    ended,
    evaluation,
    event,
    exited,
    group,
    job,
    ran,
    running,
    snapshot,
    state,
)
from worker.core.evidence import ALLOCATIONS_SHOWN, EVALUATIONS_SHOWN
from worker.core.model import Outcome, Progress, Verdict
from worker.core.observed import AllocMetric, Snapshot, TaskEvent
from worker.core.verdict import Final, Ongoing, judge

FULL = AllocMetric(nodes_evaluated=1, nodes_exhausted=1, dimension_exhausted={"memory": 1})


def outcome(told: Snapshot) -> Outcome:
    finding = judge(told)
    assert isinstance(finding, Final)
    return finding.outcome


def ongoing(told: Snapshot) -> Ongoing:
    finding = judge(told)
    assert isinstance(finding, Ongoing)
    return finding


# Steps ----------------------------------------------------------------------------------------------


def test_a_job_just_dispatched_has_nothing_to_announce() -> None:
    assert ongoing(snapshot(None, [], [], whole=False)) == Ongoing()
    assert ongoing(snapshot(job("pending"), [], [evaluation(status="pending")])) == Ongoing()


@pytest.mark.parametrize(("client", "step"), [("pending", Progress.PLACED), ("running", Progress.RUNNING)])
def test_placed_and_running_name_the_allocation_and_its_node(client: str, step: Progress) -> None:
    given = ongoing(snapshot(job("running"), [allocation(None, client)]))

    assert given.step is step
    assert given.data["node"] == "worker-3"
    assert given.data["allocation"] == "08bd7328-0000"


def test_a_job_of_which_one_instance_is_done_before_the_other_has_started_is_running() -> None:
    spec = job("running", group(count=2))
    told = snapshot(spec, [ended(Verdict.SUCCEEDED, 0), allocation(None, "pending", id="new", index=1)])

    given = ongoing(told)

    assert given.step is Progress.RUNNING
    assert given.data["allocation"] == "new"


def test_a_job_of_which_one_instance_runs_and_one_finds_no_node_is_running() -> None:
    evaluations = [evaluation(), evaluation("queued-allocs", "blocked", failed={"g": FULL})]
    told = snapshot(job("running", group(count=2)), [allocation(None, "running")], evaluations)

    given = ongoing(told)

    assert given.step is Progress.RUNNING
    assert "1 node without enough memory" in given.data["reason"]


def test_a_preempted_job_that_finds_no_other_node_is_blocked_and_not_over() -> None:
    evaluations = [evaluation(), evaluation("queued-allocs", "blocked", failed={"g": FULL})]

    given = ongoing(snapshot(job("pending"), [ended(Verdict.PREEMPTED)], evaluations))

    assert given.step is Progress.BLOCKED
    assert given.data["after"][0]["allocation"] == "0-preempted"


def test_a_task_waiting_for_its_restart_is_a_retry_with_code_attempt_and_time() -> None:
    delay = {"start_delay": "3415079494"}
    restarting = TaskEvent(type="Restarting", time=1_795_484_885_000_000_000, details=delay)
    task = state(event("Started", 1), exited(3, at=2), restarting, now="pending", restarts=1)

    given = ongoing(snapshot(job("running"), [allocation({"main": task}, "pending")]))

    assert given.step is Progress.RETRYING
    assert given.data["what"] == "restart"
    assert (given.data["exit_code"], given.data["attempt"]) == (3, 2)
    assert given.data["next_at"] == "2026-11-24T01:48:08.415Z"


def test_an_allocation_placed_again_is_a_retry_until_it_runs() -> None:
    old = allocation({"main": ran(5)}, "failed", "stop", id="old", next="new")
    placed = allocation(None, "pending", id="new", created=30, node="worker-4")
    started = allocation({"main": running()}, "running", id="new", created=30, node="worker-4")

    retrying = ongoing(snapshot(job("running"), [old, placed]))
    again = ongoing(snapshot(job("running"), [old, started]))

    assert retrying.step is Progress.RETRYING
    assert (retrying.data["exit_code"], retrying.data["attempt"]) == (5, 2)
    assert retrying.data["next"]["node"] == "worker-4"
    assert again.step is Progress.RUNNING


def test_a_failed_allocation_about_which_nomad_has_not_decided_is_no_news() -> None:
    evaluations = [evaluation(), evaluation("alloc-failure", "pending")]

    assert ongoing(snapshot(job("pending"), [ended(Verdict.FAILED)], evaluations)) == Ongoing()


# Evidence -------------------------------------------------------------------------------------------


def test_the_same_snapshot_gives_the_same_outcome_whatever_the_order_of_its_parts() -> None:
    spec = job("dead", group(count=3))
    parts = [ended(Verdict.FAILED, 0), ended(Verdict.DRAINED, 1), ended(Verdict.SUCCEEDED, 2)]

    outcomes = [outcome(snapshot(spec, order)) for order in permutations(parts)]

    assert all(given == outcomes[0] for given in outcomes)


def test_evidence_tells_all_attempts_tasks_and_durations() -> None:
    old = allocation({"main": ran(5)}, "failed", "stop", id="old", next="new", created=5)
    new = allocation({"main": ran(6)}, "failed", id="new", previous="old", created=30)

    evidence = outcome(snapshot(job("dead"), [old, new])).evidence

    first, second = evidence["allocations"]
    assert (first["allocation"], first["counts"], first["replaced_by"]) == ("old", False, "new")
    assert (second["allocation"], second["counts"], second["replaces"]) == ("new", True, "old")
    (task,) = second["tasks"]
    assert (task["name"], task["exit_code"], task["failed"], task["main"]) == ("main", 6, True, True)
    assert task["events"][-2] == {"type": "Terminated", "at": "2026-11-24T01:48:05.000Z", "exit_code": 6}
    assert evidence["durations"] == {"placement": 0.5, "run": 2.25}
    assert evidence["deciding"]["allocation"] == "new"
    assert evidence["evaluations"][0]["triggered_by"] == "job-register"


def test_evidence_of_a_huge_job_is_bounded_and_counts_what_it_leaves_out() -> None:
    long = "x" * 10_000
    events = [event("Signaling", 1, display_message=long) for _ in range(9)]
    tasks = {f"task-{index}": state(*events, exited(1), failed=True) for index in range(30)}
    allocations = [
        allocation(tasks, "failed", id=f"a{index}", index=index, said=long, wanted=long)
        for index in range(200)
    ]
    evaluations = [evaluation("node-update", id=f"e{index}", created=index) for index in range(100)]
    evaluations.append(
        evaluation(failed={f"g{n}": AllocMetric(constraint_filtered={long: 1}) for n in range(50)})
    )

    given = outcome(snapshot(job("dead", group(count=200)), allocations, evaluations))

    assert len(given.evidence["allocations"]) == ALLOCATIONS_SHOWN
    assert given.evidence["allocations_left_out"] == 200 - ALLOCATIONS_SHOWN
    assert given.evidence["evaluations_left_out"] == 101 - EVALUATIONS_SHOWN
    assert given.evidence["deciding"]["allocation"] in {
        one["allocation"] for one in given.evidence["allocations"]
    }
    assert len(msgspec.json.encode(given.evidence)) < 100_000
    assert len(given.error_message) < 1_000


def test_a_step_that_is_shown_already_is_found_without_what_was_published_with_it() -> None:
    told = snapshot(job("running"), [allocation(None, "running")])

    first = judge(told)

    assert isinstance(first, Ongoing)
    assert first.step is not None
    assert first.data
    assert judge(told, shown=first.step.value) == Ongoing(first.step)
    assert judge(told, shown="placed") == first
