"""Starts child processes in groups of their own that never outlive this process, however it ends.

Knows nothing of what a child does. POSIX only.
"""

import asyncio
import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from worker.dev import guardian

# SIGKILL cannot be refused; only a process stuck in the kernel takes longer than this to end.
_KILLED_WITHIN_SECONDS = 10.0
_GUARDIAN_ENDS_WITHIN_SECONDS = 5.0


class ChildProcess:
    """A running child, leader of its own session and process group.

    When the leader ends, whatever is left of its group is killed: a background process cannot stay.
    A descendant that opens a session of its own leaves the group and is out of reach.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", registry: "_Registry") -> None:
        self._popen = popen
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = _open_pidfd(popen.pid)
        if self._pidfd is None:
            threading.Thread(target=self._wait_in_thread, daemon=True, name=f"wait-{popen.pid}").start()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Process ID, also the ID of the process group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, else the exit code, or minus the number of the signal that ended it."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for the end and return `returncode`. Any number of callers; each may be cancelled."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send a signal to the leader alone; nothing happens once it has ended."""
        if not self._ended.done():
            # Unreaped until `_on_exit`, so the ID cannot belong to another process.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def send_group_signal(self, number: int) -> None:
        """Send a signal to every process of the group; nothing happens once the leader has ended."""
        if not self._ended.done():
            _kill_group(self.pid, number)

    async def stop(self, *, signal_number: int = signal.SIGTERM, timeout_seconds: float) -> int:
        """Ask the leader to end, then kill the group if it has not after `timeout_seconds`.

        Returns:
            `returncode`.

        Raises:
            TimeoutError: it did not even end on SIGKILL.
        """
        self.send_signal(signal_number)
        # A stopped process acts on a signal only when it is continued.
        self.send_signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), timeout_seconds)
        self.send_group_signal(signal.SIGKILL)
        return await asyncio.wait_for(self.wait(), _KILLED_WITHIN_SECONDS)

    def _on_exit(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        # Before the leader is reaped: until then its ID, and so the group's, cannot be reused.
        _kill_group(self.pid, signal.SIGKILL)
        self._finish(self._popen.wait(_KILLED_WITHIN_SECONDS))

    def _wait_in_thread(self) -> None:
        returncode = self._popen.wait()
        _kill_group(self.pid, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._finish, returncode)

    def _finish(self, returncode: int) -> None:
        self._registry.remove(self.pid)
        if not self._ended.done():
            self._ended.set_result(returncode)


def start_child(
    args: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> ChildProcess:
    """Start a program on the running event loop; standard input is empty.

    Args:
        args: the program (a path, or a name looked up in PATH) and its arguments.
        env: the complete environment.
        cwd: working directory.
        stdout: open file, or a constant of `subprocess`.
        stderr: as `stdout`.

    Raises:
        OSError: the program cannot be executed.
    """
    registry = _registry()
    with _interruptible_children():
        popen = subprocess.Popen(  # noqa: S603 - running the given program is the purpose
            list(args),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    registry.add(popen.pid)
    return ChildProcess(popen, registry)


class _Registry:
    """Tells the guardian process which groups are alive.

    The guardian sees the end of this process as the end of its standard input. That also covers a
    SIGKILL, and whole groups: Linux's parent-death signal reaches direct children only.
    """

    def __init__(self) -> None:
        self.owner_pid = os.getpid()
        self._groups: set[int] = set()
        self._lock = threading.Lock()
        self._guardian: subprocess.Popen[bytes] | None = None
        atexit.register(self._close)

    def add(self, group: int) -> None:
        with self._lock:
            self._groups.add(group)
            self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        with self._lock:
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:  # somebody killed the guardian: its successor learns of all groups
            self._end_guardian()
            self._write("".join(f"+{group}\n" for group in sorted(self._groups)))

    def _write(self, lines: str) -> None:
        if self._guardian is None:
            self._guardian = _start_guardian()
        os.write(_stdin(self._guardian).fileno(), lines.encode())

    def _end_guardian(self) -> None:
        if self._guardian is None:
            return
        process, self._guardian = self._guardian, None
        with contextlib.suppress(OSError):
            _stdin(process).close()
        try:
            process.wait(_GUARDIAN_ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_GUARDIAN_ENDS_WITHIN_SECONDS)

    def _close(self) -> None:
        if os.getpid() == self.owner_pid:  # a fork shares this object, but the groups are not its own
            self._end_guardian()


_current: _Registry | None = None
_current_lock = threading.Lock()


def _registry() -> _Registry:
    global _current  # noqa: PLW0603 - one guardian per process, started when first needed
    with _current_lock:
        if _current is None or _current.owner_pid != os.getpid():
            _current = _Registry()
        return _current


def _start_guardian() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        start_new_session=True,
    )


def _stdin(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    if process.stdin is None:
        msg = "the guardian was started without a pipe"
        raise AssertionError(msg)
    return process.stdin


@contextlib.contextmanager
def _interruptible_children() -> Iterator[None]:
    """Keep children from inheriting an ignored SIGINT, which a shell's `command &` leaves behind."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler, unlike SIG_IGN, ends with exec
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _open_pidfd(pid: int) -> int | None:
    opener: Callable[..., Any] | None = getattr(os, "pidfd_open", None)
    if opener is None:
        return None
    try:
        return int(opener(pid))
    except OSError:  # a kernel or sandbox without it
        return None


def _kill_group(group: int, number: int) -> None:
    # macOS answers PermissionError where only the unreaped leader is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
