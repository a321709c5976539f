"""A job in the simulator's memory, what its groups ask for, and how it is shown.

Decides nothing: statuses and indexes are set by the state. Children share their parent's specification.
"""

import base64
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from worker.dev.simulator.records import Allocation, Evaluation

GROUP_STATUSES = ("Complete", "Failed", "Lost", "Queued", "Running", "Starting", "Unknown")
_serials = itertools.count(1)
_SEVEN_BITS, _MORE, _ONE_BYTE = 0x7F, 0x80, 0xFF
_LENGTH_IN_ONE_BYTE, _LENGTH_IN_TWO_BYTES = 60, 61
_COUNTED_AS = {"pending": "Starting"}


def counted_as(client_status: str) -> str:
    """Return the name under which a summary counts a client status."""
    return _COUNTED_AS.get(client_status, client_status.capitalize())


def snappy_block(data: bytes) -> bytes:
    """Encode bytes as a Snappy block of literals only: valid, never smaller.

    Source: Snappy format description, sections 1 and 2.1. At most 65,536 bytes, as payloads are.
    """
    size = len(data)
    block = bytearray()
    while size > _SEVEN_BITS:
        block.append(size & _SEVEN_BITS | _MORE)
        size >>= 7
    block.append(size)
    if data:
        last = len(data) - 1
        if last < _LENGTH_IN_ONE_BYTE:
            block.append(last << 2)
        elif last <= _ONE_BYTE:
            block += bytes((_LENGTH_IN_ONE_BYTE << 2, last))
        else:
            block += bytes((_LENGTH_IN_TWO_BYTES << 2, last & _ONE_BYTE, last >> 8))
    return bytes(block) + data


def in_order(value: Any) -> Any:
    """Return a copy of a JSON value with the keys of every object sorted, as Nomad shows them."""
    if isinstance(value, Mapping):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(item) for item in value] if isinstance(value, list) else value


def _amounts(**given: Any) -> dict[str, Any]:
    amounts = dict.fromkeys(("CPU", "Cores"), 0) | {"Devices": None}
    amounts |= dict.fromkeys(("DiskMB", "IOPS", "MemoryMB", "MemoryMaxMB"), 0)
    return amounts | {"NUMA": None, "Networks": None, "SecretsMB": 0} | given


