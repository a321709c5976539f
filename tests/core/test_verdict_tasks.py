"""Which tasks decide, and what counts as a kill: cases measured on a Nomad agent, put together by hand."""

import pytest

from tests.core.stories import (
    MAIN,
    POSTSTART,
    POSTSTOP,
    PRESTART,
    SIDECAR,
    allocation,
    event,
    exited,
    group,
    job,
    killed,
    ran,
    running,
    snapshot,
    state,
)
from worker.core.ending import ending_of
from worker.core.model import Outcome, Verdict
from worker.core.observed import Allocation, Task, TaskEvent, TaskGroup, TaskState
from worker.core.verdict import Final, judge

LEADER = Task(name="lead", leader=True)
FOLLOWER = Task(name="follow")


def outcome(one: Allocation, spec: TaskGroup | None = None) -> Outcome:
    finding = judge(snapshot(job("dead", spec or group()), [one]))
    assert isinstance(finding, Final)
    return finding.outcome


# Helpers do not decide ------------------------------------------------------------------------------


def test_a_sidecar_killed_when_the_main_task_is_done_leaves_a_success() -> None:
    tasks = {"main": ran(), "side": killed(because="Main Tasks Dead")}

    given = outcome(allocation(tasks), group("g", MAIN, SIDECAR))

    assert (given.verdict, given.exit_code) == (Verdict.SUCCEEDED, 0)
    assert [task["main"] for task in given.evidence["allocations"][0]["tasks"]] == [True, False]


def test_a_poststop_task_that_fails_does_not_undo_a_success() -> None:
    # Nomad calls the whole allocation failed.
    tasks = {"main": ran(), "post": ran(5, at=4)}

    given = outcome(allocation(tasks, "failed", said="Failed tasks"), group("g", MAIN, POSTSTOP))

    assert (given.verdict, given.exit_code) == (Verdict.SUCCEEDED, 0)


def test_a_poststop_task_that_fails_too_is_not_the_reason() -> None:
    tasks = {"main": ran(6), "post": ran(5, at=2)}

    given = outcome(allocation(tasks, "failed"), group("g", MAIN, POSTSTOP))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 6)


def test_a_poststop_task_that_fails_after_a_drain_leaves_it_a_drain() -> None:
    tasks = {"main": killed(), "post": ran(5, at=6)}
    one = allocation(tasks, "failed", "stop", wanted="alloc is being migrated", migrate=True)

    assert outcome(one, group("g", MAIN, POSTSTOP)).verdict is Verdict.DRAINED


def test_a_sidecar_that_fails_while_the_allocation_is_drained_leaves_it_a_drain() -> None:
    tasks = {"main": killed(), "side": ran(9, at=6)}
    one = allocation(tasks, "failed", "stop", wanted="alloc is being migrated", migrate=True)

    assert outcome(one, group("g", MAIN, SIDECAR)).verdict is Verdict.DRAINED


def test_a_helper_that_fails_while_one_of_two_main_tasks_is_drained_is_not_the_reason() -> None:
    tasks = {"main": ran(), "other": killed(), "side": ran(9, at=6)}
    one = allocation(tasks, "failed", "stop", wanted="alloc is being migrated", migrate=True)

    assert outcome(one, group("g", MAIN, Task(name="other"), SIDECAR)).verdict is Verdict.DRAINED


def test_without_the_jobs_word_a_task_that_nomad_ended_after_the_main_ones_is_a_helper() -> None:
    tasks = {"main": ran(), "side": killed(because="Main Tasks Dead")}

    assert ending_of(allocation(tasks), None, stopped_by_hand=False).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize(("helper", "code"), [(PRESTART, 4), (POSTSTART, 5), (SIDECAR, 9)])
