"""One line of the event stream: what is read of it, and what is left alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.frames import HEARTBEAT, Frame, decode, oversize
from worker.core.observed import Job

RECORDED = Path(__file__).parent.parent / "data" / "nomad-transcripts" / "05-event-stream-full-life.json"
CHILD = "render/dispatch-1-aaaaaaaa"
OTHER = "render/dispatch-1-bbbbbbbb"


def only(*job_ids: str) -> Callable[[str], bool]:
    return lambda job_id: job_id in job_ids


def everything(job_id: str) -> bool:
    return bool(job_id)


def event(topic: str, job_id: str, payload: Any, *, key: str = "") -> dict[str, Any]:
    return {
        "FilterKeys": None if topic == "Job" else [job_id, ""],
        "Index": 1,
        "Key": job_id if topic == "Job" else key,
        "Namespace": "default",
        "Payload": payload,
        "Topic": topic,
        "Type": "Any",
    }


def line(index: int, *events: dict[str, Any]) -> bytes:
    return json.dumps({"Events": list(events), "Index": index}, separators=(",", ":")).encode()


def recorded_life() -> list[bytes]:
    exchanges = json.loads(RECORDED.read_text())["exchanges"]
    return [
        json.dumps(one["frame"], separators=(",", ":")).encode()
        for one in exchanges
        if one.get("note") == "frame"
    ]


def test_the_recorded_life_of_one_child_is_read_in_full() -> None:
    lines = recorded_life()
    [child] = {job.id for each in lines for job in decode(each, everything).jobs}

    frames = [decode(each, only(child)) for each in lines]

    assert [frame.index for frame in frames] == [622, 622, 623, 624, 625, 626, 627, 628, 628, 629]
    assert not any(frame.incomplete or frame.heartbeat for frame in frames)
    assert [job.status for frame in frames for job in frame.jobs] == [
        "pending",
        "running",
        "dead",
        "dead",  # as it last was, told with its removal
    ]
    assert frames[0].jobs[0].dispatch_idempotency_token == "1732499999999-7"
    assert frames[0].jobs[0].parent_id == "evj"
    assert [one.client_status for frame in frames for one in frame.allocations] == [
        "pending",
        "pending",
        "running",
        "complete",
    ]
    states = frames[6].allocations[0].task_states
    assert states is not None
    assert [one.exit_code for one in states["t"].events or [] if one.type == "Terminated"] == [0]
    assert [one.triggered_by for one in frames[1].evaluations] == ["job-register"]
    assert [frame.deleted for frame in frames if frame.deleted] == [(child,)]


def test_a_removal_is_told_with_the_job_as_it_last_was() -> None:
    last = {"ID": CHILD, "Status": "running"}
    frame = decode(line(9, event("Job", CHILD, {"Job": last, "Deleted": True})), everything)

    assert frame == Frame(9, jobs=(Job(id=CHILD, status="running"),), deleted=(CHILD,))


@pytest.mark.parametrize("beat", [b"{}", b"{}\n", b"{}\r\n"])
def test_an_empty_object_is_a_heartbeat(beat: bytes) -> None:
    assert decode(beat, everything) is HEARTBEAT
    assert HEARTBEAT.heartbeat


def test_events_of_other_jobs_are_dropped_without_reading_them() -> None:
    unreadable = {"Job": {"ID": 7}}
    frame = decode(
        line(
            5,
            event("Job", OTHER, unreadable),
            event("Evaluation", OTHER, {"Evaluation": {"ID": "e1", "JobID": OTHER}}, key="e1"),
            event("Allocation", CHILD, {"Allocation": {"ID": "a2", "JobID": CHILD}}, key="a2"),
        ),
        only(CHILD),
    )

    assert [one.id for one in frame.allocations] == ["a2"]
    assert (frame.jobs, frame.evaluations, frame.incomplete) == ((), (), False)


def test_an_unreadable_event_of_another_job_takes_nothing_from_one_that_came_first() -> None:
    frame = decode(
        line(
            5,
            event("Allocation", CHILD, {"Allocation": {"ID": "a2", "JobID": CHILD}}, key="a2"),
            event("Job", OTHER, {"Job": {"ID": 7}}),
        ),
        only(CHILD),
    )

    assert [one.id for one in frame.allocations] == ["a2"]
    assert not frame.incomplete


def test_a_topic_that_nobody_asked_for_is_not_read_whatever_it_holds() -> None:
    frame = decode(line(8, event("Service", CHILD, {"Job": {"ID": 7}})), everything)

    assert frame == Frame(8)


def test_a_line_about_no_dispatched_job_costs_no_decode() -> None:
    asked: list[str] = []

    def wanted(job_id: str) -> bool:
        asked.append(job_id)
        return True

    frame = decode(line(77, event("Job", "web", {"Job": {"ID": "web"}})), wanted)

    assert frame == Frame(77)
    assert asked == []


def test_the_index_is_found_at_either_end_of_such_a_line() -> None:
    first = b'{"Index": 41, "Events": [{"Index": 3, "Topic": "Node", "Key": "n"}]}'

    assert decode(first, everything).index == 41


def test_an_event_that_cannot_be_read_leaves_the_others_and_asks_for_a_sweep() -> None:
    frame = decode(
        line(
            5,
            event("Job", CHILD, {"Job": {"ID": 7}}),
            event("Allocation", CHILD, {"Allocation": {"ID": "a", "JobID": CHILD}}, key="a"),
        ),
        everything,
    )

    assert frame.incomplete
    assert [one.id for one in frame.allocations] == ["a"]
    assert frame.index == 5


def test_unknown_topics_and_fields_are_left_alone() -> None:
    frame = decode(
        line(
            8,
            event("Service", CHILD, {"Service": 1}),
            event("Job", CHILD, {"Job": {"ID": CHILD, "New": [1]}, "X": 2}),
        ),
        everything,
    )

    assert [job.id for job in frame.jobs] == [CHILD]
    assert not frame.incomplete


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"Events":[{"Key":"a/dispatch-1',
        b'{"Index":"x","Events":"/dispatch-"}',
        b"[" * 100_000 + b"/dispatch-",
        b"\xff\xfe/dispatch-",
        b"not json at all",
        b"",
    ],
)
def test_a_line_that_cannot_be_read_asks_for_a_sweep_and_is_no_heartbeat(damaged: bytes) -> None:
    frame = decode(damaged, everything)

    assert frame.incomplete
    assert not frame.heartbeat


@given(st.binary(max_size=200))
def test_no_line_whatsoever_breaks_the_reader(noise: bytes) -> None:
    frame = decode(b'{"Events":[{"Key":"a/dispatch-1"' + noise, everything)

    assert isinstance(frame, Frame)


@given(st.integers(1, 2**63 - 1))
def test_an_oversize_line_still_tells_its_index_where_it_stands_at_an_end(index: int) -> None:
    last = b'{"Events":[' + b"x" * 500 + b'],"Index":%d}' % index
    first = b'{"Index":%d,"Events":[' % index + b"x" * 500 + b"]}"

    frames = [oversize(whole[:64], whole[-64:]) for whole in (last, first)]

    assert frames == [Frame(index, incomplete=True)] * 2


def test_events_without_an_index_ask_for_a_sweep() -> None:
    frame = decode(b'{"Events":[{"Topic":"Node","Key":"a/dispatch-1"}]}', everything)

    assert frame.incomplete
