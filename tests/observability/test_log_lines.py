"""What a worker process writes about its messages: each change of state once, and nothing secret."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes.fleet import WorkerProcess, fleet
from tests.processes.jobs import scripted

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

CANARY = "c4n4ry-payl0ad"


def lines(worker: WorkerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.log.read_text().splitlines()]


async def test_each_change_of_state_is_one_line(tmp_path: Path) -> None:
    job = scripted("render")
    job["ParameterizedJob"]["MetaOptional"].append("note")
    async with fleet(tmp_path, [job]) as workers:
        worker = await workers.start()
        message_id = await workers.send(
            job="render",
            payload=CANARY,
            meta=json.dumps({"note": f"{CANARY}-meta"}),
            correlation_id="order-17",
        )
        await workers.final(message_id)
        rejected = await workers.send(payload=CANARY)
        await workers.final(rejected)
        worker.terminate()
        assert await worker.ended(20) == 0

    written = lines(worker)
    assert CANARY not in worker.log.read_text()
    assert all({"at", "level", "event", "worker"} <= set(line) for line in written)
    about = [line for line in written if line.get("message_id") == message_id]
    assert all(
        (line["stream"], line["level"], line["worker"]) == ("requests", "info", "w1") for line in about
    )
    told = [(line["event"], line.get("step", "")) for line in about]
    assert len(told) == len(set(told))
    assert told[0] == ("message.admitted", "")
    assert told[1] == ("message.advanced", "dispatched")
    assert ("message.advanced", "running") in told
    assert told[-1] == ("message.settled", "")
    assert (about[-1]["verdict"], about[-1]["job"]) == ("succeeded", "render")
    of_rejected = [line for line in written if line.get("message_id") == rejected]
    assert [line["event"] for line in of_rejected] == ["message.admitted", "message.settled"]
    assert of_rejected[-1]["error_code"] == "request.field_missing"
    assert [line["event"] for line in written if line["event"].startswith("worker.")] == [
        "worker.started",
        "worker.draining",
        "worker.stopped",
    ]


async def test_people_get_lines_they_can_read(tmp_path: Path) -> None:
    async with fleet(tmp_path, [scripted("render")]) as workers:
        worker = await workers.start(WORKER_LOG_FORMAT="console")
        message_id = await workers.send(job="render")
        await workers.final(message_id)
        worker.terminate()
        await worker.ended(20)

    (settled,) = [line for line in worker.log.read_text().splitlines() if "message.settled" in line]
    assert not settled.startswith("{")
    assert f"message_id={message_id}" in settled
    assert "\x1b[" not in settled
