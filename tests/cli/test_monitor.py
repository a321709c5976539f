"""Replies rendered against the recorded output of `nomad job dispatch`."""

import re
from pathlib import Path
from typing import Any

import pytest

from worker.cli.monitor import (
    Monitor,
    Placement,
    end_lines,
    exit_code,
    failure_text,
    payload_too_large_text,
    placement_reasons,
    ui_url,
    was_placed,
)
from worker.core.model import Verdict
from worker.core.observed import AllocMetric
from worker.core.placement import explain
from worker.core.reply import Reply

RECORDED = Path(__file__).parent / "recorded" / "nomad-job-dispatch.txt"


def recorded(title: str, part: str = "stdout") -> str:
    """One part of one recorded run; `part` is stdout or stderr."""
    scenario = RECORDED.read_text().split(f"### {title}\n")[1].split("\n### ")[0]
    text = re.split(r"^--- (?:stdout|stderr|exit \d+)\n?", scenario, flags=re.MULTILINE)
    return text[1 if part == "stdout" else 2]


def reply(kind: str, at: str = "", **fields: Any) -> Reply:
    base: dict[str, Any] = {"id": "1-0", "stream": "requests", "seq": 1, "final": kind == "result"}
    return Reply(type=kind, at=f"{at[:-1]}.250Z" if at else "", **base | fields)


def rendered(replies: list[Reply], *, verbose: bool = False) -> str:
    monitor = Monitor(verbose=verbose)
    return "".join(f"{line}\n" for one in replies for line in monitor.lines(one))


def allocation(alloc_id: str, node: str, status: str = "pending", description: str = "") -> dict[str, str]:
    return {
        "allocation": alloc_id,
        "node_id": node,
        "group": "g",
        "client_status": status,
        "client_description": description,
    }


@pytest.mark.parametrize(
    "title", ["success, monitored", "task fails, no -wait: exit 0 (only placement is watched)"]
)
def test_a_placed_job_reads_as_nomads_command_says_it(title: str) -> None:
    text = recorded(title)
    job, evaluation, alloc, node = re.findall(
        r'(?:Job ID = |Evaluation ID     = |Allocation "|node ")([^"\s]+)', text
    )
    times = re.findall(r"\d{4}-\S+Z", text)
    ids = {"dispatched_job_id": job, "eval_id": f"{evaluation}-94ac-ee81-8e86-6e56f88c3255"}
    # Nomad prints each line's own time, a reply has one: the last lines are compared at the first time.
    expected = text.replace(times[-1], times[0])

    lines = rendered(
        [
            reply("accepted", times[0]),
            reply("dispatched", times[0], **ids),
            reply("placed", times[0], **ids, data={"allocations": [allocation(f"{alloc}-1", f"{node}-2")]}),
            reply("result", times[0], **ids, verdict=Verdict.FAILED, exit_code=3),
        ]
    )

    assert lines == re.sub(r"\d{4}-\S+?Z", times[0], expected)


def test_verbose_shows_whole_ids_and_status_changes() -> None:
    text = recorded("-verbose")
    job = re.findall(r"Job ID = (\S+)", text)[0]
    evaluation, alloc, node = (
        re.findall(pattern, text)[0]
        for pattern in (r"ID     = (\S+)", r'Allocation "(\S+)"', r'node "(\S+)"')
    )
    at = "2026-11-24T01:48:02Z"
    ids = {"dispatched_job_id": job, "eval_id": evaluation}

    lines = rendered(
        [
            reply("dispatched", at, **ids),
            reply(
                "result",
                at,
                **ids,
                verdict=Verdict.SUCCEEDED,
                data={
                    "allocations": [
                        allocation(alloc, node),
                        allocation(alloc, node, "complete", "All tasks have completed"),
                    ]
                },
            ),
        ],
        verbose=True,
    )

    assert lines == re.sub(r"\d{4}-\S+?Z", at, text)


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        (
            "placement failure by constraint: exit 2",
            AllocMetric(
                nodes_evaluated=2,
                nodes_filtered=2,
                nodes_available={"dc1": 2},
                class_filtered={"victim": 1},
                constraint_filtered={"${node.class} = gpu": 2},
            ),
        ),
        (
            "placement failure by resources: exit 2",
            AllocMetric(
                nodes_evaluated=2,
                nodes_available={"dc1": 2},
                nodes_exhausted=2,
                class_exhausted={"victim": 1},
                dimension_exhausted={"cpu": 2},
            ),
        ),
    ],
)
def test_a_job_that_cannot_be_placed_reads_as_nomads_command_says_it(title: str, metric: AllocMetric) -> None:
    text = recorded(title)
    at = re.findall(r"\d{4}-\S+Z", text)[0]
    job = re.findall(r"Job ID = (\S+)", text)[0]
    evaluation, blocked = re.findall(r"ID     = (\S+)", text)[0], re.findall(r'"(\w+)" waiting', text)[0]
    ids = {"dispatched_job_id": job, "eval_id": f"{evaluation}-1"}
    monitor = Monitor()
    data = {
        "placement": explain({"g": metric}),
        "evaluations": [{"id": f"{blocked}-1", "status": "blocked"}, {"id": "x", "status": "complete"}],
    }

    lines = monitor.lines(reply("dispatched", at, **ids)) + monitor.lines(
        reply("blocked", at, **ids, data=data)
    )

    assert "".join(f"{line}\n" for line in lines) == re.sub(r"\d{4}-\S+?Z", at, text)
    assert monitor.placement is Placement.FAILED


