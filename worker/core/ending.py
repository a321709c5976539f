"""How one allocation ended, read from its main tasks and from what the servers wanted of it.

Knows nothing of the job's other allocations, of replacements or of the job's status: see `verdict`.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from worker.core.model import Verdict
from worker.core.observed import Allocation, TaskEvent, TaskGroup, TaskState

TERMINAL = frozenset({"complete", "failed", "lost"})
"""Client statuses of an allocation that runs no more. `unknown` is not one: its client may return."""

RUN_LIMIT = "max_run_duration"
"""Stands in Nomad's description of an allocation that ran too long, which it then calls `complete`."""

_KILLS = frozenset({"Killing", "Killed"})
_LEADER_ENDED = "Leader Task Dead"
_MAIN_ENDED = "Main Tasks Dead"
_FROM_WITHIN = frozenset({_LEADER_ENDED, _MAIN_ENDED, "Sibling Task Failed"})
"""Events that come before a kill whose reason is another task of the same allocation."""
_OWN = frozenset({Verdict.SUCCEEDED, Verdict.FAILED, Verdict.OOM_KILLED, Verdict.TIMED_OUT})


class TaskEnd(Struct, frozen=True):
    """One task's last run."""

    name: str
    state: TaskState
    events: Sequence[TaskEvent]
    """Of the last run only: a restarted task's earlier runs do not count."""
    exit: TaskEvent | None
    """The last `Terminated` event; None for a task that never ran, or whose end nobody saw."""
    kill: TaskEvent | None
    """The first kill."""

    @property
    def over(self) -> bool:
        """Whether it runs no more."""
        return self.state.state == "dead"

    @property
    def killed_from_within(self) -> bool:
        """Whether another task of the allocation was the reason for its kill."""
        return any(event.type in _FROM_WITHIN for event in self.events)

    @property
    def killed_from_outside(self) -> bool:
        """Whether somebody or something outside of the allocation killed it."""
        return self.kill is not None and not self.killed_from_within and not self.state.failed

    @property
    def ended_with_leader(self) -> bool:
        """Whether it was ended because the group's leader was done."""
        return self.over and not self.state.failed and any(e.type == _LEADER_ENDED for e in self.events)

    @property
    def out_of_memory(self) -> bool:
        """Whether its last run was ended by the out-of-memory killer, whatever its exit code."""
        return self.exit is not None and is_out_of_memory(self.exit)

    @property
    def clean(self) -> bool:
        """Whether it ended by itself with exit code 0. Everything a success rests on is here."""
        end = self.exit
        return (
            self.over
            and not self.state.failed
            and end is not None
            and end.exit_code == 0
            and end.signal == 0
            and not self.out_of_memory
            and self.kill is None
        )

    @property
    def at(self) -> int:
        """When it ended, nanoseconds since the epoch; 0 when nothing tells."""
        end = self.exit or (self.events[-1] if self.events else None)
        return end.time if end is not None else 0


class LastRuns(Struct, frozen=True):
    """The tasks of one allocation, as each of them last ran."""

    allocation: Allocation
    tasks: Mapping[str, TaskEnd]
    """By their names."""
    main: Sequence[str]
    """Names of those whose end decides, also of such as never ran."""


class Ending(Struct, frozen=True):
    """What one allocation says about the job's end."""

    runs: LastRuns
    verdict: Verdict | None
    """None: it has not ended."""
    settled: bool
    """Nothing more will be learnt about the verdict by waiting for its tasks."""
    task: TaskEnd | None = None
    """The task the verdict rests on."""
    event: TaskEvent | None = None
    """That task's deciding event."""

    @property
    def allocation(self) -> Allocation:
        """The one that ended."""
        return self.runs.allocation

    @property
    def own(self) -> bool:
        """Whether the work ended by itself or by the job's own limits, and nobody stopped it."""
        return self.verdict in _OWN

    @property
    def exit_code(self) -> int | None:
        """The deciding task's exit code. Nomad's -1 says that the client could not tell: None."""
        end = self.task.exit if self.task is not None else None
        return end.exit_code if end is not None and end.exit_code >= 0 else None


