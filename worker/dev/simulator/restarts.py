"""Whether a task that ended is started again on its node, and the task events that say so. Pure.

Knows nothing of what runs; time is given in nanoseconds.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.dev.simulator.records import TaskEvent, go_duration
from worker.dev.simulator.tasks import StartFailed, TaskExit

_JITTER = 0.25
_FAILURE_FIELDS = {
    "Driver Failure": ("driver_error", "driver_error"),
    "Failed Validation": ("validation_error", "validation_error"),
    "Failed Artifact Download": ("download_error", "download_error"),
}
_PLAIN = {
    "Received": "Task received by client",
    "Started": "Task started by client",
    "Killed": "Task successfully killed",
    "Downloading Artifacts": "Client is downloading artifacts",
    "Reconnected": "Client reconnected",
    "Leader Task Dead": "Leader Task in Group dead",
    "Main Tasks Dead": "Main tasks in the group died",
}


def plain_event(kind: str, now: int) -> TaskEvent:
    """Return an event that says no more than its type."""
    return TaskEvent(type=kind, time=now, details={}, display_message=_PLAIN[kind])


def setup_event(now: int) -> TaskEvent:
    """Return the event of a task folder being built."""
    text = "Building Task Directory"
    details = {"message": text}
    return TaskEvent(type="Task Setup", time=now, details=details, display_message=text, message=text)


def sibling_event(name: str, now: int) -> TaskEvent:
    """Return the event of a task that has to end because another one failed."""
    return TaskEvent(
        type="Sibling Task Failed",
        time=now,
        details={"failed_sibling": name},
        display_message=f'Task\'s sibling "{name}" failed',
        failed_sibling=name,
    )


def killing_event(kill_timeout: int, reason: str, now: int) -> TaskEvent:
    """Return the event of a kill that begins."""
    timeout = go_duration(kill_timeout)
    return TaskEvent(
        type="Killing",
        time=now,
        details={"kill_timeout": timeout},
        display_message=reason or f"Sent interrupt. Waiting {timeout} before force killing",
        kill_timeout=kill_timeout,
    )


def failure_event(error: StartFailed, now: int) -> TaskEvent:
    """Return the event of a task that could not be started."""
    field, detail = _FAILURE_FIELDS[error.event_type]
    texts: dict[str, Any] = {field: error.message}
    return TaskEvent(
        type=error.event_type,
        time=now,
        details={detail: error.message},
        display_message=error.message,
        **texts,
    )


def terminated_event(end: TaskExit, now: int) -> TaskEvent:
    """Return the event of a task's end."""
    details = {
        "exit_code": str(end.exit_code),
        "signal": str(end.signal),
        "oom_killed": str(end.oom_killed).lower(),
    }
    text = f"Exit Code: {end.exit_code}"
    if end.signal:
        text += f", Signal: {end.signal}"
    if end.message:
        details["exit_message"] = end.message
        text += f', Exit Message: "{end.message}"'
    return TaskEvent(
        type="Terminated",
        time=now,
        details=details,
        display_message=text,
        exit_code=end.exit_code,
        message=end.message,
        signal=end.signal,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens next to a task that ended."""

    event: TaskEvent
    delay: int | None
    """Nanoseconds until the restart; None: the task has failed."""


class RestartTracker:
    """Counts the restarts of one task against its policy."""

    __slots__ = ("_attempts", "_count", "_delay", "_interval", "_mode", "_since")

    def __init__(self, policy: Mapping[str, Any] | None) -> None:
        policy = policy or {}
        self._attempts: int = policy.get("Attempts") or 0
        self._interval: int = policy.get("Interval") or 0
        self._delay: int = policy.get("Delay") or 0
        self._mode: str = policy.get("Mode") or "fail"
        self._count = 0
        self._since = 0

    def next(self, now: int, *, recoverable: bool = True) -> Verdict:
        """Count one end that calls for a restart, and decide."""
        if not recoverable and self._attempts:
            return _failed("Error was unrecoverable", now)
        if not self._attempts:
            return _failed("Policy allows no restarts", now)
        if now > self._since + self._interval:
            self._since, self._count = now, 0
        self._count += 1
        if self._count > self._attempts:
            if self._mode == "fail":
                interval = go_duration(self._interval)
                limit = f"{self._attempts} in interval {interval}"
                return _failed(f'Exceeded allowed attempts {limit} and mode is "fail"', now)
            reason = "Exceeded allowed attempts, applying a delay"
            delay = max(self._since + self._interval - now, 0)
            return _restart(reason, f"{reason} - ", delay, now)
        jitter = 1 + random.uniform(0, _JITTER)  # noqa: S311 - spreads restarts, protects nothing
        return _restart("Restart within policy", "", int(self._delay * jitter), now)


def _failed(reason: str, now: int) -> Verdict:
    event = TaskEvent(
        type="Not Restarting",
        time=now,
        details={"fails_task": "true", "restart_reason": reason},
        display_message=reason,
        fails_task=True,
        restart_reason=reason,
    )
    return Verdict(event, None)


def _restart(reason: str, prefix: str, delay: int, now: int) -> Verdict:
    event = TaskEvent(
        type="Restarting",
        time=now,
        details={"restart_reason": reason, "start_delay": str(delay)},
        display_message=f"{prefix}Task restarting in {go_duration(delay)}",
        restart_reason=reason,
        start_delay=delay,
    )
    return Verdict(event, delay)
