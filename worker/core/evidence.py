"""The JSON that a verdict or a step rests on: allocations, tasks, events, placement, durations.

Decides nothing. The same snapshot gives the same evidence, and its size has a bound (`docs/verdicts.md`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.core import placement
from worker.core.ending import Ending, LastRuns, TaskEnd, last_runs
from worker.core.instants import format_rfc3339
from worker.core.observed import Allocation, Evaluation, Job, Snapshot, TaskEvent, TaskGroup, TaskState
from worker.core.placement import plain

ALLOCATIONS_SHOWN = 16
TASKS_SHOWN = 48
"""Over all allocations."""
EVENTS_SHOWN = 96
"""Over all tasks: those of the deciding allocation first, of each task the latest."""
EVALUATIONS_SHOWN = 12

_NS = 1_000_000_000


def evidence(snapshot: Snapshot, deciding: Ending | None, endings: Iterable[Ending]) -> dict[str, Any]:
    """Everything the verdict rests on.

    Args:
        snapshot: what was judged.
        deciding: the ending that gave the verdict.
        endings: those of the allocations that count; the others are earlier attempts.

    Returns:
        JSON: `job`, `deciding`, `allocations` and `allocations_left_out`, `evaluations` and
        `evaluations_left_out`, `placement` where a group ever could not be placed, `durations` in seconds.
    """
    judged = {ending.allocation.id: ending.runs for ending in endings}
    allocations, left_out = _allocations(snapshot, judged, deciding)
    told: dict[str, Any] = {
        "job": _job(snapshot),
        "deciding": _deciding(deciding),
        "allocations": allocations,
        "allocations_left_out": left_out,
        **evaluations_json(snapshot.evaluations.values()),
        "durations": _durations(snapshot, judged),
    }
    if failures := placement.failures(snapshot.evaluations.values()):
        told["placement"] = placement.explain(failures)
    return told


def where(allocation: Allocation) -> dict[str, Any]:
    """An allocation and its node, as every step names them."""
    told = {
        "allocation": allocation.id,
        "name": allocation.name,
        "group": allocation.task_group,
        "node": allocation.node_name,
        "node_id": allocation.node_id,
    }
    return {name: plain(value) for name, value in told.items() if value}


def event_json(event: TaskEvent) -> dict[str, Any]:
    """One task event, without what it leaves empty."""
    told: dict[str, Any] = {"type": plain(event.type)}
    if event.time > 0:
        told["at"] = instant(event.time)
    if event.type == "Terminated":
        told["exit_code"] = event.exit_code
    if event.signal:
        told["signal"] = event.signal
    if text := event.display_message or event.message:
        told["message"] = plain(text)
    return told


def instant(unix_ns: int) -> str | None:
    """RFC 3339 of nanoseconds since the epoch; None for a time no calendar has."""
    try:
        return format_rfc3339(unix_ns // 1_000_000)
    except (ValueError, OverflowError):
        return None


def _job(snapshot: Snapshot) -> dict[str, Any]:
    told: dict[str, Any] = {"id": plain(snapshot.job_id), "gone": snapshot.gone, "deleted": snapshot.purged}
    if snapshot.job is not None:
        told |= {
            "type": plain(snapshot.job.type),
            "status": plain(snapshot.job.status),
            "stop": snapshot.job.stop,
            "modify_index": snapshot.job.modify_index,
        }
    return told


def _deciding(deciding: Ending | None) -> dict[str, Any] | None:
    if deciding is None:
        return None
    told = where(deciding.allocation)
    if deciding.task is not None:
        told["task"] = plain(deciding.task.name)
    told["event"] = event_json(deciding.event) if deciding.event is not None else None
    return told


def _allocations(
    snapshot: Snapshot, judged: Mapping[str, LastRuns], deciding: Ending | None
) -> tuple[list[dict[str, Any]], int]:
    first = deciding.allocation.id if deciding is not None else ""
    task = deciding.task.name if deciding is not None and deciding.task is not None else ""
    everything = sorted(snapshot.allocations.values(), key=_in_order)
    # The deciding one, those that count and did not end well, the rest of them, earlier attempts.
    chosen = sorted(everything, key=lambda one: (one.id != first, one.id not in judged, _ended_well(one)))
    budget = _Budget(TASKS_SHOWN, EVENTS_SHOWN)
    shown: dict[str, dict[str, Any]] = {}
    for allocation in chosen[:ALLOCATIONS_SHOWN]:
        counted = judged.get(allocation.id)
        told = _allocation(allocation, counts=counted is not None)
        runs = counted or last_runs(allocation, _group(snapshot.job, allocation))
        ends = sorted(
            runs.tasks.values(),
            key=lambda end: (end.name != task, end.name not in runs.main, end.name),
        )
        told["tasks"] = [
            _task(end, budget.events(end.state.events or []), main=end.name in runs.main)
            for end in ends[: budget.tasks(len(ends))]
        ]
        if left_out := len(ends) - len(told["tasks"]):
            told["tasks_left_out"] = left_out
        shown[allocation.id] = told
    in_order = [shown[one.id] for one in everything if one.id in shown]
    return in_order, len(everything) - len(in_order)


@dataclass(slots=True)
class _Budget:
    """How many tasks and events may still be shown."""

    tasks_left: int
    events_left: int

    def tasks(self, wanted: int) -> int:
        granted = min(wanted, self.tasks_left)
        self.tasks_left -= granted
        return granted

    def events(self, events: Sequence[TaskEvent]) -> Sequence[TaskEvent]:
        """The latest of them."""
        shown = events[max(0, len(events) - self.events_left) :]
        self.events_left -= len(shown)
        return shown


def _allocation(allocation: Allocation, *, counts: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        **where(allocation),
        "counts": counts,
        "client_status": plain(allocation.client_status),
        "client_description": plain(allocation.client_description),
        "desired_status": plain(allocation.desired_status),
        "desired_description": plain(allocation.desired_description),
        "replaces": plain(allocation.previous_allocation),
        "replaced_by": plain(allocation.next_allocation),
        "preempted_by": plain(allocation.preempted_by_allocation),
        "placed_at": instant(allocation.create_time) if allocation.create_time > 0 else None,
    }
    tracker = allocation.reschedule_tracker
    if tracker is not None and tracker.events:
        told["reschedules"] = len(tracker.events)
    return {name: value for name, value in told.items() if value not in ("", None)}


def _task(end: TaskEnd, events: Sequence[TaskEvent], *, main: bool) -> dict[str, Any]:
    state: TaskState = end.state
    return {
        "name": plain(end.name),
        "main": main,
        "state": plain(state.state),
        "failed": state.failed,
        "restarts": state.restarts,
        "exit_code": end.exit.exit_code if end.exit is not None else None,
        "signal": end.exit.signal if end.exit is not None else None,
        "oom_killed": end.out_of_memory,
        "killed": end.kill is not None,
        "started_at": plain(state.started_at) if state.started_at else None,
        "finished_at": plain(state.finished_at) if state.finished_at else None,
        "events": [event_json(event) for event in events],
    }


def evaluations_json(evaluations: Iterable[Evaluation]) -> dict[str, Any]:
    """The latest evaluations, oldest first, as `evaluations`, and how many `evaluations_left_out`."""
    in_order = sorted(evaluations, key=lambda one: (one.create_index, one.id))
    shown = in_order[-EVALUATIONS_SHOWN:]
    return {
        "evaluations": [
            {
                "id": plain(one.id),
                "triggered_by": plain(one.triggered_by),
                "status": plain(one.status),
                **({"description": plain(one.status_description)} if one.status_description else {}),
            }
            for one in shown
        ],
        "evaluations_left_out": len(in_order) - len(shown),
    }


def _durations(snapshot: Snapshot, judged: Mapping[str, LastRuns]) -> dict[str, float]:
    """Seconds by the servers' and clients' clocks; what no time stamp tells is left out."""
    allocations = snapshot.allocations.values()
    told: dict[str, float] = {}
    submitted = _submitted(snapshot)
    placed = min((one.create_time for one in allocations if one.create_time > 0), default=0)
    if submitted > 0 and placed >= submitted:
        told["placement"] = round((placed - submitted) / _NS, 3)
    started: list[float] = []
    finished: list[float] = []
    for runs in judged.values():
        for name, end in runs.tasks.items():
            if name in runs.main:
                started += _seconds(end.state.started_at)
                finished += _seconds(end.state.finished_at)
    if started and finished and max(finished) >= min(started):
        told["run"] = round(max(finished) - min(started), 3)
    return told


def _submitted(snapshot: Snapshot) -> int:
    """When the job came, nanoseconds since the epoch; 0: not told."""
    registered = [one for one in snapshot.evaluations.values() if one.triggered_by == "job-register"]
    if first := min((one.create_time for one in registered if one.create_time > 0), default=0):
        return first
    job = snapshot.job
    return job.submit_time if job is not None and not job.stop else 0


def _seconds(text: str | None) -> list[float]:
    # Nomad writes the year 1 for a time that has not come.
    if not text or text.startswith("0001-"):
        return []
    try:
        moment = datetime.fromisoformat(text)
        return [moment.timestamp()] if moment.tzinfo is not None else []
    except (ValueError, OverflowError):
        return []


def _group(job: Job | None, allocation: Allocation) -> TaskGroup | None:
    return job.group(allocation.task_group) if job is not None else None


def _in_order(allocation: Allocation) -> tuple[str, str, int, str]:
    return allocation.task_group, allocation.name, allocation.create_index, allocation.id


def _ended_well(allocation: Allocation) -> bool:
    return allocation.client_status == "complete" and allocation.desired_status == "run"
