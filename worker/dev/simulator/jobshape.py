"""Checks the types of a job's fields as they come from JSON, with the words of Nomad's decoder.

Knows nothing of what the values may be.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_TEXT, _INTEGER, _DURATION, _TEXT_MAP, _OBJECT = (
    "string",
    "int",
    "time.Duration",
    "map[string]string",
    "map[string]interface {}",
)
_RESTART = {"Attempts": _INTEGER, "Interval": _DURATION, "Delay": _DURATION, "Mode": _TEXT}
_JOB = {"ID": _TEXT, "Name": _TEXT, "Type": _TEXT, "Region": _TEXT, "Namespace": _TEXT}
_JOB |= {"Priority": _INTEGER, "Meta": _TEXT_MAP}
_GROUP = {"Name": _TEXT, "Count": _INTEGER, "MaxRunDuration": _DURATION, "Meta": _TEXT_MAP}
_TASK = {"Name": _TEXT, "Driver": _TEXT, "KillTimeout": _DURATION, "KillSignal": _TEXT}
_TASK |= {"Config": _OBJECT, "Env": _TEXT_MAP, "Meta": _TEXT_MAP}
_RESOURCES = {"CPU": _INTEGER, "Cores": _INTEGER, "MemoryMB": _INTEGER}
# Objects inside the list: key → the type's name in messages, its fields.
_IN_JOB = {"ParameterizedJob": ("ParameterizedJobConfig", {"Payload": _TEXT})}
_IN_GROUP = {
    "RestartPolicy": ("RestartPolicy", _RESTART),
    "ReschedulePolicy": ("ReschedulePolicy", {**_RESTART, "MaxDelay": _DURATION, "DelayFunction": _TEXT}),
    "EphemeralDisk": ("EphemeralDisk", {"SizeMB": _INTEGER}),
}
_IN_TASK = {
    "RestartPolicy": ("RestartPolicy", _RESTART),
    "Resources": ("Resources", _RESOURCES),
    "LogConfig": ("LogConfig", {"MaxFiles": _INTEGER, "MaxFileSizeMB": _INTEGER}),
    "Lifecycle": ("TaskLifecycle", {"Hook": _TEXT}),
}


def shape_mistake(job: Any) -> str:
    """Return what Nomad's JSON decoder says to the first field of a wrong type, "" if there is none.

    Only the fields that a batch job's life depends on are checked.
    """
    return next(_mistakes(job), "")


def _mistakes(job: Any) -> Iterator[str]:
    if not isinstance(job, Mapping):
        yield _wrong_type(job, "JobRegisterRequest.Job", "api.Job")
        return
    yield from _fields(job, "Job.Job", _JOB)
    yield from _objects(job, "Job", _IN_JOB)
    for group in _items(job.get("TaskGroups")):
        if not isinstance(group, Mapping):
            yield _wrong_type(group, "Job.Job.TaskGroups", "api.TaskGroup")
            return
        yield from _fields(group, "TaskGroup.Job.TaskGroups", _GROUP)
        yield from _objects(group, "Job.TaskGroups", _IN_GROUP)
        for task in _items(group.get("Tasks")):
            if not isinstance(task, Mapping):
                yield _wrong_type(task, "TaskGroup.Job.TaskGroups.Tasks", "api.Task")
                return
            yield from _fields(task, "Task.Job.TaskGroups.Tasks", _TASK)
            yield from _objects(task, "Job.TaskGroups.Tasks", _IN_TASK)


def _objects(
    owner: Mapping[str, Any], path: str, kinds: Mapping[str, tuple[str, Mapping[str, str]]]
) -> Iterator[str]:
    for key, (kind, fields) in kinds.items():
        value = owner.get(key)
        if isinstance(value, Mapping):
            yield from _fields(value, f"{kind}.{path}.{key}", fields)
        elif value is not None:
            yield _wrong_type(value, f"{path}.{key}", f"api.{kind}")


def _fields(owner: Mapping[str, Any], path: str, fields: Mapping[str, str]) -> Iterator[str]:
    for key, expected in fields.items():
        value = owner.get(key)
        if value is None or _fits(value, expected):
            continue
        if expected == _TEXT_MAP and isinstance(value, Mapping):
            wrong = next(item for item in value.values() if not isinstance(item, str))
            yield _wrong_type(wrong, f"{path}.{key}", _TEXT)
        else:
            yield _wrong_type(value, f"{path}.{key}", expected)


def _fits(value: Any, expected: str) -> bool:
    if expected in {_INTEGER, _DURATION}:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected == _TEXT:
        return isinstance(value, str)
    is_object = isinstance(value, Mapping)
    return is_object and (expected == _OBJECT or all(isinstance(item, str) for item in value.values()))


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _wrong_type(value: Any, path: str, expected: str) -> str:
    kinds = {bool: "bool", str: "string", list: "array", dict: "object", float: f"number {value}"}
    kind = kinds.get(type(value), "number")
    return f"json: cannot unmarshal {kind} into Go struct field {path} of type {expected}"
