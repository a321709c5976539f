"""Secrets are planted wherever a setting can hold one, everything goes wrong, and all output is read."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.faults.conftest import QUICK
from tests.processes.fleet import ROOT, Fleet, WorkerProcess, crew, free_port, until
from tests.processes.jobs import held, scripted
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.dev.embedded_redis import EmbeddedRedis
from worker.dev.simulator import Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

RULES = {"default": ["list-jobs", "read-job", "dispatch-job", "submit-job", "read-logs"]}
TOKEN, OTHER_TOKEN = "5ec7e700-aaaa-4bbb-8ccc-000000000001", "5ec7e700-aaaa-4bbb-8ccc-000000000002"
PASSWORD, OTHER_PASSWORD = "pa55-of-the-url-Zq7", "pa55-of-the-file-Xk9"
HEADER = "k3y-of-the-collector-Wm4"
REACHING = ("doctor", "dlq list", "dispatch render")
SECRETS = (TOKEN, OTHER_TOKEN, PASSWORD, OTHER_PASSWORD, HEADER)


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Takes spans; gives its address and the bytes it was sent."""
    bodies: list[bytes] = []

    async def receive(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(status=500, text="refused")

    app = web.Application()
    app.add_routes([web.post("/v1/traces", receive)])
    runner = web.AppRunner(app)
    await runner.setup()
    port = await free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}", bodies
    finally:
        await runner.cleanup()