def test_a_helper_that_fails_and_takes_the_main_task_down_is_the_failure(helper: Task, code: int) -> None:
    tasks = {"main": killed(because="Sibling Task Failed"), helper.name: ran(code, at=2)}

    given = outcome(allocation(tasks, "failed"), group("g", MAIN, helper))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, code)
    assert given.evidence["deciding"]["task"] == helper.name


def test_a_main_task_that_never_started_because_a_prestart_task_failed_is_a_failure() -> None:
    never = state(event("Received"), event("Sibling Task Failed", 1), event("Killing", 1))
    tasks = {"main": never, "pre": ran(4, at=1)}

    given = outcome(allocation(tasks, "failed"), group("g", MAIN, PRESTART))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 4)


def test_a_sidecar_that_fails_after_the_main_task_is_done_does_not_decide() -> None:
    tasks = {"main": ran(), "side": ran(9, at=5)}

    assert outcome(allocation(tasks, "failed"), group("g", MAIN, SIDECAR)).verdict is Verdict.SUCCEEDED


def test_a_sidecar_out_of_memory_that_takes_the_main_task_down_is_out_of_memory() -> None:
    tasks = {"main": killed(because="Sibling Task Failed"), "side": ran(137, 9, at=2, oom="true")}

    given = outcome(allocation(tasks, "failed"), group("g", MAIN, SIDECAR))

    assert given.verdict is Verdict.OOM_KILLED
    assert given.evidence["deciding"]["task"] == "side"


# Leaders --------------------------------------------------------------------------------------------


def test_followers_ended_because_their_leader_was_done_leave_a_success() -> None:
    tasks = {"lead": ran(), "follow": killed(because="Leader Task Dead")}

    given = outcome(allocation(tasks), group("g", LEADER, FOLLOWER))

    assert (given.verdict, given.exit_code) == (Verdict.SUCCEEDED, 0)
    assert given.evidence["deciding"]["task"] == "lead"


def test_a_leader_that_fails_is_the_failure() -> None:
    tasks = {"lead": ran(3), "follow": killed(because="Sibling Task Failed")}

    given = outcome(allocation(tasks, "failed"), group("g", LEADER, FOLLOWER))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 3)


def test_a_leader_killed_from_outside_takes_its_followers_along_and_is_no_success() -> None:
    # As recorded when a job with a leader is stopped: the followers name the leader as the reason.
    tasks = {"lead": killed(), "follow": killed(because="Leader Task Dead", at=5)}
    one = allocation(tasks, "complete", "stop", wanted="alloc not needed due to job update")

    given = outcome(one, group("g", LEADER, FOLLOWER))

    assert given.verdict is Verdict.STOPPED
    assert given.evidence["deciding"]["task"] == "lead"


@pytest.mark.parametrize(
    ("follower", "client", "desired", "verdict"),
    [
        # Without the event, something else ended it.
        (killed(), "complete", "stop", Verdict.STOPPED),
        # Ended because of the leader, and failed on its way out.
        (ran(9), "failed", "run", Verdict.FAILED),
        (
            state(event("Started", 1), event("Leader Task Dead", 3), exited(9, at=4), failed=True),
            "failed",
            "run",
            Verdict.FAILED,
        ),
    ],
)
def test_a_follower_that_its_leader_did_not_end_well_is_not_excused(
    follower: TaskState, client: str, desired: str, verdict: Verdict
) -> None:
    one = allocation({"lead": ran(), "follow": follower}, client, desired)

    assert outcome(one, group("g", LEADER, FOLLOWER)).verdict is verdict


def test_a_follower_that_is_still_ending_is_waited_for() -> None:
    ending = state(event("Started", 1), event("Leader Task Dead", 3), event("Killing", 3), now="running")
    told = snapshot(
        job("dead", group("g", LEADER, FOLLOWER)), [allocation({"lead": ran(), "follow": ending})]
    )

    assert not isinstance(judge(told), Final)