@pytest.mark.parametrize(("seen", "earlier"), [(["placed"], "pending"), (["placed", "running"], "running")])
def test_a_change_of_status_names_the_earlier_one(seen: list[str], earlier: str) -> None:
    ids = {"dispatched_job_id": "j/dispatch-1", "eval_id": "9fff6706"}
    # As `core.progress` tells of a live allocation: its status is the step.
    live = {"allocation": "a-1", "node_id": "n-1", "group": "g"}
    monitor = Monitor()
    for kind in seen:
        monitor.lines(reply(kind, **ids, data=live))

    lines = monitor.lines(
        reply(
            "result",
            **ids,
            verdict=Verdict.FAILED,
            data={"allocations": [{**live, "client_status": "failed"}]},
        )
    )

    assert lines == [f'    : Allocation "a-1" status changed: "{earlier}" -> "failed"']


LIVE = {"allocation": "a1b2c3d4-1", "node_id": "n-1", "group": "g"}


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"what": "restart", **LIVE, "task": "main", "attempt": 2, "exit_code": 7, "next_at": "soon"},
            'Task "main" of allocation "a1b2c3d4" is restarted at soon: try 2 (exit code 7)',
        ),
        (
            {"what": "reschedule", **LIVE, "client_status": "running", "attempt": 3},
            'Allocation "a1b2c3d4" is rescheduled: try 3',
        ),
    ],
)
def test_a_retry_is_told(data: dict[str, Any], line: str) -> None:
    monitor = Monitor()
    monitor.lines(reply("running", data=LIVE))

    assert monitor.lines(reply("retrying", data=data)) == [f"    : {line}"]


def test_a_job_that_was_placed_and_waits_for_another_node_says_why() -> None:
    ids = {"dispatched_job_id": "j/dispatch-1", "eval_id": "9fff6706"}
    why = AllocMetric(nodes_evaluated=2, nodes_filtered=2, constraint_filtered={"${node.class} = gpu": 2})
    data = {"placement": explain({"g": why}), "evaluations": [{"id": "b1", "status": "blocked"}]}
    monitor = Monitor()
    monitor.lines(reply("running", **ids, data=LIVE))

    assert monitor.lines(reply("blocked", **ids, data=data)) == [
        '    : Task Group "g" (failed to place 1 allocation):',
        '      * Constraint "${node.class} = gpu": 2 nodes excluded by filter',
        '    : Evaluation "b1" waiting for additional capacity to place remainder',
    ]
    assert monitor.placement is Placement.PLACED


def test_all_reasons_have_words() -> None:
    assert placement_reasons({"nodes_available": {"dc1": 0, "dc2": 3}, "quota_exhausted": ["cpu"]}) == [
        "No nodes were eligible for evaluation",
        'No nodes are available in datacenter "dc1"',
        'Quota limit hit "cpu"',
    ]


@pytest.mark.parametrize("kind", ["placed", "running"])
def test_a_job_placed_in_part_failed_its_placement_however_the_news_came(kind: str) -> None:
    ids = {"dispatched_job_id": "render/dispatch-1-a", "eval_id": "e1234567-1"}
    data = {
        "allocations": [allocation("a1234567-1", "n1234567-1")],
        "placement": explain({"g": AllocMetric(nodes_evaluated=1, nodes_exhausted=1)}),
    }
    monitor = Monitor()

    lines = [
        line
        for one in (reply("dispatched", **ids), reply(kind, **ids, data=data))
        for line in monitor.lines(one)
    ]

    assert monitor.placement is Placement.FAILED
    assert any('Allocation "a1234567" created' in line for line in lines)
    assert any("failed to place all allocations" in line for line in lines)
    assert any('Task Group "g" (failed to place 1 allocation)' in line for line in lines)


@pytest.mark.parametrize(
    "why", [{}, {"placement": explain({"g": AllocMetric(constraint_filtered={"x": 1})})}]
)
def test_a_job_that_is_dead_without_ever_being_placed_failed_its_placement(why: dict[str, Any]) -> None:
    ids = {"dispatched_job_id": "render/dispatch-1-a", "eval_id": "e1234567-1"}
    end = reply(
        "result", **ids, verdict=Verdict.FAILED, error_code="job.never_ran", data={"allocations": [], **why}
    )
    monitor = Monitor()

    text = "\n".join(line for one in (reply("dispatched", **ids), end) for line in monitor.lines(one))

    assert monitor.placement is Placement.FAILED
    assert not was_placed(end)
    assert "failed to place all allocations" in text
    assert ('Constraint "x"' in text) == bool(why)


