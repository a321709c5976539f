"""Connections to Redis that write commands in C.

redis-py's asyncio connections join a command's arguments one by one in Python, each time copying what is
joined so far: a script with sixty arguments costs as much as the rest of its way. hiredis, which reads the
answers already, does it in one call.
"""

from typing import Any

import hiredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import DataError


class _Packing:
    def pack_command(self, *args: Any) -> list[bytes]:
        head = args[0]
        if isinstance(head, str) and " " in head:
            # redis-py names a command and its subcommand in one word: "XGROUP CREATE".
            args = (*head.split(), *args[1:])
        try:
            return [hiredis.pack_command(args)]
        except TypeError as error:
            raise DataError(str(error)) from error


class PackingConnection(_Packing, Connection):
    """Over TCP."""


class PackingTlsConnection(_Packing, SSLConnection):
    """Over TLS."""


class PackingUnixConnection(_Packing, UnixDomainSocketConnection):
    """Over a Unix socket."""


class PackingSentinelConnection(_Packing, SentinelManagedConnection):
    """To the master that the sentinels name."""


class PackingSentinelTlsConnection(_Packing, SentinelManagedSSLConnection):
    """To the master that the sentinels name, over TLS."""
