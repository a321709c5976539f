"""Evaluations and allocations as Nomad shows them: its field names, its rules for empty fields.

Decides nothing about when they change. The time is always given: nanoseconds since the epoch.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

_WORDS = {"id": "ID", "tg": "TG", "mb": "MB", "cpu": "CPU", "ipv6": "IPv6", "dns": "DNS"}
_SECOND = 1_000_000_000
LATEST_EVENTS = 10
"""Nomad keeps this many events of a task; older ones are dropped."""


def go_name(field: str) -> str:
    """Return the API name of a field: `followup_eval_id` is `FollowupEvalID`."""
    return "".join(_WORDS.get(word, word.capitalize()) for word in field.split("_"))


def go_time(now: int) -> str:
    """Write nanoseconds since the epoch as Nomad does: RFC 3339 with as many decimals as needed."""
    seconds, nanoseconds = divmod(now, _SECOND)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{nanoseconds:09d}".rstrip("0").rstrip(".") + "Z"


def from_go_time(text: str) -> int:
    """Read a time as `go_time` writes it; nanoseconds since the epoch."""
    whole, _, decimals = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * _SECOND + int(decimals.ljust(9, "0"))


def go_duration(nanoseconds: int) -> str:
    """Write a duration as Go prints it: "224.702701ms", "1s", "1m30s", "24h0m0s"."""
    if nanoseconds < _SECOND:
        for size, unit in ((1_000_000, "ms"), (1_000, "µs")):
            if nanoseconds >= size:
                return f"{nanoseconds / size:.6f}".rstrip("0").rstrip(".") + unit
        return f"{nanoseconds}ns" if nanoseconds else "0s"
    minutes, rest = divmod(nanoseconds, 60 * _SECOND)
    seconds = f"{rest // _SECOND}.{rest % _SECOND:09d}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}"


class Whole(msgspec.Struct, rename=go_name, kw_only=True):
    """Base of objects that always show every field."""


class Fixed(msgspec.Struct, rename=go_name, kw_only=True, frozen=True):
    """Base of objects that show every field and never change."""


class Sparse(msgspec.Struct, rename=go_name, kw_only=True, omit_defaults=True):
    """Base of objects that leave out empty fields."""


class TaskEvent(Fixed, frozen=True, kw_only=True):
    """One thing that happened to a task, in the words of Nomad's client."""

    details: dict[str, str]
    disk_limit: int = 0
    display_message: str = ""
    download_error: str = ""
    driver_error: str = ""
    driver_message: str = ""
    exit_code: int = 0
    failed_sibling: str = ""
    fails_task: bool = False
    generic_source: str = ""
    kill_error: str = ""
    kill_reason: str = ""
    kill_timeout: int = 0
    message: str = ""
    restart_reason: str = ""
    setup_error: str = ""
    signal: int = 0
    start_delay: int = 0
    task_signal: str = ""
    task_signal_reason: str = ""
    time: int = 0
    type: str = ""
    validation_error: str = ""
    vault_error: str = ""


class TaskState(Whole, kw_only=True):
    """What a client reports of one task."""

    events: list[TaskEvent]
    failed: bool = False
    finished_at: str | None = None
    last_restart: str | None = None
    paused: str = ""
    restarts: int = 0
    started_at: str | None = None
    state: str = "pending"

    def add(self, event: TaskEvent) -> None:
        """Append an event and forget the oldest beyond Nomad's limit."""
        self.events.append(event)
        del self.events[:-LATEST_EVENTS]

    def snapshot(self) -> "TaskState":
        """Return a copy that later events do not change."""
        return msgspec.structs.replace(self, events=list(self.events))


class Scores(Fixed, frozen=True, kw_only=True):
    """How one node was ranked."""

    node_id: str
    norm_score: float
    scores: dict[str, float]


class Metrics(Whole, kw_only=True):
    """How a placement was found, or why none was."""

    allocation_time: int = 10_000
    class_exhausted: dict[str, int] | None = None
    class_filtered: dict[str, int] | None = None
    coalesced_failures: int = 0
    constraint_filtered: dict[str, int] | None = None
    dimension_exhausted: dict[str, int] | None = None
    node_pool: str = "default"
    nodes_available: dict[str, int] = {}
    nodes_evaluated: int = 0
    nodes_exhausted: int = 0
    nodes_filtered: int = 0
    nodes_in_pool: int = 0
    quota_exhausted: list[str] | None = None
    resources_exhausted: dict[str, Any] | None = None
    score_meta_data: list[Scores] | None = None
    scores: dict[str, float] | None = None


class PlanAnnotations(Fixed, frozen=True, kw_only=True):
    """What an evaluation set out to do."""

    desired_tg_updates: dict[str, dict[str, int]] = msgspec.field(name="DesiredTGUpdates")
    preempted_allocs: None = None


