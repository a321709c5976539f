"""Runs one evaluation: decide, place, and write the plan in the order of writes a real server makes.

Knows nothing of when evaluations run; reads no clock.
"""

from collections import deque
from typing import Any

from worker.dev.simulator.jobs import Job
from worker.dev.simulator.reconciling import UNKNOWN, Decisions, Placement, reconcile
from worker.dev.simulator.records import (
    Allocation,
    AllocState,
    Evaluation,
    Metrics,
    PlanAnnotations,
    go_time,
)
from worker.dev.simulator.scheduler import Plan, eligibility, place
from worker.dev.simulator.state import Node, State, Write


def new_evaluation(state: State, job: Job, write: Write, triggered_by: str, **fields: Any) -> Evaluation:
    """Make a pending evaluation of a job, in a write."""
    values = {"status": "pending", "type": job.spec.type, **fields}
    return Evaluation(
        id=state.new_id(),
        job_id=job.id,
        create_index=write.index,
        modify_index=write.index,
        create_time=write.now,
        modify_time=write.now,
        namespace=job.namespace,
        priority=job.priority,
        triggered_by=triggered_by,
        **values,
    )


def process(state: State, eval_id: str, now: int) -> None:
    """Run an evaluation that is pending or blocked; others are left alone.

    A blocked one for which there is still no room stays as it is, without a write.
    """
    evaluation = state.evals.get(eval_id)
    if evaluation is None or not evaluation.open:
        return
    snapshot = state.index
    job = state.job_of(evaluation)
    if job is None:
        evaluation.snapshot_index = snapshot
        evaluation.plan_annotations = PlanAnnotations(desired_tg_updates={})
        others = state.evals_of(evaluation.namespace, evaluation.job_id)
        _complete(state, evaluation, [other for other in others if other.status == "blocked"], now)
        return
    decisions = reconcile(state, job, evaluation, now)
    placed, failed, waiting = _place_all(state, job, decisions)
    blocked = evaluation.status == "blocked"
    if blocked and failed and not placed:
        return
    blocked_eval = _block(state, job, evaluation, failed, snapshot, now) if failed and not blocked else ""
    _follow_up(state, job, evaluation, decisions, snapshot, now)
    if placed or decisions.stops or decisions.unknown or decisions.later or decisions.touched:
        _write_plan(state, job, evaluation, decisions, placed, now)
    _queue(state, job, waiting)
    if blocked and failed:
        return
    evaluation.snapshot_index = snapshot
    evaluation.plan_annotations = PlanAnnotations(desired_tg_updates=decisions.annotations())
    evaluation.queued_allocations = {name: waiting.get(name, 0) for name in job.spec.groups}
    evaluation.failed_tg_allocs = failed or None
    evaluation.blocked_eval = blocked_eval
    superseded = [] if failed else [other for other in job.evals.values() if other.status == "blocked"]
    _complete(state, evaluation, [other for other in superseded if other is not evaluation], now)


def _queue(state: State, job: Job, waiting: dict[str, int]) -> None:
    for name in job.spec.groups:
        if job.queue(name, waiting.get(name, 0)):
            # The summary changes with the write that ends the evaluation.
            job.summary_index = state.index + 1


def _complete(state: State, evaluation: Evaluation, superseded: list[Evaluation], now: int) -> None:
    write = state.write("EvaluationUpdated", now)
    for other in superseded:
        other.status = "canceled"
        other.status_description = f'evaluation "{evaluation.id}" successful'
        write.evaluation(other)
    evaluation.status = "complete"
    evaluation.status_description = ""
    write.evaluation(evaluation)
    write.done()


Placed = list[tuple[Placement, Node, Metrics]]


def _place_all(
    state: State, job: Job, decisions: Decisions
) -> tuple[Placed, dict[str, Metrics], dict[str, int]]:
    """Find nodes; return what was placed, the metrics of groups that were not, and how many wait."""
    plan = Plan()
    stopping = {alloc.id for alloc, _ in decisions.stops}
    for alloc in job.allocs.values():
        if alloc.live and alloc.id not in stopping:
            plan.hosts[alloc.task_group, alloc.node_id] += 1
    placed: Placed = []
    failed: dict[str, Metrics] = {}
    waiting: dict[str, int] = {}
    for placement in decisions.places:
        group = placement.group
        nodes = [placement.node] if placement.node else state.nodes.values()
        tracker = placement.tracker
        avoid = {event.prev_node_id for event in tracker.events} if tracker else set()
        node, metrics = place(group, nodes, plan, avoid)
        if node is not None:
            placed.append((placement, node, metrics))
            if placement.node:
                decisions.updates[group.name]["Place"] += 1
        elif placement.node is not None and not metrics.nodes_exhausted:
            continue  # A system job passes over nodes that do not qualify.
        else:
            waiting[group.name] = waiting.get(group.name, 0) + 1
            if group.name in failed:
                failed[group.name].coalesced_failures += 1
            else:
                failed[group.name] = metrics
    return placed, failed, waiting


