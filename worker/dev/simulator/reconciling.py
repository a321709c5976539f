"""What an evaluation sets out to do for a job: which allocations to stop, replace, wait for or place. Pure.

Knows nothing of nodes' capacity or of writes.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from worker.dev.simulator.jobs import Group, Job
from worker.dev.simulator.records import (
    Allocation,
    Evaluation,
    RescheduleEvent,
    RescheduleTracker,
    from_go_time,
)
from worker.dev.simulator.state import Node, State

MIGRATED = "alloc is being migrated"
NODE_TAINTED = "alloc not needed as node is tainted"
"""The same, of a sysbatch job."""
LOST = "alloc is lost since its node is down"
NOT_NEEDED = "alloc not needed due to job update"
RECONNECTED = "alloc not needed due to disconnected client reconnect"
UNKNOWN = "alloc is unknown since its node is disconnected"
_UPDATES = (
    *("Canary", "DestructiveUpdate", "Disconnect", "Ignore", "InPlaceUpdate", "Migrate", "Place"),
    *("Preemptions", "Reconnect", "RescheduleLater", "RescheduleNow", "Stop"),
)


@dataclass(slots=True)
class Placement:
    """One allocation to make."""

    group: Group
    name: str
    previous: Allocation | None = None
    tracker: RescheduleTracker | None = None
    node: Node | None = None
    """Where it has to go; None: anywhere."""


@dataclass(slots=True)
class Decisions:
    """What to do; `updates` is what the evaluation's annotations show per group."""

    updates: dict[str, Counter[str]] = field(default_factory=dict)
    places: list[Placement] = field(default_factory=list)
    stops: list[tuple[Allocation, str]] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """IDs of allocations in `stops` that are given up, not stopped."""
    unknown: list[tuple[Allocation, int]] = field(default_factory=list)
    """With the time at which the client's silence becomes a loss."""
    later: list[tuple[Allocation, int]] = field(default_factory=list)
    """Failed ones with the time of their next attempt."""
    touched: list[Allocation] = field(default_factory=list)

    def annotations(self) -> dict[str, dict[str, int]]:
        """Return the counts with every name, as Nomad shows them."""
        return {group: {name: counts[name] for name in _UPDATES} for group, counts in self.updates.items()}


def reconcile(state: State, job: Job, evaluation: Evaluation, now: int) -> Decisions:
    """Compare what runs with what should run."""
    decisions = Decisions({name: Counter() for name in job.spec.groups})
    if job.stop:
        for alloc in job.allocs.values():
            if alloc.live:
                decisions.stops.append((alloc, NOT_NEEDED))
                decisions.updates[alloc.task_group]["Stop"] += 1
    elif job.spec.type == "sysbatch":
        for group in job.spec.groups.values():
            _reconcile_nodes(state, job, group, decisions)
    else:
        for group in job.spec.groups.values():
            _Group(state, job, group, evaluation, now, decisions).reconcile()
    return decisions


def _reconcile_nodes(state: State, job: Job, group: Group, decisions: Decisions) -> None:
    """One allocation per node; those of lost nodes are given up and not replaced."""
    counts = decisions.updates[group.name]
    present = {alloc.node_id: alloc for alloc in job.allocs.values() if alloc.task_group == group.name}
    for alloc in present.values():
        if not alloc.live:
            counts["Ignore"] += 1
        elif state.nodes[alloc.node_id].status == "down":
            decisions.stops.append((alloc, LOST))
            decisions.lost.add(alloc.id)
            counts["Stop"] += 1
        elif _migrates(alloc):
            decisions.stops.append((alloc, NODE_TAINTED))
            counts["Stop"] += 1
        else:
            counts["Ignore"] += 1
    for node in state.nodes.values():
        if node.ready and node.id not in present:
            decisions.places.append(Placement(group, f"{job.id}.{group.name}[0]", node=node))


def _migrates(alloc: Allocation) -> bool:
    return bool(alloc.desired_transition and alloc.desired_transition.migrate)


