"""Takes a Redis URL apart and checks it; the forms it may have are listed at `parse_url`.

Opens nothing, and puts no password into a message.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from worker.errors import SettingsInvalid

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A Redis URL, taken apart."""

    kind: str
    """`tcp`, `tls`, `unix`, `sentinel` or `cluster`."""
    nodes: tuple[tuple[str, int], ...] = ()
    """Host and port; for Sentinel those of the sentinels."""
    path: str = ""
    service: str = ""
    db: int = 0
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)

    def address(self) -> dict[str, Any]:
        """Arguments of a connection to one server."""
        if self.kind == "unix":
            return {"path": self.path}
        host, port = self.nodes[0]
        return {"host": host, "port": port}


def mask(url: str) -> str:
    """The URL with user and password replaced, for logs and messages."""
    if "://" not in url:
        return "***"  # no URL: perhaps the password itself, put into the wrong variable
    # Greedy up to the last "@": rather too much than half a password.
    return re.sub(r"^([A-Za-z][\w+.-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def parse_url(url: str) -> Target:
    """Take a URL apart.

    `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, `unix:///path.sock[?db=0]`,
    `redis+sentinel://[user:password@]host[:26379],host2/service[/db]` (user and password are the
    data nodes') and `redis+cluster://[user:password@]host[:port],host2`; the last two also with
    `rediss+`.

    Raises:
        SettingsInvalid: says what is wrong, with the URL masked.
    """
    try:
        return _parse(url)
    except ValueError as error:
        message = f"Redis URL {mask(url)}: {error}"
        raise SettingsInvalid(message) from None


def _parse(url: str) -> Target:
    scheme, found, rest = url.partition("://")
    if not found or scheme not in _SCHEMES:
        message = f"must begin with one of {', '.join(_SCHEMES)}, followed by ://"
        raise ValueError(message)
    # From the right: a password may hold an unescaped "@", "/" or "?".
    userinfo, _, location = rest.rpartition("@")
    username, _, password = userinfo.partition(":")
    base = Target(
        "tcp", tls=scheme.startswith("rediss"), username=unquote(username), password=unquote(password)
    )
    location, _, query = location.partition("?")
    database = _query_database(query)
    if scheme == "unix":
        return _unix(base, location, database)
    hosts, _, path = location.partition("/")
    parts = [unquote(part) for part in path.split("/") if part]
    if scheme.endswith("+sentinel"):
        return _sentinel(base, hosts, parts, database)
    if len(parts) > 1:
        message = "has more than a database number after the host"
        raise ValueError(message)
    nodes = _nodes(hosts, DEFAULT_PORT)
    db = _database(parts[0] if parts else database)
    if scheme.endswith("+cluster"):
        return _cluster(base, nodes, db)
    if len(nodes) > 1:
        message = "names several hosts: use redis+sentinel:// or redis+cluster://"
        raise ValueError(message)
    return replace(base, kind="tls" if base.tls else "tcp", nodes=nodes, db=db)


def _unix(base: Target, location: str, database: str) -> Target:
    if not location.startswith("/"):
        message = "must give an absolute path, as in unix:///run/redis.sock"
        raise ValueError(message)
    return replace(base, kind="unix", path=unquote(location), db=_database(database))


def _sentinel(base: Target, hosts: str, parts: list[str], database: str) -> Target:
    match parts:
        case [service]:
            db = _database(database)
        case [service, number]:
            db = _database(number)
        case _:
            message = "must name the service, as in redis+sentinel://host:26379/service/0"
            raise ValueError(message)
    return replace(base, kind="sentinel", nodes=_nodes(hosts, DEFAULT_SENTINEL_PORT), service=service, db=db)


def _cluster(base: Target, nodes: tuple[tuple[str, int], ...], db: int) -> Target:
    if db:
        message = "names a database, and Redis Cluster has none but 0"
        raise ValueError(message)
    return replace(base, kind="cluster", nodes=nodes)


def _query_database(query: str) -> str:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - {"db"})
    if unknown:
        # Timeouts, retries and pools are the worker's to choose; TLS files have their own settings.
        message = f"has options that are not understood: {', '.join(unknown)}"
        raise ValueError(message)
    return options.get("db", "")


def _nodes(hosts: str, default_port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for host_and_port in hosts.split(","):
        parsed = urlsplit(f"//{host_and_port.strip()}")
        try:
            port = parsed.port
        except ValueError:
            message = "has a port that is not a number from 0 to 65535"
            raise ValueError(message) from None
        if not parsed.hostname:
            message = "lacks a host"
            raise ValueError(message)
        nodes.append((parsed.hostname, port or default_port))
    return tuple(nodes)


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        message = "has a database that is not a number"
        raise ValueError(message)
    return int(text or "0")
