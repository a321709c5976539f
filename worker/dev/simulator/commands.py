"""The writes that users and clients cause: register, stop, purge, collect, and what clients report.

Knows nothing of HTTP, permissions or placement; evaluations it makes are handed to the scheduler.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.dev.simulator.dispatching import Refused
from worker.dev.simulator.evaluating import new_evaluation
from worker.dev.simulator.jobs import Job, Specification, in_order
from worker.dev.simulator.reconciling import next_attempt
from worker.dev.simulator.records import (
    Allocation,
    AllocState,
    DesiredTransition,
    Evaluation,
    TaskState,
    go_time,
)
from worker.dev.simulator.state import State

_GC_BATCH = 128
_NO_NETWORK = {"Address": "", "AddressIPv6": "", "DNS": None, "InterfaceName": ""}


@dataclass(frozen=True, slots=True)
class Stopped:
    """The answer to a stop or purge; all zero and empty for an unknown job."""

    eval_id: str = ""
    index: int = 0

    def answer(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {
            "EvalCreateIndex": self.index,
            "EvalID": self.eval_id,
            "Index": self.index,
            "JobModifyIndex": self.index,
            "KnownLeader": False,
            "LastContact": 0,
            "NextToken": "",
            "VolumeEvalID": "",
            "VolumeEvalIndex": 0,
        }


def register(state: State, canonical: Mapping[str, Any], now: int) -> tuple[Job, str, int]:
    """Register a job or a new version of it.

    Args:
        state: the tables.
        canonical: the job with all defaults filled in.
        now: nanoseconds since the epoch.

    Returns:
        The job, the ID of its evaluation ("" for a parameterized job) and the index of the job's last change.

    Raises:
        Refused: the specification is invalid.
    """
    rules = canonical.get("ParameterizedJob")
    if rules is not None and canonical.get("Type") not in {"batch", "sysbatch"}:
        problem = 'Parameterized job can only be used with "batch" or "sysbatch" scheduler'
        msg = f"1 error occurred:\n\t* {problem}\n\n"
        raise Refused(msg)
    namespace = canonical.get("Namespace") or "default"
    if namespace not in state.namespaces:
        msg = f'job "{canonical["ID"]}" is in nonexistent namespace "{namespace}"'
        raise Refused(msg)
    known = state.job(namespace, canonical["ID"])
    if known is not None and not known.stop and known.spec.fields == in_order(canonical):
        return known, "", known.job_modify_index
    write = state.write("JobRegistered", now)
    job = Job(
        spec=Specification(canonical),
        id=canonical["ID"],
        namespace=namespace,
        priority=canonical.get("Priority") or 50,
        status="pending" if rules is None else "running",
        create_index=known.create_index if known else write.index,
        modify_index=write.index,
        job_modify_index=write.index,
        submit_time=now,
        meta=canonical.get("Meta"),
        version=known.version + 1 if known else 0,
        summary_index=write.index,
    )
    if known is not None:
        _inherit(job, known)
    write.job(job)
    if rules is not None:
        write.done()
        return job, "", write.index
    write.cut()
    evaluation = new_evaluation(state, job, write, "job-register", job_modify_index=write.index)
    write.evaluation(evaluation)
    write.done()
    state.wake(evaluation)
    return job, evaluation.id, write.index


def _inherit(job: Job, known: Job) -> None:
    """Let a new version keep what belongs to the job, not to its specification."""
    job.allocs, job.evals, job.children = known.allocs, known.evals, known.children
    job.live, job.open_evals = known.live, known.open_evals
    job.groups.update({name: counts for name, counts in known.groups.items() if name in job.groups})


def deregister(state: State, namespace: str, job_id: str, now: int, *, purge: bool = False) -> Stopped:
    """Stop a job, or remove it at once with its allocations. Children of a parent go on."""
    job = state.job(namespace, job_id)
    if job is None:
        return Stopped()
    write = state.write("JobDeregistered", now)
    if purge:
        write.job(job, deleted=True)
    else:
        job.stop = True
        job.submit_time = now
        job.version += 1
        job.modify_index = job.job_modify_index = write.index
        if job.parameterized:
            job.status = "dead"
        write.job(job)
    if job.parameterized:
        write.done()
        return Stopped("", write.index)
    write.cut()
    # Nomad calls this evaluation "service" whatever the job's type.
    evaluation = new_evaluation(
        state, job, write, "job-deregister", type="service", job_modify_index=write.index
    )
    write.evaluation(evaluation)
    write.done()
    state.wake(evaluation)
    return Stopped(evaluation.id, write.index)


def stop_alloc(state: State, alloc: Allocation, now: int) -> tuple[str, int]:
    """Ask for one allocation to be moved; return the evaluation's ID and the index."""
    job = state.jobs[alloc.namespace, alloc.job_id]
    write = state.write("AllocationUpdateDesiredStatus", now)
    alloc.desired_transition = DesiredTransition(migrate=True, no_shutdown_delay=False, reschedule=False)
    write.alloc(alloc)
    evaluation = new_evaluation(state, job, write, "alloc-stop", job_modify_index=job.job_modify_index)
    write.evaluation(evaluation)
    write.done(statuses=False)
    state.wake(evaluation)
    return evaluation.id, write.index