def test_main_tasks_that_all_ended_with_a_leader_among_the_helpers_prove_no_success() -> None:
    tasks = {"follow": killed(because="Leader Task Dead"), "side": ran()}
    leading_helper = Task(name="side", lifecycle=SIDECAR.lifecycle, leader=True)

    given = outcome(allocation(tasks), group("g", FOLLOWER, leading_helper))

    assert (given.verdict, given.error_code) == (Verdict.UNKNOWN_GC, "job.exit_unknown")


def test_a_leader_event_in_a_group_without_leader_excuses_nothing() -> None:
    tasks = {"main": ran(), "follow": killed(because="Leader Task Dead")}

    assert outcome(allocation(tasks), group("g", MAIN, FOLLOWER)).verdict is not Verdict.SUCCEEDED


# Memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "code"),
    [
        (ran(137, 9, oom="true"), 137),
        (ran(137, 9, said="OOM Killed"), 137),
        (ran(1, oom="true"), 1),
        # The kernel may kill a child process of the task while the task itself ends well.
        (ran(0, oom="true"), None),
    ],
)
def test_the_out_of_memory_killer_is_named_wherever_the_driver_tells_of_it(
    task: TaskState, code: int | None
) -> None:
    for client in ("failed", "complete"):
        given = outcome(allocation({"main": task}, client))

        assert (given.verdict, given.exit_code) == (Verdict.OOM_KILLED, code)
        assert "ran out of memory" in given.error_message


def test_a_task_restarted_after_it_ran_out_of_memory_may_still_succeed() -> None:
    task = state(
        event("Started", 1),
        exited(137, 9, 2, oom="true"),
        event("Restarting", 2),
        event("Started", 3),
        exited(0, at=4),
        restarts=1,
    )

    assert outcome(allocation({"main": task})).verdict is Verdict.SUCCEEDED


# Kills ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [
        ({"desired": "evict"}, Verdict.PREEMPTED),
        ({"desired": "stop", "preempted_by": "9a9a9a9a-1"}, Verdict.PREEMPTED),
        ({"desired": "stop", "wanted": "alloc is being migrated"}, Verdict.DRAINED),
        ({"desired": "stop", "wanted": "alloc not needed as node is tainted"}, Verdict.DRAINED),
        ({"desired": "stop", "migrate": True}, Verdict.DRAINED),
        ({"desired": "stop", "wanted": "alloc is being migrated", "migrate": True}, Verdict.DRAINED),
        ({"desired": "stop", "wanted": "alloc not needed due to job update"}, Verdict.STOPPED),
        ({"desired": "stop", "wanted": "alloc is lost since its node is down"}, Verdict.LOST),
        ({"desired": "run"}, Verdict.STOPPED),
    ],
)
@pytest.mark.parametrize("task", [killed(), killed(0, 0), killed(143, 15)])
def test_a_killed_task_is_never_a_success_even_if_it_ended_with_0(
    task: TaskState, wanted: dict[str, str], verdict: Verdict
) -> None:
    one = allocation({"main": task}, **wanted)  # type: ignore[arg-type]

    given = outcome(one)

    assert given.verdict is verdict
    assert given.exit_code != 0


def test_a_task_that_ended_by_itself_before_the_stop_reached_it_succeeded() -> None:
    one = allocation({"main": ran()}, "complete", "stop", wanted="alloc is being migrated", migrate=True)

    assert outcome(one).verdict is Verdict.SUCCEEDED


def test_a_task_that_failed_by_itself_before_the_stop_reached_it_failed() -> None:
    one = allocation({"main": ran(8)}, "failed", "stop", wanted="alloc is being migrated", migrate=True)

    assert outcome(one).verdict is Verdict.FAILED


def test_a_task_that_ended_with_an_error_before_the_stop_reached_it_failed_though_nomad_does_not_say_so() -> (
    None
):
    task = state(event("Started", 1), exited(3))
    one = allocation({"main": task}, "complete", "stop", wanted="alloc not needed due to job update")

    given = outcome(one)

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, 3)


