"""Opens connections to Redis with every timeout, retry and pool stated, and names Redis's failures.

Knows nothing of streams, scripts or keys, and never prints a password.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import redis
import redis.asyncio
from redis.asyncio.connection import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry as SyncRetry
from redis.sentinel import Sentinel as SyncSentinel
from redis.sentinel import SentinelConnectionPool as SyncSentinelConnectionPool

from worker.adapters.redis.target import Target, mask, parse_url
from worker.adapters.redis.wire import (
    WireConnection,
    WireSentinelConnection,
    WireSentinelTlsConnection,
    WireTlsConnection,
    WireUnixConnection,
)
from worker.errors import (
    GroupMissing,
    RedisDenied,
    RedisFull,
    RedisReadOnly,
    RedisUnavailable,
    RedisUnsuitable,
    SettingsInvalid,
    WorkerError,
)

FAILURES: tuple[type[Exception], ...] = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What redis-py raises when Redis is at fault: `except FAILURES as error: raise translate(error)`."""

OPS_CONNECTIONS = 16
OPS_POOL_WAIT_SECONDS = 5.0
READER_CONNECTIONS = 64
"""A blocked read holds its connection; they are opened as needed."""
READER_SLACK_SECONDS = 4.0
"""Some servers restart BLOCK when a reader is woken without data: its socket must wait longer."""

