"""Every outcome recorded from a real Nomad, with the verdict that a person gives it who reads the record."""

from dataclasses import dataclass

import pytest

from tests.core import recorded
from worker.core.gather import merge, replace_with
from worker.core.model import Outcome, Progress, Verdict
from worker.core.observed import Snapshot
from worker.core.verdict import Final, Ongoing, judge


@dataclass(frozen=True)
class Ended:
    name: str
    verdict: Verdict
    exit_code: int | None
    allocation: str
    """First characters of the deciding allocation's ID; empty: no allocation decides."""
    task: str
    event: str
    says: str
    """Part of the error message."""
    from_events: bool = True
    """The recorded events alone are enough; else the API has to be read once."""


ENDED = [
    # The old allocation was killed by an operator, but it was replaced: the new one exited 0.
    Ended("alloc-stop", Verdict.SUCCEEDED, 0, "046a9de5", "t", "Terminated", "", from_events=False),
    # The task never started: its artifact could not be had. No exit code exists.
    Ended("artifact-fail", Verdict.FAILED, None, "0af39320", "t", "Failed Artifact Download", "artifact"),
    # The driver refused the configuration; never started.
    Ended("bad-config", Verdict.FAILED, None, "db2768bf", "t", "Failed Validation", "Invalid label"),
    # The client came back within lost_after; the same allocation exited 0. The failed evaluation is no end.
    Ended(
        "client-disconnect-reconnect",
        Verdict.SUCCEEDED,
        0,
        "901fa131",
        "t",
        "Terminated",
        "",
        from_events=False,
    ),
    # The first node died; the second allocation did the work again and exited 0.
    Ended("client-lost-replaced", Verdict.SUCCEEDED, 0, "24b5fd1f", "t", "Terminated", "", from_events=False),
    # Both instances exited 0, one after the other on one node; the second ended last.
    Ended("count2-partial", Verdict.SUCCEEDED, 0, "58bad962", "t", "Terminated", ""),
    # Instance 1 of three exited 1.
    Ended("count3", Verdict.FAILED, 1, "db4bc772", "t", "Terminated", "ended with exit code 1"),
    # The executable is missing; never started.
    Ended(
        "driver-bad-command", Verdict.FAILED, None, "b2cb1f7a", "t", "Driver Failure", "could not be found"
    ),
    # The image could not be pulled; never started.
    Ended("driver-failure", Verdict.FAILED, None, "213d1804", "t", "Driver Failure", "no such image"),
    # Waited for resources, then was placed and exited 0.
    Ended("exhausted-then-placed", Verdict.SUCCEEDED, 0, "36bbccd5", "t", "Terminated", ""),
    # Exited 137 of its own will: no signal, no out-of-memory message. Not a kill.
    Ended("exit-137", Verdict.FAILED, 137, "bbaa5abe", "t", "Terminated", "ended with exit code 137"),
    Ended("exit1", Verdict.FAILED, 1, "af1b08b4", "t", "Terminated", "ended with exit code 1"),
    # Main exited 6; the sidecar was killed as its sibling, the poststop task never ran: neither decides.
    Ended("lifecycle", Verdict.FAILED, 6, "ba59cc15", "main", "Terminated", 'task "main"'),
    # Nomad calls it complete; its description and its Killing event name max_run_duration.
    Ended("max-run-duration", Verdict.TIMED_OUT, 137, "fe3ca2d5", "t", "Terminated", "max_run_duration"),
    # Group "bad" exited 2, group "good" exited 0.
    Ended("multi-group", Verdict.FAILED, 2, "0eb38cff", "t", "Terminated", "ended with exit code 2"),
    # Task b exited 7; task a was killed as its sibling with 130, which is not the reason.
    Ended("multi-task", Verdict.FAILED, 7, "7af6177d", "b", "Terminated", 'task "b"'),
    # Nomad calls it complete and the job dead and not stopped: the drain killed it and nothing replaced it.
    Ended(
        "node-drain-force", Verdict.DRAINED, 137, "77da4fcb", "t", "Terminated", "drain", from_events=False
    ),
    Ended(
        "node-drain-nowhere", Verdict.DRAINED, 137, "e49299a1", "t", "Terminated", "drain", from_events=False
    ),
    # The driver's exit message says "OOM Killed", though Details.oom_killed is "false".
    Ended("oom-mock", Verdict.OOM_KILLED, 137, "b7e799e1", "t", "Terminated", "ran out of memory"),
    # The first try failed with 5 and was rescheduled once; the second failed with 5, for good.
    Ended("reschedule-new-alloc", Verdict.FAILED, 5, "ebf4a4db", "t", "Terminated", "5", from_events=False),
    # Three runs in one allocation, all with 3; the restarts are used up.
    Ended("restart-then-fail", Verdict.FAILED, 3, "ba0769c6", "t", "Terminated", "ended with exit code 3"),
    # The first run ended with 4, the restarted one with 0: only the last run counts.
    Ended("restart-then-ok", Verdict.SUCCEEDED, 0, "ac8d995e", "t", "Terminated", ""),
    # Somebody sent the process signal 9 behind Nomad's back: it failed, nobody stopped the job.
    Ended("signal", Verdict.FAILED, 137, "18b255b5", "t", "Terminated", "(signal 9)"),
    # Stopped while it waited for a node: no allocation ever was.
    Ended("stopped-pending", Verdict.STOPPED, None, "", "", "", "before it was placed", from_events=False),
    # Nomad calls it complete; Stop is true and the task was killed.
    Ended("stopped-running", Verdict.STOPPED, 137, "abec8796", "t", "Terminated", "the job was stopped"),
    Ended("success", Verdict.SUCCEEDED, 0, "026d5bd5", "t", "Terminated", ""),
    # One allocation on each of two nodes under one name; both exited 0, node-2's last. How many there are to
    # be, only a read tells.
    Ended("sysbatch", Verdict.SUCCEEDED, 0, "98035ea5", "t", "Terminated", "", from_events=False),
]

