"""The simulated servers' memory: jobs, evaluations, allocations and nodes, changed only in indexed writes.

Knows the rules every write keeps (indexes, job status, summaries, events), not why a write happens.
"""

import itertools
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappush
from typing import Any

import msgspec

from worker.dev.simulator.events import Event, EventRing
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.records import Allocation, Evaluation

Key = tuple[str, str]
"""Namespace and job ID."""


@dataclass(slots=True, eq=False)
class Node:
    """One client agent and what it offers. CPU in MHz, memory in MB."""

    id: str
    name: str
    datacenter: str = "dc1"
    node_class: str = ""
    pool: str = "default"
    attributes: dict[str, str] = field(default_factory=lambda: {"kernel.name": "linux", "cpu.arch": "amd64"})
    meta: dict[str, str] = field(default_factory=dict)
    drivers: frozenset[str] = frozenset({"raw_exec", "exec", "mock_driver"})
    cpu: int = 4_000_000
    memory: int = 16_000_000
    status: str = "ready"
    eligible: bool = True
    drain: dict[str, Any] | None = None
    create_index: int = 0
    modify_index: int = 0
    used_cpu: int = 0
    used_memory: int = 0
    allocs: dict[str, Allocation] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether new allocations may be placed on it."""
        return self.status == "ready" and self.eligible and self.drain is None


class State:
    """All tables. Every write goes through `write()`.

    Args:
        ring: where events go.
        new_id: makes a UUID.
        speed: by how much the delays of job specifications (reschedule, lost_after, ...) are shortened.
    """

    def __init__(self, ring: EventRing, new_id: Callable[[], str], *, speed: float = 1.0) -> None:
        self.ring = ring
        self.new_id = new_id
        self.speed = speed
        self.index = 1
        self.table_index = dict.fromkeys(("jobs", "evals", "allocs", "nodes"), 0)
        self.namespaces: dict[str, int] = {"default": 1}
        self.jobs: dict[Key, Job] = {}
        self.job_ids: dict[str, list[str]] = {}
        self.tokens: dict[tuple[str, str, str], Job] = {}
        self.evals: dict[str, Evaluation] = {}
        self.evals_of_gone_jobs: dict[Key, dict[str, Evaluation]] = {}
        self.allocs: dict[str, Allocation] = {}
        self.nodes: dict[str, Node] = {}
        self.signing_key_id = new_id()
        # What the servers' and clients' loops have to look at next.
        self.ready_evals: deque[str] = deque()
        self.waiting_evals: list[tuple[int, str]] = []
        self.blocked_evals: dict[tuple[int, int], deque[str]] = {}
        """By priority and specification, oldest first; entries that are no longer blocked are skipped."""
        self.changed_allocs: deque[Allocation] = deque()
        self.removed_allocs: deque[str] = deque()
        self.capacity_changed = False
        self.on_write: list[Callable[[], None]] = []
        """Called after every write."""
        self._counted: dict[str, tuple[str, bool, bool]] = {}

    def scaled(self, nanoseconds: int) -> int:
        """Return a delay of a job specification as this simulator keeps it."""
        return int(nanoseconds / self.speed)

    def write(self, kind: str, now: int) -> "Write":
        """Start a write at the next index; `kind` is the type of its events."""
        self.index += 1
        return Write(self, kind, self.index, now)

    def go_back(self, by: int) -> int:
        """Turn the index back, as the restore of an older snapshot does: no object is of a later one.

        What the objects say stays as it is.
        """
        self.index = index = max(self.index - by, 1)
        self.table_index = {table: min(known, index) for table, known in self.table_index.items()}
        for job in self.jobs.values():
            job.job_modify_index = min(job.job_modify_index, index)
            job.summary_index = min(job.summary_index, index)
        for alloc in self.allocs.values():
            alloc.alloc_modify_index = min(alloc.alloc_modify_index, index)
        for one in itertools.chain[Job | Evaluation | Allocation | Node](
            self.jobs.values(), self.evals.values(), self.allocs.values(), self.nodes.values()
        ):
            one.create_index = min(one.create_index, index)
            one.modify_index = min(one.modify_index, index)
        return index

    def job(self, namespace: str, job_id: str) -> Job | None:
        """Return a job or None."""
        return self.jobs.get((namespace, job_id))

    def job_of(self, item: Allocation | Evaluation) -> Job | None:
        """Return the job of an allocation or evaluation; None if it was purged."""
        return self.jobs.get((item.namespace, item.job_id))

    def find_jobs(self, namespace: str, prefix: str = "", start: str = "") -> Iterator[Job]:
        """Yield the jobs of a namespace (`*`: all) by ID, from `start` on, that begin with a prefix."""
        for name in sorted(self.job_ids) if namespace == "*" else (namespace,):
            ids = self.job_ids.get(name, [])
            position = bisect_left(ids, max(prefix, start))
            while position < len(ids) and ids[position].startswith(prefix):
                yield self.jobs[name, ids[position]]
                position += 1

    def evals_of(self, namespace: str, job_id: str) -> list[Evaluation]:
        """Return a job's evaluations by ID; those of a purged job stay."""
        job = self.jobs.get((namespace, job_id))
        evals = (job.evals if job else {}) | self.evals_of_gone_jobs.get((namespace, job_id), {})
        return [evals[eval_id] for eval_id in sorted(evals)]

    def allocs_of(self, namespace: str, job_id: str) -> list[Allocation]:
        """Return a job's allocations by ID."""
        job = self.jobs.get((namespace, job_id))
        return [job.allocs[alloc_id] for alloc_id in sorted(job.allocs)] if job else []

    # Bookkeeping, called by writes only.

    def keep_job(self, job: Job) -> None:
        """Add or replace a job."""
        if (job.namespace, job.id) not in self.jobs:
            insort(self.job_ids.setdefault(job.namespace, []), job.id)
        self.jobs[job.namespace, job.id] = job
        if job.token:
            self.tokens[job.namespace, job.parent_id, job.token] = job

    def drop_job(self, job: Job) -> None:
        """Remove a job and its allocations. Its token is free again; its evaluations stay."""
        for alloc in job.allocs.values():
            self.drop_alloc(alloc)
        del self.jobs[job.namespace, job.id]
        ids = self.job_ids[job.namespace]
        del ids[bisect_left(ids, job.id)]
        self.tokens.pop((job.namespace, job.parent_id, job.token), None)
        if job.evals:
            self.evals_of_gone_jobs.setdefault((job.namespace, job.id), {}).update(job.evals)

    def drop_alloc(self, alloc: Allocation) -> None:
        """Remove an allocation."""
        _, _, held = self._counted.pop(alloc.id)
        if held:
            self._hold(alloc, -1)
        self.nodes[alloc.node_id].allocs.pop(alloc.id, None)
        del self.allocs[alloc.id]
        self.removed_allocs.append(alloc.id)

    def keep_eval(self, evaluation: Evaluation) -> None:
        """Add an evaluation or note its new status."""
        job = self.job_of(evaluation)
        new = evaluation.id not in self.evals
        self.evals[evaluation.id] = evaluation
        if job is None:
            key = evaluation.namespace, evaluation.job_id
            self.evals_of_gone_jobs.setdefault(key, {})[evaluation.id] = evaluation
            return
        job.evals[evaluation.id] = evaluation
        if new or not evaluation.open:
            job.open_evals = sum(other.open for other in job.evals.values())

    def wake(self, evaluation: Evaluation, when: int = 0) -> None:
        """Hand an evaluation to the scheduler, at once or at a time in nanoseconds."""
        if when:
            heappush(self.waiting_evals, (when, evaluation.id))
        else:
            self.ready_evals.append(evaluation.id)

    def keep_alloc(self, alloc: Allocation) -> None:
        """Add an allocation or note its new statuses in the counts of its job and node."""
        job = self.jobs[alloc.namespace, alloc.job_id]
        node = self.nodes[alloc.node_id]
        before = self._counted.get(alloc.id)
        after = alloc.client_status, alloc.live, not alloc.ended
        if before is None:
            self.allocs[alloc.id] = job.allocs[alloc.id] = node.allocs[alloc.id] = alloc
            before = "", False, False
        if before == after:
            return
        self._counted[alloc.id] = after
        if before[0] != after[0]:
            if before[0]:
                job.count(alloc.task_group, before[0], -1)
            job.count(alloc.task_group, after[0], 1)
            job.summary_index = self.index
        job.live += after[1] - before[1]
        if before[2] != after[2]:
            self._hold(alloc, 1 if after[2] else -1)

    def _hold(self, alloc: Allocation, sign: int) -> None:
        """Take (1) or give back (-1) what an allocation holds of its node."""
        node = self.nodes[alloc.node_id]
        group = self.jobs[alloc.namespace, alloc.job_id].spec.groups[alloc.task_group]
        node.used_cpu += sign * group.cpu
        node.used_memory += sign * group.memory
        self.capacity_changed = self.capacity_changed or sign < 0


