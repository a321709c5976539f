"""Which allocations of a job count, and whether what is known of it is enough to judge by.

Knows nothing of how an allocation ended (`ending`) or of what that makes of the job (`verdict`).
"""

from collections.abc import Mapping

from msgspec import Struct

from worker.core.ending import TERMINAL
from worker.core.observed import Allocation, Evaluation, Job, Snapshot

OPEN = frozenset({"pending", "blocked"})
"""Statuses of an evaluation that is not done."""

_REGISTERED = "job-register"
_DEREGISTERED = "job-deregister"
_PLAIN_TRIGGERS = frozenset({_REGISTERED, "queued-allocs", _DEREGISTERED})

GAVE_WAY = "alloc not needed due to disconnected client reconnect"
"""Nomad's words for a replacement that it stopped since the one it had replaced came back (`disconnect`)."""
_CAME_BACK = "Reconnected"

Instance = tuple[str, str]
"""What is to run once: group and index, or, in a sysbatch job, group and node."""


class Story(Struct, frozen=True):
    """A snapshot in the order in which it happened."""

    snapshot: Snapshot
    attempts: Mapping[Instance, list[Allocation]]
    """All allocations of each instance, oldest first."""
    latest: Mapping[Instance, Allocation]
    """The allocation that counts for each instance."""
    broken: frozenset[Instance]
    """Instances whose newest known allocation was replaced by one that is not known."""

    @property
    def open_evaluations(self) -> list[Evaluation]:
        """Evaluations that may still bring a new allocation."""
        return [
            one
            for one in self.snapshot.evaluations.values()
            if one.status in OPEN and one.triggered_by != _DEREGISTERED
        ]

    @property
    def missing(self) -> int:
        """How many instances that the job asks for have no allocation that counts."""
        job = self.snapshot.job
        if job is None or job.task_groups is None:
            return 1
        if job.type == "sysbatch":
            # One for each node that fits, and only the servers know how many do: at least one for each group.
            groups = {group.name for group in job.task_groups if group.count}
            return len(groups - {group for group, _ in self.latest}) if groups else 1
        wanted = {(group.name, str(index)) for group in job.task_groups for index in range(group.count)}
        return len(wanted - self.latest.keys()) if wanted else 1

    @property
    def never_collected(self) -> bool:
        """Whether the first evaluation is still there, so that an allocation that is not there never was.

        Garbage collection takes the oldest evaluations first, each with its allocations.
        """
        return any(one.triggered_by == _REGISTERED for one in self.snapshot.evaluations.values())

    @property
    def told_in_full(self) -> bool:
        """Whether nothing can be missing: read as a whole, or so plain that the events leave no gap.

        Plain is one allocation for each instance, never replaced, and no evaluation but those that come with
        starting and stopping a job. Whatever is less plain is read from the API before it is judged.
        """
        job = self.snapshot.job
        if job is None or job.task_groups is None:
            return False
        if self.snapshot.whole:
            return True
        return (
            job.type != "sysbatch"
            and not self.missing
            and not self.broken
            and len(self.snapshot.allocations) == len(self.latest)
            and not any(one.followup_eval_id for one in self.latest.values())
            and all(one.triggered_by in _PLAIN_TRIGGERS for one in self.snapshot.evaluations.values())
        )

    @property
    def stopped_by_hand(self) -> bool:
        """Whether an operator stopped single allocations, which Nomad describes in the words of a drain."""
        triggers = {one.triggered_by for one in self.snapshot.evaluations.values()}
        return "alloc-stop" in triggers and "node-drain" not in triggers

    def unseen_followup(self, allocation: Allocation) -> bool:
        """Whether a retry of this allocation was ordered whose evaluation is not known."""
        followup = allocation.followup_eval_id
        return bool(followup) and followup not in self.snapshot.evaluations

    def awaited_retry(self, allocation: Allocation) -> bool:
        """Whether Nomad meant to try again after this allocation, and has not."""
        return allocation.client_status == "failed" and bool(allocation.followup_eval_id)


def story_of(snapshot: Snapshot) -> Story:
    """Sort out a snapshot. Its mappings' order does not matter."""
    attempts: dict[Instance, list[Allocation]] = {}
    for allocation in sorted(snapshot.allocations.values(), key=_age):
        attempts.setdefault(_instance(allocation, snapshot.job), []).append(allocation)
    latest: dict[Instance, Allocation] = {}
    broken = set()
    for instance, tries in attempts.items():
        counting = _counting(tries)
        if counting is not None:
            latest[instance] = counting
        if not _replacement_known(tries, counting, snapshot):
            broken.add(instance)
            latest.pop(instance, None)
    return Story(snapshot, attempts, latest, frozenset(broken))


def runs_no_more(allocation: Allocation) -> bool:
    """Whether the client is done with it, as far as it ever will be."""
    return allocation.client_status in TERMINAL


def _counting(tries: list[Allocation]) -> Allocation | None:
    """The try whose end is the instance's; None: it was replaced by one that is not among them.

    Args:
        tries: oldest first.
    """
    if len(tries) == 1:
        return None if tries[0].next_allocation else tries[0]
    by_id = {one.id: one for one in tries}
    # A replaced allocation may lack the link to the one that replaced it (after a preemption it does).
    standing = [one for one in tries if not one.next_allocation and not _gave_way(one)]
    # One that came back from a disconnected client keeps the link to the replacement that gave way to it.
    kept = [one for one in tries if not _gave_way(one) and _gave_way(_last(one, by_id))]
    back = [one for one in kept if _came_back(one)] or [one for one in kept if one.desired_status == "run"]
    candidates = standing + (back or kept)[-1:]
    if not candidates and all(not one.next_allocation or one.next_allocation in by_id for one in tries):
        candidates = tries
    return max(candidates, key=_age, default=None)


def _gave_way(allocation: Allocation) -> bool:
    return allocation.desired_description == GAVE_WAY


def _last(allocation: Allocation, by_id: Mapping[str, Allocation]) -> Allocation:
    """The end of the chain of replacements that begins with an allocation, as far as it is known."""
    seen = {allocation.id}
    while (following := by_id.get(allocation.next_allocation)) is not None and following.id not in seen:
        allocation = following
        seen.add(allocation.id)
    return allocation


def _came_back(allocation: Allocation) -> bool:
    states = (allocation.task_states or {}).values()
    return any(event.type == _CAME_BACK for state in states for event in state.events or ())


def _replacement_known(tries: list[Allocation], counting: Allocation | None, snapshot: Snapshot) -> bool:
    """Whether no try was replaced, or only by ones that are known."""
    following = tries[-1].next_allocation
    if snapshot.job is not None and snapshot.job.type == "sysbatch":
        # A replacement on another node counts there.
        return not following or following in snapshot.allocations
    if not following:
        return counting is not None
    return any(not one.next_allocation and one.id == following for one in tries)


def _age(allocation: Allocation) -> tuple[int, int, str]:
    return allocation.create_index, allocation.create_time, allocation.id


def _instance(allocation: Allocation, job: Job | None) -> Instance:
    if job is not None and job.type == "sysbatch":
        return allocation.task_group, allocation.node_id
    # The name is `<job>.<group>[<index>]`.
    index = allocation.name.rpartition("[")[2].removesuffix("]")
    return allocation.task_group, index
