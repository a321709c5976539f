"""Connections to Redis that write commands in C, and many of them in one exchange.

Knows nothing of what is written. redis-py's asyncio connections join a command's arguments one by one in
Python, and set a timer for each answer; for scripts with sixty arguments that is most of what they cost here.
"""

import asyncio
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hiredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import DataError


@contextmanager
def _closed_is_reset() -> Iterator[None]:
    """Name what uvloop raises for a write to a connection that its peer has just closed, as asyncio does."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionResetError(errno.ECONNRESET, str(error)) from error


class _Wire:
    # Of the connection this is mixed into.
    socket_timeout: Any
    disconnect: Any
    _writer: Any
    _parser: Any

    def pack_command(self, *args: Any) -> list[bytes]:
        head = args[0]
        if isinstance(head, str) and " " in head:
            # redis-py names a command and its subcommand in one word: "XGROUP CREATE".
            args = (*head.split(), *args[1:])
        try:
            return [hiredis.pack_command(args)]
        except TypeError as error:
            raise DataError(str(error)) from error

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        with _closed_is_reset():
            self._writer.writelines(command)
        await self._writer.drain()

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Write commands in one go and read their answers, all within one socket timeout.

        Returns:
            The answers in order; a refusal is a ResponseError among them.

        Raises:
            RedisError, OSError: no answers; the connection is closed, and may be connected again.
        """
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            self._writer.transport.abort()

        # A timer of its own costs a fraction of `asyncio.timeout`, and every message has six exchanges.
        alarm = asyncio.get_running_loop().call_later(self.socket_timeout, expire)
        try:
            with _closed_is_reset():
                self._writer.write(packed)
            await self._writer.drain()
            return [await self._parser.read_response() for _ in commands]
        except BaseException as error:
            await self.disconnect(nowait=True)
            if expired and isinstance(error, Exception):
                message = f"no answer from Redis within {self.socket_timeout:g} s"
                raise TimeoutError(message) from None
            raise
        finally:
            alarm.cancel()


class WireConnection(_Wire, Connection):
    """Over TCP."""


class WireTlsConnection(_Wire, SSLConnection):
    """Over TLS."""


class WireUnixConnection(_Wire, UnixDomainSocketConnection):
    """Over a Unix socket."""


class WireSentinelConnection(_Wire, SentinelManagedConnection):
    """To the master that the sentinels name."""


class WireSentinelTlsConnection(_Wire, SentinelManagedSSLConnection):
    """To the master that the sentinels name, over TLS."""
