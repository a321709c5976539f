"""A scripted task driver, no process behind it: runs for a time, prints, ends as its config says.

Takes the option names of Nomad's own mock driver, and `oom_killed`. Knows nothing of real processes.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from worker.dev.simulator.durations import parse_duration
from worker.dev.simulator.tasks import (
    LOG_STREAMS,
    TaskExit,
    TaskSpec,
    driver_config,
    driver_failure,
    wrong_type,
)

_STREAM_OPTIONS = ("string", "repeat", "repeat_duration")
_OPTIONS = frozenset(
    {"run_for", "exit_code", "exit_signal", "exit_err_msg", "oom_killed", "kill_after", "signal_error"}
    | {"start_error", "start_error_recoverable", "start_block_for", "plugin_exit_after"}
    | {"driver_ip", "driver_advertise", "driver_port_map"}
    | {f"{stream}_{option}" for stream in LOG_STREAMS for option in _STREAM_OPTIONS}
)
# What the kernel's out-of-memory killer makes of a task.
_OOM_DEFAULTS = {"exit_code": 137, "exit_signal": 9, "exit_err_msg": "OOM Killed"}
_TRUE_WORDS = frozenset({"1", "t", "true", "yes"})


class MockTask:
    """A scripted task: one timer and one future, so that tens of thousands are cheap."""

    __slots__ = ("_config", "_ended", "_ended_at", "_loop", "_outcome", "_started_at", "_timer")

    def __init__(self, config: Mapping[str, Any], outcome: TaskExit, run_for_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._outcome = outcome
        self._started_at = self._loop.time()
        self._ended_at: float | None = None
        self._ended: asyncio.Future[TaskExit] = self._loop.create_future()
        self._timer = self._loop.call_later(run_for_seconds, self._end)

    async def wait(self) -> TaskExit:
        """See `RunningTask.wait`."""
        return await asyncio.shield(self._ended)

    async def kill(self, *, signal: str, timeout_seconds: float) -> None:  # noqa: ARG002 - part of the protocol
        """See `RunningTask.kill`.

        Ends after `kill_after`, at once without it, with the outcome of its config: also on a real
        node a killed mock task reports the exit code it was given, 0 by default, and not 137.
        """
        if self._ended.done():
            return
        kill_after_seconds = _seconds(self._config, "kill_after")
        self._timer.cancel()
        if kill_after_seconds > 0:
            self._timer = self._loop.call_later(min(kill_after_seconds, timeout_seconds), self._end)
            await self.wait()
        else:
            self._end()

    def logs(self, stream: str) -> bytes:
        """See `RunningTask.logs`: the string once, then once more after each `repeat_duration`."""
        if stream not in LOG_STREAMS:
            msg = f"no log stream {stream!r}"
            raise ValueError(msg)
        until = self._loop.time() if self._ended_at is None else self._ended_at
        every_seconds = _seconds(self._config, f"{stream}_repeat_duration")
        repeats = _integer(self._config, f"{stream}_repeat")
        if every_seconds > 0:
            repeats = min(repeats, int((until - self._started_at) / every_seconds))
        return str(self._config.get(f"{stream}_string", "")).encode() * (1 + max(repeats, 0))

    def _end(self) -> None:
        if not self._ended.done():
            self._ended_at = self._loop.time()
            self._ended.set_result(self._outcome)


class MockDriver:
    """Runs scripts; see the module for their options."""

    async def start(self, spec: TaskSpec) -> MockTask:
        """See `Driver.start`. Takes `start_block_for`, and then fails if there is a `start_error`."""
        config = driver_config(spec.config, _OPTIONS)
        for stream in LOG_STREAMS:
            _seconds(config, f"{stream}_repeat_duration")
            _integer(config, f"{stream}_repeat")
        _seconds(config, "kill_after")
        oom_killed = _boolean(config, "oom_killed")
        config = _OOM_DEFAULTS | config if oom_killed else config
        outcome = TaskExit(
            exit_code=_integer(config, "exit_code"),
            signal=_integer(config, "exit_signal"),
            oom_killed=oom_killed,
            message=str(config.get("exit_err_msg", "")),
        )
        run_for_seconds = _seconds(config, "run_for")
        if block_seconds := _seconds(config, "start_block_for"):
            await asyncio.sleep(block_seconds)
        if message := str(config.get("start_error", "")):
            recoverable = _boolean(config, "start_error_recoverable")
            raise driver_failure(message, recoverable=recoverable)
        return MockTask(config, outcome, run_for_seconds)


def _seconds(config: Mapping[str, Any], option: str) -> float:
    text = str(config.get(option, "")) or "0"
    try:
        return max(parse_duration(text), 0) / 1e9
    except ValueError as error:
        mistake = f"{option} {text} not a valid duration: {error}"
        raise driver_failure(mistake) from error


def _integer(config: Mapping[str, Any], option: str) -> int:
    value = config.get(option, 0)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise wrong_type(option, "a number is required") from error


def _boolean(config: Mapping[str, Any], option: str) -> bool:
    return str(config.get(option, "")).lower() in _TRUE_WORDS
