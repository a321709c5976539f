"""The step that a job which is not over has come to, and the JSON to announce it with.

Knows nothing of how jobs end, or of which steps were announced before.
"""

from collections.abc import Mapping
from typing import Any

from worker.core import placement
from worker.core.evidence import event_json, instant, where
from worker.core.model import Progress
from worker.core.observed import Allocation, Evaluation, TaskEvent, TaskState
from worker.core.placement import plain
from worker.core.story import Story, runs_no_more

ALLOCATIONS_SHOWN = 16
EVALUATIONS_SHOWN = 8

_LIVE = frozenset({"pending", "running", "unknown"})
_ENDING = frozenset({"stop", "evict"})
"""Desired statuses of an allocation that is not to go on."""

Step = tuple[Progress | None, Mapping[str, Any]]


def step_of(story: Story, shown: str = "") -> Step:
    """The step, and what to publish with it; (None, {}) when there is nothing to announce.

    A step that runs, or is to, comes without anything to publish where it is `shown` already.

    In a job of several instances the one that is being retried is announced first, then one that runs.
    """
    alive = [one for one in story.latest.values() if one.client_status in _LIVE]
    live = [one for one in alive if one.desired_status not in _ENDING]
    if alive and not live:
        # Told to stop, as is the returning copy of a lost client: what comes after it is the next step.
        return None, {}
    if not live and (blocked := _blocked(story)):
        return Progress.BLOCKED, blocked
    if retry := _retry(story):
        return Progress.RETRYING, retry
    if not live:
        return None, {}
    started = [one for one in live if one.client_status != "pending"]
    # Where an instance has ended before the next one has started, the job has run all the same.
    ran = started or any(runs_no_more(one) for one in story.latest.values())
    step = Progress.RUNNING if ran else Progress.PLACED
    return step, {} if step == shown else _places(story, started or live)


def _blocked(story: Story) -> dict[str, Any]:
    blocked = [one for one in story.open_evaluations if one.status == "blocked"]
    if not blocked:
        return {}
    metrics = placement.failures(blocked) or placement.failures(story.snapshot.evaluations.values())
    told: dict[str, Any] = {"placement": placement.explain(metrics)}
    in_age = sorted(blocked, key=lambda one: (one.create_index, one.id))
    told["evaluations"] = [{"id": plain(one.id), "status": "blocked"} for one in in_age[:EVALUATIONS_SHOWN]]
    if reason := placement.sentence(metrics):
        told["reason"] = reason
    # Placed before, and to be placed again: after a lost client, a preemption, a failure.
    again = [one for one in story.latest.values() if runs_no_more(one) and not _done(one)]
    if again:
        in_order = sorted(again, key=lambda one: (one.task_group, one.name, one.id))
        told["after"] = [_ended(one) for one in in_order[:ALLOCATIONS_SHOWN]]
    return told


def _places(story: Story, live: list[Allocation]) -> dict[str, Any]:
    in_order = sorted(live, key=lambda one: (one.task_group, one.name, one.id))
    told: dict[str, Any] = where(in_order[0])
    if in_order[0].client_status == "unknown":
        told["disconnected"] = True
    if len(in_order) > 1:
        told["allocations"] = [where(one) for one in in_order[:ALLOCATIONS_SHOWN]]
        told["allocations_left_out"] = max(0, len(in_order) - ALLOCATIONS_SHOWN)
    if any(one.status == "blocked" for one in story.open_evaluations):
        told |= _blocked(story)
    return told


def _retry(story: Story) -> dict[str, Any]:
    """What is being tried again: a task by its client, or an allocation by the servers."""
    for instance in sorted(story.latest):
        allocation = story.latest[instance]
        before = [one for one in story.attempts[instance] if one.id != allocation.id]
        attempt = max(len(before), _tries_before(allocation)) + 1
        if restart := _restart(allocation):
            return restart
        if allocation.client_status == "pending" and attempt > 1:
            retry = _ended(before[-1]) if before else {}
            return {"what": "reschedule", **retry, "attempt": attempt, "next": where(allocation)}
        if runs_no_more(allocation) and (followup := _followup(story, allocation)):
            told = {"what": "reschedule", **_ended(allocation), "attempt": attempt + 1}
            if followup.wait_until:
                told["next_at"] = plain(followup.wait_until)
            return told
    return {}


def _restart(allocation: Allocation) -> dict[str, Any]:
    if allocation.client_status not in _LIVE:
        return {}
    for name, state in sorted((allocation.task_states or {}).items()):
        events = state.events or []
        if state.state != "pending" or not events or events[-1].type != "Restarting":
            continue
        told = {"what": "restart", **where(allocation), "task": plain(name), "attempt": state.restarts + 1}
        told |= _exit(state)
        if next_at := _restart_at(events[-1]):
            told["next_at"] = next_at
        return told
    return {}


def _restart_at(event: TaskEvent) -> str | None:
    delay = (event.details or {}).get("start_delay", "")
    # Nanoseconds, as text; a longer one than this is no delay anybody set.
    if event.time <= 0 or not (delay.isascii() and delay.isdigit() and len(delay) <= len(str(event.time))):
        return None
    return instant(event.time + int(delay))


def _followup(story: Story, allocation: Allocation) -> Evaluation | None:
    followup = story.snapshot.evaluations.get(allocation.followup_eval_id)
    return followup if followup is not None and followup.status == "pending" else None


def _ended(allocation: Allocation) -> dict[str, Any]:
    told: dict[str, Any] = {**where(allocation), "client_status": plain(allocation.client_status)}
    if allocation.desired_description:
        told["reason"] = plain(allocation.desired_description)
    for name, state in sorted((allocation.task_states or {}).items()):
        if state.failed:
            return told | {"task": plain(name)} | _exit(state)
    return told


def _exit(state: TaskState) -> dict[str, Any]:
    ended = next((event for event in reversed(state.events or []) if event.type == "Terminated"), None)
    if ended is None:
        return {}
    return {"exit_code": ended.exit_code, "event": event_json(ended)}


def _done(allocation: Allocation) -> bool:
    return allocation.client_status == "complete" and allocation.desired_status == "run"


def _tries_before(allocation: Allocation) -> int:
    tracker = allocation.reschedule_tracker
    return len(tracker.events or ()) if tracker is not None else 0
