"""The worker one writes in an afternoon, to compare with: `python -m benchmarks.naive REDIS_URL NOMAD_ADDR`.

A consumer group, a dispatch, a poll per job, a reply. It loses messages when it is killed, takes "complete"
for success, and asks Nomad about every job four times a second; it is here for its speed alone.
"""

import asyncio
import base64
import json
import sys
from typing import Any

import httpx
import redis.asyncio

STREAM, REPLIES, GROUP = "{dispatch}:requests", "{dispatch}:replies", "workers"
IN_FLIGHT = 1_000
POLL_SECONDS = 0.25


async def handle(db: Any, nomad: httpx.AsyncClient, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
    body = {
        "Payload": base64.b64encode(fields.get(b"payload", b"")).decode(),
        "Meta": json.loads(fields.get(b"meta", b"{}")),
    }
    job, token = fields[b"job"].decode(), entry_id.decode()
    answer = await nomad.post(f"/v1/job/{job}/dispatch", params={"idempotency_token": token}, json=body)
    answer.raise_for_status()
    child = answer.json()["DispatchedJobID"].replace("/", "%2F")
    while (await nomad.get(f"/v1/job/{child}")).json()["Status"] != "dead":  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    allocations = (await nomad.get(f"/v1/job/{child}/allocations")).json()
    succeeded = all(allocation["ClientStatus"] == "complete" for allocation in allocations)
    await db.xadd(REPLIES, {"type": "result", "final": "1", "id": token, "ok": int(succeeded)})
    await db.xack(STREAM, GROUP, entry_id)


async def main(redis_url: str, nomad_addr: str) -> None:
    db: Any = redis.asyncio.Redis.from_url(redis_url)
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
    nomad = httpx.AsyncClient(base_url=nomad_addr, limits=limits, timeout=60)
    await db.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    running: set[asyncio.Task[None]] = set()
    while True:
        read = await db.xreadgroup(GROUP, "naive", {STREAM: ">"}, count=IN_FLIGHT - len(running), block=1000)
        for entry_id, fields in read[0][1] if read else ():
            task = asyncio.create_task(handle(db, nomad, entry_id, fields))
            running.add(task)
            task.add_done_callback(running.discard)
        if len(running) >= IN_FLIGHT:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
