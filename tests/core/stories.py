"""Jobs, allocations and tasks in the shapes a Nomad 2.0 agent gave them, to be put together by hand."""

from collections.abc import Iterable, Mapping

from worker.core.model import Verdict
from worker.core.observed import (
    Allocation,
    AllocMetric,
    DesiredTransition,
    Evaluation,
    Job,
    Lifecycle,
    Snapshot,
    Task,
    TaskEvent,
    TaskGroup,
    TaskState,
)

JOB_ID = "render/dispatch-1795484882-2c85d768"
SECOND = 1_000_000_000
BORN = 1_795_484_882 * SECOND
STARTED_AT = "2026-11-24T01:48:03.5Z"
FINISHED_AT = "2026-11-24T01:48:05.75Z"
NOT_NEEDED = "alloc not needed due to job update"
NODE_DOWN = "alloc is lost since its node is down"


def event(kind: str, at: float = 0, **fields: object) -> TaskEvent:
    return TaskEvent(type=kind, time=BORN + int(at * SECOND), **fields)  # type: ignore[arg-type]


def exited(code: int, signal: int = 0, at: float = 3, *, oom: str = "false", said: str = "") -> TaskEvent:
    details = {"exit_code": str(code), "signal": str(signal), "oom_killed": oom}
    return event("Terminated", at, exit_code=code, signal=signal, message=said, details=details)


def state(*events: TaskEvent, failed: bool = False, now: str = "dead", restarts: int = 0) -> TaskState:
    started = any(one.type in {"Started", "Terminated"} for one in events)
    return TaskState(
        state=now,
        failed=failed,
        restarts=restarts,
        started_at=STARTED_AT if started else None,
        finished_at=FINISHED_AT if now == "dead" else None,
        events=list(events),
    )


def ran(code: int = 0, signal: int = 0, at: float = 3, *, oom: str = "false", said: str = "") -> TaskState:
    """A task that ended by itself."""
    started = (event("Received"), event("Task Setup", 0.1), event("Started", 1))
    end = exited(code, signal, at, oom=oom, said=said)
    if code == 0 and signal == 0:
        return state(*started, end)
    return state(*started, end, event("Not Restarting", at, fails_task=True), failed=True)


def killed(
    code: int = 137, signal: int = 9, at: float = 3, *, because: str = "", said: str = ""
) -> TaskState:
    """A task that was killed; `because` is the event that names a reason within the allocation."""
    reason = (event(because, at),) if because else ()
    return state(
        event("Received"),
        event("Started", 1),
        *reason,
        event("Killing", at, display_message=said or "Sent interrupt. Waiting 1s before force killing"),
        exited(code, signal, at + 1),
        event("Killed", at + 1),
    )


def running() -> TaskState:
    return state(event("Received"), event("Started", 1), now="running")


def allocation(
    tasks: Mapping[str, TaskState] | None = None,
    client: str = "complete",
    desired: str = "run",
    *,
    id: str = "08bd7328-0000",  # noqa: A002
    index: int = 0,
    group: str = "g",
    said: str = "",
    wanted: str = "",
    next: str = "",  # noqa: A002
    previous: str = "",
    node: str = "worker-3",
    created: int = 11,
    modified: int = 20,
    migrate: bool | None = None,
    preempted_by: str = "",
    followup: str = "",
) -> Allocation:
    return Allocation(
        id=id,
        job_id=JOB_ID,
        name=f"{JOB_ID}.{group}[{index}]",
        task_group=group,
        node_id=f"id-of-{node}",
        node_name=node,
        client_status=client,
        client_description=said,
        desired_status=desired,
        desired_description=wanted,
        desired_transition=DesiredTransition(migrate=migrate),
        task_states=dict(tasks) if tasks is not None else None,
        next_allocation=next,
        previous_allocation=previous,
        followup_eval_id=followup,
        preempted_by_allocation=preempted_by,
        create_index=created,
        modify_index=modified,
        create_time=BORN + SECOND // 2,
        modify_time=BORN + 5 * SECOND,
    )


MAIN = Task(name="main")
SIDECAR = Task(name="side", lifecycle=Lifecycle(hook="prestart", sidecar=True))
PRESTART = Task(name="pre", lifecycle=Lifecycle(hook="prestart"))
POSTSTART = Task(name="after-start", lifecycle=Lifecycle(hook="poststart"))
POSTSTOP = Task(name="post", lifecycle=Lifecycle(hook="poststop"))


def group(name: str = "g", *tasks: Task, count: int = 1) -> TaskGroup:
    return TaskGroup(name=name, count=count, tasks=list(tasks or (MAIN,)))


def job(
    status: str = "dead",
    *groups: TaskGroup,
    stop: bool = False,
    type: str = "batch",  # noqa: A002
    modified: int = 20,
) -> Job:
    return Job(
        id=JOB_ID,
        parent_id="render",
        type=type,
        status=status,
        stop=stop,
        task_groups=list(groups or (group(),)),
        submit_time=BORN,
        create_index=10,
        modify_index=modified,
    )


def evaluation(
    triggered_by: str = "job-register",
    status: str = "complete",
    *,
    id: str = "",  # noqa: A002
    created: int = 10,
    modified: int = 12,
    failed: Mapping[str, AllocMetric] | None = None,
    wait_until: str | None = None,
) -> Evaluation:
    return Evaluation(
        id=id or f"eval-{triggered_by}-{created}",
        job_id=JOB_ID,
        triggered_by=triggered_by,
        status=status,
        create_index=created,
        modify_index=modified,
        failed_tg_allocs=dict(failed) if failed is not None else None,
        wait_until=wait_until,
    )


def snapshot(
    told: Job | None,
    allocations: Iterable[Allocation] = (),
    evaluations: Iterable[Evaluation] | None = None,
    *,
    whole: bool = True,
    gone: bool = False,
    purged: bool = False,
) -> Snapshot:
    """Evaluations default to the completed one of the job's registration."""
    known = [evaluation()] if evaluations is None else list(evaluations)
    return Snapshot(
        job_id=JOB_ID,
        job=told,
        gone=gone,
        purged=purged,
        allocations={one.id: one for one in allocations},
        evaluations={one.id: one for one in known},
        whole=whole,
    )


def ended(verdict: Verdict, index: int = 0) -> Allocation:
    """An allocation that ended so."""
    one = f"{index}-{verdict.value}"
    match verdict:
        case Verdict.SUCCEEDED:
            return allocation({"main": ran()}, id=one, index=index)
        case Verdict.FAILED:
            return allocation({"main": ran(1)}, "failed", id=one, index=index)
        case Verdict.OOM_KILLED:
            return allocation({"main": ran(137, 9, oom="true")}, "failed", id=one, index=index)
        case Verdict.TIMED_OUT:
            said = "allocation exceeded max_run_duration"
            return allocation({"main": killed(said=said)}, said=said, id=one, index=index)
        case Verdict.LOST:
            return allocation({"main": running()}, "lost", "stop", wanted=NODE_DOWN, id=one, index=index)
        case Verdict.PREEMPTED:
            return allocation({"main": killed()}, "complete", "evict", id=one, index=index)
        case Verdict.DRAINED:
            wanted = "alloc is being migrated"
            return allocation({"main": killed()}, "complete", "stop", wanted=wanted, id=one, index=index)
        case Verdict.STOPPED:
            return allocation({"main": killed()}, "complete", "stop", wanted=NOT_NEEDED, id=one, index=index)
        case Verdict.UNKNOWN_GC:
            return allocation(None, id=one, index=index)
        case _:
            raise AssertionError(verdict)
