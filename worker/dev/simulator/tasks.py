"""What a task driver takes and gives: the task, how it ended, why it could not start.

Knows nothing of any one driver, and nothing of jobs, restarts or the task events made from this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

LOG_STREAMS = ("stdout", "stderr")
_NO_OBJECT = (
    "Root value must be object: The root value in a JSON-based configuration must be either "
    "a JSON object or a JSON array of objects."
)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task to start.

    `config` is the driver block with runtime variables already filled in, `env` the task's own
    environment, `directory` the task's folder (None for scripted tasks). Logs are written to
    `directory`/"stdout" and `directory`/"stderr", appended to when a task restarts.
    """

    name: str
    driver: str
    config: Mapping[str, Any]
    env: Mapping[str, str]
    directory: Path | None


@dataclass(frozen=True, slots=True)
class TaskExit:
    """How a task ended, as Nomad's event "Terminated" reports it.

    A process ended by signal N has exit code 128 + N and signal N; a script may say otherwise.
    """

    exit_code: int
    signal: int = 0
    oom_killed: bool = False
    message: str = ""

    @property
    def successful(self) -> bool:
        """False for any exit code, signal or message: each of them alone fails a task in Nomad."""
        return not (self.exit_code or self.signal or self.message)


StartFailure = Literal["Driver Failure", "Failed Validation", "Failed Artifact Download"]


class StartFailed(Exception):
    """A task could not be started; `event_type` and `message` are those of Nomad's task event."""

    def __init__(self, event_type: StartFailure, message: str, *, recoverable: bool = False) -> None:
        super().__init__(f"{event_type}: {message}")
        self.event_type = event_type
        self.message = message
        self.recoverable = recoverable


class RunningTask(Protocol):
    """A started task. Several callers may wait; a cancelled wait leaves the task alone."""

    async def wait(self) -> TaskExit:
        """Return how the task ended, as soon as it has."""
        ...

    async def kill(self, *, signal: str, timeout_seconds: float) -> None:
        """End the task and return once it has ended.

        Args:
            signal: name such as "SIGTERM"; "" is SIGINT, Nomad's default.
            timeout_seconds: time to end by itself before it is killed.
        """
        ...

    def logs(self, stream: str) -> bytes:
        """Return the whole log so far of "stdout" or "stderr"."""
        ...


class Driver(Protocol):
    """Starts tasks of one kind."""

    async def start(self, spec: TaskSpec) -> RunningTask:
        """Start a task.

        Raises:
            StartFailed: with the text a real node reports.
        """
        ...


def driver_config(
    config: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    options: frozenset[str],
    *,
    required: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return a driver block as one dict, checked against the options the driver knows.

    Args:
        config: the block, or a list of such blocks as some HCL parsers make of one.
        options: every name the driver accepts.
        required: names that must be there.

    Raises:
        StartFailed: "Failed Validation" with Nomad's text.
    """
    blocks = [config] if isinstance(config, Mapping) else config
    merged = {name: value for block in blocks for name, value in block.items() if value is not None}
    # Nomad refuses an empty block even where nothing is required; a scripted task may stay empty here.
    if not merged and required:
        raise invalid_config(_NO_OBJECT)
    mistakes = [
        f'Missing required argument: The argument "{name}" is required, but no definition was found.'
        for name in required
        if name not in merged
    ]
    mistakes += [
        f'Invalid label: No argument or block type is named "{name}".'
        for name in sorted(merged)
        if name not in options
    ]
    if mistakes:
        raise invalid_config(*mistakes)
    return merged


def string_list(config: Mapping[str, Any], option: str) -> list[str]:
    """Return an option that is a list of strings; numbers and booleans become text.

    Raises:
        StartFailed: "Failed Validation": it is no list.
    """
    value = config.get(option, [])
    if not isinstance(value, list | tuple):
        kind = {str: "string", bool: "bool"}.get(type(value), "number")
        raise wrong_type(option, f"list of string required, but have {kind}")
    return [_text(item) for item in value]


def invalid_config(*mistakes: str) -> StartFailed:
    """Return the failed validation that Nomad reports for these mistakes in a driver block."""
    lines = ["failed to parse config: ", *mistakes]
    items = "".join(f"\t* {line}\n" for line in lines)
    return StartFailed("Failed Validation", f"{len(lines)} errors occurred:\n{items}\n")


def wrong_type(option: str, expected: str) -> StartFailed:
    """Return the failed validation for an option of the wrong type; `expected` says what it must be."""
    return invalid_config(
        f'Incorrect attribute value type: Inappropriate value for attribute "{option}": {expected}.'
    )


def driver_failure(message: str, *, recoverable: bool = False) -> StartFailed:
    """Return the failure of a driver that was asked properly and still could not start the task."""
    return StartFailed("Driver Failure", message, recoverable=recoverable)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
