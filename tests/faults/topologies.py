"""Redis as it stands in production: a primary with a replica behind Sentinels, a cluster of three, TLS.

Starts and arranges servers; what is asked of them is the tests' matter.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

from tests.processes.fleet import free_port, until
from worker.dev.embedded_redis import EmbeddedRedis, find_redis_server
from worker.dev.processes import start_child

SERVICE = "main"
SLOTS = 16_384
FORM_SECONDS = 30.0


def client_of(server: EmbeddedRedis) -> Any:
    """A test's own client, for which a restart of the server is no fault."""
    return Redis.from_url(server.url, retry=Retry(ConstantBackoff(0.05), 5))


# Sentinel ----------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Two servers, one of them the other's replica, and the Sentinels that decide which."""

    servers: tuple[EmbeddedRedis, EmbeddedRedis]
    sentinel_ports: tuple[int, ...]
    sentinels: Any

    @property
    def url(self) -> str:
        """For REDIS_URL."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    async def primary(self) -> EmbeddedRedis:
        """Who serves now, as the Sentinels say."""
        _, port = await self.sentinels.discover_master(SERVICE)
        (found,) = (server for server in self.servers if server.port == port)
        return found

    async def fail_over(self) -> None:
        """Have the Sentinels change the roles while both servers are well."""
        await self.sentinels.sentinels[0].execute_command("SENTINEL", "FAILOVER", SERVICE)

    async def cut_replication(self) -> None:
        """From now on the replica gets nothing any more, and keeps what it has."""
        primary, replica = client_of(await self.primary()), client_of(await self.replica())
        # A user the primary does not know: the replica is refused whenever it connects again.
        await replica.config_set("masteruser", "nobody")
        await replica.config_set("masterauth", "wrong")
        await primary.execute_command("CLIENT", "KILL", "TYPE", "replica")
        await replica.aclose()
        await primary.aclose()

    async def replica(self) -> EmbeddedRedis:
        """The other one."""
        primary = await self.primary()
        (found,) = (server for server in self.servers if server is not primary)
        return found

    async def connected_replicas(self) -> int:
        """How many replicas the primary has, as it says itself."""
        client = client_of(await self.primary())
        try:
            replication = await client.info("replication")
            return sum(
                1
                for name, value in replication.items()
                if name.startswith("slave") and isinstance(value, dict) and value.get("state") == "online"
            )
        finally:
            await client.aclose()

    async def replicated(self) -> None:
        """Wait until the primary has its replica."""

        async def online() -> bool:
            with contextlib.suppress(RedisError, ValueError):
                return await self.connected_replicas() == 1
            return False

        await until(online, FORM_SECONDS, "the primary has its replica")

    async def other_than(self, former: EmbeddedRedis) -> float:
        """Wait until the Sentinels have chosen another primary; returns how long it took."""

        async def changed() -> bool:
            with contextlib.suppress(RedisError):
                return await self.primary() is not former
            return False

        return await until(changed, FORM_SECONDS, "another primary is chosen")


@asynccontextmanager
async def sentinel_pair(*server_args: str, down_after_ms: int = 1_000) -> AsyncIterator[Pair]:
    """A primary, a replica and three Sentinels.

    Args:
        *server_args: of both servers.
        down_after_ms: how long a server may be silent before the Sentinels give it up.
    """
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(EmbeddedRedis(args=server_args))
        follow = ("--replicaof", "127.0.0.1", str(first.port), "--repl-diskless-sync-delay", "0")
        second = await stack.enter_async_context(EmbeddedRedis(args=(*server_args, *follow)))
        ports = [await free_port() for _ in range(3)]
        for port in ports:
            await stack.enter_async_context(_sentinel(port, first.port, down_after_ms))
        sentinels: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            [("127.0.0.1", port) for port in ports], sentinel_kwargs={"socket_timeout": 1.0}
        )
        pair = Pair((first, second), tuple(ports), sentinels)
        await pair.replicated()
        await until(lambda: _all_found(sentinels), FORM_SECONDS, "the Sentinels know each other")
        try:
            yield pair
        finally:
            for sentinel in sentinels.sentinels:
                await sentinel.aclose()


@asynccontextmanager
async def _sentinel(port: int, primary_port: int, down_after_ms: int) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="sentinel-") as name:
        config = Path(name) / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 6000\n"
        )
        child = start_child(
            [str(find_redis_server()), str(config), "--sentinel"],
            env={"PATH": os.environ["PATH"]},
            cwd=Path(name),
            stdout=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            await child.stop(timeout_seconds=5.0)


async def _all_found(sentinels: Any) -> bool:
    for sentinel in sentinels.sentinels:
        try:
            state = (await sentinel.sentinel_masters())[SERVICE]
        except (RedisError, KeyError):
            return False
        if state["num-other-sentinels"] != len(sentinels.sentinels) - 1 or state["num-slaves"] != 1:
            return False
    return True


# Cluster -----------------------------------------------------------------------------------------------


@dataclass
class ClusterOfThree:
    """Three primaries that share the slots, and one replica of the first."""

    servers: Sequence[EmbeddedRedis]
    client: Any
    _clients: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        """For REDIS_URL; the replica is left for the workers to find."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3])
        return f"redis+cluster://{hosts}"

    def client_at(self, number: int) -> Any:
        """A client of one node alone."""
        return self._clients[number]

    async def node_of(self, slot: int) -> int:
        """Which of the servers has a slot."""
        for start, end, primary, *_ in await self._clients[0].execute_command("CLUSTER", "SLOTS"):
            if start <= slot <= end:
                return next(n for n, server in enumerate(self.servers) if server.port == primary[1])
        message = f"nobody serves slot {slot}"
        raise AssertionError(message)

    async def move(self, slot: int, to: int) -> int:
        """Move a slot with all its keys while clients go on; returns how many keys there were."""
        source = await self.node_of(slot)
        names = [(await client.execute_command("CLUSTER", "MYID")).decode() for client in self._clients]
        await self._clients[to].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        await self._clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[to])
        moved = 0
        while keys := await self._clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 20):
            await self._clients[source].execute_command(
                *("MIGRATE", "127.0.0.1", self.servers[to].port, "", 0, 5_000, "KEYS", *keys)
            )
            moved += len(keys)
        for number in (to, source):
            await self._clients[number].execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[to])
        return moved


