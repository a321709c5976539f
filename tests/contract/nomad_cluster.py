"""A Nomad that contract tests may use: a job file's least words, and raw reads for what the port leaves out.

Knows nothing of which Nomad it is.
"""

import asyncio
import json
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.core.model import Place
from worker.core.observed import Job

HERE = Place("", "")
WAIT_SECONDS = 30.0
REQUEST_SECONDS = 10.0

SCRIPT = """
echo "payload: $(cat local/payload 2>/dev/null)"
echo "who: $NOMAD_META_who"
echo "to stderr" >&2
exit $((NOMAD_META_code))
"""
SLEEP = "exec sleep 600"


@dataclass
class Cluster:
    """One Nomad, reached at `address`, and what tests have left there."""

    address: str
    heartbeat_seconds: float = 30.0
    registered: list[str] = field(default_factory=list)

    def client(self, **options: Any) -> NomadClient:
        return NomadClient(NomadOptions(address=self.address, **options))

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A request past the adapter."""

        def blocking() -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"{self.address}{path}", data, method=method)
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
                text = response.read()
            return json.loads(text) if text else None

        return await asyncio.to_thread(blocking)

    async def register(
        self,
        name: str = "",
        *,
        script: str = SCRIPT,
        payload: str = "optional",
        required: tuple[str, ...] = (),
        optional: tuple[str, ...] = ("who", "code"),
        parameterized: bool = True,
        constraint: str = "",
    ) -> str:
        """Register a job that no other test knows. Returns its ID, which ends with `name`."""
        job_id = f"contract-{uuid4().hex[:12]}{name}"
        task: dict[str, Any] = {
            "Name": "main",
            "Driver": "raw_exec",
            "Config": {"command": "/bin/sh", "args": ["-c", script]},
            "Resources": {"CPU": 20, "MemoryMB": 16},
            "KillTimeout": 1_000_000_000,
            "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
        }
        if payload != "forbidden" and parameterized:
            task["DispatchPayload"] = {"File": "payload"}
        job: dict[str, Any] = {
            "ID": job_id,
            "Name": job_id,
            "Type": "batch",
            "Datacenters": ["*"],
            "TaskGroups": [
                {
                    "Name": "group",
                    "Count": 1,
                    "EphemeralDisk": {"SizeMB": 10},
                    "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                    "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
                    "Tasks": [task],
                }
            ],
        }
        if parameterized:
            job["ParameterizedJob"] = {
                "Payload": payload,
                "MetaRequired": list(required),
                "MetaOptional": list(optional),
            }
        if constraint:
            job["Constraints"] = [{"LTarget": "${node.unique.name}", "RTarget": constraint, "Operand": "="}]
        await self.ask("PUT", "/v1/jobs", {"Job": job})
        self.registered.append(job_id)
        return job_id

    async def ended(self, nomad: NomadClient, job_id: str) -> Job:
        """The job, once its status is `dead`."""
        return await self.until(nomad, job_id, "dead")

    async def until(self, nomad: NomadClient, job_id: str, status: str) -> Job:
        """The job, once it has that status; asked every 50 ms, for the API has no other way to wait."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                job = await nomad.job(HERE, job_id)
                if job is not None and job.status == status:
                    return job
                await asyncio.sleep(0.05)

    async def clean(self) -> None:
        """Purge what the test has registered, children included."""
        for parent in self.registered:
            prefix = quote(parent, safe="")
            for job in await self.ask("GET", f"/v1/jobs?prefix={prefix}"):
                await self.ask("DELETE", f"/v1/job/{quote(job['ID'], safe='')}?purge=true")
        self.registered.clear()