BLOCKED = [
    ("constraint-filtered", 'constraint "${node.class} = gpu" filtered 2 nodes', False),
    ("missing-driver", 'constraint "missing drivers" filtered 2 nodes', False),
    ("no-datacenter", "no node was eligible for evaluation", False),
    # Lost with their node and wanted again; no other node fits. Nothing has ended.
    ("client-lost-no-reschedule", "filtered 1 node", True),
    ("client-lost-prevented", "filtered 1 node", True),
    ("client-disconnect-expired", "filtered 1 node", True),
]


def outcome(snapshot: Snapshot) -> Outcome:
    finding = judge(snapshot)
    assert isinstance(finding, Final)
    return finding.outcome


def assert_as_recorded(given: Outcome, wanted: Ended) -> None:
    assert (given.verdict, given.exit_code) == (wanted.verdict, wanted.exit_code)
    assert wanted.says in given.error_message
    assert bool(given.error_message) == (wanted.verdict is not Verdict.SUCCEEDED)
    deciding = given.evidence["deciding"] or {}
    assert deciding.get("allocation", "").startswith(wanted.allocation)
    assert bool(deciding) == bool(wanted.allocation)
    assert deciding.get("task", "") == wanted.task
    assert (deciding.get("event") or {}).get("type", "") == wanted.event


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.name)
def test_a_recorded_outcome_gets_its_verdict_from_the_api_reads(case: Ended) -> None:
    given = outcome(recorded.read(case.name))

    assert_as_recorded(given, case)


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.name)
def test_a_recorded_outcome_gets_its_verdict_from_the_events_or_asks_for_a_read(case: Ended) -> None:
    gathered = recorded.gathered(case.name)

    finding = judge(gathered)

    if case.from_events:
        assert isinstance(finding, Final)
        assert_as_recorded(finding.outcome, case)
    else:
        assert isinstance(finding, Ongoing)
        assert finding.needs_read
        assert_as_recorded(outcome(replace_with(recorded.read(case.name), gathered)), case)


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.name)
def test_no_recorded_event_before_the_end_gives_another_verdict(case: Ended) -> None:
    known = Snapshot(job_id=recorded.child(case.name))

    for update in recorded.events(case.name):
        known = merge(known, **update)
        finding = judge(known)
        if isinstance(finding, Final):
            assert finding.outcome.verdict is case.verdict


@pytest.mark.parametrize(("name", "reason", "placed_before"), BLOCKED)
def test_a_recorded_job_that_waits_for_a_node_is_blocked_and_says_why(
    name: str,
    reason: str,
    placed_before: bool,  # noqa: FBT001
) -> None:
    finding = judge(recorded.read(name))

    assert isinstance(finding, Ongoing)
    assert finding.step is Progress.BLOCKED
    assert not finding.needs_read
    assert reason in finding.data["reason"]
    assert [one["status"] for one in finding.data["evaluations"]] == ["blocked"]
    assert ("after" in finding.data) == placed_before