def test_a_final_reply_that_tells_of_an_earlier_failure_to_place_does_not_speak_of_the_first() -> None:
    ids = {"dispatched_job_id": "render/dispatch-1-a", "eval_id": "e1234567-1"}
    data = {
        "allocations": [allocation("a1234567-1", "n1234567-1", "complete")],
        "placement": explain({"g": AllocMetric(nodes_evaluated=1, nodes_exhausted=1)}),
    }
    monitor = Monitor()

    monitor.lines(reply("dispatched", **ids))
    monitor.lines(reply("result", **ids, verdict=Verdict.SUCCEEDED, data=data))

    assert monitor.placement is Placement.PLACED


def test_a_job_placed_later_is_told_once() -> None:
    ids = {"dispatched_job_id": "j/dispatch-1", "eval_id": "9fff6706"}
    monitor = Monitor()
    monitor.lines(reply("dispatched", **ids))
    monitor.lines(reply("blocked", **ids))

    placed = monitor.lines(reply("placed", **ids, data={"allocations": [allocation("a-1", "n-1")]}))
    again = monitor.lines(reply("running", **ids, data={"allocations": [allocation("a-1", "n-1")]}))

    assert placed == ['    : Allocation "a-1" created: node "n-1", group "g"']
    assert again == []


@pytest.mark.parametrize(
    ("title", "error_code", "error_message"),
    [
        ("payload required, not given", "nomad.payload_required", "Nomad answered 500: {}"),
        ("missing required meta", "nomad.meta_missing", "Nomad answered 500: {}"),
        ("unpermitted meta", "nomad.meta_unpermitted", "Nomad answered 500: {}"),
        ("payload forbidden", "nomad.payload_forbidden", "Nomad answered 500: {}"),
        ("-priority out of range", "nomad.priority_out_of_range", "Nomad answered 500: {}"),
        ("ACL: no token", "nomad.permission_denied", "Nomad answered 403: {}"),
        ("unknown region", "nomad.region_unknown", "Nomad answered 500: {}"),
        ("no such job", "nomad.job_unknown", "Nomad answered 500: parameterized job not found"),
        ("job that is not parameterized", "nomad.job_not_parameterized", "Nomad answered 500: x"),
    ],
)
def test_a_refusal_reads_as_nomads_command_says_it(title: str, error_code: str, error_message: str) -> None:
    expected = recorded(title, "stderr").strip()
    command = RECORDED.read_text().split(f"### {title}\n")[1].splitlines()[0]
    job = next(word for word in reversed(re.sub(r"\(.*", "", command).split()) if word != "-")
    said = "".join(re.findall(r"\((.*)\)$", expected))

    text = failure_text(
        reply(
            "result",
            verdict=Verdict.REJECTED,
            error_code=error_code,
            error_message=error_message.format(said),
        ),
        job,
    )

    assert text == expected


def test_a_refusal_of_the_workers_own_names_verdict_and_code() -> None:
    refused = reply(
        "result", verdict=Verdict.REJECTED, error_code="request.meta_invalid", error_message="field meta: bad"
    )

    assert (
        failure_text(refused, "j")
        == "Failed to dispatch job: rejected: field meta: bad [request.meta_invalid]"
    )


def test_a_payload_too_large_reads_as_nomads_command_says_it() -> None:
    assert payload_too_large_text(16_385) == recorded("payload too large", "stderr").strip()


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_an_exit_code(verdict: Verdict) -> None:
    without_task = {Verdict.SUCCEEDED: 0, Verdict.DETACHED: 0, Verdict.UNPLACED: 2}

    assert exit_code(reply("result", verdict=verdict)) == without_task.get(verdict, 1)
    # Whatever ended the task: the code is the one that it ended with.
    assert exit_code(reply("result", verdict=verdict, exit_code=137)) == without_task.get(verdict, 137)


@pytest.mark.parametrize("task_code", [None, -1, 0, 256, 3_221_225_786])
def test_a_failure_is_never_an_exit_code_of_zero(task_code: int | None) -> None:
    assert exit_code(reply("result", verdict=Verdict.FAILED, exit_code=task_code)) == 1


def test_the_end_is_told_with_its_reason() -> None:
    ended = reply(
        "result",
        "2026-11-24T01:48:02Z",
        dispatched_job_id="j/dispatch-1",
        verdict=Verdict.OOM_KILLED,
        exit_code=137,
        error_message="OOM Killed",
    )

    assert end_lines(ended) == [
        '==> 2026-11-24T01:48:02Z: Job "j/dispatch-1" ended: oom_killed, exit code 137',
        "    2026-11-24T01:48:02Z: OOM Killed",
    ]


def test_the_web_address_is_the_recorded_one() -> None:
    job = "cli-render/dispatch-1795484882-2c85d768"
    placed = reply("placed", dispatched_job_id=job, namespace="default")

    assert ui_url(placed, "http://127.0.0.1:4646/") in recorded("success, monitored", "stderr")
    assert ui_url(placed, "") == ""
    assert ui_url(placed, "unix:///api.sock") == ""
    assert ui_url(reply("placed", ui_url="https://ui/x"), "http://n") == "https://ui/x"