class Write:
    """One indexed write: collects changed objects, then updates job statuses and emits the events."""

    def __init__(self, state: State, kind: str, index: int, now: int) -> None:
        self.state = state
        self.kind = kind
        self.index = index
        self.now = now
        self._events: list[Event] = []
        self._touched: dict[Key, Job] = {}

    def job(self, job: Job, *, deleted: bool = False) -> None:
        """Show a job as it is now; keep it, or remove it."""
        if deleted:
            self.state.drop_job(job)
            self._count_child(job, job.status, "")
        else:
            self.state.keep_job(job)
        self.state.table_index["jobs"] = self.index
        payload = {"Deleted": True} if deleted else {}
        self._emit("Job", job.id, job.namespace, None, {**payload, "Job": job.view(packed=True)})

    def evaluation(self, evaluation: Evaluation, *, changed: bool = True) -> None:
        """Keep an evaluation and show it. A plan shows its evaluation with a new index but the old time."""
        evaluation.modify_index = self.index
        if changed:
            evaluation.modify_time = self.now
        self.state.keep_eval(evaluation)
        self.state.table_index["evals"] = self.index
        self._touch(evaluation)
        keys = [evaluation.job_id, ""]
        self._emit("Evaluation", evaluation.id, evaluation.namespace, keys, {"Evaluation": evaluation})

    def alloc(self, alloc: Allocation, *, by_client: bool = False, **facts: Any) -> None:
        """Keep an allocation and show it; `facts` go into the event's payload."""
        alloc.modify_index = self.index
        alloc.modify_time = self.now
        if not by_client:
            alloc.alloc_modify_index = self.index
            self.state.changed_allocs.append(alloc)
        self.state.keep_alloc(alloc)
        self.state.table_index["allocs"] = self.index
        self._touch(alloc)
        self._emit("Allocation", alloc.id, alloc.namespace, [alloc.job_id, ""], {"Allocation": alloc} | facts)

    def node(self, node: Node, shown: dict[str, Any]) -> None:
        """Keep a node and show it."""
        node.modify_index = self.index
        node.create_index = node.create_index or self.index
        self.state.nodes[node.id] = node
        self.state.table_index["nodes"] = self.index
        self._emit("Node", node.id, "", None, {"Node": shown})

    def cut(self) -> None:
        """End the frame here: the rest of the write comes in another frame with the same index."""
        self.state.ring.append(self.index, self._events)
        self._events = []

    def done(self, *, statuses: bool = True) -> int:
        """Update the statuses of the jobs touched, emit what is left, and return the index."""
        for job in self._touched.values() if statuses else ():
            status = job_status(job)
            if status != job.status:
                self.set_status(job, status)
        self.cut()
        for call in self.state.on_write:
            call()
        return self.index

    def set_status(self, job: Job, status: str) -> None:
        """Change a job's status and show the job."""
        self._count_child(job, job.status, status)
        job.status = status
        job.modify_index = self.index
        self.job(job)

    def new_child(self, job: Job) -> None:
        """Count a new child for its parent."""
        self._count_child(job, "", job.status)

    def _count_child(self, job: Job, before: str, after: str) -> None:
        parent = self.state.jobs.get((job.namespace, job.parent_id)) if job.parent_id else None
        if parent is None:
            return
        if parent.children is None:
            parent.children = {}
        for status, change in ((before, -1), (after, 1)):
            if status:
                parent.children[status] = parent.children.get(status, 0) + change
        parent.summary_index = self.index

    def _touch(self, item: Allocation | Evaluation) -> None:
        job = self.state.job_of(item)
        if job is not None:
            self._touched[job.namespace, job.id] = job

    def _emit(
        self, topic: str, key: str, namespace: str, filter_keys: list[str] | None, payload: Any
    ) -> None:
        encoded = msgspec.Raw(msgspec.json.encode(payload))
        self._events.append(Event(filter_keys, self.index, key, namespace, encoded, topic, self.kind))


def job_status(job: Job) -> str:
    """Return a job's status: what keeps it running, or waiting, or nothing."""
    if job.parameterized:
        return "dead" if job.stop else "running"
    if job.live:
        return "running"
    if job.open_evals:
        return "pending"
    return "dead" if job.stop or job.allocs or job.evals else "pending"