def test_resources_exhausted_are_told_in_numbers_and_words_before_the_job_is_placed() -> None:
    finding = judge(recorded.read("exhausted-then-placed", "while blocked"))

    assert isinstance(finding, Ongoing)
    assert finding.step is Progress.BLOCKED
    (told,) = finding.data["placement"]
    assert told["dimension_exhausted"] == {"cpu": 1}
    assert told["nodes_exhausted"] == 1
    assert told["nodes_evaluated"] == 2
    assert told["reasons"][0] == "1 node without enough cpu"


def test_a_job_that_was_once_blocked_keeps_the_reason_in_its_evidence() -> None:
    given = outcome(recorded.read("exhausted-then-placed"))

    assert given.verdict is Verdict.SUCCEEDED
    assert given.evidence["placement"][0]["dimension_exhausted"] == {"cpu": 1}
    # 3.166 s between submission and allocation, by the record's own time stamps.
    assert given.evidence["durations"]["placement"] == pytest.approx(3.166, abs=0.001)


def test_the_time_to_placement_is_not_counted_from_a_stop_which_nomad_calls_a_submission() -> None:
    given = outcome(recorded.read("stopped-running"))

    # The registration's evaluation 3.542832715, the allocation 3.552270295.
    assert given.evidence["durations"]["placement"] == pytest.approx(0.009, abs=0.001)


def test_a_failed_allocation_that_will_be_rescheduled_is_a_retry_and_no_verdict() -> None:
    finding = judge(recorded.read("reschedule-new-alloc", "failed, waiting"))

    assert isinstance(finding, Ongoing)
    assert finding.step is Progress.RETRYING
    assert finding.data["what"] == "reschedule"
    assert finding.data["exit_code"] == 5
    assert finding.data["attempt"] == 2
    assert finding.data["next_at"] == "2026-11-24T01:22:17.980313864Z"


def test_a_stopped_job_is_not_judged_while_its_task_is_still_ending() -> None:
    # Nomad calls the job dead 1.2 s before the task has ended.
    assert judge(recorded.read("stopped-running", "0.1 s after stop")) == Ongoing()


def test_a_stopped_job_is_judged_without_exit_code_when_its_grace_is_over() -> None:
    finding = judge(recorded.read("stopped-running", "0.1 s after stop"), grace_over=True)

    assert isinstance(finding, Final)
    assert finding.outcome.verdict is Verdict.STOPPED
    assert finding.outcome.exit_code is None
    assert "was last seen running" in finding.outcome.error_message


def test_a_disconnected_client_is_no_end_and_no_retry() -> None:
    finding = judge(recorded.read("client-disconnect-reconnect", "while the client is down"))

    assert isinstance(finding, Ongoing)
    assert finding.step is Progress.RUNNING
    assert finding.data["disconnected"] is True


def test_a_job_purged_while_it_ran_was_stopped_if_the_purge_was_seen() -> None:
    given = outcome(recorded.gathered("purged-running"))

    assert given.verdict is Verdict.STOPPED
    assert given.error_code == "job.purged"
    assert given.exit_code is None


def test_a_job_purged_while_nobody_looked_is_unknown() -> None:
    # The same job, from the reads alone: 404, no allocations. Nobody can say how it ended.
    given = outcome(recorded.read("purged-running"))

    assert given.verdict is Verdict.UNKNOWN_GC
    assert given.error_code == "job.gone"


def test_the_complete_events_of_one_job_lead_to_its_verdict_which_a_later_purge_leaves() -> None:
    known = Snapshot(job_id="evj/dispatch-1795484592-dbe5f7e4")
    steps: list[Progress | None] = []
    verdicts: list[Verdict] = []

    for update in recorded.full_life():
        known = merge(known, **update)
        finding = judge(known)
        if isinstance(finding, Final):
            verdicts.append(finding.outcome.verdict)
        elif finding.step not in steps:
            steps.append(finding.step)

    assert steps == [None, Progress.PLACED, Progress.RUNNING]
    assert known.purged
    assert set(verdicts) == {Verdict.SUCCEEDED}
    assert outcome(known).evidence["deciding"]["event"]["exit_code"] == 0
