"""Payloads beyond 16 KiB: kept, referred to, fetched by the job, and checked."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.client.stage import KEYS, Stage
from worker.client import (
    DispatchClient,
    PayloadGone,
    RedisClaims,
    RedisOptions,
    RequestRejected,
    SyncDispatchClient,
    Verdict,
    fetch_payload,
)
from worker.client.claims import META_KEYS, PayloadUnfit, digest_of
from worker.dev.embedded_redis import EmbeddedRedis
from worker.testing import Stack, load_job

pytestmark = pytest.mark.anyio

LARGE = os.urandom(100_000)
PAGE = Path(__file__).parents[2] / "docs" / "producers.md"


def task_environment(meta: dict[str, str], url: str) -> dict[str, str]:
    return {"REDIS_URL": url} | {f"NOMAD_META_{name}": value for name, value in meta.items()}


async def sent_meta(stage: Stage) -> dict[str, str]:
    [fields] = await stage.requests()
    assert b"payload" not in fields
    return msgspec.json.decode(fields[b"meta"], type=dict[str, str])


async def test_a_large_payload_is_kept_in_redis_and_fetched_by_the_job(stage: Stage) -> None:
    async with DispatchClient(stage.options, claims=RedisClaims(ttl_seconds=60)) as client:
        await client.send(job="a", payload=LARGE, meta={"who": "ada"})

    meta = await sent_meta(stage)
    key = KEYS.payload(digest_of(LARGE))
    assert meta == {"who": "ada"} | dict(zip(META_KEYS, [key, digest_of(LARGE), "100000"], strict=True))
    assert 50_000 < await stage.admin.pttl(key) <= 60_000
    assert fetch_payload(environment=task_environment(meta, stage.server.url)) == LARGE


async def test_a_small_payload_goes_with_the_request(stage: Stage) -> None:
    async with DispatchClient(stage.options, claims=RedisClaims()) as client:
        await client.send(job="a", payload=bytes(16_384))

    [fields] = await stage.requests()
    assert (len(fields[b"payload"]), b"meta" in fields) == (16_384, False)


async def test_without_a_store_a_large_payload_is_rejected(stage: Stage) -> None:
    async with DispatchClient(stage.options) as client:
        with pytest.raises(RequestRejected, match="at most 16384"):
            await client.send(job="a", payload=LARGE)


async def test_a_payload_too_large_for_redis_is_refused(stage: Stage) -> None:
    async with DispatchClient(stage.options, claims=RedisClaims(max_bytes=50_000)) as client:
        with pytest.raises(PayloadUnfit):
            await client.send(job="a", payload=LARGE)

    assert await stage.admin.keys("*") == []


async def test_a_store_of_ones_own(stage: Stage, tmp_path: Path) -> None:
    class Folder:
        async def put(self, digest: str, data: bytes) -> str:
            (tmp_path / digest).write_bytes(data)
            return f"file://{tmp_path / digest}"

    async with DispatchClient(stage.options, claims=Folder()) as client:
        await client.send(job="a", payload=LARGE)

    meta = await sent_meta(stage)
    read = lambda reference: Path(reference.removeprefix("file://")).read_bytes()  # noqa: E731
    assert fetch_payload(environment=task_environment(meta, ""), read=read) == LARGE


async def test_what_is_gone_or_was_changed_is_not_taken_for_the_payload(stage: Stage) -> None:
    with SyncDispatchClient(stage.options, claims=RedisClaims()) as client:
        client.send(job="a", payload=LARGE)
    meta = await sent_meta(stage)
    environment = task_environment(meta, stage.server.url)

    await stage.admin.set(KEYS.payload(digest_of(LARGE)), b"other")
    with pytest.raises(PayloadGone, match="SHA-256 differs"):
        fetch_payload(environment=environment)
    await stage.admin.delete(KEYS.payload(digest_of(LARGE)))
    with pytest.raises(PayloadGone, match="expired"):
        fetch_payload(environment=environment)


def test_a_small_payload_is_read_from_the_tasks_file(tmp_path: Path) -> None:
    (tmp_path / "in.bin").write_bytes(b"small")

    assert fetch_payload(file="in.bin", environment={"NOMAD_TASK_DIR": str(tmp_path)}) == b"small"
    assert fetch_payload(environment={}) == b""


def documented(language: str) -> str:
    """The last block of a language that the page shows below its heading on large payloads."""
    section = PAGE.read_text().split("\n## Payloads beyond 16 KiB\n")[1].split("\n## ")[0]
    block: str = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[-1]
    return block


def fetching_job(folder: Path, language: str, url: str) -> dict[str, Any]:
    """A job file with the documented block, whose task runs the documented lines."""
    if language == "shell":
        (folder / "task").write_text(f"set -e\ncd {folder}\n{documented('shell')}")
        program = "/bin/sh"
    else:
        (folder / "task").write_text(f"{documented('python')}open('{folder}/payload', 'wb').write(data)\n")
        program = sys.executable
    file = folder / "fetch.hcl"
    file.write_text(f"""
job "fetch" {{
  type = "batch"
  {documented("hcl")}
  group "g" {{
    restart {{
      attempts = 0
      mode     = "fail"
    }}
    task "t" {{
      driver = "raw_exec"
      config {{
        command = "{program}"
        args    = ["{folder}/task"]
      }}
      env {{
        REDIS_URL  = "{url}"
        PYTHONPATH = "{PAGE.parents[1]}"
      }}
      dispatch_payload {{
        file = "input.bin"
      }}
    }}
  }}
}}
""")
    return load_job(file)


@pytest.mark.parametrize("language", ["shell", "python"])
async def test_a_job_fetches_it_with_the_documented_lines(tmp_path: Path, language: str) -> None:
    if language == "shell" and shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on PATH")
    async with EmbeddedRedis() as redis:
        job = fetching_job(tmp_path, language, redis.url)
        async with Stack([job], settings={"REDIS_URL": redis.url}):
            options = RedisOptions(redis.url)
            async with DispatchClient(options, claims=RedisClaims(ttl_seconds=60)) as client:
                for payload in (LARGE, b"small"):
                    final = await client.wait(await client.send(job="fetch", payload=payload), timeout=30)

                    assert (final.verdict, final.error_message) == (Verdict.SUCCEEDED, "")
                    assert (tmp_path / "payload").read_bytes() == payload
            async with DispatchClient(options, claims=Forgetful()) as client:
                final = await client.wait(await client.send(job="fetch", payload=b"x" + LARGE), timeout=30)

    assert final.verdict is Verdict.FAILED


class Forgetful:
    """A store that has lost the payload by the time the job asks for it."""

    async def put(self, digest: str, data: bytes) -> str:
        assert data
        return KEYS.payload(digest)
