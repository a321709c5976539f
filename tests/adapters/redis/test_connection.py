"""Connections against real servers: plain, TLS, Sentinel and Cluster; and the naming of failures."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.redis.connection import (
    FAILURES,
    Purpose,
    RedisOptions,
    connect,
    connect_sync,
    mask,
    translate,
)
from worker.adapters.redis.target import Target, parse_url
from worker.dev.processes import start_child
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

pytestmark = pytest.mark.anyio

REDIS_SERVER = shutil.which("redis-server")
needs_server = pytest.mark.skipif(REDIS_SERVER is None, reason="no redis-server on PATH")
WAIT_SECONDS = 20.0

# URLs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", Target("tcp", (("localhost", 6379),))),
        ("redis://10.0.0.1:7000/3", Target("tcp", (("10.0.0.1", 7000),), db=3)),
        ("redis://h?db=2", Target("tcp", (("h", 6379),), db=2)),
        ("redis://[::1]:6380/0", Target("tcp", (("::1", 6380),))),
        ("redis://:p%40ss@h", Target("tcp", (("h", 6379),), password="p@ss")),
        ("redis://u:a/b?c@d@h:1/2", Target("tcp", (("h", 1),), db=2, username="u", password="a/b?c@d")),
        ("rediss://u@h", Target("tls", (("h", 6379),), tls=True, username="u")),
        ("unix:///run/redis.sock?db=1", Target("unix", path="/run/redis.sock", db=1)),
        ("unix://u:p@/r.sock", Target("unix", path="/r.sock", username="u", password="p")),
        (
            "redis+sentinel://u:p@a:1,b/main/4",
            Target("sentinel", (("a", 1), ("b", 26379)), service="main", db=4, username="u", password="p"),
        ),
        (
            "rediss+sentinel://a/main",
            Target("sentinel", (("a", 26379),), service="main", tls=True),
        ),
        ("redis+cluster://a:7000,b,[::2]:3", Target("cluster", (("a", 7000), ("b", 6379), ("::2", 3)))),
        ("rediss+cluster://a/0", Target("cluster", (("a", 6379),), tls=True)),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: Target) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "must begin with"),
        ("localhost:6379", "must begin with"),
        ("http://u:s3cret@h", "must begin with"),
        ("redis://", "lacks a host"),
        ("redis://u:s3cret@h:port", "port"),
        ("redis://u:s3cret@h:99999", "port"),
        ("redis://h/one", "database"),
        ("redis://h/1/2", "more than a database"),
        ("redis://a,b", "several hosts"),
        ("redis://u:s3cret@h?socket_timeout=1", "socket_timeout"),
        ("unix://run/redis.sock", "absolute path"),
        ("redis+sentinel://u:s3cret@h", "name the service"),
        ("redis+sentinel://h/s/0/1", "name the service"),
        ("redis+cluster://h/1", "database"),
        ("s3cret", "must begin with"),
        ("u:s3cret@h", "must begin with"),
    ],
)
def test_a_wrong_url_is_named_without_its_secret(url: str, fault: str) -> None:
    with pytest.raises(SettingsInvalid, match=fault) as caught:
        parse_url(url)

    assert "s3cret" not in str(caught.value)


def test_tls_files_without_tls_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match="without TLS"):
        connect(RedisOptions("redis://h", ca_file=Path("ca.pem")), Purpose.OPS)


@given(st.text().map(lambda text: f"s3cret{text}s3cret"), st.sampled_from(["redis", "redis+sentinel", "x"]))
def test_no_part_of_a_password_survives_masking(password: str, scheme: str) -> None:
    masked = mask(f"{scheme}://user:{password}@host:6379/0")

    assert masked == f"{scheme}://***@host:6379/0"


async def test_no_password_is_in_a_repr() -> None:
    options = RedisOptions("redis://u:s3cret@h", password="s3cret")
    client = connect(options, Purpose.OPS)

    assert "s3cret" not in repr(options)
    assert "s3cret" not in repr(client)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://h", "redis+sentinel://h/s", "unix:///r.sock"])
@pytest.mark.parametrize(
    ("purpose", "socket_timeout", "retries", "connections"),
    [(Purpose.READER, 5.5, 0, 64), (Purpose.OPS, 2.0, 1, 16), (Purpose.BEAT, 1.0, 0, 1)],
)
async def test_each_purpose_has_its_own_limits(
    url: str, purpose: Purpose, socket_timeout: float, retries: int, connections: int
) -> None:
    client = connect(RedisOptions(url), purpose, block_seconds=1.5)

    assert isinstance(client, redis.asyncio.Redis)
    pool: Any = client.connection_pool
    connection = pool.make_connection()
    assert connection.socket_timeout == socket_timeout
    assert connection.retry.get_retries() == retries
    assert pool.max_connections == connections


# Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.ConnectionError("Connection refused"), RedisUnavailable),
        (redis.TimeoutError("Timeout reading"), RedisUnavailable),
        (ConnectionResetError(104, "reset"), RedisUnavailable),
        (TimeoutError(), RedisUnavailable),
        (redis.ResponseError("BUSY Redis is busy running a script."), RedisUnavailable),
        (redis.exceptions.ClusterDownError("The cluster is down"), RedisUnavailable),
        (
            redis.exceptions.MasterDownError("Link with MASTER is down", status_code="MASTERDOWN"),
            RedisReadOnly,
        ),
        (redis.BusyLoadingError("Redis is loading", status_code="LOADING"), RedisReadOnly),
        (redis.ReadOnlyError("You can't write", status_code="READONLY"), RedisReadOnly),
        (redis.ConnectionError("The previous master is now a slave"), RedisReadOnly),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), RedisReadOnly),
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), RedisReadOnly),
        (redis.OutOfMemoryError("command not allowed", status_code="OOM"), RedisFull),
        (
            # Redis 6.2 wraps what a command inside a script answered.
            redis.ResponseError(
                "Error running script (call to f_2a): @user_script:1: -OOM command not allowed when used"
            ),
            RedisFull,
        ),
        (redis.ResponseError("NOGROUP No such key 'r' or consumer group 'g'"), GroupMissing),
        (redis.ResponseError("UNBLOCKED the stream key no longer exists"), GroupMissing),
        (redis.AuthenticationError("invalid username-password pair"), RedisDenied),
        (redis.exceptions.NoPermissionError("User w has no permissions"), RedisDenied),
        (redis.ResponseError("ACL failure in script: User w has no permissions to run 'xadd'"), RedisDenied),
        (redis.ResponseError("unknown command 'XAUTOCLAIM', with args beginning with:"), RedisUnsuitable),
        (redis.exceptions.ClusterCrossSlotError("Keys", status_code="CROSSSLOT"), RedisUnsuitable),
    ],
)
def test_a_failure_gets_the_workers_name(error: Exception, expected: type[WorkerError]) -> None:
    named = translate(error)

    assert type(named) is expected
    assert str(named)


def test_a_named_failure_keeps_its_name() -> None:
    error = GroupMissing("gone")

    assert translate(error) is error


# Real servers -------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def _server(folder: Path, *arguments: str) -> AsyncIterator[None]:
    child = start_child(
        [
            str(REDIS_SERVER),
            *arguments,
            *("--dir", str(folder), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"),
        ],
        env=dict(os.environ),
        cwd=folder,
    )
    try:
        yield
    finally:
        await child.stop(timeout_seconds=5.0)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            with contextlib.suppress(*FAILURES):
                if await condition():
                    return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _client(options: RedisOptions, purpose: Purpose = Purpose.OPS, **more: float) -> AsyncIterator[Any]:
    client: Any = connect(options, purpose, **more)
    try:
        yield client
    finally:
        await client.aclose()


async def _ready(options: RedisOptions) -> None:
    async with _client(options) as client:
        await _until(client.ping)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    free = _free_port()
    async with _server(tmp_path, "--port", str(free)):
        await _ready(RedisOptions(f"redis://127.0.0.1:{free}"))
        yield free


@pytest.fixture
def options(port: int) -> RedisOptions:
    return RedisOptions(f"redis://127.0.0.1:{port}")


async def _failure(call: Awaitable[object]) -> WorkerError:
    with pytest.raises(FAILURES) as caught:
        await call
    assert isinstance(caught.value, Exception)
    return translate(caught.value)


@needs_server
async def test_a_reader_outlasts_its_block(options: RedisOptions) -> None:
    async with _client(options, Purpose.READER, block_seconds=0.2) as reader:
        assert not await reader.xread({"stream": "$"}, block=200)


@needs_server
async def test_more_calls_than_connections_wait_for_their_turn(options: RedisOptions) -> None:
    async with _client(options) as client:
        answers = await asyncio.gather(*(client.ping() for _ in range(100)))

        assert all(answers)
        assert len(await client.client_list()) <= 16 + 1


@needs_server
async def test_real_refusals_get_their_names(options: RedisOptions) -> None:
    script = "return redis.call('XADD', KEYS[1], '*', 'a', '1')"
    async with _client(options) as client:
        no_group = await _failure(client.xreadgroup("g", "c", {"s": ">"}))
        unknown = await _failure(client.execute_command("XNEWER"))
        await client.config_set("maxmemory", 1)
        full = [await _failure(client.eval(script, 1, "s")), await _failure(client.xadd("s", {"a": 1}))]
        await client.config_set("maxmemory", 0)
        await client.config_set("min-replicas-to-write", 1)
        lonely = [await _failure(client.eval(script, 1, "s")), await _failure(client.xadd("s", {"a": 1}))]
        await client.config_set("min-replicas-to-write", 0)
        await client.replicaof("127.0.0.1", "1")
        replica = [await _failure(client.eval(script, 1, "s")), await _failure(client.xadd("s", {"a": 1}))]
        await client.config_set("replica-serve-stale-data", "no")
        stale = await _failure(client.get("x"))

    assert type(no_group) is GroupMissing
    assert type(unknown) is RedisUnsuitable
    assert [type(error) for error in full] == [RedisFull, RedisFull]
    assert [type(error) for error in lonely] == [RedisReadOnly, RedisReadOnly]
    assert [type(error) for error in replica] == [RedisReadOnly, RedisReadOnly]
    assert type(stale) is RedisReadOnly


@needs_server
async def test_a_stream_deleted_under_a_blocked_reader_is_a_missing_group(options: RedisOptions) -> None:
    async with _client(options) as client, _client(options, Purpose.READER, block_seconds=5.0) as reader:
        await client.xgroup_create("s", "g", mkstream=True)
        blocked = asyncio.create_task(_failure(reader.xreadgroup("g", "c", {"s": ">"}, block=5000)))

        async def is_blocked() -> bool:
            return bool((await client.info("clients"))["blocked_clients"] == 1)

        await _until(is_blocked)
        await client.delete("s")

        assert type(await blocked) is GroupMissing


@needs_server
async def test_a_server_that_is_gone_is_unavailable() -> None:
    async with _client(RedisOptions(f"redis://127.0.0.1:{_free_port()}")) as client:
        assert type(await _failure(client.ping())) is RedisUnavailable


@needs_server
async def test_a_narrow_user_of_redis_7_0_can_connect(options: RedisOptions) -> None:
    async with _client(options) as admin:
        await admin.execute_command(
            "ACL", "SETUSER", "w", "on", ">s3cret", "~k:*", "-@all", "+ping", "+hello", "+client|setname",
            "+eval",
        )  # fmt: skip
    named = RedisOptions(options.url, username="w", password="s3cret")
    wrong = RedisOptions(options.url, username="w", password="other")
    anonymous = connect_sync(options)

    async with _client(named) as client, _client(wrong) as stranger:
        assert await client.ping()
        assert type(await _failure(client.get("k:1"))) is RedisDenied
        in_script = await _failure(client.eval("return redis.call('GET', KEYS[1])", 1, "k:1"))
        assert type(in_script) is RedisDenied
        refused = await _failure(stranger.ping())
        assert type(refused) is RedisDenied
        assert "other" not in str(refused)
    assert [entry["name"] for entry in anonymous.client_list()] == ["dispatch-worker"]
    anonymous.close()


@needs_server
async def test_a_rotated_password_file_is_read_again(options: RedisOptions, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    with_file = RedisOptions(options.url, password_file=secret)
    async with _client(options) as admin:
        await admin.config_set("requirepass", "first")
        missing = connect(with_file, Purpose.OPS)
        assert type(await _failure(missing.ping())) is RedisUnavailable
        await missing.aclose()
        secret.write_text("first\n")
        async with _client(with_file) as client:
            assert await client.ping()
            await admin.config_set("requirepass", "second")
            secret.write_text("second\n")
            await client.connection_pool.disconnect()

            assert await client.ping()


@needs_server
async def test_the_sync_client_reads_and_writes(options: RedisOptions) -> None:
    client: Any = connect_sync(options)

    assert await asyncio.to_thread(client.xadd, "s", {b"a": b"\xff"})
    assert [fields for _, fields in await asyncio.to_thread(client.xrange, "s")] == [{b"a": b"\xff"}]
    await asyncio.to_thread(client.close)


@needs_server
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    async with _server(tmp_path, "--port", "0", "--unixsocket", str(path)):
        await _ready(RedisOptions(f"unix://{path}?db=2"))


@needs_server
async def test_sentinel_leads_to_the_master(port: int, tmp_path: Path) -> None:
    sentinel_port = _free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {sentinel_port}\nsentinel monitor main 127.0.0.1 {port} 1\n")
    options = RedisOptions(f"redis+sentinel://127.0.0.1:{_free_port()},127.0.0.1:{sentinel_port}/main")
    unknown = RedisOptions(f"redis+sentinel://127.0.0.1:{sentinel_port}/other")

    async with _server(tmp_path, str(config), "--sentinel"):
        await _ready(options)
        async with _client(options) as client, _client(unknown) as stranger:
            await client.set("k", "v")
            assert type(await _failure(stranger.ping())) is RedisUnavailable
            assert await asyncio.gather(*(client.get("k") for _ in range(50))) == [b"v"] * 50
        sync: Any = connect_sync(options)
        assert await asyncio.to_thread(sync.get, "k") == b"v"
        await asyncio.to_thread(sync.close)
        for sentinel in sync.connection_pool.sentinel_manager.sentinels:
            await asyncio.to_thread(sentinel.close)


@needs_server
async def test_cluster(tmp_path: Path) -> None:
    port, bus_port = _free_port(), _free_port()
    options = RedisOptions(f"redis+cluster://127.0.0.1:{port}")
    arguments = ("--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(bus_port))
    async with _server(tmp_path, *arguments):
        await _ready(RedisOptions(f"redis://127.0.0.1:{port}"))
        async with _client(RedisOptions(f"redis://127.0.0.1:{port}")) as node:
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_up() -> bool:
                return b"cluster_state:ok" in await node.execute_command("CLUSTER", "INFO")

            await _until(is_up)
        async with _client(options) as client, _client(options, Purpose.READER) as reader:
            await _until(lambda: client.set("{t}:k", "v"))
            assert await client.eval("return redis.call('GET', KEYS[1])", 1, "{t}:k") == b"v"
            assert not await reader.xread({"{t}:s": "$"}, block=50)
            crossed = await _failure(client.execute_command("MGET", "{a}x", "{b}x"))
            assert type(crossed) is RedisUnsuitable
        sync: Any = connect_sync(options)
        assert await asyncio.to_thread(sync.get, "{t}:k") == b"v"
        await asyncio.to_thread(sync.close)


def _self_signed(folder: Path) -> tuple[Path, Path]:
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return key, certificate


@needs_server
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")
async def test_tls_checks_the_server_and_shows_a_certificate(tmp_path: Path) -> None:
    key, certificate = _self_signed(tmp_path)
    port = _free_port()
    files = (
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(key),
        "--tls-ca-cert-file",
        str(certificate),
    )
    trusting = RedisOptions(
        f"rediss://127.0.0.1:{port}", ca_file=certificate, cert_file=certificate, key_file=key
    )
    async with _server(tmp_path, "--port", "0", "--tls-port", str(port), *files):
        await _ready(trusting)
        async with _client(RedisOptions(f"rediss://127.0.0.1:{port}")) as suspicious:
            assert type(await _failure(suspicious.ping())) is RedisUnavailable
        sync: Any = connect_sync(trusting)
        assert await asyncio.to_thread(sync.ping)
        await asyncio.to_thread(sync.close)
