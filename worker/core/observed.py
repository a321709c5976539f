"""What Nomad shows of one dispatched job: the fields the worker uses of jobs, evaluations, allocations.

Decoded alike from API reads, list stubs and events; fields not named here are skipped while decoding.
Source: Nomad HTTP API (`/v1/job/:id`, `/v1/job/:id/allocations`, `/evaluations`, `/v1/event/stream`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Observed(msgspec.Struct, frozen=True, rename="pascal", kw_only=True, gc=False):
    """Base: CamelCase on the wire, snake_case here, immutable, and so in no cycle for a collector to find."""


class Lifecycle(Observed, frozen=True):
    """A task's lifecycle hook. A task without one is a main task."""

    hook: str = ""
    """`prestart`, `poststart` or `poststop`; empty: a main task."""
    sidecar: bool = False


class Task(Observed, frozen=True):
    """A task as the job specifies it."""

    name: str
    lifecycle: Lifecycle | None = None
    leader: bool = False


class TaskGroup(Observed, frozen=True):
    """A group as the job specifies it."""

    name: str
    count: int = 1
    tasks: list[Task] | None = None


class Job(Observed, frozen=True):
    """A job, dispatched or parent."""

    id: str = msgspec.field(name="ID")
    parent_id: str = msgspec.field(name="ParentID", default="")
    type: str = ""
    status: str = ""
    """`pending`, `running` or `dead`. `dead` says nothing about success, and can flip back."""
    status_description: str = ""
    stop: bool = False
    dispatch_idempotency_token: str = ""
    task_groups: list[TaskGroup] | None = None
    submit_time: int = 0
    """Nanoseconds since the epoch. A stop counts as a submission, too."""
    create_index: int = 0
    modify_index: int = 0

    def group(self, name: str) -> TaskGroup | None:
        """The group of this name; None when the job has none, or its groups are not known."""
        return next((group for group in self.task_groups or () if group.name == name), None)


class AllocMetric(Observed, frozen=True):
    """Why a group could not be placed (one value of `FailedTGAllocs`)."""

    nodes_evaluated: int = 0
    nodes_filtered: int = 0
    nodes_available: dict[str, int] | None = None
    class_filtered: dict[str, int] | None = None
    constraint_filtered: dict[str, int] | None = None
    nodes_exhausted: int = 0
    class_exhausted: dict[str, int] | None = None
    dimension_exhausted: dict[str, int] | None = None
    quota_exhausted: list[str] | None = None
    coalesced_failures: int = 0


class Evaluation(Observed, frozen=True):
    """One evaluation. Its status is about placement only, never about how the job ended."""

    id: str = msgspec.field(name="ID")
    job_id: str = msgspec.field(name="JobID", default="")
    type: str = ""
    triggered_by: str = ""
    status: str = ""
    """`blocked`, `pending`, `complete`, `failed` or `canceled`."""
    status_description: str = ""
    wait_until: str | None = None
    next_eval: str = ""
    previous_eval: str = ""
    blocked_eval: str = ""
    failed_tg_allocs: dict[str, AllocMetric] | None = msgspec.field(name="FailedTGAllocs", default=None)
    queued_allocations: dict[str, int] | None = None
    create_index: int = 0
    modify_index: int = 0
    create_time: int = 0
    """Nanoseconds since the epoch."""


class Living(NamedTuple):
    """A dispatched job that is not dead, as a list of jobs shows it."""

    changed_at: int
    """Index of the last change to the job, or to the number of its allocations in any state."""
    waits: bool = False
    """Its status is `pending`: nothing of it is placed, be it not yet or not any more."""


class TaskEvent(Observed, frozen=True):
    """One of the latest ten events of a task."""

    type: str = ""
    time: int = 0
    """Nanoseconds since the epoch."""
    display_message: str = ""
    message: str = ""
    exit_code: int = 0
    signal: int = 0
    kill_reason: str = ""
    fails_task: bool = False
    details: dict[str, str] | None = None


class TaskState(Observed, frozen=True):
    """A task's state inside an allocation."""

    state: str = ""
    """`pending`, `running` or `dead`."""
    failed: bool = False
    restarts: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    events: list[TaskEvent] | None = None


class RescheduleEvent(Observed, frozen=True):
    """One earlier try of a rescheduled allocation."""

    reschedule_time: int = 0
    prev_alloc_id: str = msgspec.field(name="PrevAllocID", default="")
    prev_node_id: str = msgspec.field(name="PrevNodeID", default="")
    delay: int = 0


class RescheduleTracker(Observed, frozen=True):
    """The tries that came before an allocation."""

    events: list[RescheduleEvent] | None = None


class DesiredTransition(Observed, frozen=True):
    """What the servers still want of an allocation."""

    migrate: bool | None = None
    migrate_disable_placement: bool | None = None
    """The drainer's mark on a batch allocation: it is to go, and nothing is to take its place."""
    reschedule: bool | None = None
    force_reschedule: bool | None = None


class Allocation(Observed, frozen=True):
    """One allocation, with its tasks."""

    id: str = msgspec.field(name="ID")
    job_id: str = msgspec.field(name="JobID", default="")
    eval_id: str = msgspec.field(name="EvalID", default="")
    name: str = ""
    task_group: str = ""
    node_id: str = msgspec.field(name="NodeID", default="")
    node_name: str = ""
    client_status: str = ""
    """`pending`, `running`, `complete`, `failed`, `lost` or `unknown`."""
    client_description: str = ""
    desired_status: str = ""
    """`run`, `stop` or `evict`."""
    desired_description: str = ""
    desired_transition: DesiredTransition | None = None
    task_states: dict[str, TaskState] | None = None
    next_allocation: str = ""
    previous_allocation: str = ""
    followup_eval_id: str = msgspec.field(name="FollowupEvalID", default="")
    preempted_by_allocation: str = ""
    reschedule_tracker: RescheduleTracker | None = None
    create_index: int = 0
    modify_index: int = 0
    create_time: int = 0
    """Nanoseconds since the epoch."""
    modify_time: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of one dispatched job at one moment."""

    job_id: str
    job: Job | None = None
    """None: not seen yet, or, when `gone`, no longer there."""
    gone: bool = False
    """Nomad said that the job is not there: purged or garbage-collected."""
    purged: bool = False
    """An event told of the job's deletion, by a purge or by garbage collection alike; `job.status` is then
    what the job was when it was deleted."""
    evaluations: Mapping[str, Evaluation] = msgspec.field(default_factory=dict)
    allocations: Mapping[str, Allocation] = msgspec.field(default_factory=dict)
    whole: bool = False
    """Read from the API as a whole, so that what is missing here is not there."""