def test_of_two_main_tasks_that_failed_the_first_in_time_is_the_reason() -> None:
    tasks = {"main": ran(7, at=5), "other": ran(3, at=2)}

    given = outcome(allocation(tasks, "failed"), group("g", MAIN, Task(name="other")))

    assert given.exit_code == 3
    assert given.evidence["deciding"]["task"] == "other"


def test_a_task_ended_when_it_exited_and_not_when_nomad_gave_it_up() -> None:
    early = state(event("Started", 1), exited(3, at=2), event("Not Restarting", 9), failed=True)

    given = outcome(
        allocation({"main": ran(7, at=5), "other": early}, "failed"), group("g", MAIN, Task(name="other"))
    )

    assert given.exit_code == 3


def test_a_success_rests_on_the_main_task_that_ended_last() -> None:
    tasks = {"main": ran(at=5), "other": ran(at=2)}

    given = outcome(allocation(tasks), group("g", MAIN, Task(name="other")))

    assert given.verdict is Verdict.SUCCEEDED
    assert given.evidence["deciding"]["task"] == "main"


def test_an_allocation_told_to_stop_is_waited_for_though_one_of_its_tasks_has_ended_with_an_error() -> None:
    tasks = {"main": state(event("Started", 1), exited(3)), "other": running()}
    one = allocation(tasks, "running", "stop", wanted="alloc is being migrated")

    finding = judge(snapshot(job("dead", group("g", MAIN, Task(name="other"))), [one]))

    assert not isinstance(finding, Final)


@pytest.mark.parametrize("code", [0, 137])
def test_a_task_over_its_run_limit_timed_out_even_if_it_ended_with_0(code: int) -> None:
    said = "allocation exceeded max_run_duration"
    one = allocation({"main": killed(code, said=said)}, "complete", "run", said=said)

    given = outcome(one)

    assert given.verdict is Verdict.TIMED_OUT
    assert given.exit_code == (code or None)


def test_a_run_limit_that_only_the_kill_tells_of_is_one_too() -> None:
    one = allocation({"main": killed(said="allocation exceeded max_run_duration")})

    assert outcome(one).verdict is Verdict.TIMED_OUT


def test_a_run_limit_met_after_the_main_task_was_done_changes_nothing() -> None:
    said = "allocation exceeded max_run_duration"
    tasks = {"main": ran(), "post": killed(said=said)}

    assert outcome(allocation(tasks, said=said), group("g", MAIN, POSTSTOP)).verdict is Verdict.SUCCEEDED


def test_a_task_restarted_by_hand_counts_by_its_last_run() -> None:
    task = state(
        event("Started", 1),
        event("Restart Signaled", 2),
        exited(137, 9, 2),
        event("Restarting", 2),
        event("Started", 3),
        exited(0, at=4),
        restarts=1,
    )

    assert outcome(allocation({"main": task})).verdict is Verdict.SUCCEEDED


def test_a_task_killed_while_it_waited_for_its_restart_was_killed() -> None:
    task = state(
        event("Started", 1), exited(1, at=2), event("Restarting", 2), event("Killing", 3), event("Killed", 3)
    )
    one = allocation({"main": task}, "complete", "stop", wanted="alloc not needed due to job update")

    given = outcome(one)

    assert (given.verdict, given.exit_code) == (Verdict.STOPPED, None)


def test_a_template_that_cannot_be_rendered_is_a_failure_that_says_why() -> None:
    said = 'Template failed: function "bad" not defined'
    kill = TaskEvent(type="Killing", display_message=said, fails_task=True)
    one = allocation({"main": state(event("Received"), kill, failed=True)}, "failed")

    given = outcome(one)

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, None)
    assert said in given.error_message


def test_a_helper_that_failed_before_a_main_task_did_is_the_reason() -> None:
    said = "Template failed: no such key"
    kill = TaskEvent(type="Killing", display_message=said, fails_task=True, time=event("", 9).time)
    tasks = {"main": state(event("Received"), kill, failed=True), "side": ran(9, at=2)}

    given = outcome(allocation(tasks, "failed"), group("g", MAIN, SIDECAR))

    assert given.evidence["deciding"]["task"] == "side"


