"""`cancel`, `status`, `doctor` and `dispatch` with Nomad at hand, against a whole stack."""

import asyncio
import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from worker.client import DispatchClient
from worker.client.claims import META_KEYS
from worker.core.keys import Keys
from worker.testing import Simulator, Stack, job

pytestmark = pytest.mark.anyio

SOON = 30.0
KEYS = Keys("{dispatch}")
COMMAND = (sys.executable, "-m", "worker")


def environment(stack: Stack, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nowhere", **stack.environment, **more}


async def run(stack: Stack, *words: str, stdin: bytes = b"", **more: Any) -> subprocess.CompletedProcess[str]:
    """A command as people run it, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *words,
        env=environment(stack, **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SOON):
            out, error = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode or 0, out.decode(), error.decode())


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    jobs = [
        job("render", meta=["who"]),
        job("report-a"),
        job("report-b"),
        job("encode", payload="required"),
        job("fetch", meta=META_KEYS),
    ]
    async with Stack(jobs) as made:
        yield made


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[DispatchClient]:
    async with stack.client() as made:
        yield made


async def placed(client: DispatchClient, **fields: Any) -> str:
    """Send a request and wait until its job runs; returns `<stream>:<id>`."""
    sent = await client.send(**fields)
    async for reply in client.events(sent):
        if reply.type in {"placed", "running"}:
            return str(sent.key)
    pytest.fail("it was never placed")


# cancel -------------------------------------------------------------------------------------------


async def test_cancel_stops_a_running_job_and_tells_its_end(stack: Stack, client: DispatchClient) -> None:
    key = await placed(client, job="render", meta={"run_for": "10m"})

    ended = await run(stack, "cancel", "--wait", key)
    again = await run(stack, "cancel", key)

    assert (ended.returncode, again.returncode) == (0, 0)
    assert f"Cancellation of {key} ordered" in ended.stdout
    assert "ended: cancelled" in ended.stdout
    assert "ended: cancelled" in again.stdout


async def test_cancel_too_late_tells_the_result(stack: Stack, client: DispatchClient) -> None:
    sent = await client.send(job="render")
    await client.wait(sent, SOON)

    ended = await run(stack, "cancel", "--json", sent.id)

    first, final = map(json.loads, ended.stdout.splitlines())
    assert (ended.returncode, first["cancel"], final["verdict"]) == (1, "too_late", "succeeded")


async def test_cancelling_what_was_detached_says_how_to_stop_it(stack: Stack, client: DispatchClient) -> None:
    sent = await client.send(job="render", detach=True)
    final = await client.wait(sent, SOON)

    ended = await run(stack, "cancel", sent.id)

    assert ended.returncode == 1
    assert f"nomad job stop -namespace default {final.dispatched_job_id}" in ended.stderr


async def test_cancelling_an_unknown_message_is_an_error(stack: Stack) -> None:
    ended = await run(stack, "cancel", "1-1")

    assert ended.returncode == 1
    assert "[client.message_unknown]" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("wait", "soon"),
        ("cancel", "12"),
        ("status", "requests:x-1"),
        ("dlq", "show", "x"),
        ("dlq", "drop", "1"),
    ],
)
async def test_what_is_no_id_is_told_with_one_that_is(stack: Stack, words: tuple[str, ...]) -> None:
    ended = await run(stack, *words)

    assert ended.returncode == 1
    assert "is no ID: give one like 1719999999999-0" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [("status",), ("wait", "1-1"), ("cancel", "1-1"), ("dlq", "list")],
)
async def test_a_redis_that_is_not_there_is_named_without_its_password(
    stack: Stack, words: tuple[str, ...]
) -> None:
    ended = await run(stack, *words, REDIS_URL="redis://:c4n4ry@127.0.0.1:1/0", NOMAD_ADDR="")

    assert ended.returncode == 1
    assert "REDIS_URL right? It is redis://***@127.0.0.1:1/0" in ended.stderr
    assert "c4n4ry" not in ended.stderr


# status -------------------------------------------------------------------------------------------


async def test_status_shows_streams_workers_and_dead_letters(stack: Stack, client: DispatchClient) -> None:
    await client.wait(await client.send(job="nowhere"), SOON)

    shown, as_json = await run(stack, "status"), await run(stack, "status", "--json")

    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines() if line] == [
        *("STREAM", "requests", "WORKER"),
        *(shown.stdout.split("VERSION\n")[1].split()[0], "Dead", "Open"),
    ]
    assert "dispatch-worker dlq list" in shown.stderr
    told = json.loads(as_json.stdout)
    assert told["streams"]["requests"]["waiting"] == 0
    assert told["dead_letters"] >= 1
    assert [worker["alive"] for worker in told["workers"]] == [True]


async def test_status_of_one_message(stack: Stack, client: DispatchClient) -> None:
    key = await placed(client, job="render", meta={"run_for": "10m"})
    running = await run(stack, "status", key)
    await run(stack, "cancel", "--wait", key)
    settled = json.loads((await run(stack, "status", "--json", key)).stdout)
    unknown = await run(stack, "status", "1-1")

    assert "State           running\n" in running.stdout
    assert f"dispatch-worker cancel {key}" in running.stderr
    assert (settled["state"], settled["verdict"]) == ("settled", "cancelled")
    assert settled["data"]["job"]["stop"]
    assert (unknown.returncode, unknown.stderr.startswith("No message requests:1-1")) == (1, True)


async def test_status_without_any_worker_says_so(stack: Stack) -> None:
    ended = await run(stack, "status", WORKER_PREFIX="{nobody}")

    assert ended.returncode == 0
    assert "dispatch-worker run" in ended.stderr


# doctor -------------------------------------------------------------------------------------------


async def test_the_doctor_finds_everything_in_order(stack: Stack) -> None:
    ended = await run(stack, "doctor", "render", "report-*")

    assert ended.returncode == 0, ended.stdout
    assert "OK    redis  rights" in ended.stdout
    assert "OK    nomad  event stream" in ended.stdout
    assert "OK    jobs   report-b" in ended.stdout


async def test_the_doctor_names_what_is_missing_and_what_to_do(stack: Stack, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[streams.requests]\njobs = ["render", "gone"]\n')

    ended = await run(stack, "doctor", "--json", "nowhere", WORKER_ALLOW_FILE=str(policy))

    failed = [one for one in map(json.loads, ended.stdout.splitlines()) if one["grade"] == "fail"]
    assert ended.returncode == 1
    assert [one["what"] for one in failed] == ["nowhere", "gone"]
    assert all("nomad job run" in one["advice"] for one in failed)


@pytest.mark.parametrize(
    ("variables", "area", "advice"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1"}, "redis", "Check REDIS_URL"),
        ({"NOMAD_ADDR": "http://127.0.0.1:1"}, "nomad", "NOMAD_ADDR (http://127.0.0.1:1)"),
    ],
)
async def test_the_doctor_finds_what_cannot_be_reached(
    stack: Stack, variables: dict[str, Any], area: str, advice: str
) -> None:
    ended = await run(stack, "doctor", **variables)

    assert ended.returncode == 1
    assert f"FAIL  {area}  reachable" in ended.stdout
    assert advice in ended.stdout


async def test_the_doctor_finds_the_rights_a_token_lacks(stack: Stack) -> None:
    acl = {
        "policies": {"narrow": {"default": ["dispatch-job", "list-jobs"]}},
        "tokens": [{"secret": "6d6d2b5c-0000-4000-8000-000000000001", "policies": ["narrow"], "name": "t"}],
    }
    async with Simulator([job("render")], acl=acl) as nomad:
        ended = await run(
            stack,
            *("doctor", "--json"),
            NOMAD_ADDR=nomad.address,
            NOMAD_TOKEN="6d6d2b5c-0000-4000-8000-000000000001",
        )

    grades = {one["what"]: one["grade"] for one in map(json.loads, ended.stdout.splitlines())}
    assert ended.returncode == 1
    assert {name: grades[name] for name in ("dispatch-job", "read-job", "list-jobs", "submit-job")} == {
        "dispatch-job": "ok",
        "read-job": "fail",
        "list-jobs": "ok",
        "submit-job": "warn",
    }
    assert grades["event stream"] == "fail"


# dispatch with Nomad at hand ----------------------------------------------------------------------


async def test_a_unique_prefix_is_enough(stack: Stack) -> None:
    ended = await run(stack, "dispatch", "--wait", "rend")

    assert ended.returncode == 0
    assert ended.stdout.startswith("Dispatched Job ID = render/dispatch-")


async def test_an_ambiguous_prefix_lists_the_jobs_and_sends_nothing(stack: Stack) -> None:
    before = len(stack.nomad.record.dispatches)

    ended = await run(stack, "dispatch", "repo")

    lines = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert lines[:3] == [
        'Prefix "repo" matched multiple jobs',
        "",
        "ID        Type                 Priority  Status   Submit Date",
    ]
    assert [line.split()[:4] for line in lines[3:]] == [
        [name, "batch/parameterized", "50", "running"] for name in ("report-a", "report-b")
    ]
    assert len(stack.nomad.record.dispatches) == before


async def test_a_job_that_is_not_there_is_told_before_anything_is_sent(stack: Stack) -> None:
    ended = await run(stack, "dispatch", "zzz")

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == 'No parameterized job(s) with prefix or ID "zzz" found\n'


async def test_the_queue_outlasts_a_nomad_that_is_away(stack: Stack) -> None:
    ended = await run(stack, "dispatch", "--detach", "render", NOMAD_ADDR="http://127.0.0.1:1")

    assert ended.returncode == 0


async def test_logs_are_shown_while_the_job_runs(stack: Stack) -> None:
    ended = await run(stack, "dispatch", "--follow-logs", "-meta", "run_for=1s", "render")
    without = await run(stack, "dispatch", "--follow-logs", "render", NOMAD_ADDR="")

    assert ended.returncode == 0
    assert "ended: succeeded" in ended.stdout
    assert without.returncode == 1
    assert "set NOMAD_ADDR" in without.stderr


async def test_job_names_complete(stack: Stack) -> None:
    words = {"_DISPATCH_WORKER_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from worker.cli import main; main()"),
        env=environment(stack, **words, COMP_WORDS="dispatch-worker dispatch repo"),
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()

    assert out.decode().split() == ["report-a", "report-b"]


# batches ------------------------------------------------------------------------------------------


async def test_a_batch_is_sent_and_followed(stack: Stack, tmp_path: Path) -> None:
    lines = [
        {"meta": {"who": "a"}},
        {"job": "encode", "payload_base64": "AP8="},
        {"meta": {"exit_code": "4"}, "correlation_id": "bad"},
    ]
    batch = tmp_path / "b.jsonl"
    batch.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")

    ended = await run(stack, "dispatch", "--batch", str(batch), "--wait", "--json", "render")

    replies = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 1
    assert sorted((reply["job"], reply["verdict"]) for reply in replies) == [
        ("encode", "succeeded"),
        ("render", "failed"),
        ("render", "succeeded"),
    ]
    assert "2 succeeded, 1 failed" in ended.stderr


async def test_a_batch_may_hold_payloads_beyond_what_nomad_takes(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20_000))
    line = json.dumps({"job": "fetch", "payload_file": str(tmp_path / "large")}).encode()

    without = await run(stack, "dispatch", "--batch", "-", stdin=line)
    ended = await run(stack, "dispatch", "--batch", "-", "--claim-check", "--wait", "--json", stdin=line)

    assert "Nothing was sent" in without.stderr
    assert json.loads(ended.stdout)["verdict"] == "succeeded", ended.stderr


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"job": "render"}\n{"jobs": "x"}', "line 2"),
        ('{"job": "render", "payload": "a", "payload_base64": "YQ=="}', "give one of payload"),
        ('{"meta": {"a": "1"}}', "field job: missing"),
        ('{"job": "render", "deadline": "soon"}', "line 1"),
        ("nonsense", "line 1"),
    ],
)
async def test_a_faulty_batch_is_not_sent_at_all(stack: Stack, text: str, fault: str) -> None:
    before = len(stack.nomad.record.dispatches)

    ended = await run(stack, "dispatch", "--batch", "-", stdin=text.encode())

    assert ended.returncode == 1
    assert fault in ended.stderr
    assert "Nothing was sent" in ended.stderr
    assert len(stack.nomad.record.dispatches) == before


@pytest.mark.processes
async def test_a_batch_killed_half_way_is_finished_by_running_it_again(stack: Stack, tmp_path: Path) -> None:
    prefix, number = "{killed}", 6_000
    batch = tmp_path / "b.jsonl"
    batch.write_text("".join(f'{{"correlation_id": "c{n}"}}\n' for n in range(number)))
    words = ("dispatch", "--batch", str(batch), "--json", "-idempotency-token", "t", "render")
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *words),
        env=environment(stack, WORKER_PREFIX=prefix),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.kill()
    await process.communicate()

    again = await run(stack, *words, WORKER_PREFIX=prefix)

    told = [json.loads(line) for line in again.stdout.splitlines()]
    assert (again.returncode, len(told)) == (0, number)
    assert 0 < sum(one["repeated"] for one in told) < number
    async with stack.client() as client:
        entries = await client.perform(_entries(Keys(prefix).stream("requests")))
    assert sorted(entries) == sorted(f"c{n}" for n in range(number))


def _entries(stream: str) -> Any:
    from worker.client.exchange import Run, raised  # noqa: PLC0415

    (entries,) = raised((yield Run((("XRANGE", stream, "-", "+"),))))
    return [fields[b"correlation_id"].decode() for _, fields in entries]


# Ctrl-C -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "verdict"), [(b"c\n", 1, "cancelled"), (b"\n", 130, None), (b"\x03", 130, None)]
)
async def test_ctrl_c_at_a_terminal_offers_to_cancel(
    stack: Stack, client: DispatchClient, answer: bytes, code: int, verdict: str | None
) -> None:
    terminal, other_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "dispatch", "--wait", "-meta", "run_for=10m", "render"),
        env=environment(stack),
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        preexec_fn=_own_terminal,
    )
    os.close(other_end)
    told = Terminal(terminal)
    try:
        async with asyncio.timeout(SOON):
            await told.until("finished with status")
            os.write(terminal, b"\x03")
            await told.until("or cancel it (c)?")
            os.write(terminal, answer)
            assert await process.wait() == code
            await told.until_the_end()
    finally:
        if process.returncode is None:
            process.kill()
        os.close(terminal)

    job_id = told.text.split("Dispatched Job ID = ")[1].split()[0]
    [token] = [one["token"] for one in stack.nomad.record.dispatches if one["job_id"] == job_id]
    final = await client.result("requests", token)
    assert (final.verdict if final else None) == verdict
    assert "Traceback" not in told.text
    if verdict is None:
        assert f"dispatch-worker wait requests:{token}" in told.text
        await client.cancel("requests", token)


def _own_terminal() -> None:
    """Make the pseudo-terminal the child's controlling one, so that Ctrl-C reaches it as a signal."""
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Reads what a command writes to its terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    async def until(self, part: str) -> None:
        while part not in self.text:
            self.text += (await asyncio.to_thread(os.read, self._descriptor, 4096)).decode()

    async def until_the_end(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while part := await asyncio.to_thread(os.read, self._descriptor, 4096):
                self.text += part.decode()