@asynccontextmanager
async def cluster_of_three(*server_args: str) -> AsyncIterator[ClusterOfThree]:
    """A Redis Cluster of three primaries; the first has a replica."""
    async with AsyncExitStack() as stack:
        servers, buses = [], []
        for _ in range(4):
            bus = str(await free_port())
            buses.append(bus)
            args = ("--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000")
            server = EmbeddedRedis(args=(*server_args, *args, "--repl-diskless-sync-delay", "0"))
            servers.append(await stack.enter_async_context(server))
        clients = [client_of(server) for server in servers]
        for client in clients:
            stack.push_async_callback(client.aclose)
        for number in range(3):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            await clients[number].execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for server, bus in zip(servers[1:], buses[1:], strict=True):
            await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        await until(lambda: _is_formed(clients), FORM_SECONDS, "the cluster is formed")
        name = (await clients[0].execute_command("CLUSTER", "MYID")).decode()
        await clients[3].execute_command("CLUSTER", "REPLICATE", name)
        await until(lambda: _has_replica(clients[0]), FORM_SECONDS, "the first has its replica")
        client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port) for server in servers[:3]])
        stack.push_async_callback(client.aclose)
        yield ClusterOfThree(servers, client, clients)


async def _is_formed(clients: Sequence[Any]) -> bool:
    for client in clients:
        state = await client.execute_command("CLUSTER", "INFO")
        fields = (
            state
            if isinstance(state, dict)
            else dict(line.split(":", 1) for line in state.decode().split() if ":" in line)
        )
        if fields["cluster_state"] != "ok" or fields["cluster_known_nodes"] != str(len(clients)):
            return False
    return True


async def _has_replica(client: Any) -> bool:
    replication = await client.info("replication")
    return bool(replication["connected_slaves"] == 1 and replication["slave0"]["state"] == "online")


# TLS ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certificates:
    """An authority, the key pairs of `server` and `client` that it signed, and one of a `stranger`."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"

    def of(self, name: str) -> tuple[Path, Path]:
        """Certificate and key."""
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"


async def make_certificates(folder: Path) -> Certificates:
    """Made by the openssl program, good for two days."""
    await asyncio.to_thread(_make_certificates, folder)
    return Certificates(folder)


def _make_certificates(folder: Path) -> None:
    names = folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl(folder, "req", "-x509", *_key("ca"), "-subj", "/CN=tests", "-days", "2", "-out", "ca.pem")
    for name in ("server", "client"):
        _openssl(folder, "req", *_key(name), "-subj", f"/CN={name}", "-out", f"{name}.csr")
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        request = ("x509", "-req", "-in", f"{name}.csr", *signed_by, "-extfile", str(names))
        _openssl(folder, *request, "-days", "2", "-out", f"{name}.pem")
    alone = ("req", "-x509", *_key("stranger"), "-subj", "/CN=stranger")
    _openssl(folder, *alone, "-days", "2", "-out", "stranger.pem")


def _key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    program = shutil.which("openssl") or "openssl"
    subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@asynccontextmanager
async def tls_server(
    certificates: Certificates, *server_args: str
) -> AsyncIterator[tuple[EmbeddedRedis, str]]:
    """A server that asks for certificates on one port, and on another serves the test itself.

    Yields:
        The server, and the URL of its TLS port.
    """
    certificate, key = certificates.of("server")
    port = await free_port()
    tls = (
        *("--tls-port", str(port), "--tls-auth-clients", "yes"),
        *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(certificates.authority)),
    )
    async with EmbeddedRedis(args=(*server_args, *tls)) as server:
        yield server, f"rediss://127.0.0.1:{port}/0"