def _block(
    state: State, job: Job, evaluation: Evaluation, failed: dict[str, Metrics], snapshot: int, now: int
) -> str:
    """Return the ID of the evaluation that waits for capacity; make it if the job has none."""
    for other in job.evals.values():
        if other.status == "blocked":
            return other.id
    escaped, classes = False, None
    for name in failed:
        group_escaped, group_classes = eligibility(job.spec.groups[name], state.nodes.values())
        escaped = escaped or group_escaped
        classes = group_classes if not escaped else None
    write = state.write("EvaluationUpdated", now)
    blocked = new_evaluation(
        state,
        job,
        write,
        "queued-allocs",
        status="blocked",
        status_description="created to place remaining allocations",
        previous_eval=evaluation.id,
        failed_tg_allocs=failed,
        escaped_computed_class=escaped,
        class_eligibility=classes,
        snapshot_index=snapshot,
        job_modify_index=evaluation.job_modify_index,
    )
    write.evaluation(blocked)
    write.done()
    state.blocked_evals.setdefault((job.priority, job.spec.serial), deque()).append(blocked.id)
    return blocked.id


def _follow_up(
    state: State, job: Job, evaluation: Evaluation, decisions: Decisions, snapshot: int, now: int
) -> None:
    """Make the delayed evaluations of failed and of silent allocations."""
    for waits, trigger, why in (
        (decisions.later, "alloc-reschedule", "created for delayed rescheduling"),
        (decisions.unknown, "max-disconnect-timeout", "created for delayed disconnect timeout"),
    ):
        if not waits:
            continue
        when = min(moment for _, moment in waits)
        write = state.write("EvaluationUpdated", now)
        followup = new_evaluation(
            state,
            job,
            write,
            trigger,
            status_description=why,
            previous_eval=evaluation.id,
            snapshot_index=snapshot,
            job_modify_index=job.modify_index,
            wait_until=go_time(when),
        )
        evaluation.next_eval = followup.id
        for alloc, _ in waits:
            alloc.followup_eval_id = followup.id
        write.evaluation(followup)
        write.done()
        state.wake(followup, when)


def _write_plan(
    state: State, job: Job, evaluation: Evaluation, decisions: Decisions, placed: Placed, now: int
) -> None:
    write = state.write("PlanResult", now)
    write.evaluation(evaluation, changed=False)
    for placement, node, metrics in placed:
        alloc = _allocate(state, job, evaluation, placement, node, metrics, write)
        if placement.previous is not None:
            placement.previous.next_allocation = alloc.id
        write.alloc(alloc)
    for alloc, description in decisions.stops:
        alloc.desired_status = "stop"
        alloc.desired_description = description
        if alloc.id in decisions.lost:
            alloc.client_status = "lost"
            alloc.alloc_states = None
        write.alloc(alloc)
    for alloc, _ in decisions.unknown:
        alloc.client_status = "unknown"
        alloc.client_description = UNKNOWN
        alloc.alloc_states = [
            *(alloc.alloc_states or ()),
            AllocState(field=0, time=go_time(now), value="unknown"),
        ]
        write.alloc(alloc)
    for alloc in (*(alloc for alloc, _ in decisions.later), *decisions.touched):
        write.alloc(alloc)
    write.done()


def _allocate(
    state: State,
    job: Job,
    evaluation: Evaluation,
    placement: Placement,
    node: Node,
    metrics: Metrics,
    write: Write,
) -> Allocation:
    group = placement.group
    return Allocation(
        id=state.new_id(),
        job_id=job.id,
        create_index=write.index,
        modify_index=write.index,
        alloc_modify_index=write.index,
        create_time=write.now,
        modify_time=write.now,
        name=placement.name,
        namespace=job.namespace,
        node_id=node.id,
        node_name=node.name,
        task_group=group.name,
        eval_id=evaluation.id,
        client_status="pending",
        desired_status="run",
        allocated_resources=group.allocated,
        metrics=metrics,
        previous_allocation=placement.previous.id if placement.previous else "",
        reschedule_tracker=placement.tracker,
        resources=group.resources,
        shared_resources=group.shared,
        signing_key_id=state.signing_key_id,
        task_resources=group.task_resources,
    )


def unblock(state: State, now: int) -> None:
    """Try blocked evaluations again: higher priority first, then older first.

    Evaluations of one specification ask for the same, so the first that finds no room ends its queue's turn.
    """
    state.capacity_changed = False
    for key in sorted(state.blocked_evals, key=lambda key: (-key[0], key[1])):
        queue = state.blocked_evals[key]
        for _ in range(len(queue)):
            eval_id = queue.popleft()
            process(state, eval_id, now)
            evaluation = state.evals.get(eval_id)
            if evaluation is None or evaluation.status != "blocked":
                continue
            job = state.job_of(evaluation)
            if job and any(group.distinct_hosts for group in job.spec.groups.values()):
                queue.append(eval_id)
            else:
                queue.appendleft(eval_id)
                break
        if not queue:
            del state.blocked_evals[key]
