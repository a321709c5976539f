"""Workers with a planned fault, and those that only take over."""

import json
from typing import Any

from tests.processes.fleet import Fleet, WorkerProcess

PROGRAM = ("-m", "tests.faults.crashing_worker")
DEAF = {"call": "inbox.read", "do": "deaf"}
"""Reads nothing by itself: whatever such a worker does, it does with what it took over."""


async def start_with(
    world: Fleet, *plan: dict[str, Any], wait: bool = True, **settings: str
) -> WorkerProcess:
    """Start a worker with planned faults; steps as of `crashing_worker.Step`."""
    return await world.start(program=PROGRAM, wait=wait, FAULT_PLAN=json.dumps(plan), **settings)


def step(call: str, do: str, when: str = "before", nth: int = 1) -> dict[str, Any]:
    """One step of a plan."""
    return {"call": call, "do": do, "when": when, "nth": nth}