__all__ = [
    "FAILURES",
    "Purpose",
    "RedisOptions",
    "connect",
    "connect_sync",
    "mask",
    "server_time_ms",
    "translate",
]


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where Redis is and who asks. A password given here wins over the URL's, a file over both."""

    url: str = field(repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    on_secret: Callable[[str], None] = field(default=lambda _: None, repr=False)
    """Told of every password read from the file, so that logs can mask it."""
    """Read again for every new connection, so that a rotated password needs no restart."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    client_name: str = "dispatch-worker"
    """Shown by CLIENT LIST."""


class Purpose(Enum):
    """What a client is for; each purpose has its own pool, so that none can starve another."""

    READER = "reader"
    """Blocking reads. No retries: a repeated XREADGROUP would leave entries pending unseen."""
    OPS = "ops"
    """Scripts and short commands, all safe to repeat: one retry."""
    BEAT = "beat"
    """The lease: one connection, kept warm by its own use, and answers that come at once or not at all."""


class _Timing(NamedTuple):
    socket_seconds: float
    connect_seconds: float
    retries: int
    health_check_seconds: int
    connections: int
    pool_wait_seconds: float


def _timing(purpose: Purpose, block_seconds: float) -> _Timing:
    match purpose:
        case Purpose.READER:
            return _Timing(block_seconds + READER_SLACK_SECONDS, 2.0, 0, 0, READER_CONNECTIONS, 1.0)
        case Purpose.OPS:
            return _Timing(2.0, 2.0, 1, 20, OPS_CONNECTIONS, OPS_POOL_WAIT_SECONDS)
        case Purpose.BEAT:
            return _Timing(1.0, 1.0, 0, 0, 1, 1.0)


def connect(
    options: RedisOptions, purpose: Purpose, *, block_seconds: float = 1.0
) -> redis.asyncio.Redis | redis.asyncio.RedisCluster:
    """A client that opens its connections when first used. The caller closes it with `aclose`.

    Args:
        options: where and who.
        purpose: decides timeouts, retries and the pool.
        block_seconds: the longest BLOCK its reads will ask for (READER only).

    Raises:
        SettingsInvalid: the URL or the combination of options is wrong; the message is masked.
    """
    target = _target(options)
    timing = _timing(purpose, block_seconds)
    settings = _settings(options, target, timing) | {"retry": Retry(NoBackoff(), timing.retries)}
    if target.kind == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in target.nodes]
        # A cluster client has no waiting pool: enough connections per node that none is refused.
        cluster = redis.asyncio.RedisCluster(
            startup_nodes=nodes, max_connections=READER_CONNECTIONS, ssl=target.tls, **settings
        )
        # Not to be chosen in another way: those of the first nodes, and of the nodes they tell of.
        cluster.connection_kwargs["connection_class"] = WireTlsConnection if target.tls else WireConnection
        for node in cluster.nodes_manager.startup_nodes.values():
            node.connection_class = cluster.connection_kwargs["connection_class"]
        return cluster
    settings |= {"max_connections": timing.connections, "timeout": timing.pool_wait_seconds, "db": target.db}
    if target.kind == "sentinel":
        sentinel = _untyped(Sentinel)(target.nodes, sentinel_kwargs=_sentinel_settings(settings, target))
        managed = WireSentinelTlsConnection if target.tls else WireSentinelConnection
        pool: ConnectionPool = _untyped(_SentinelPool)(
            target.service, sentinel, check_connection=True, connection_class=managed, **settings
        )
    else:
        connection_class = _CONNECTION_CLASSES[target.kind]
        pool = BlockingConnectionPool(connection_class=connection_class, **target.address(), **settings)
    return redis.asyncio.Redis.from_pool(pool)


def connect_sync(
    options: RedisOptions, purpose: Purpose = Purpose.OPS, *, block_seconds: float = 1.0
) -> redis.Redis | redis.RedisCluster:
    """The same for callers without an event loop. The caller closes it with `close`.

    Raises:
        SettingsInvalid: as `connect`.
    """
    target = _target(options)
    timing = _timing(purpose, block_seconds)
    settings = _settings(options, target, timing)
    retry = SyncRetry(NoBackoff(), timing.retries)
    if target.kind == "cluster":
        nodes = [_untyped(ClusterNode)(host, port) for host, port in target.nodes]
        return redis.RedisCluster(
            startup_nodes=nodes, max_connections=READER_CONNECTIONS, ssl=target.tls, retry=retry, **settings
        )
    settings |= {"retry": retry, "max_connections": timing.connections, "db": target.db}
    if target.kind == "sentinel":
        sentinel = _untyped(SyncSentinel)(target.nodes, sentinel_kwargs=_sentinel_settings(settings, target))
        client: redis.Redis = sentinel.master_for(
            target.service,
            connection_pool_class=_SyncSentinelPool,
            check_connection=True,
            ssl=target.tls,
            **settings,
        )
        return client
    connection_class = _SYNC_CONNECTION_CLASSES[target.kind]
    settings |= {"timeout": timing.pool_wait_seconds}
    pool = _untyped(redis.BlockingConnectionPool)(
        connection_class=connection_class, **target.address(), **settings
    )
    return redis.Redis.from_pool(pool)


_CONNECTION_CLASSES = {"tcp": WireConnection, "tls": WireTlsConnection, "unix": WireUnixConnection}
_SYNC_CONNECTION_CLASSES = {
    "tcp": redis.Connection,
    "tls": redis.SSLConnection,
    "unix": redis.UnixDomainSocketConnection,
}


def _untyped(factory: Callable[..., Any]) -> Callable[..., Any]:
    """For the parts of redis-py that have no annotations."""
    return factory


def _target(options: RedisOptions) -> Target:
    target = parse_url(options.url)
    if not target.tls and (options.ca_file or options.cert_file or options.key_file):
        message = f"Redis URL {mask(options.url)}: TLS files are given, but its scheme is without TLS"
        raise SettingsInvalid(message)
    return target


class _SyncSentinelPool(SyncSentinelConnectionPool):
    """Closes its sentinels with itself."""

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            sentinel.close()


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the current master; waits for a free one, and closes its sentinels with itself."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class _PasswordFile(CredentialProvider):
    """Credentials read at each connect."""

    def __init__(self, username: str, path: Path, on_secret: Callable[[str], None]) -> None:
        self._username = username
        self._path = path
        self._on_secret = on_secret

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            # A file that is just being replaced may be gone for a moment: worth another try.
            message = f"the Redis password file cannot be read: {error.strerror}"
            raise redis.ConnectionError(message) from None
        self._on_secret(password)
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _settings(options: RedisOptions, target: Target, timing: _Timing) -> dict[str, Any]:
    """Everything redis-py would otherwise choose by itself."""
    settings: dict[str, Any] = {
        "socket_timeout": timing.socket_seconds,
        "socket_connect_timeout": timing.connect_seconds,
        "health_check_interval": timing.health_check_seconds,
        "client_name": options.client_name,
        # CLIENT SETINFO cannot be allowed by an ACL on Redis 7.0, which does not know it.
        "driver_info": None,
        # A binary payload that fails to decode would fail after its entry became pending.
        "decode_responses": False,
        "protocol": 3,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if target.kind != "unix":
        settings["socket_keepalive"] = True
    if target.tls:
        settings |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": _path_text(options.ca_file),
            "ssl_certfile": _path_text(options.cert_file),
            "ssl_keyfile": _path_text(options.key_file),
        }
    username = options.username or target.username
    if options.password_file is not None:
        settings["credential_provider"] = _PasswordFile(username, options.password_file, options.on_secret)
    else:
        settings |= {"username": username or None, "password": options.password or target.password or None}
    return settings


def _sentinel_settings(settings: dict[str, Any], target: Target) -> dict[str, Any]:
    """For the sentinels themselves: the same, without the data nodes' credentials and pool size."""
    own = {"username", "password", "credential_provider", "max_connections", "timeout", "db"}
    return {name: value for name, value in settings.items() if name not in own} | {"ssl": target.tls}


def _path_text(path: Path | None) -> str | None:
    return None if path is None else str(path)


async def server_time_ms(client: Any, key: str) -> int:
    """Unix milliseconds on the clock of the server that has a key; a cluster's nodes need not agree."""
    where = {}
    if isinstance(client, redis.asyncio.RedisCluster):
        await client.initialize()
        where = {"target_nodes": client.get_node_from_key(key)}
    seconds, microseconds = await client.time(**where)
    return int(seconds) * 1000 + int(microseconds) // 1000


# Failures -----------------------------------------------------------------------------------------

_BY_CODE: dict[str, Callable[[str], WorkerError]] = {
    "OOM": RedisFull,
    "READONLY": RedisReadOnly,
    "NOREPLICAS": RedisReadOnly,
    "MASTERDOWN": RedisReadOnly,
    "LOADING": RedisReadOnly,
    "MISCONF": RedisReadOnly,
    "NOGROUP": GroupMissing,
    "UNBLOCKED": GroupMissing,
    "NOPERM": RedisDenied,
    "NOAUTH": RedisDenied,
    "WRONGPASS": RedisDenied,
    "CROSSSLOT": RedisUnsuitable,
}

_BY_TEXT: tuple[tuple[str, Callable[[str], WorkerError]], ...] = (
    ("no longer exists", GroupMissing),
    ("the previous master is now a slave", RedisReadOnly),
    ("acl failure in script", RedisDenied),
    ("the user executing the script", RedisDenied),
    ("to the same key slot", RedisUnsuitable),
    ("unknown command", RedisUnsuitable),
    ("unknown redis command called from script", RedisUnsuitable),
)

_CODE = re.compile(r"(?:^|\s-)([A-Z]{3,})\s")
"""An error code at the start, or after the words in which Redis 6.2 wraps a script's error."""


def translate(error: Exception) -> WorkerError:
    """The worker's name for a failure of redis-py; a WorkerError is returned as it is.

    Whatever is not recognised counts as passing: the pipeline tries again, with backoff.
    """
    if isinstance(error, WorkerError):
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return RedisDenied(f"Redis refused the credentials: {text}")
    if isinstance(error, NoPermissionError):
        return RedisDenied(text)
    codes = [getattr(error, "status_code", None) or "", *_CODE.findall(text)]
    for code in codes:
        if code in _BY_CODE:
            return _BY_CODE[code](text)
    lowered = text.lower()
    for part, kind in _BY_TEXT:
        if part in lowered:
            return kind(text)
    return RedisUnavailable(text)