def is_out_of_memory(event: TaskEvent) -> bool:
    """Whether a `Terminated` event tells of the out-of-memory killer; drivers differ in where they say it."""
    details = event.details or {}
    told = f"{event.message}\n{details.get('exit_message', '')}"
    return details.get("oom_killed") == "true" or "oom killed" in told.lower()


def ending_of(allocation: Allocation, group: TaskGroup | None, *, stopped_by_hand: bool) -> Ending:
    """Read how an allocation ended.

    Args:
        allocation: one that was not replaced.
        group: its group as the job specifies it. None: not known; then every task counts as a main task,
            save those that Nomad ended because the main tasks were done.
        stopped_by_hand: what Nomad calls `migrated` was an operator's `alloc stop` and no drain, unless the
            allocation bears the drainer's own mark.
    """
    terminal = allocation.client_status in TERMINAL
    runs = last_runs(allocation, group)
    mains = [runs.tasks[name] for name in runs.main if name in runs.tasks]
    if allocation.client_status in {"complete", "failed"} and (last := _success(runs, mains, group)):
        return Ending(runs, Verdict.SUCCEEDED, settled=True, task=last, event=last.exit)
    over = all(end.over for end in mains)
    if allocation.client_status == "lost":
        return _by_task(runs, Verdict.LOST, _first(mains), settled=True)
    if terminal:
        suspects = [*mains, *_helpers_that_failed(group, runs.tasks, mains)]
        if first := _first([end for end in suspects if end.out_of_memory]):
            return _by_task(runs, Verdict.OOM_KILLED, first, settled=True)
        if first := _first([end for end in suspects if end.state.failed]):
            return _by_task(runs, Verdict.FAILED, first, settled=True)
        if _ran_too_long(allocation, mains):
            return _by_task(runs, Verdict.TIMED_OUT, _first(mains), settled=over)
    killed = _first([end for end in mains if end.killed_from_outside])
    if allocation.desired_status in {"stop", "evict"} or (terminal and killed is not None):
        # A task that failed by itself just before the stop reached it did fail.
        failed = _first([end for end in mains if _failed_by_itself(end)])
        if terminal and failed is not None:
            return _by_task(runs, Verdict.FAILED, failed, settled=True)
        verdict = _ended_from_outside(allocation, stopped_by_hand=stopped_by_hand)
        return _by_task(runs, verdict, killed or _first(mains), settled=terminal and over)
    if not terminal:
        return Ending(runs, None, settled=False)
    failed = _first([end for end in mains if _failed_by_itself(end)])
    if failed is not None or allocation.client_status == "failed":
        return _by_task(runs, Verdict.FAILED, failed or _first(mains), settled=True)
    # Called complete, and yet no task shows the exit code 0 that a success needs.
    return _by_task(runs, Verdict.UNKNOWN_GC, _first(mains), settled=over)


def last_runs(allocation: Allocation, group: TaskGroup | None) -> LastRuns:
    """Every task's last run, and which of them are main tasks: those without a lifecycle hook.

    Args:
        allocation: any one.
        group: as for `ending_of`.
    """
    tasks = {name: _last_run(name, state) for name, state in (allocation.task_states or {}).items()}
    return LastRuns(allocation, tasks, _main_names(group, tasks))


def _last_run(name: str, state: TaskState) -> TaskEnd:
    events = state.events or []
    start = 0
    for index, event in enumerate(events):
        if event.type == "Started":
            start = index
        elif event.type == "Restarting" and index + 1 < len(events):
            start = index + 1
    last, terminated, killed = events[start:], None, None
    for event in last:
        if event.type == "Terminated":
            terminated = event
        elif killed is None and event.type in _KILLS:
            killed = event
    return TaskEnd(name, state, last, terminated, killed)


def _main_names(group: TaskGroup | None, ends: Mapping[str, TaskEnd]) -> list[str]:
    if group is not None and group.tasks:
        return [task.name for task in group.tasks if task.lifecycle is None or not task.lifecycle.hook]
    return [name for name, end in ends.items() if all(event.type != _MAIN_ENDED for event in end.events)]


