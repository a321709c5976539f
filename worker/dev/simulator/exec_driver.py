"""The drivers raw_exec and exec: a task is a real process group on this machine, its logs are files.

Knows nothing of jobs, restarts or task events, and isolates nothing.
"""

import contextlib
import os
import shutil
import signal as signals
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.dev.processes import ChildProcess, start_child
from worker.dev.simulator.tasks import (
    LOG_STREAMS,
    StartFailed,
    TaskExit,
    TaskSpec,
    driver_config,
    driver_failure,
    string_list,
)

# What a task on a real node takes over from the agent, without what a developer's shell may hold.
_INHERITED = ("PATH", "HOME", "LANG", "TZ", "USER")
_DEFAULT_KILL_SIGNAL = signals.SIGINT
_OPTIONS = frozenset(
    {"command", "args", "work_dir", "oom_score_adj", "cgroup_v1_override", "cgroup_v2_override"}
    | {"denied_envvars", "pid_mode", "ipc_mode", "cap_add", "cap_drop"}
)
_LAUNCH = "failed to launch command with executor: rpc error: code = Unknown desc = "


class ExecTask:
    """A task that is a real process group on this machine."""

    def __init__(self, child: ChildProcess, directory: Path) -> None:
        self._child = child
        self._directory = directory

    @property
    def pid(self) -> int:
        """Process ID of the task's first process, also its group's ID."""
        return self._child.pid

    async def wait(self) -> TaskExit:
        """See `RunningTask.wait`."""
        returncode = await self._child.wait()
        if returncode < 0:
            return TaskExit(exit_code=128 - returncode, signal=-returncode)
        return TaskExit(exit_code=returncode)

    async def kill(self, *, signal: str, timeout_seconds: float) -> None:
        """See `RunningTask.kill`; the signal goes to the first process, SIGKILL to the group.

        A shell that waits for a command in the foreground therefore ends with 137, not 130, once the
        timeout is over: as on a real node.
        """
        await self._child.stop(signal_number=signal_number(signal), timeout_seconds=timeout_seconds)

    def logs(self, stream: str) -> bytes:
        """See `RunningTask.logs`."""
        if stream not in LOG_STREAMS:
            msg = f"no log stream {stream!r}"
            raise ValueError(msg)
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / stream).read_bytes()
        return b""


class ExecDriver:
    """raw_exec, and exec without its isolation: the task is a plain process of this user."""

    async def start(self, spec: TaskSpec) -> ExecTask:
        """See `Driver.start`."""
        config = driver_config(spec.config, _OPTIONS, required=("command",))
        args = string_list(config, "args")
        if spec.directory is None:
            msg = f"task {spec.name!r} runs a process and needs a directory"
            raise ValueError(msg)
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        env.update(spec.env)
        program = _find_program(str(config["command"]), spec.directory, env)
        work_dir = spec.directory / str(config.get("work_dir", ""))
        try:
            child = _spawn(program, args, env=env, work_dir=work_dir, log_dir=spec.directory)
        except OSError as error:
            raise _launch_failed(program, args, error) from error
        return ExecTask(child, spec.directory)


def signal_number(name: str) -> int:
    """Return the number of "SIGTERM", "TERM" or "15"; what this machine does not know is SIGINT."""
    if name.isdigit():
        return int(name)
    full_name = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    found = signals.Signals.__members__.get(full_name)
    # Nomad never places a task whose signal the node lacks, so any choice is as good.
    return int(found if found is not None else _DEFAULT_KILL_SIGNAL)


def _find_program(command: str, directory: Path, env: Mapping[str, str]) -> str:
    """Look in the task's folder, then in PATH, as a node does. An empty command is the folder itself."""
    for place in (directory / "local" / command, directory / command):
        if place.exists() and not Path(command).is_absolute():
            return str(place)
    if Path(command).is_absolute() and Path(command).exists():
        return command
    found = shutil.which(command, path=env.get("PATH", os.defpath))
    if found is None:
        mistake = f'{_LAUNCH}binary "{command}" could not be found'
        raise driver_failure(mistake)
    return found


def _launch_failed(program: str, args: Sequence[str], error: OSError) -> StartFailed:
    shown = " ".join(f'"{part}"' for part in (program, *args))
    reason = (error.strerror or str(error)).lower()
    return driver_failure(
        f'{_LAUNCH}failed to start command path="{program}" --- args=[{shown}]: fork/exec {program}: {reason}'
    )


def _spawn(
    program: str, args: Sequence[str], *, env: Mapping[str, str], work_dir: Path, log_dir: Path
) -> ChildProcess:
    with (log_dir / "stdout").open("ab") as stdout, (log_dir / "stderr").open("ab") as stderr:
        return start_child([program, *args], env=env, cwd=work_dir, stdout=stdout, stderr=stderr)
