"""The rules a job must keep to be registered, with the words Nomad finds for each breach.

Judges jobs that already have their defaults. Knows nothing of namespaces, nodes or other jobs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Job = Mapping[str, Any]

_SECOND = 1_000_000_000
_TYPES = frozenset({"service", "batch", "system", "sysbatch", "_core"})
_PAYLOADS = frozenset({"", "optional", "required", "forbidden"})
_RESTART_MODES = frozenset({"fail", "delay"})
_HOOKS = frozenset({"prestart", "poststart", "poststop"})
_OPERANDS = frozenset(
    {
        "=",
        "==",
        "is",
        "!=",
        "not",
        "<",
        "<=",
        ">",
        ">=",
        "version",
        "semver",
        "regexp",
        "is_set",
        "is_not_set",
    }
    | {"set_contains", "set_contains_all", "set_contains_any", "distinct_hosts", "distinct_property"}
)
_WITHOUT_ATTRIBUTE = frozenset({"distinct_hosts"})
_MAX_PRIORITY = 100
_MAX_WEIGHT = 100
_MIN_RESTART_INTERVAL = 5 * _SECOND
_MIN_RESCHEDULE_INTERVAL = 15 * _SECOND
_MIN_RESCHEDULE_DELAY = 5 * _SECOND
_DELAY_FUNCTIONS = ("constant", "exponential", "fibonacci")
_CHANGE_MODES = ("noop", "signal", "script", "restart")
_MIN_DISK_MB = 10
_MIN_MEMORY_MB = 10


class InvalidJob(ValueError):
    """Nomad would refuse to register the job; `message` is its answer's body, `status` its HTTP status."""

    def __init__(self, message: str, *, status: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def multierror(mistakes: Sequence[str]) -> str:
    """Return several messages as the one text Nomad makes of them."""
    count = "1 error" if len(mistakes) == 1 else f"{len(mistakes)} errors"
    return f"{count} occurred:\n" + "".join(f"\t* {mistake}\n" for mistake in mistakes) + "\n"


def mistakes_in(job: Job) -> list[str]:
    """Return the breaches of a job that has its defaults, in Nomad's order and words."""
    return list(_job_mistakes(job))


def _job_mistakes(job: Job) -> Iterator[str]:
    if job["Type"] not in _TYPES:
        yield f'Invalid job type: "{job["Type"]}"'
    if not job["ID"]:
        yield "Missing job ID"
    elif " " in job["ID"]:
        yield "Job ID contains a space"
    if not job["Name"]:
        yield "Missing job name"
    elif "\x00" in job["Name"]:
        yield "Job Name contains a null character"
    if "" in job["Datacenters"]:
        yield "Job datacenter must be non-empty string"
    if not job["TaskGroups"]:
        yield "Missing job task groups"
    yield from _comparison_mistakes(job)
    yield from _names(job["TaskGroups"], "Job task group", "group")
    for group in job["TaskGroups"]:
        mistakes = list(_group_mistakes(group, job["Type"]))
        if mistakes:
            yield f"Task group {group['Name']} validation failed: {multierror(mistakes)}"
    parameterized = job["ParameterizedJob"]
    if parameterized is not None:
        if job["Type"] in {"service", "system"}:
            yield 'Parameterized job can only be used with "batch" or "sysbatch" scheduler'
        mistakes = list(_parameterized_mistakes(parameterized))
        if mistakes:
            yield multierror(mistakes)
    if not 1 <= job["Priority"] <= _MAX_PRIORITY:
        yield f"job priority must be between [1, {_MAX_PRIORITY}]"


def _parameterized_mistakes(parameterized: Job) -> Iterator[str]:
    if parameterized["Payload"] not in _PAYLOADS:
        yield f'Unknown payload requirement: "{parameterized["Payload"]}"'
    required, optional = parameterized["MetaRequired"] or [], parameterized["MetaOptional"] or []
    both = " ".join(key for key in required if key in optional)
    if both:
        yield f"Required and optional meta keys should be disjoint. Following keys exist in both: [{both}]"


def _group_mistakes(group: Job, job_type: str) -> Iterator[str]:
    if not group["Name"]:
        yield "Missing task group name"
    if group["Count"] < 0:
        yield "Task group count can't be negative"
    if not group["Tasks"]:
        yield "Missing tasks for task group"
    yield from _comparison_mistakes(group)
    yield from _max_run_mistakes(group["MaxRunDuration"], job_type)
    yield from _restart_mistakes(group["RestartPolicy"])
    yield from _reschedule_mistakes(group["ReschedulePolicy"], job_type)
    if group["EphemeralDisk"]["SizeMB"] < _MIN_DISK_MB:
        yield f"minimum DiskMB value is {_MIN_DISK_MB}; got {group['EphemeralDisk']['SizeMB']}"
    tasks = group["Tasks"]
    yield from _names(tasks, "Task", "task")
    if tasks and all(task["Lifecycle"] is not None for task in tasks):
        yield f"Task group {group['Name']} must have at least one main task"
    if sum(1 for task in tasks if task["Leader"]) > 1:
        yield "Only one task may be marked as leader"
    for task in tasks:
        mistakes = list(_task_mistakes(task, group["EphemeralDisk"]["SizeMB"]))
        if mistakes:
            yield f"Task {task['Name']} validation failed: {multierror(mistakes)}"


def _names(items: Sequence[Job], what: str, short: str) -> Iterator[str]:
    seen: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        name = item["Name"]
        if not name:
            yield f"{what} {number} missing name"
        elif name in seen:
            yield f"{what} {number} redefines '{name}' from {short} {seen[name]}"
        else:
            seen[name] = number


def _max_run_mistakes(max_run_duration: int | None, job_type: str) -> Iterator[str]:
    if max_run_duration is None:
        return
    if max_run_duration <= 0:
        yield "MaxRunDuration must be greater than zero"
    if job_type not in {"batch", "sysbatch"}:
        yield f'Job type "{job_type}" does not allow max_run_duration'


def _restart_mistakes(policy: Job) -> Iterator[str]:
    attempts, interval, delay = policy["Attempts"], policy["Interval"], policy["Delay"]
    if policy["Mode"] not in _RESTART_MODES:
        yield f'Unsupported restart mode: "{policy["Mode"]}"'
        return
    if attempts == 0 and policy["Mode"] == "delay":
        yield 'Restart policy "delay" with 0 attempts is ambiguous'
    if attempts * delay > interval:
        yield (
            f"Nomad can't restart the TaskGroup {attempts} times in an interval of "
            f"{go_duration(interval)} with a delay of {go_duration(delay)}"
        )
    if interval < _MIN_RESTART_INTERVAL:
        yield f"Interval can not be less than 5s (got {go_duration(interval)})"


def _reschedule_mistakes(policy: Job | None, job_type: str) -> Iterator[str]:
    if policy is None or job_type not in _TYPES:
        return
    if job_type in {"system", "sysbatch"}:
        yield "System or sysbatch jobs should not have a reschedule policy"
        return
    attempts, interval, unlimited = policy["Attempts"], policy["Interval"], policy["Unlimited"]
    if attempts == 0 and not unlimited:
        return
    if attempts > 0 and unlimited:
        yield (
            f"Reschedule Policy with Attempts = {attempts}, Interval = {go_duration(interval)}, "
            "and Unlimited = true is ambiguous"
        )
        yield "If Attempts >0, Unlimited cannot also be set to true"
        return
    if attempts > 0 and interval == 0:
        yield "Interval must be a non zero value if Attempts > 0"
    yield from _reschedule_delay_mistakes(policy)
    if attempts > 0 and interval < _MIN_RESCHEDULE_INTERVAL:
        yield f"Interval cannot be less than 15s (got {go_duration(interval)})"
    # With a growing delay the count is more than a division; such a policy passes unchecked.
    if attempts > 0 and policy["DelayFunction"] == "constant" and (delay := policy["Delay"]) > 0:
        possible = interval // delay
        if possible < attempts:
            yield (
                f"Nomad can only make {possible} attempts in {go_duration(interval)} with initial delay "
                f'{go_duration(delay)} and delay function "constant"'
            )
            needed = go_duration(attempts * delay)
            yield f"Set the interval to at least {needed} to accommodate {attempts} attempts"


def _reschedule_delay_mistakes(policy: Job) -> Iterator[str]:
    function, delay, max_delay = policy["DelayFunction"], policy["Delay"], policy["MaxDelay"]
    if function not in _DELAY_FUNCTIONS:
        shown = " ".join(f'"{name}"' for name in _DELAY_FUNCTIONS)
        yield f'Invalid delay function "{function}", must be one of [{shown}]'
    if delay < _MIN_RESCHEDULE_DELAY:
        yield f"Delay cannot be less than 5s (got {go_duration(delay)})"
    if function != "constant":
        if max_delay < _MIN_RESCHEDULE_DELAY:
            yield f"Max Delay cannot be less than 5s (got {go_duration(delay)})"
        if max_delay < delay:
            yield f"Max Delay cannot be less than Delay {go_duration(delay)} (got {go_duration(max_delay)})"


def _task_mistakes(task: Job, disk_mb: int) -> Iterator[str]:
    if not task["Name"]:
        yield "Missing task name"
    if "/" in task["Name"]:
        yield "Task name cannot include slashes"
    if not task["Driver"]:
        yield "Missing task driver"
    if task["KillTimeout"] < 0:
        yield "KillTimeout must be a positive value"
    if mistakes := list(_resource_mistakes(task["Resources"])):
        yield multierror([multierror(mistakes)])
    if mistakes := list(_log_mistakes(task["LogConfig"], disk_mb)):
        yield multierror(mistakes)
    yield from _comparison_mistakes(task)
    for number, artifact in enumerate(task["Artifacts"] or [], 1):
        if not artifact["GetterSource"]:
            yield f"Artifact {number} validation failed: {multierror(['source must be specified'])}"
    for number, template in enumerate(task["Templates"] or [], 1):
        if mistakes := list(_template_mistakes(template)):
            yield f"Template {number} validation failed: {multierror(mistakes)}"
    if task["Lifecycle"] is not None and task["Lifecycle"]["Hook"] not in _HOOKS:
        yield f"Lifecycle validation failed: invalid hook: {task['Lifecycle']['Hook']}"


def _resource_mistakes(resources: Job) -> Iterator[str]:
    if not resources["Cores"] and resources["CPU"] < 1:
        yield f"minimum CPU value is 1; got {resources['CPU']}"
    if resources["MemoryMB"] < _MIN_MEMORY_MB:
        yield f"minimum MemoryMB value is {_MIN_MEMORY_MB}; got {resources['MemoryMB']}"


def _log_mistakes(logs: Job, disk_mb: int) -> Iterator[str]:
    if logs["MaxFiles"] < 1:
        yield f"minimum number of files is 1; got {logs['MaxFiles']}"
    if logs["MaxFileSizeMB"] < 1:
        yield f"minimum file size is 1MB; got {logs['MaxFileSizeMB']}"
    size_mb = logs["MaxFiles"] * logs["MaxFileSizeMB"]
    if size_mb > disk_mb:
        yield f"log storage ({size_mb} MB) must be less than requested disk capacity ({disk_mb} MB)"


def _comparison_mistakes(owner: Job) -> Iterator[str]:
    for number, constraint in enumerate(owner["Constraints"] or [], 1):
        if mistakes := list(_constraint_mistakes(constraint)):
            yield f"Constraint {number} validation failed: {multierror(mistakes)}"
    for number, affinity in enumerate(owner["Affinities"] or [], 1):
        if mistakes := list(_affinity_mistakes(affinity)):
            yield f"Affinity {number} validation failed: {multierror(mistakes)}"
    for number, spread in enumerate(owner.get("Spreads") or [], 1):
        if mistakes := list(_spread_mistakes(spread)):
            yield f"Spread {number} validation failed: {multierror(mistakes)}"


def _constraint_mistakes(constraint: Job) -> Iterator[str]:
    operand = constraint["Operand"]
    if not operand:
        yield "Missing constraint operand"
    if operand not in _OPERANDS:
        yield f'Unknown constraint type "{operand}"'
    if not constraint["LTarget"] and operand not in _WITHOUT_ATTRIBUTE:
        yield "no attribute provided but is required by operator"


def _affinity_mistakes(affinity: Job) -> Iterator[str]:
    if not affinity["Operand"]:
        yield "Missing affinity operand"
        yield 'Unknown affinity operator ""'
    if affinity["Weight"] == 0:
        yield "Affinity weight cannot be zero"


def _spread_mistakes(spread: Job) -> Iterator[str]:
    if not spread.get("Attribute"):
        yield "Missing spread attribute"
    if not 0 < (spread.get("Weight") or 0) <= _MAX_WEIGHT:
        yield f"Spread block must have a positive weight from 0 to {_MAX_WEIGHT}"


def _template_mistakes(template: Job) -> Iterator[str]:
    if not template["SourcePath"] and not template["EmbeddedTmpl"]:
        yield "Must specify a source path or have an embedded template"
    if not template["DestPath"]:
        yield "Must specify a destination for the template"
    if template["ChangeMode"] not in _CHANGE_MODES:
        yield f"Invalid change mode. Must be one of the following: {', '.join(_CHANGE_MODES)}"


def go_duration(nanoseconds: int) -> str:
    """Return a duration as Go prints it: "1h30m0s", "1.5s", "200ms", "0s"."""
    if nanoseconds < _SECOND:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if nanoseconds >= size:
                return f"{_decimal(nanoseconds, size)}{unit}"
        return "0s"
    minutes, rest = divmod(nanoseconds, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, _SECOND)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