class Group:
    """What one task group asks of a node, worked out once and shared by all children of a job."""

    def __init__(self, job: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.name: str = spec["Name"]
        self.count: int = spec.get("Count", 1)
        self.tasks: list[Mapping[str, Any]] = spec.get("Tasks") or []
        self.drivers = frozenset(task["Driver"] for task in self.tasks)
        self.datacenters: list[str] = job.get("Datacenters") or ["*"]
        self.constraints = [
            constraint
            for part in (job, spec, *self.tasks)
            for constraint in part.get("Constraints") or ()
            if constraint.get("Operand") != "distinct_hosts"
        ]
        self.distinct_hosts = any(
            constraint.get("Operand") == "distinct_hosts" and constraint.get("RTarget") != "false"
            for part in (job, spec)
            for constraint in part.get("Constraints") or ()
        )
        self.affinities = [
            affinity for part in (job, spec, *self.tasks) for affinity in part.get("Affinities") or ()
        ]
        self.cpu = sum(task["Resources"]["CPU"] for task in self.tasks)
        self.memory = sum(task["Resources"]["MemoryMB"] for task in self.tasks)
        self.disk: int = (spec.get("EphemeralDisk") or {}).get("SizeMB", 300)
        self._encode_resources()

    def _encode_resources(self) -> None:
        """Encode what every allocation of the group repeats."""
        asked = {task["Name"]: task["Resources"] for task in self.tasks}
        tasks = {
            name: {
                "Cpu": {"CpuShares": ask["CPU"], "ReservedCores": None},
                "Devices": None,
                "Memory": {"MemoryMB": ask["MemoryMB"], "MemoryMaxMB": ask.get("MemoryMaxMB", 0)},
                "Networks": None,
            }
            for name, ask in asked.items()
        }
        lifecycles = {task["Name"]: task.get("Lifecycle") for task in self.tasks}
        shared = {"DiskMB": self.disk, "Networks": None, "Ports": None}
        self.allocated = _raw({"Shared": shared, "TaskLifecycles": lifecycles, "Tasks": tasks})
        self.resources = _raw(
            _amounts(CPU=self.cpu, DiskMB=self.disk, MemoryMB=self.memory, MemoryMaxMB=self.memory)
        )
        self.shared = _raw(_amounts(DiskMB=self.disk))
        self.task_resources = _raw(
            {
                name: _amounts(
                    CPU=ask["CPU"], MemoryMB=ask["MemoryMB"], MemoryMaxMB=ask.get("MemoryMaxMB", 0)
                )
                for name, ask in asked.items()
            }
        )

    def exhausted(self, dimension: str) -> dict[str, Any]:
        """Return what placement metrics show per task when a dimension, "cpu" or "memory", is full."""
        field_name = "CPU" if dimension == "cpu" else "MemoryMB"
        return {task["Name"]: _amounts(**{field_name: task["Resources"][field_name]}) for task in self.tasks}


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


class Specification:
    """A registered job as submitted: shown fields plus the demands of its groups."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.serial = next(_serials)
        self.fields: dict[str, Any] = in_order(job)
        self.type: str = job["Type"]
        self.groups = {spec["Name"]: Group(job, spec) for spec in job.get("TaskGroups") or ()}
        self.parameterized: Mapping[str, Any] | None = job.get("ParameterizedJob")
        self.meta: dict[str, str] | None = job.get("Meta")


@dataclass(slots=True, eq=False)
class Job:
    """One job, parent or dispatched."""

    spec: Specification
    id: str
    namespace: str
    priority: int
    status: str
    create_index: int
    modify_index: int
    job_modify_index: int
    submit_time: int
    meta: dict[str, str] | None = None
    parent_id: str = ""
    dispatched: bool = False
    token: str = ""
    payload: bytes = b""
    stop: bool = False
    version: int = 0
    summary_index: int = 0
    allocs: dict[str, Allocation] = field(default_factory=dict)
    evals: dict[str, Evaluation] = field(default_factory=dict)
    groups: dict[str, list[int]] = field(default_factory=dict)
    children: dict[str, int] | None = None
    live: int = 0
    """Allocations that keep the job running."""
    open_evals: int = 0

    def __post_init__(self) -> None:
        self.groups = {name: [0] * len(GROUP_STATUSES) for name in self.spec.groups}

    @property
    def alloc_version(self) -> int:
        """The version that allocations show: a child's specification is never changed, only stopped."""
        return 0 if self.dispatched else self.version

    @property
    def parameterized(self) -> bool:
        """Whether it can be dispatched; a dispatched child cannot."""
        return self.spec.parameterized is not None and not self.dispatched

    def count(self, group: str, client_status: str, change: int) -> None:
        """Change how many allocations of a group the summary counts under a client status."""
        self.groups[group][GROUP_STATUSES.index(counted_as(client_status))] += change

    def queue(self, group: str, waiting: int) -> bool:
        """Set how many allocations of a group wait for a node; return whether that is news."""
        counts, position = self.groups[group], GROUP_STATUSES.index("Queued")
        changed = counts[position] != waiting
        counts[position] = waiting
        return changed

    def view(self, *, packed: bool) -> dict[str, Any]:
        """Return the job as the API shows it.

        Args:
            packed: the payload as events show it (a Snappy block), not as reads do.
        """
        payload = snappy_block(self.payload) if packed and self.payload else self.payload
        return {
            **self.spec.fields,
            "CreateIndex": self.create_index,
            "DispatchIdempotencyToken": self.token,
            "Dispatched": self.dispatched,
            "ID": self.id,
            "JobModifyIndex": self.job_modify_index,
            "Meta": self.meta,
            "ModifyIndex": self.modify_index,
            "Name": self.id if self.dispatched else self.spec.fields["Name"],
            "Namespace": self.namespace,
            "ParentID": self.parent_id,
            "Payload": base64.b64encode(payload).decode() if payload else None,
            "Priority": self.priority,
            "Status": self.status,
            "Stop": self.stop,
            "SubmitTime": self.submit_time,
            "Version": self.version,
        }

    def summary(self) -> dict[str, Any]:
        """Return GET /v1/job/:id/summary: every allocation ever made counts."""
        children = self.children or {}
        return {
            "Children": {name: children.get(name.lower(), 0) for name in ("Dead", "Pending", "Running")},
            "CreateIndex": self.create_index,
            "JobID": self.id,
            "ModifyIndex": self.summary_index,
            "Namespace": self.namespace,
            "Summary": {
                name: dict(zip(GROUP_STATUSES, counts, strict=True)) for name, counts in self.groups.items()
            },
        }

    def stub(self, *, meta: bool = False) -> dict[str, Any]:
        """Return the row of GET /v1/jobs."""
        fields = self.spec.fields
        row = {
            "CreateIndex": self.create_index,
            "Datacenters": fields.get("Datacenters"),
            "ID": self.id,
            "JobModifyIndex": self.job_modify_index,
            "JobSummary": self.summary(),
            "ModifyIndex": self.modify_index,
            "Multiregion": None,
            "Name": self.id if self.dispatched else fields["Name"],
            "Namespace": self.namespace,
            "NodePool": fields.get("NodePool", "default"),
            "ParameterizedJob": self.parameterized,
            "ParentID": self.parent_id,
            "Periodic": False,
            "Priority": self.priority,
            "Status": self.status,
            "StatusDescription": "",
            "Stop": self.stop,
            "SubmitTime": self.submit_time,
            "Type": self.spec.type,
        }
        return row | {"Meta": self.meta} if meta else row