@asynccontextmanager
async def guarded(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[tuple[Fleet, EmbeddedRedis]]:
    """Redis and Nomad both ask who it is."""
    acl = {"bootstrap_token": "root", "policies": {"worker": RULES}}
    async with (
        EmbeddedRedis(password=PASSWORD) as server,
        Simulator(jobs=[scripted("render"), held("held")], acl=acl) as nomad,
    ):
        for token in (TOKEN, OTHER_TOKEN):
            nomad.acl.create(["worker"], nomad.cluster.now(), secret=token)
        redis: Any = connect(RedisOptions(server.url), Purpose.OPS)
        try:
            async with crew(nomad, redis, server.url, folder, {**QUICK, **environment}) as world:
                yield world, server
        finally:
            await redis.aclose()


async def test_no_secret_of_any_setting_is_in_any_output(tmp_path: Path) -> None:
    token_file, password_file = tmp_path / "token", tmp_path / "password"
    token_file.write_text(OTHER_TOKEN)
    password_file.write_text(PASSWORD)
    async with (
        collector() as (traces, bodies),
        guarded(
            tmp_path,
            {
                "WORKER_LOG_LEVEL": "debug",
                "OTEL_EXPORTER_OTLP_ENDPOINT": traces,
                "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={HEADER}",
            },
        ) as (world, server),
    ):
        bare_url = f"redis://127.0.0.1:{server.port}/0"
        by_url = await world.start(NOMAD_TOKEN=TOKEN)
        by_file = await world.start(
            REDIS_URL=bare_url, REDIS_PASSWORD_FILE=str(password_file), NOMAD_TOKEN_FILE=str(token_file)
        )
        heard = Heard(world)
        ids = [await world.send(job="render"), await world.send(job="nowhere"), await world.send(job="..")]
        ids.append(await world.holds())
        await world.all_final(ids[:3], 20)
        await heard.ask(by_url, by_file, ids)

        # A token that is no more, and a password that is no more.
        world.nomad.acl.revoke(TOKEN)
        world.nomad.acl.revoke(OTHER_TOKEN)
        world.nomad.faults.close_streams()
        ids.append(await world.send(job="render"))
        await until(lambda: _is_unready(by_url, by_file), 30, "one says that it is not ready")
        await heard.ask(by_url, by_file, ids)
        await heard.commands({"REDIS_URL": server.url, "NOMAD_TOKEN": TOKEN}, world, *REACHING)
        token_file.write_text(f"{OTHER_TOKEN} {OTHER_TOKEN}\n")
        password_file.write_text(OTHER_PASSWORD)
        await world.redis.config_set("requirepass", "something else")
        await world.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.gather(by_url.process.wait(), by_file.process.wait())
        await heard.commands(
            {
                "REDIS_URL": bare_url,
                "REDIS_PASSWORD_FILE": str(password_file),
                "NOMAD_TOKEN_FILE": str(token_file),
            },
            world,
            *REACHING,
        )
        await heard.commands({"REDIS_URL": server.url, "NOMAD_TOKEN": TOKEN}, world, *REACHING)
        # Settings that are wrong, and told of as such.
        for faulty in (
            {"REDIS_URL": f"redis://u:{PASSWORD}@host:port"},
            {"REDIS_URL": f"redis://u:{PASSWORD}@host/0/1"},
            {"REDIS_URL": PASSWORD},
            {"REDIS_URL": server.url, "REDIS_PASSWORD_FILE": str(password_file)},
            {"NOMAD_ADDR": f"http://u:{PASSWORD}@127.0.0.1:4646"},
            {"NOMAD_ADDR": f"u:{PASSWORD}@127.0.0.1"},
            {"NOMAD_TOKEN": TOKEN, "NOMAD_TOKEN_FILE": str(token_file)},
            {"NOMAD_TOKEN": f"{TOKEN}\n{TOKEN}"},
        ):
            await heard.commands(faulty, world)

        for worker in (by_url, by_file):
            heard.outputs[f"log of {worker.name}"] = worker.log.read_bytes()
        heard.outputs["spans"] = b"".join(bodies)

    assert sum(len(output) for output in heard.outputs.values()) > 20_000
    told = {
        (where, secret)
        for where, output in heard.outputs.items()
        for secret in SECRETS
        if secret.encode() in output
    }
    assert told == set()


async def _is_unready(*workers: WorkerProcess) -> bool:
    return any(["nomad" in await worker.not_ready() for worker in workers])


class Heard:
    """Everything that was said, by where it was."""

    def __init__(self, world: Fleet) -> None:
        self._world = world
        self.outputs: dict[str, bytes] = {}

    async def ask(self, *given: Any) -> None:
        """What the workers serve, and what they wrote into Redis."""
        *workers, ids = given
        for worker in workers:
            for path in ("/metrics", "/healthz", "/readyz", "/status", *(f"/status?id={one}" for one in ids)):
                for accept in ("text/html", "application/json", "application/openmetrics-text"):
                    answer = await worker.get(path, Accept=accept)
                    self._add(f"{worker.name} {path} {accept}", answer.content)
        for key in await self._world.redis.keys("*"):
            self._add(key.decode(), repr(await self._content(key)).encode())

    async def commands(self, environment: Mapping[str, str], world: Fleet, *more: str) -> None:
        """What commands print that read settings or, if there is `more`, talk to Redis and Nomad."""
        base = {"PATH": os.environ["PATH"], "NOMAD_ADDR": world.nomad.address, "WORKER_LOG_LEVEL": "debug"}
        for words in (["config"], ["status"], ["run"], *(text.split() for text in more)):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", *words),
                env={**base, **QUICK, **environment},
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                stdin=asyncio.subprocess.DEVNULL,
            )
            try:
                async with asyncio.timeout(4 if words == ["run"] else 20):
                    output, _ = await process.communicate()
            except TimeoutError:
                process.terminate()
                output, _ = await process.communicate()
            self._add(f"{words} with {sorted(environment)}", output)

    def _add(self, where: str, output: bytes) -> None:
        self.outputs[where] = self.outputs.get(where, b"") + output

    async def _content(self, key: bytes) -> Any:
        redis = self._world.redis
        match await redis.type(key):
            case b"stream":
                return await redis.xrange(key)
            case b"hash":
                return await redis.hgetall(key)
            case b"zset":
                return await redis.zrange(key, 0, -1)
            case _:
                return await redis.get(key)
