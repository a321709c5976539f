"""What becomes of a job: several instances, stops, deletion, retries, and what is not certain yet."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.core.stories import (
    MAIN,
    NODE_DOWN,
    NOT_NEEDED,
    POSTSTOP,
    allocation,
    ended,
    evaluation,
    event,
    group,
    job,
    killed,
    ran,
    running,
    snapshot,
)
from worker.core.model import Outcome, Verdict
from worker.core.observed import Allocation, AllocMetric, DesiredTransition, Snapshot, TaskState
from worker.core.story import GAVE_WAY
from worker.core.verdict import PRIORITY, Final, Ongoing, judge

FULL = AllocMetric(nodes_evaluated=1, nodes_exhausted=1, dimension_exhausted={"memory": 1})


def outcome(told: Snapshot, *, stopping: str = "", grace_over: bool = False) -> Outcome:
    finding = judge(told, stopping=stopping, grace_over=grace_over)
    assert isinstance(finding, Final)
    return finding.outcome


def ongoing(told: Snapshot, *, stopping: str = "", grace_over: bool = False) -> Ongoing:
    finding = judge(told, stopping=stopping, grace_over=grace_over)
    assert isinstance(finding, Ongoing)
    return finding


# Several instances ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(a, b) for i, a in enumerate(PRIORITY) for b in PRIORITY[i:]])
def test_instances_that_ended_differently_give_the_first_verdict_by_priority(
    first: Verdict, second: Verdict
) -> None:
    spec = job("dead", group(count=2))

    one_way = outcome(snapshot(spec, [ended(first, 0), ended(second, 1)]))
    other_way = outcome(snapshot(spec, [ended(second, 0), ended(first, 1)]))

    assert one_way.verdict is other_way.verdict is first


def test_of_several_failures_the_first_in_time_decides() -> None:
    spec = job("dead", group(count=3))
    allocations = [
        allocation({"main": ran(7, at=5)}, "failed", id="late", index=0),
        allocation({"main": ran(3, at=2)}, "failed", id="early", index=1),
        allocation({"main": ran(0, at=1)}, id="fine", index=2),
    ]

    given = outcome(snapshot(spec, allocations))

    assert given.exit_code == 3
    assert given.evidence["deciding"]["allocation"] == "early"


def test_three_instances_that_all_exited_0_are_a_success() -> None:
    allocations = [ended(Verdict.SUCCEEDED, index) for index in range(3)]

    given = outcome(snapshot(job("dead", group(count=3)), allocations))

    assert (given.verdict, given.exit_code, given.error_code) == (Verdict.SUCCEEDED, 0, "")
    assert len(given.evidence["allocations"]) == 3


def test_an_instance_that_never_ran_makes_a_dead_job_a_failure() -> None:
    allocations = [ended(Verdict.SUCCEEDED, index) for index in range(2)]

    given = outcome(snapshot(job("dead", group(count=3)), allocations))

    assert (given.verdict, given.error_code) == (Verdict.FAILED, "job.never_ran")
    assert given.error_message == "1 instance of the job never ran, and the job is dead"


def test_an_instance_that_was_garbage_collected_makes_the_job_unknown() -> None:
    # The evaluation that came with the job is gone, and took its allocations along.
    allocations = [ended(Verdict.SUCCEEDED, index) for index in range(2)]
    later = [evaluation("node-update", created=40)]

    given = outcome(snapshot(job("dead", group(count=3)), allocations, later))

    assert (given.verdict, given.error_code) == (Verdict.UNKNOWN_GC, "job.collected")


def test_a_failure_stays_one_though_another_instance_is_not_there() -> None:
    given = outcome(snapshot(job("dead", group(count=3)), [ended(Verdict.FAILED, 1)]))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 1)


def test_a_group_with_nothing_to_run_is_not_waited_for() -> None:
    spec = job("dead", group("g"), group("none", count=0))

    assert outcome(snapshot(spec, [ended(Verdict.SUCCEEDED)])).verdict is Verdict.SUCCEEDED


def test_a_sysbatch_job_counts_by_node_for_its_names_are_all_alike() -> None:
    spec = job("dead", type="sysbatch")
    fine = allocation({"main": ran()}, id="a1", node="n1")
    failed = allocation({"main": ran(2)}, "failed", id="a2", node="n2", created=7)
    replaced = allocation({"main": ran(9)}, "failed", id="a0", node="n1", created=5, next="a1")

    given = outcome(snapshot(spec, [fine, failed, replaced]))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 2)


def test_a_sysbatch_allocation_that_moved_to_another_node_does_not_count() -> None:
    moved = allocation({"main": killed()}, "complete", "stop", id="old", node="n1", next="new")
    new = allocation({"main": ran()}, id="new", node="n2", created=30)

    assert outcome(snapshot(job("dead", type="sysbatch"), [moved, new])).verdict is Verdict.SUCCEEDED


def test_a_sysbatch_job_that_fits_no_node_is_dead_at_once_and_never_ran() -> None:
    told = [evaluation(failed={"g": AllocMetric(nodes_evaluated=1, constraint_filtered={"x = y": 1})})]

    given = outcome(snapshot(job("dead", type="sysbatch"), [], told))

    assert (given.verdict, given.exit_code, given.error_code) == (Verdict.FAILED, None, "job.never_ran")
    assert 'constraint "x = y" filtered 1 node' in given.error_message


def test_a_sysbatch_job_one_of_whose_groups_fits_no_node_is_no_success() -> None:
    spec = job("dead", group("fits"), group("fits-nowhere"), group("none", count=0), type="sysbatch")
    done = allocation({"main": ran()}, group="fits")
    told = [evaluation(failed={"fits-nowhere": AllocMetric(nodes_evaluated=1, constraint_filtered={"x": 1})})]

    given = outcome(snapshot(spec, [done], told))

    assert (given.verdict, given.error_code) == (Verdict.FAILED, "job.never_ran")
    assert given.error_message == "1 instance of the job never ran, and the job is dead"
    assert [one["group"] for one in given.evidence["placement"]] == ["fits-nowhere"]


def test_a_dead_job_without_allocations_and_evaluations_was_garbage_collected() -> None:
    assert outcome(snapshot(job("dead"), [], [])).verdict is Verdict.UNKNOWN_GC


# Replaced allocations -------------------------------------------------------------------------------


def test_a_preempted_allocation_has_no_link_to_the_one_that_took_its_place() -> None:
    # As measured: NextAllocation stays empty after a preemption.
    old = allocation({"main": killed()}, "complete", "evict", id="old", created=11, preempted_by="p")
    new = allocation({"main": ran()}, id="new", created=30)

    given = outcome(snapshot(job("dead"), [new, old]))

    assert given.verdict is Verdict.SUCCEEDED
    assert [one["counts"] for one in given.evidence["allocations"]] == [False, True]


def test_a_drained_allocation_that_was_placed_again_does_not_count() -> None:
    # Nomad 2.0 does not place drained batch work again; others may.
    old = allocation(
        {"main": killed()}, desired="stop", wanted="alloc is being migrated", id="old", next="new"
    )
    new = allocation({"main": ran()}, id="new", created=30)

    given = outcome(snapshot(job("dead"), [new, old], [evaluation(), evaluation("node-drain", created=15)]))

    assert given.verdict is Verdict.SUCCEEDED
    assert [one["counts"] for one in given.evidence["allocations"]] == [False, True]


def test_a_lost_allocation_that_came_back_does_not_count_beside_its_replacement() -> None:
    # Both copies ran to their end; the first, cut off, even exited 0.
    old = allocation({"main": ran()}, "complete", "stop", wanted=NODE_DOWN, id="old", next="new")
    new = allocation({"main": ran(4)}, "failed", id="new", created=30)

    given = outcome(snapshot(job("dead"), [old, new]))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 4)


def test_an_allocation_replaced_by_one_that_is_not_known_decides_nothing() -> None:
    old = allocation({"main": ran(1)}, "failed", "stop", next="unseen")

    assert ongoing(snapshot(job("dead"), [old])) == Ongoing(needs_read=True)


# As Nomad leaves it when a disconnected client comes back and its allocation is preferred: the link to the
# replacement stays, and the replacement is stopped.


def gave_way(*, client: str = "complete", **known: Any) -> Allocation:
    return allocation({"main": killed()}, client, "stop", wanted=GAVE_WAY, **known)


@pytest.mark.parametrize(
    ("task", "client", "desired", "verdict"),
    [
        (ran(), "complete", "run", Verdict.SUCCEEDED),
        (ran(7), "failed", "run", Verdict.FAILED),
        (killed(), "complete", "stop", Verdict.STOPPED),
    ],
)
def test_an_allocation_that_came_back_counts_and_not_the_one_that_gave_way_to_it(
    task: TaskState, client: str, desired: str, verdict: Verdict
) -> None:
    back = allocation({"main": task}, client, desired, wanted=NOT_NEEDED, id="a", created=11, next="b")

    given = outcome(snapshot(job("dead"), [back, gave_way(id="b", created=30)]))

    assert given.verdict is verdict
    assert [one["counts"] for one in given.evidence["allocations"]] == [True, False]


def test_a_replacement_that_was_done_when_it_gave_way_is_no_success_of_the_job() -> None:
    back = allocation({"main": ran(3)}, "failed", id="a", created=11, next="b")
    done = allocation({"main": ran()}, "complete", "stop", wanted=GAVE_WAY, id="b", created=30)

    given = outcome(snapshot(job("dead"), [back, done]))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 3)


def test_an_allocation_that_came_back_counts_before_its_replacements_replacement() -> None:
    back = allocation({"main": ran()}, id="a", created=11, next="b")
    drained = allocation({"main": killed()}, desired="stop", id="b", created=20, next="c")

    given = outcome(snapshot(job("dead"), [back, drained, gave_way(id="c", created=30)]))

    assert given.verdict is Verdict.SUCCEEDED


def test_the_one_that_is_said_to_have_come_back_counts_though_it_was_stopped_since() -> None:
    seen = killed()
    events = [*(seen.events or ()), event("Reconnected", 9)]
    back = allocation({"main": replace(seen, events=events)}, desired="stop", id="a", created=11, next="b")
    failed = allocation({"main": ran(9)}, "failed", id="b", created=20, next="c")

    given = outcome(snapshot(job("dead"), [back, failed, gave_way(id="c", created=30)]))

    assert given.verdict is Verdict.STOPPED


def test_what_replaced_an_allocation_that_had_come_back_counts() -> None:
    back = allocation({"main": ran(1)}, "failed", id="a", created=11, next="d")
    again = allocation({"main": ran(4)}, "failed", id="d", created=40)

    given = outcome(snapshot(job("dead"), [back, gave_way(id="b", created=30), again]))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 4)


def test_what_replaced_an_allocation_that_had_come_back_is_looked_for() -> None:
    back = allocation({"main": ran(1)}, "failed", id="a", created=11, next="unseen")

    told = snapshot(job("dead"), [back, gave_way(id="b", created=30)])

    assert ongoing(told) == Ongoing(needs_read=True)


# Stops ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopping", ["timed_out", "cancelled", "unplaced"])
def test_a_job_that_the_worker_stopped_gets_the_verdict_it_was_stopped_for(stopping: str) -> None:
    stopped = snapshot(job("dead", stop=True), [ended(Verdict.STOPPED)])

    given = outcome(stopped, stopping=stopping)

    assert (given.verdict.value, given.exit_code) == (stopping, 137)
    assert given.error_message.startswith(f"the worker stopped the job ({stopping})")


@pytest.mark.parametrize("verdict", [Verdict.SUCCEEDED, Verdict.FAILED, Verdict.OOM_KILLED])
@pytest.mark.parametrize("stopping", ["", "timed_out"])
def test_a_job_that_was_over_before_the_stop_keeps_its_true_verdict(verdict: Verdict, stopping: str) -> None:
    assert outcome(snapshot(job("dead", stop=True), [ended(verdict)]), stopping=stopping).verdict is verdict


def test_a_job_stopped_while_one_of_two_instances_was_done_is_stopped() -> None:
    spec = job("dead", group(count=2), stop=True)

    given = outcome(snapshot(spec, [ended(Verdict.SUCCEEDED, 0), ended(Verdict.STOPPED, 1)]))

    assert given.verdict is Verdict.STOPPED
    assert given.evidence["deciding"]["allocation"] == "1-stopped"


def test_a_job_stopped_while_one_of_two_instances_had_failed_shows_the_one_that_was_stopped() -> None:
    spec = job("dead", group(count=2), stop=True)

    given = outcome(snapshot(spec, [ended(Verdict.FAILED, 0), ended(Verdict.STOPPED, 1)]))

    assert (given.verdict, given.exit_code) == (Verdict.STOPPED, 137)
    assert given.evidence["deciding"]["allocation"] == "1-stopped"


@pytest.mark.parametrize("status", ["pending", "blocked"])
def test_nothing_revives_a_job_that_was_stopped(status: str) -> None:
    told = snapshot(job("dead", stop=True), [ended(Verdict.STOPPED)], [evaluation(status=status)])

    assert outcome(told).verdict is Verdict.STOPPED


def test_a_job_stopped_before_its_second_instance_was_placed_is_stopped() -> None:
    spec = job("dead", group(count=2), stop=True)

    given = outcome(snapshot(spec, [ended(Verdict.SUCCEEDED, 0)]))

    assert (given.verdict, given.exit_code) == (Verdict.STOPPED, None)


def test_a_job_stopped_while_it_waited_for_its_next_try_is_stopped() -> None:
    waiting = allocation({"main": ran(7)}, "failed", followup="later")
    evaluations = [evaluation(), evaluation("alloc-reschedule", id="later")]

    given = outcome(snapshot(job("dead", stop=True), [waiting], evaluations), stopping="cancelled")

    assert (given.verdict, given.exit_code) == (Verdict.CANCELLED, 7)


def test_a_job_that_was_never_placed_and_given_up_says_why() -> None:
    evaluations = [
        evaluation(failed={"g": FULL}),
        evaluation("queued-allocs", "canceled", failed={"g": FULL}),
    ]

    given = outcome(snapshot(job("dead", stop=True), [], evaluations), stopping="unplaced")

    assert given.verdict is Verdict.UNPLACED
    assert "before it was placed" in given.error_message
    assert "1 node without enough memory" in given.error_message
    assert given.evidence["placement"][0]["dimension_exhausted"] == {"memory": 1}


def test_a_stopped_job_that_is_not_dead_is_waited_for() -> None:
    told = snapshot(job("running", stop=True), [allocation({"main": running()}, "running")])

    assert ongoing(told) == Ongoing()
    assert ongoing(told, grace_over=True) == Ongoing(needs_read=True)


def test_a_job_stopped_while_its_poststop_task_runs_is_waited_for_though_its_main_task_is_done() -> None:
    spec = job("dead", group("g", MAIN, POSTSTOP), stop=True)
    tasks = {"main": ran(), "post": running()}
    told = snapshot(spec, [allocation(tasks, "running", "stop", wanted=NOT_NEEDED)])

    assert ongoing(told) == Ongoing()


def test_a_grace_that_is_over_is_acted_on_only_after_a_read() -> None:
    ending = [allocation({"main": running()}, "running", "stop", wanted=NOT_NEEDED)]

    assert ongoing(snapshot(job("dead", stop=True), ending, whole=False), grace_over=True).needs_read
    assert outcome(snapshot(job("dead", stop=True), ending), grace_over=True).verdict is Verdict.STOPPED


def test_a_drained_job_is_dead_before_its_task_has_ended() -> None:
    draining = allocation({"main": running()}, "running", "stop", wanted="alloc is being migrated")
    told = snapshot(job("dead"), [draining], [evaluation(), evaluation("node-drain", created=15)])

    assert ongoing(told) == Ongoing()
    assert outcome(told, grace_over=True).verdict is Verdict.DRAINED


def test_an_operators_stop_of_one_allocation_is_no_drain_though_nomad_calls_it_migrated() -> None:
    drained = [ended(Verdict.DRAINED)]
    by_hand = [evaluation(), evaluation("alloc-stop", created=15)]

    assert outcome(snapshot(job("dead"), drained, by_hand)).verdict is Verdict.STOPPED
    marked = DesiredTransition(migrate=True, migrate_disable_placement=True)
    certain = [msgspec.structs.replace(drained[0], desired_transition=marked)]
    assert outcome(snapshot(job("dead"), certain, by_hand)).verdict is Verdict.DRAINED
    both = [*by_hand, evaluation("node-drain", created=16)]
    assert outcome(snapshot(job("dead"), drained, both)).verdict is Verdict.DRAINED


def test_a_run_limit_is_judged_when_the_task_has_ended_or_its_grace_is_over() -> None:
    said = "allocation exceeded max_run_duration"
    told = snapshot(job("dead"), [allocation({"main": running()}, said=said)])

    assert ongoing(told) == Ongoing()
    given = outcome(told, grace_over=True)
    assert (given.verdict, given.exit_code) == (Verdict.TIMED_OUT, None)


# Deleted jobs ---------------------------------------------------------------------------------------


def test_a_job_that_is_gone_is_never_guessed_at() -> None:
    for told in (
        snapshot(None, [], [], gone=True),
        snapshot(job("running"), [allocation({"main": running()}, "running")], gone=True),
        snapshot(job("running"), [ended(Verdict.SUCCEEDED)], gone=True),
        snapshot(job("dead"), [ended(Verdict.FAILED, 1)], gone=True, whole=False),
        snapshot(job("dead"), [ended(Verdict.FAILED)], [evaluation("queued-allocs", "blocked")], gone=True),
    ):
        assert outcome(told).verdict is Verdict.UNKNOWN_GC


def test_a_job_that_is_gone_keeps_the_verdict_that_was_certain_before() -> None:
    for whole in (True, False):
        told = snapshot(job("dead"), [ended(Verdict.FAILED)], gone=True, whole=whole)

        assert outcome(told).verdict is Verdict.FAILED


def test_a_job_deleted_alive_was_stopped_and_one_deleted_dead_is_unknown() -> None:
    # A purge of a running job and the garbage collection of a dead one look alike but for the job's status.
    alive = [allocation({"main": running()}, "running")]

    assert outcome(snapshot(job("running"), alive, purged=True)).verdict is Verdict.STOPPED
    assert outcome(snapshot(job("dead"), alive, purged=True)).verdict is Verdict.UNKNOWN_GC
    assert outcome(snapshot(None, [], [], purged=True)).verdict is Verdict.UNKNOWN_GC


def test_a_job_that_the_worker_stopped_and_that_is_gone_since_keeps_the_reason() -> None:
    told = snapshot(job("running"), [allocation({"main": running()}, "running")], gone=True)

    assert outcome(told, stopping="timed_out").verdict is Verdict.TIMED_OUT
    stopped = snapshot(job("dead", stop=True), [ended(Verdict.STOPPED)], gone=True)
    assert outcome(stopped, stopping="timed_out").verdict is Verdict.TIMED_OUT


def test_a_job_seen_stopped_and_then_gone_was_stopped() -> None:
    told = snapshot(job("dead", stop=True), [allocation({"main": running()}, "running", "stop")], gone=True)

    assert outcome(told).verdict is Verdict.STOPPED


# Not certain yet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "blocked"])
def test_a_dead_job_whose_evaluation_is_open_may_come_to_life_again(status: str) -> None:
    told = snapshot(job("dead"), [ended(Verdict.FAILED)], [evaluation(), evaluation("node-update", status)])

    assert ongoing(told, grace_over=True) == Ongoing(needs_read=True)


def test_a_failed_evaluation_says_nothing_about_the_job() -> None:
    told = snapshot(
        job("dead"), [ended(Verdict.SUCCEEDED)], [evaluation(), evaluation("reconnect", "failed")]
    )

    assert outcome(told).verdict is Verdict.SUCCEEDED


def test_a_retry_ordered_by_an_evaluation_not_seen_yet_is_waited_for() -> None:
    told = snapshot(job("dead"), [allocation({"main": ran(1)}, "failed", followup="unseen")])

    assert ongoing(told) == Ongoing(needs_read=True)
    assert outcome(told, grace_over=True).verdict is Verdict.FAILED


def test_events_that_leave_a_gap_are_not_enough() -> None:
    spec = job("dead", group(count=2))
    one_of_two = [ended(Verdict.FAILED)]
    replaced = [ended(Verdict.SUCCEEDED), allocation({"main": ran(1)}, "failed", id="old", created=5)]

    for told in (
        snapshot(spec, one_of_two, whole=False),
        snapshot(job("dead"), replaced, whole=False),
        snapshot(job("dead"), [], whole=False),
        snapshot(job("dead", type="sysbatch"), [ended(Verdict.SUCCEEDED)], whole=False),
        snapshot(job("dead"), [ended(Verdict.FAILED)], [evaluation("node-update")], whole=False),
        # Tried again and given up: the evaluation of the retry is known, what it brought may not be.
        snapshot(
            job("dead"),
            [allocation({"main": ran(1)}, "failed", followup="e")],
            [evaluation(), evaluation("queued-allocs", id="e")],
            whole=False,
        ),
        snapshot(job("dead"), [allocation({"main": running()}, "running")], whole=True),
    ):
        assert ongoing(told) == Ongoing(needs_read=True)


def test_events_that_tell_a_plain_story_are_enough() -> None:
    for verdict in (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.OOM_KILLED, Verdict.TIMED_OUT):
        assert outcome(snapshot(job("dead"), [ended(verdict)], whole=False)).verdict is verdict


@pytest.mark.parametrize("client", ["pending", "running", "unknown", "complete", "failed", "lost"])
def test_no_allocation_ends_a_job_that_is_not_dead(client: str) -> None:
    for status in ("pending", "running"):
        told = snapshot(job(status), [allocation({"main": ran()}, client)])

        assert isinstance(judge(told, grace_over=True), Ongoing)
