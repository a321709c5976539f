"""Job specifications in the API's shape, and waiting for what happens to their children."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from worker.dev.simulator import Simulator
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.records import Allocation

SECOND = 1_000_000_000
TIMEOUT_SECONDS = 15


def mock(name: str = "t", **config: Any) -> dict[str, Any]:
    """A scripted task; keys that begin with a capital go into the task itself."""
    script = {key: value for key, value in config.items() if not key[0].isupper()}
    task = {key: value for key, value in config.items() if key[0].isupper()}
    return {
        "Name": name,
        "Driver": "mock_driver",
        "Config": {"run_for": "50ms", **script},
        "Resources": {"CPU": 20, "MemoryMB": 10},
        "KillTimeout": SECOND,
        "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 5},
        **task,
    }


def shell(script: str, name: str = "t", **task: Any) -> dict[str, Any]:
    """A real process."""
    config = {"command": "/bin/sh", "args": ["-c", script]}
    return mock(name, Driver="raw_exec", **task) | {"Config": config}


def group(*tasks: dict[str, Any], name: str = "g", **fields: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "Count": 1,
        "EphemeralDisk": {"SizeMB": 300},
        "RestartPolicy": {"Attempts": 0, "Mode": "fail", "Delay": SECOND // 5, "Interval": 30 * SECOND},
        "ReschedulePolicy": {"Attempts": 0, "Interval": 0, "Unlimited": False},
        "Tasks": list(tasks) or [mock()],
        **fields,
    }


def job(job_id: str, *groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A parameterized batch job with the meta keys of the recorded ones."""
    return {
        "ID": job_id,
        "Name": job_id,
        "Type": "batch",
        "Datacenters": ["*"],
        "Priority": 50,
        "TaskGroups": list(groups) or [group()],
        "Meta": {"seconds": "0.2", "who": "x", "code": "0"},
        "ParameterizedJob": {
            "Payload": "optional",
            "MetaOptional": ["seconds", "who", "code"],
            "MetaRequired": [],
        },
        **fields,
    }


def restarts(attempts: int) -> dict[str, Any]:
    policy = {"Attempts": attempts, "Mode": "fail", "Delay": SECOND // 100, "Interval": 30 * SECOND}
    return {"RestartPolicy": policy}


def on_node(number: int) -> list[dict[str, str]]:
    return [{"LTarget": "${node.unique.name}", "Operand": "=", "RTarget": f"node-{number}"}]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)


async def until(nomad: Simulator, condition: Callable[[], bool]) -> None:
    """Wait for a write after which the condition holds."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():
            await nomad.cluster.changes.wait(TIMEOUT_SECONDS)


async def status(nomad: Simulator, job_id: str, wanted: str) -> Job:
    await until(nomad, lambda: nomad.job(job_id).status == wanted)
    return nomad.job(job_id)


def latest(nomad: Simulator, job_id: str) -> Allocation:
    return max(nomad.job(job_id).allocs.values(), key=lambda alloc: alloc.create_index)


async def client_status(nomad: Simulator, job_id: str, wanted: str) -> Allocation:
    """Wait until the newest allocation of a job has a client status."""
    await until(
        nomad, lambda: bool(nomad.job(job_id).allocs) and latest(nomad, job_id).client_status == wanted
    )
    return latest(nomad, job_id)


async def ends_dead(nomad: Simulator, child: str) -> None:
    await until(
        nomad,
        lambda: (
            nomad.job(child).status == "dead"
            and all(alloc.ended for alloc in nomad.job(child).allocs.values())
            and all(
                task.state == "dead"
                for alloc in nomad.job(child).allocs.values()
                for task in (alloc.task_states or {}).values()
            )
        ),
    )


class Tape:
    """Everything the event ring was given, decoded; unlike a stream it misses nothing."""

    def __init__(self, nomad: Simulator) -> None:
        self.frames: list[dict[str, Any]] = []
        nomad.cluster.ring.listen(lambda frame: self.frames.append(json.loads(frame.line())))

    def of(self, job_id: str) -> list[dict[str, Any]]:
        """The frames with the events of one job only."""
        found = []
        for frame in self.frames:
            events = [event for event in frame["Events"] if job_id in {event["Key"], *_keys(event)}]
            if events:
                found.append({"Index": frame["Index"], "Events": events})
        return found


def _keys(event: dict[str, Any]) -> list[str]:
    return event["FilterKeys"] or []