class Evaluation(Sparse, kw_only=True):
    """One run of the scheduler for one job. Its status is about placement only."""

    id: str
    job_id: str
    create_index: int
    modify_index: int
    create_time: int
    modify_time: int
    namespace: str
    priority: int
    status: str
    triggered_by: str
    type: str
    blocked_eval: str = ""
    class_eligibility: dict[str, bool] | None = None
    escaped_computed_class: bool = False
    failed_tg_allocs: dict[str, Metrics] | None = msgspec.field(name="FailedTGAllocs", default=None)
    job_modify_index: int = 0
    next_eval: str = ""
    node_id: str = ""
    node_modify_index: int = 0
    plan_annotations: PlanAnnotations | None = None
    previous_eval: str = ""
    queued_allocations: dict[str, int] | None = None
    snapshot_index: int = 0
    status_description: str = ""
    wait_until: str = ""

    @property
    def open(self) -> bool:
        """Whether the scheduler still has something to do for it."""
        return self.status in {"pending", "blocked"}


class DesiredTransition(Fixed, frozen=True, kw_only=True):
    """What the server wants to happen to an allocation next."""

    force_reschedule: bool | None = None
    migrate: bool | None = None
    migrate_disable_placement: bool | None = None
    no_shutdown_delay: bool | None = None
    reschedule: bool | None = None


STAY = DesiredTransition()


class RescheduleEvent(Fixed, frozen=True, kw_only=True):
    """One earlier attempt of a rescheduled allocation."""

    delay: int
    prev_alloc_id: str
    prev_node_id: str
    reschedule_time: int


class RescheduleTracker(Fixed, frozen=True, kw_only=True):
    """The earlier attempts of a rescheduled allocation, oldest first."""

    events: list[RescheduleEvent]
    last_reschedule: str = "ok"


class AllocState(Fixed, frozen=True, kw_only=True):
    """A change of the client status that the servers made or saw around a disconnect."""

    field: int
    time: str
    value: str


class Allocation(Sparse, kw_only=True):
    """One placement of a task group on a node, as a full read and an event show it (without its job)."""

    id: str
    job_id: str
    create_index: int
    modify_index: int
    alloc_modify_index: int
    create_time: int
    modify_time: int
    name: str
    namespace: str
    node_id: str
    node_name: str
    task_group: str
    eval_id: str
    client_status: str
    desired_status: str
    alloc_states: list[AllocState] | None = None
    allocated_resources: msgspec.Raw
    client_description: str = ""
    desired_description: str = ""
    desired_transition: DesiredTransition | None = None
    followup_eval_id: str = ""
    metrics: Metrics
    network_status: dict[str, Any] | None = None
    next_allocation: str = ""
    preempted_by_allocation: str = ""
    previous_allocation: str = ""
    reschedule_tracker: RescheduleTracker | None = None
    resources: msgspec.Raw
    shared_resources: msgspec.Raw
    signing_key_id: str
    task_resources: msgspec.Raw
    task_states: dict[str, TaskState] | None = None

    @property
    def ended(self) -> bool:
        """Whether the client reported an end, or the servers gave the allocation up."""
        return self.client_status in {"complete", "failed", "lost"}

    @property
    def live(self) -> bool:
        """Whether it counts as running for the status of its job."""
        return self.desired_status == "run" and not self.ended

    def stub(self, job_type: str, job_version: int, *, task_states: bool = True) -> dict[str, Any]:
        """Return the row that lists show: every field, but neither resources nor links backwards."""
        return {
            "ClientDescription": self.client_description,
            "ClientStatus": self.client_status,
            "CreateIndex": self.create_index,
            "CreateTime": self.create_time,
            "DeploymentStatus": None,
            "DesiredDescription": self.desired_description,
            "DesiredStatus": self.desired_status,
            "DesiredTransition": self.desired_transition or STAY,
            "EvalID": self.eval_id,
            "FollowupEvalID": self.followup_eval_id,
            "ID": self.id,
            "JobID": self.job_id,
            "JobType": job_type,
            "JobVersion": job_version,
            "ModifyIndex": self.modify_index,
            "ModifyTime": self.modify_time,
            "Name": self.name,
            "Namespace": self.namespace,
            "NextAllocation": self.next_allocation,
            "NodeID": self.node_id,
            "NodeName": self.node_name,
            "PreemptedAllocations": None,
            "PreemptedByAllocation": self.preempted_by_allocation,
            "RescheduleTracker": self.reschedule_tracker,
            "TaskGroup": self.task_group,
            "TaskStates": self.task_states if task_states else None,
        }
