"""The commands `dispatch` and `wait` from options to exit code, with a worker played on a real Redis."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.client.stage import KEYS, WAIT_SECONDS, Stage
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.cli import dispatch, wait
from worker.cli.wait import parse_message
from worker.client import Sent
from worker.core.model import MessageKey, Verdict
from worker.core.request import Limits, decode_request
from worker.dev.embedded_redis import EmbeddedRedis

pytestmark = pytest.mark.anyio

JOB = "render/dispatch-1-2c85d768"
HEAD = f"Dispatched Job ID = {JOB}\nEvaluation ID     = 9fff6706\n"
MONITORING = "Monitoring evaluation"
PLACED = {
    "allocations": [
        {"allocation": "08bd7328-1", "node_id": "b7d1d114-1", "group": "g", "client_status": "pending"}
    ]
}
BLOCKED = {
    "placement": [
        {"group": "g", "nodes_evaluated": 2, "nodes_exhausted": 2, "dimension_exhausted": {"cpu": 2}}
    ]
}

app = typer.Typer(rich_markup_mode=None)
dispatch.register(app)
wait.register(app)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with EmbeddedRedis() as server:
        admin: Any = connect(RedisOptions(server.url), Purpose.OPS)
        try:
            yield Stage(server, admin)
        finally:
            await admin.aclose()


class Command:
    """One run of the command beside the test, which plays the worker."""

    def __init__(self, stage: Stage, *words: str, stdin: bytes = b"", **environment: str) -> None:
        self._stage = stage
        variables = {
            "REDIS_URL": stage.server.url,
            "NOMAD_ADDR": "",
            "NOMAD_NAMESPACE": "",
            "NOMAD_REGION": "",
        }
        runner = CliRunner()
        self._running = asyncio.create_task(
            asyncio.to_thread(runner.invoke, app, list(words), input=stdin, env=variables | environment)
        )

    async def request(self, stream: str = "requests") -> Sent:
        """Wait until the request is in its stream."""
        found: list[Any] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while not found:
                answer = await self._stage.admin.xread({KEYS.stream(stream): "0"}, block=500)
                found = next(iter(answer.values()))[0] if answer else []
        return Sent(stream, found[-1][0].decode(), KEYS.replies, "0-0")

    async def ended(self) -> Result:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._running


async def test_a_placed_job_ends_the_command(stage: Stage) -> None:
    command = Command(stage, "dispatch", "render", NOMAD_ADDR="http://n:4646")
    sent = await command.request()
    await stage.publish(sent, "accepted", 1)
    await stage.publish(sent, "dispatched", 2)
    await stage.publish(sent, "placed", 3, data=PLACED)

    result = await command.ended()

    assert result.exit_code == 0
    assert result.stdout.startswith(f"{HEAD}\n==> 2026-11-24T01:48:02Z: {MONITORING}")
    assert result.stdout.endswith('finished with status "complete"\n')
    escaped = JOB.replace("/", "%2F")
    assert result.stderr == (
        f"\n\n==> View this job in the Web UI: http://n:4646/ui/jobs/{escaped}@default\n\n"
    )


async def test_hints_can_be_turned_off(stage: Stage) -> None:
    command = Command(stage, "dispatch", "render", NOMAD_ADDR="http://n:4646", NOMAD_CLI_SHOW_HINTS="0")
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "running", 2, data=PLACED)

    assert (await command.ended()).stderr == ""


@pytest.mark.parametrize("dashes", ["-", "--"])
async def test_options_reach_the_request(stage: Stage, tmp_path: Path, dashes: str) -> None:
    payload = tmp_path / "p"
    payload.write_bytes(b"\x00\xff")
    words = [
        *(f"{dashes}meta", "who=a=b", f"{dashes}meta=x="),
        *(f"{dashes}idempotency-token", "tok", f"{dashes}id-prefix-template=t7"),
        *(f"{dashes}priority", "80", f"{dashes}namespace=default", f"{dashes}detach"),
    ]
    command = Command(stage, "dispatch", *words, "render", str(payload))
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)

    result = await command.ended()

    assert (result.exit_code, result.stdout, result.stderr) == (0, HEAD, "")
    [fields] = await stage.requests()
    request = decode_request(fields, Limits(KEYS))
    assert (request.job, request.payload, request.meta) == ("render", b"\x00\xff", {"who": "a=b", "x": ""})
    assert (request.idempotency_key, request.id_prefix, request.priority) == ("tok", "t7", 80)
    assert (request.namespace, request.detach) == ("default", True)


async def test_the_payload_comes_from_standard_input(stage: Stage) -> None:
    command = Command(stage, "dispatch", "--detach", "--stream", "high", "render", "-", stdin=b"from stdin")
    sent = await command.request("high")
    await stage.publish(sent, "dispatched", 1)
    await command.ended()

    assert [fields[b"payload"] for fields in await stage.requests("high")] == [b"from stdin"]


async def test_a_job_that_cannot_be_placed_exits_with_2(stage: Stage) -> None:
    command = Command(stage, "dispatch", "render")
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "blocked", 2, data=BLOCKED)

    result = await command.ended()

    assert result.exit_code == 2
    assert '      * Dimension "cpu" exhausted on 2 nodes\n' in result.stdout


async def test_wait_goes_on_to_the_end_with_the_tasks_exit_code(stage: Stage) -> None:
    command = Command(stage, "dispatch", "-wait", "render")
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "blocked", 2, data=BLOCKED)
    await stage.publish(sent, "placed", 3, data=PLACED)
    await stage.publish(sent, "result", 4, verdict=Verdict.FAILED, exit_code=3, data=PLACED)

    result = await command.ended()

    assert result.exit_code == 3
    assert result.stdout.endswith(f'\n\n==> 2026-11-24T01:48:02Z: Job "{JOB}" ended: failed, exit code 3\n')


async def test_json_is_one_line_per_reply(stage: Stage) -> None:
    command = Command(stage, "dispatch", "--json", "--wait", "render")
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "result", 2, verdict=Verdict.SUCCEEDED, exit_code=0)

    lines = [json.loads(line) for line in (await command.ended()).stdout.splitlines()]

    assert [(line["type"], line["id"], line["verdict"]) for line in lines] == [
        ("dispatched", sent.id, None),
        ("result", sent.id, "succeeded"),
    ]


async def test_a_rejected_request_says_what_nomad_said(stage: Stage) -> None:
    command = Command(stage, "dispatch", "render")
    sent = await command.request()
    await stage.publish(
        sent,
        "result",
        1,
        verdict=Verdict.REJECTED,
        error_code="nomad.payload_required",
        error_message="Nomad answered 500: Payload is not provided but required by parameterized job",
        job_id="",
    )

    result = await command.ended()

    assert result.exit_code == 1
    assert result.stderr == (
        "Failed to dispatch job: Unexpected response code: 500 "
        "(Payload is not provided but required by parameterized job)\n"
    )


@pytest.mark.parametrize("verdict", [Verdict.STOPPED, Verdict.CANCELLED, Verdict.UNKNOWN_GC])
async def test_an_end_before_any_placement_is_an_error(stage: Stage, verdict: Verdict) -> None:
    command = Command(stage, "dispatch", "render")
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "result", 2, verdict=verdict)

    result = await command.ended()

    assert result.exit_code == 1
    assert result.stdout.endswith(f'Job "{JOB}" ended: {verdict.value}\n')


async def test_a_tokens_repeat_names_the_first_job(stage: Stage) -> None:
    words = ("dispatch", "-idempotency-token", "tok", "render")
    first = Command(stage, *words, "--detach")
    sent = await first.request()
    await stage.publish(sent, "dispatched", 1)
    await first.ended()
    by_reply = await Command(stage, *words).ended()
    await stage.remember(sent, "running", child=JOB)
    await stage.admin.xtrim(KEYS.replies, maxlen=0)

    by_ledger = await Command(stage, *words).ended()

    for repeat in (by_reply, by_ledger):
        told = f'Job "{JOB}" already dispatched with idempotency token "tok".\n'
        assert (repeat.exit_code, repeat.stdout, repeat.stderr) == (0, told, "")
    assert len(await stage.requests()) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "This command takes one or two argument: <parameterized job> [input source]"),
        (("a", "b", "c"), "This command takes one or two argument: <parameterized job> [input source]"),
        (("-nope", "a"), "flag provided but not defined: -nope"),
        (("-meta", "who", "a"), "Error parsing meta value: who"),
        (("-priority=x", "a"), 'invalid value "x" for flag -priority: parse error'),
        (("a", "/no/file"), "Error reading input data: open /no/file: no such file or directory"),
        (("-detach=true", "-wait", "a"), "-wait and -detach exclude each other"),
        (("a", "-meta"), "flag needs an argument: -meta"),
        (("-detach=maybe", "a"), 'invalid boolean value "maybe" for -detach: parse error'),
        (("--timeout", "soon", "a"), "Invalid value for '-timeout'"),
        (("-meta=k\x00=v", "--stream", "s", "-region", "\x01", "a"), "[request.field_invalid]"),
    ],
)
async def test_wrong_usage_exits_with_1_before_anything_is_sent(
    stage: Stage, words: tuple[str, ...], error: str
) -> None:
    result = await Command(stage, "dispatch", *words).ended()

    assert result.exit_code == 1
    assert error in result.stderr
    assert await stage.admin.keys("*") == []


async def test_a_payload_too_large_is_not_sent(stage: Stage) -> None:
    result = await Command(stage, "dispatch", "a", "-", stdin=bytes(16_385)).ended()

    assert result.exit_code == 1
    assert "Payload exceeds maximum size; 16385 > 16384" in result.stderr
    assert await stage.requests() == []


async def test_a_flag_set_to_false_is_not_set(stage: Stage) -> None:
    command = Command(stage, "dispatch", "-detach=false", "-verbose=true", "render")
    sent = await command.request()
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "placed", 2, data=PLACED)

    assert 'Allocation "08bd7328-1" created' in (await command.ended()).stdout
    assert b"detach" not in (await stage.requests())[0]


async def test_a_timeout_says_how_to_follow(stage: Stage) -> None:
    result = await Command(stage, "dispatch", "--timeout", "1", "render").ended()

    [(entry_id, _)] = await stage.admin.xrange(KEYS.stream("requests"))
    assert result.exit_code == 1
    assert result.stderr.endswith(f"follow it with: dispatch-worker wait requests:{entry_id.decode()}\n")


async def test_ctrl_c_says_how_to_follow(stage: Stage) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from worker.cli import main; main()", "dispatch", "render"),
        env={"REDIS_URL": stage.server.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await stage.readers(1)
            process.send_signal(signal.SIGINT)
            _, error = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    [(entry_id, _)] = await stage.admin.xrange(KEYS.stream("requests"))
    assert process.returncode == 130
    assert f"dispatch-worker wait requests:{entry_id.decode()}" in error.decode()
    assert "Traceback" not in error.decode()


async def test_wait_follows_a_request_sent_elsewhere(stage: Stage) -> None:
    entry_id = (await stage.admin.xadd(KEYS.stream("high"), {"v": "1", "job": "render"})).decode()
    sent = Sent("high", entry_id, KEYS.replies, "0-0")
    command = Command(stage, "wait", f"high:{entry_id}")
    await stage.readers(1)
    await stage.publish(sent, "dispatched", 1)
    await stage.publish(sent, "result", 2, verdict=Verdict.FAILED, exit_code=7, data=PLACED)

    result = await command.ended()

    assert result.exit_code == 7
    assert result.stdout.startswith(HEAD)
    assert result.stdout.endswith("ended: failed, exit code 7\n")


async def test_wait_tells_a_result_long_after(stage: Stage) -> None:
    sent = Sent("requests", "1795484882000-0", KEYS.replies, "0-0")
    await stage.remember(
        sent, "settled", verdict="succeeded", exit_code="0", child=JOB, finished_at="1795484882000"
    )

    result = await Command(stage, "wait", "-timeout", "30", "--json=false", sent.id).ended()

    assert result.exit_code == 0
    assert result.stdout == (
        f'Dispatched Job ID = {JOB}\n==> 2026-11-24T01:48:02Z: Job "{JOB}" ended: succeeded, exit code 0\n'
    )


async def test_wait_for_an_unknown_message_is_an_error(stage: Stage) -> None:
    result = await Command(stage, "wait", "1-1").ended()

    assert result.exit_code == 1
    assert "[client.message_unknown]" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1-0", MessageKey("requests", "1-0")), ("high:1-0", MessageKey("high", "1-0"))],
)
def test_a_message_is_named_by_id_or_by_stream_and_id(text: str, expected: MessageKey) -> None:
    assert parse_message(text, "requests") == expected
