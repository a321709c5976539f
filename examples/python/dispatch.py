"""Dispatch a job through the queue and wait for its end: python dispatch.py [JOB]."""  # noqa: INP001 - a script, no package

import asyncio
import os
import sys

from worker.client import DispatchClient, RedisOptions


async def main(job: str) -> int:
    """Returns the task's exit code."""
    options = RedisOptions(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
    async with DispatchClient(options) as client:
        sent = await client.send(job=job, payload=b"hello", meta={"who": "python"})
        async for reply in client.events(sent):
            print(reply.type, reply.dispatched_job_id)  # noqa: T201
            if reply.final:
                print(reply.verdict, reply.exit_code, reply.error_message)  # noqa: T201
                return 0 if reply.verdict == "succeeded" else reply.exit_code or 1
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:] or ["demo-render"])))
