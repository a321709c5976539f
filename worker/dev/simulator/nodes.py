"""What happens to client nodes: they join, fall silent, return, drain, and change in size.

Knows nothing of tasks: what a silent client's tasks do is the runner's affair.
"""

from typing import Any

from worker.dev.simulator.evaluating import new_evaluation
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.records import DesiredTransition, Evaluation, go_time
from worker.dev.simulator.scheduler import computed_class
from worker.dev.simulator.state import Node, State, Write

FORCE = -1
"""A drain deadline: at once."""
_DEAD_JOBS_WOKEN = 1_000
"""A real server evaluates every finished job a node still knows; the simulator stops at this many."""


def stub(node: Node) -> dict[str, Any]:
    """Return the row of GET /v1/nodes."""
    return {
        "Address": "127.0.0.1",
        "CreateIndex": node.create_index,
        "Datacenter": node.datacenter,
        "Drain": node.drain is not None,
        "Drivers": _drivers(node),
        "HostVolumes": {},
        "ID": node.id,
        "LastDrain": None,
        "ModifyIndex": node.modify_index,
        "Name": node.name,
        "NodeClass": node.node_class,
        "NodePool": node.pool,
        "SchedulingEligibility": "eligible" if node.eligible else "ineligible",
        "Status": node.status,
        "StatusDescription": "",
        "Version": "2.0.5",
    }


def view(node: Node) -> dict[str, Any]:
    """Return GET /v1/node/:id, without the fields that describe real hardware."""
    shown = {name: value for name, value in stub(node).items() if name not in {"Address", "Version"}}
    return shown | {
        "Attributes": node.attributes,
        "ComputedClass": computed_class(node),
        "DrainStrategy": node.drain,
        "Events": [],
        "HTTPAddr": "127.0.0.1:4646",
        "Links": {},
        "Meta": node.meta,
        "NodeResources": {
            "Cpu": {"CpuShares": node.cpu},
            "Disk": {"DiskMB": 1_000_000},
            "Memory": {"MemoryMB": node.memory},
        },
        "TLSEnabled": False,
    }


def _drivers(node: Node) -> dict[str, Any]:
    return {
        name: {
            "Attributes": {f"driver.{name}": "true"},
            "Detected": True,
            "HealthDescription": "Healthy",
            "Healthy": True,
            "UpdateTime": go_time(0),
        }
        for name in sorted(node.drivers)
    }


def _show(state: State, node: Node, kind: str, now: int) -> int:
    write = state.write(kind, now)
    node.modify_index = write.index
    write.node(node, view(node))
    return write.done()


def join(state: State, node: Node, now: int) -> None:
    """Add a node; blocked evaluations look at it."""
    _show(state, node, "NodeRegistration", now)
    state.capacity_changed = True


def lose(state: State, node: Node, now: int) -> None:
    """The node's client stopped answering; its allocations are lost, or unknown for a while."""
    node.status = "down"
    _show(state, node, "NodeStreamEvent", now)
    _evaluate_jobs(state, node, now)


def come_back(state: State, node: Node, now: int) -> None:
    """The node's client answers again."""
    node.status = "ready"
    _show(state, node, "NodeStreamEvent", now)
    state.capacity_changed = True
    _evaluate_jobs(state, node, now)


def _jobs_on(state: State, node: Node) -> list[Job]:
    """Return the jobs a node has allocations of, the unfinished ones first."""
    jobs = {alloc.job_id: job for alloc in node.allocs.values() if (job := state.job_of(alloc))}
    finished = [job for job in jobs.values() if job.status == "dead"]
    unfinished = [job for job in jobs.values() if job.status != "dead"]
    return unfinished + finished[:_DEAD_JOBS_WOKEN]


def _evaluate_jobs(state: State, node: Node, now: int) -> None:
    """Evaluate every job of the node, finished ones too: they flip to pending and back."""
    jobs = _jobs_on(state, node)
    if not jobs:
        return
    write = state.write("EvaluationUpdated", now)
    for job in jobs:
        evaluation = new_evaluation(
            state, job, write, "node-update", node_id=node.id, node_modify_index=node.modify_index
        )
        write.evaluation(evaluation)
        state.wake(evaluation)
    write.done()


def drain(state: State, node: Node, deadline: int, now: int) -> int:
    """Begin a drain; return the index. The node takes nothing new.

    Args:
        state: the tables.
        node: the node.
        deadline: nanoseconds batch jobs may go on, 0 for ever, `FORCE` not at all. `evict` ends the wait.
        now: nanoseconds since the epoch.
    """
    node.drain = {
        "Deadline": deadline,
        "ForceDeadline": go_time(now + max(deadline, 0)),
        "IgnoreSystemJobs": False,
        "StartedAt": go_time(now),
    }
    node.eligible = False
    return _show(state, node, "NodeDrain", now)


def evict(state: State, node: Node, now: int) -> None:
    """End a drain: what still runs is told to move. Forced off a node, batch allocations are not replaced."""
    live = [alloc for alloc in node.allocs.values() if alloc.live]
    evaluations: dict[str, Evaluation] = {}
    if live:
        write = state.write("AllocationUpdateDesiredStatus", now)
        for alloc in live:
            job = state.jobs[alloc.namespace, alloc.job_id]
            stays = True if job.spec.type == "batch" else None
            alloc.desired_transition = DesiredTransition(migrate=True, migrate_disable_placement=stays)
            write.alloc(alloc)
            _drain_evaluation(state, job, write, evaluations)
        for evaluation in evaluations.values():
            write.evaluation(evaluation)
        write.done(statuses=False)
    node.drain = None
    _show(state, node, "NodeDrain", now)
    for evaluation in evaluations.values():
        state.wake(evaluation)


def _drain_evaluation(state: State, job: Job, write: Write, evaluations: dict[str, Evaluation]) -> None:
    if job.id not in evaluations:
        evaluations[job.id] = new_evaluation(state, job, write, "node-drain")


def set_eligible(state: State, node: Node, now: int, *, eligible: bool) -> int:
    """Allow or forbid new allocations; return the index."""
    node.eligible = eligible
    index = _show(state, node, "NodeEligibility", now)
    state.capacity_changed = state.capacity_changed or eligible
    return index


def end_drain(state: State, node: Node, now: int, *, eligible: bool) -> int:
    """Cancel a drain; return the index."""
    node.drain = None
    node.eligible = eligible
    index = _show(state, node, "NodeDrain", now)
    state.capacity_changed = state.capacity_changed or eligible
    return index


def resize(state: State, node: Node, now: int, *, cpu: int | None = None, memory: int | None = None) -> None:
    """Change what a node offers, in MHz and MB; running allocations stay."""
    node.cpu = node.cpu if cpu is None else cpu
    node.memory = node.memory if memory is None else memory
    _show(state, node, "NodeRegistration", now)
    state.capacity_changed = True