def _success(runs: LastRuns, mains: Sequence[TaskEnd], group: TaskGroup | None) -> TaskEnd | None:
    """The last main task to end, where every one of them ended by itself with exit code 0; else None.

    In a group with a leader the others are there to be ended when it is done: that is no kill.
    """
    if not 0 < len(runs.main) == len(mains):
        return None
    clean = [end for end in mains if end.clean]
    if len(clean) < len(mains):
        leaders = {task.name for task in (group.tasks if group is not None else None) or () if task.leader}
        others = [end for end in mains if not end.clean]
        if not leaders or not all(end.name not in leaders and end.ended_with_leader for end in others):
            return None
    return max(clean, key=_when, default=None)


def _helpers_that_failed(
    group: TaskGroup | None, ends: Mapping[str, TaskEnd], mains: Sequence[TaskEnd]
) -> list[TaskEnd]:
    """Prestart, poststart and sidecar tasks whose failure ended the main tasks, or kept them from starting.

    A poststop task runs when the main tasks are done, and a helper may also fail because the allocation is
    being stopped from outside: neither is why the main tasks ended as they did.
    """
    if group is None or any(end.killed_from_outside for end in mains):
        return []
    helpers = [
        task.name
        for task in group.tasks or ()
        if task.lifecycle is not None and task.lifecycle.hook not in {"", "poststop"}
    ]
    return [ends[name] for name in helpers if name in ends and ends[name].state.failed]


def _ran_too_long(allocation: Allocation, mains: Sequence[TaskEnd]) -> bool:
    return RUN_LIMIT in allocation.client_description or any(
        end.kill is not None and RUN_LIMIT in end.kill.display_message for end in mains
    )


def _failed_by_itself(end: TaskEnd) -> bool:
    """Whether a task that Nomad does not call failed ended with an error, and not for being killed."""
    # An exit code of -1 says that the client lost sight of the task, not that the task failed.
    return end.kill is None and end.exit is not None and (end.exit.exit_code > 0 or end.exit.signal != 0)


def _ended_from_outside(allocation: Allocation, *, stopped_by_hand: bool) -> Verdict:
    if allocation.preempted_by_allocation or allocation.desired_status == "evict":
        return Verdict.PREEMPTED
    wanted = allocation.desired_description
    if "lost" in wanted:
        return Verdict.LOST
    transition = allocation.desired_transition
    if transition is not None and transition.migrate_disable_placement:
        return Verdict.DRAINED
    # "alloc is being migrated"; of a sysbatch job, "alloc not needed as node is tainted".
    moved = "migrated" in wanted or "tainted" in wanted
    if moved or (transition is not None and transition.migrate):
        return Verdict.STOPPED if stopped_by_hand else Verdict.DRAINED
    return Verdict.STOPPED


def _by_task(runs: LastRuns, verdict: Verdict, task: TaskEnd | None, *, settled: bool) -> Ending:
    event = None
    if task is not None:
        event = _failing_kill(task) or task.exit or task.kill or _telling(task)
    return Ending(runs, verdict, settled=settled, task=task, event=event)


def _failing_kill(task: TaskEnd) -> TaskEvent | None:
    """A kill that counts as a failure, for a template or secret that could not be had: it tells why."""
    return next((event for event in task.events if event.type in _KILLS and event.fails_task), None)


def _telling(task: TaskEnd) -> TaskEvent | None:
    """For a task that never ran: the event before `Not Restarting`, which says why."""
    told = [event for event in task.events if event.type != "Not Restarting"]
    return told[-1] if told else None


def _first(ends: Sequence[TaskEnd]) -> TaskEnd | None:
    """The one that ended first, for what follows may be its consequence."""
    return min(ends, key=_when, default=None)


def _when(end: TaskEnd) -> tuple[bool, int, str]:
    # Those that never ended, or of which no time is known, come last.
    return end.at == 0 or not end.over, end.at, end.name