class _Group:
    """The work of one batch group."""

    def __init__(
        self, state: State, job: Job, group: Group, evaluation: Evaluation, now: int, decisions: Decisions
    ) -> None:
        self.state = state
        self.job = job
        self.group = group
        self.evaluation = evaluation
        self.now = now
        self.decisions = decisions
        self.counts = decisions.updates[group.name]

    def reconcile(self) -> None:
        names = {f"{self.job.id}.{self.group.name}[{index}]" for index in range(self.group.count)}
        current: dict[str, Allocation] = {}
        originals: dict[str, Allocation] = {}
        for alloc in self.job.allocs.values():
            if alloc.task_group != self.group.name:
                continue
            if alloc.desired_description == RECONNECTED:
                continue
            if alloc.next_allocation and not self._outlived(alloc):
                if alloc.live:
                    originals[alloc.name] = alloc
                continue
            known = current.get(alloc.name)
            rank = alloc.live, alloc.create_index
            if known is None or (known.live, known.create_index) < rank:
                current[alloc.name] = alloc
        for name in sorted(names):
            if name not in current:
                self._place(name)
        for name, alloc in current.items():
            original = originals.get(name)
            if original is not None and self._reconnected(original) and alloc.desired_status == "run":
                # Whoever came back is preferred: all nodes are alike here. Its link stays.
                self.decisions.stops.append((alloc, RECONNECTED))
                self.counts["Stop"] += 1
                self._keep(original)
            elif original is not None and self._expired(original):
                self._lose(original, replace=False)
                self._consider(alloc)
            else:
                self._consider(alloc)

    def _outlived(self, alloc: Allocation) -> bool:
        """Whether its replacement was stopped when it came back."""
        replacement = self.state.allocs.get(alloc.next_allocation)
        return replacement is not None and replacement.desired_description == RECONNECTED

    def _reconnected(self, alloc: Allocation) -> bool:
        return alloc.client_status != "unknown" and self.state.nodes[alloc.node_id].status == "ready"

    def _place(
        self, name: str, previous: Allocation | None = None, tracker: RescheduleTracker | None = None
    ) -> None:
        self.decisions.places.append(Placement(self.group, name, previous, tracker))
        self.counts["Place"] += 1

    def _consider(self, alloc: Allocation) -> None:
        if alloc.desired_status != "run":
            # Stopped or evicted by the servers and not replaced yet.
            transition = alloc.desired_transition
            if transition and transition.migrate_disable_placement:
                self.counts["Ignore"] += 1
            else:
                self._place(alloc.name, alloc)
        elif alloc.client_status == "failed":
            self._consider_failed(alloc)
        elif not alloc.live:
            self.counts["Ignore"] += 1
        elif self.state.nodes[alloc.node_id].status == "down":
            self._consider_silent(alloc)
        elif _migrates(alloc):
            self.counts["Migrate"] += 1
            self.decisions.stops.append((alloc, MIGRATED))
            transition = alloc.desired_transition
            if not (transition and transition.migrate_disable_placement):
                self.decisions.places.append(Placement(self.group, alloc.name, alloc))
        else:
            self._keep(alloc)

    def _keep(self, alloc: Allocation) -> None:
        self.counts["Ignore"] += 1
        if self.evaluation.triggered_by == "reconnect" and alloc.alloc_states:
            self.counts["Reconnect"] += 1
            self.decisions.touched.append(alloc)

    # A client that does not answer.

    def _lost_after(self) -> int:
        block = self.group.spec.get("Disconnect") or {}
        return int(block.get("LostAfter") or self.group.spec.get("MaxClientDisconnect") or 0)

    def _expired(self, alloc: Allocation) -> bool:
        if alloc.client_status != "unknown" or not alloc.alloc_states:
            return False
        since = from_go_time(alloc.alloc_states[-1].time)
        return self.now >= since + self.state.scaled(self._lost_after())

    def _consider_silent(self, alloc: Allocation) -> None:
        if alloc.client_status == "unknown":
            if self._expired(alloc):
                self._lose(alloc, replace=True)
            else:
                self.counts["Ignore"] += 1
        elif self._lost_after() and alloc.client_status == "running":
            self.counts["Disconnect"] += 1
            self.counts["Ignore"] += 1
            self.decisions.unknown.append((alloc, self.now + self.state.scaled(self._lost_after())))
            # As servers before 2.0 did. Later ones reschedule, which a batch job's policy puts off until the
            # allocation is already unknown, and then they leave it alone.
            if (self.group.spec.get("Disconnect") or {}).get("Replace", True):
                self._place(alloc.name, alloc)
        else:
            self._lose(alloc, replace=True)

    def _lose(self, alloc: Allocation, *, replace: bool) -> None:
        self.counts["Stop"] += 1
        self.decisions.stops.append((alloc, LOST))
        self.decisions.lost.add(alloc.id)
        if replace:
            self._place(alloc.name, alloc)

    # A task that failed.

    def _consider_failed(self, alloc: Allocation) -> None:
        when = self._next_attempt(alloc)
        if when is None:
            self.counts["Ignore"] += 1
            return
        delay = int((self.group.spec.get("ReschedulePolicy") or {}).get("Delay", 0))
        followup = self.state.evals.get(alloc.followup_eval_id)
        due = followup is None if alloc.followup_eval_id else when <= self.now
        if followup is not None and (followup.id == self.evaluation.id or not followup.open):
            due = True
        if due:
            earlier = alloc.reschedule_tracker.events if alloc.reschedule_tracker else []
            event = RescheduleEvent(
                delay=delay, prev_alloc_id=alloc.id, prev_node_id=alloc.node_id, reschedule_time=self.now
            )
            self.counts["Stop"] += 1
            self.decisions.stops.append((alloc, ""))
            self._place(alloc.name, alloc, RescheduleTracker(events=[*earlier, event]))
        else:
            self.counts["Ignore"] += 1
            if not alloc.followup_eval_id:
                self.counts["RescheduleLater"] += 1
                self.decisions.later.append((alloc, when))

    def _next_attempt(self, alloc: Allocation) -> int | None:
        policy = self.group.spec.get("ReschedulePolicy")
        return next_attempt(policy, alloc, self.now, speed=self.state.speed)


def next_attempt(policy: dict[str, Any] | None, alloc: Allocation, now: int, *, speed: float) -> int | None:
    """Return when a failed allocation is tried again elsewhere; None: never."""
    if policy is None:
        return None
    events = alloc.reschedule_tracker.events if alloc.reschedule_tracker else []
    interval = int(policy.get("Interval") or 0)
    recent = [event for event in events if event.reschedule_time > now - interval]
    if not policy.get("Unlimited") and len(recent) >= (policy.get("Attempts") or 0):
        return None
    delay = int(policy.get("Delay") or 0)
    match policy.get("DelayFunction"):
        case "exponential":
            delay *= 2 ** len(events)
        case "fibonacci":
            before, following = delay, delay
            for _ in events:
                before, following = following, before + following
            delay = before
    if policy.get("MaxDelay") and policy.get("DelayFunction") != "constant":
        delay = min(delay, int(policy["MaxDelay"]))
    ends = [from_go_time(task.finished_at) for task in (alloc.task_states or {}).values() if task.finished_at]
    return max(ends, default=alloc.modify_time) + int(delay / speed)