# Nothing is guessed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [None, {}, {"main": state(event("Received"))}, {"other": ran()}])
def test_complete_without_an_exit_code_of_a_main_task_is_unknown(tasks: dict[str, TaskState] | None) -> None:
    given = outcome(allocation(tasks))

    assert given.verdict is Verdict.UNKNOWN_GC
    assert given.error_code == "job.exit_unknown"


def test_an_exit_code_of_an_earlier_run_is_none_of_the_last_one() -> None:
    # A client that came back and did not find its task any more starts it again without saying so.
    task = state(event("Started", 1), exited(0), event("Started", 4))

    assert outcome(allocation({"main": task})).verdict is Verdict.UNKNOWN_GC


@pytest.mark.parametrize(
    ("task", "verdict"),
    [
        # Each lacks one part of the proof, and has all the others.
        (state(event("Started", 1), exited(3)), Verdict.FAILED),
        (state(event("Started", 1), exited(0, 15)), Verdict.FAILED),
        (state(event("Started", 1), exited(0), failed=True), Verdict.FAILED),
        (state(event("Started", 1)), Verdict.UNKNOWN_GC),
    ],
)
def test_every_part_of_the_proof_of_a_success_is_needed(task: TaskState, verdict: Verdict) -> None:
    assert outcome(allocation({"main": task})).verdict is verdict


def test_a_task_that_has_exited_and_is_not_dead_may_run_again() -> None:
    task = state(event("Started", 1), exited(0), now="pending")

    finding = judge(snapshot(job("dead"), [allocation({"main": task})]))

    assert not isinstance(finding, Final)


def test_an_exit_code_that_the_client_could_not_tell_is_none() -> None:
    given = outcome(allocation({"main": ran(-1)}, "failed"))

    assert (given.verdict, given.exit_code) == (Verdict.FAILED, None)
    assert "its exit code is not known" in given.error_message


def test_an_allocation_that_failed_before_any_task_says_what_nomad_says() -> None:
    given = outcome(allocation(None, "failed", said="failed to setup alloc: no space left on device"))

    assert given.verdict is Verdict.FAILED
    assert "no space left on device" in given.error_message


def test_a_lost_allocation_is_lost_whatever_its_tasks_last_told() -> None:
    # Nomad means to run it again; that it was not replaced is what makes it the end.
    one = allocation({"main": ran()}, "lost", "stop", wanted="alloc is lost since its node is down")

    assert outcome(one, group("g", MAIN, POSTSTOP)).verdict is Verdict.LOST


def test_a_main_task_still_running_in_a_lost_allocation_is_lost_with_it() -> None:
    one = allocation({"main": running()}, "lost", "stop", wanted="alloc is lost since its node is down")

    given = outcome(one)

    assert (given.verdict, given.exit_code) == (Verdict.LOST, None)
    assert "on node worker-3 was lost" in given.error_message


def test_the_message_names_task_allocation_node_code_and_signal() -> None:
    given = outcome(allocation({"main": ran(137, 9)}, "failed"))

    said = 'task "main" of allocation 08bd7328 on node worker-3 ended with exit code 137 (signal 9)'
    assert given.error_message == said
    assert given.error_code == "job.failed"


def test_nothing_that_nomad_says_carries_passwords_of_urls_into_a_reply() -> None:
    said = 'failed to download "https://ci:hunter2@example.com/a.tgz":\nrefused'
    failure = event("Failed Artifact Download", 1, display_message=said)
    given = outcome(allocation({"main": state(failure, failed=True)}, "failed", said=said))

    assert "hunter2" not in given.error_message
    assert "hunter2" not in str(given.evidence)
    assert "\n" not in given.error_message