def preempt(state: State, alloc: Allocation, by_alloc: str, now: int) -> None:
    """Evict an allocation in favour of another one, which need not exist."""
    job = state.jobs[alloc.namespace, alloc.job_id]
    write = state.write("PlanResult", now)
    alloc.desired_status = "evict"
    alloc.desired_description = f"Preempted by alloc ID {by_alloc}"
    alloc.preempted_by_allocation = by_alloc
    write.alloc(alloc)
    evaluation = new_evaluation(state, job, write, "preemption", job_modify_index=job.job_modify_index)
    write.evaluation(evaluation)
    write.done()
    state.wake(evaluation)


def collect_garbage(state: State, now: int) -> list[str]:
    """Remove what has ended: dead jobs without open evaluations, and stopped parents. Return their IDs."""
    ended = [
        job
        for job in state.jobs.values()
        if (job.stop if job.parameterized else job.status == "dead")
        and not job.open_evals
        and all(alloc.ended for alloc in job.allocs.values())
    ]
    for start in range(0, len(ended), _GC_BATCH):
        write = state.write("JobBatchDeregistered", now)
        for job in ended[start : start + _GC_BATCH]:
            write.job(job, deleted=True)
        write.done()
    for evals in state.evals_of_gone_jobs.values():
        for eval_id, evaluation in list(evals.items()):
            if not evaluation.open:
                del evals[eval_id]
                del state.evals[eval_id]
    state.evals_of_gone_jobs = {key: evals for key, evals in state.evals_of_gone_jobs.items() if evals}
    return [job.id for job in ended]


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What a client reports of one allocation."""

    alloc_id: str
    status: str
    description: str
    task_states: dict[str, TaskState]
    timeout: str = ""
    """Why it ran out of time; empty if it did not."""


def client_update(state: State, updates: Sequence[ClientUpdate], now: int) -> None:
    """Apply one batch of reports as one write. Allocations that are gone are skipped."""
    known = [(update, alloc) for update in updates if (alloc := state.allocs.get(update.alloc_id))]
    if not known:
        return
    write = state.write("AllocationUpdated", now)
    evaluations: dict[str, Evaluation] = {}
    shown: list[Evaluation] = []
    for update, alloc in known:
        job = state.jobs[alloc.namespace, alloc.job_id]
        reconnects = alloc.client_status == "unknown" and update.status != "unknown"
        alloc.client_status = update.status
        alloc.client_description = update.description
        alloc.task_states = update.task_states
        alloc.network_status = _NO_NETWORK
        trigger = ""
        if reconnects:
            trigger = "reconnect"
            since = AllocState(field=0, time=go_time(now), value=update.status)
            alloc.alloc_states = [*(alloc.alloc_states or ()), since]
            followup = state.evals.get(alloc.followup_eval_id)
            if followup is not None and followup.open:
                followup.status = "canceled"
                followup.status_description = "allocs reconnected"
                write.evaluation(followup)
            alloc.followup_eval_id = ""
        elif update.status == "failed" and alloc.desired_status == "run" and not job.stop:
            policy = job.spec.groups[alloc.task_group].spec.get("ReschedulePolicy")
            if next_attempt(policy, alloc, now, speed=state.speed) is not None:
                trigger = "alloc-failure"
        facts = {"Timeout": True, "TimeoutReason": update.timeout} if update.timeout else {}
        write.alloc(alloc, by_client=True, **facts)
        if trigger and job.id not in evaluations:
            evaluations[job.id] = evaluation = new_evaluation(state, job, write, trigger)
            shown.append(evaluation)
    for evaluation in shown:
        write.evaluation(evaluation)
        state.wake(evaluation)
    write.done()
