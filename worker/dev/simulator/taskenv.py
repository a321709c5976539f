"""What a task sees of its job: its environment, filled-in variables, its folder and the dispatch payload.

Starts nothing. Source: Nomad documentation, runtime variable interpolation and `dispatch_payload`.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.dev.simulator.constraints import value_of
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.records import Allocation
from worker.dev.simulator.state import Node
from worker.dev.simulator.tasks import StartFailed, StartFailure

_VARIABLE = re.compile(r"\$\{([^}]+)\}")
_ENV_INDEX = re.compile(r"""^env\[["'](.+)["']\]$""")
SCRIPTED = frozenset({"mock_driver"})
"""Drivers whose tasks are no processes and need no folder."""


def environment(
    job: Job, alloc: Allocation, task: Mapping[str, Any], node: Node, directory: Path | None
) -> dict[str, str]:
    """Return the variables Nomad sets for a task, then those of its `env` block, all filled in."""
    base = str(directory) if directory else f"/alloc/{task['Name']}"
    resources = task.get("Resources") or {}
    values = {
        "NOMAD_ALLOC_DIR": f"{base}/alloc",
        "NOMAD_ALLOC_ID": alloc.id,
        "NOMAD_ALLOC_INDEX": alloc.name.rpartition("[")[2].rstrip("]"),
        "NOMAD_ALLOC_NAME": alloc.name,
        "NOMAD_CPU_LIMIT": str(resources.get("CPU", 0)),
        "NOMAD_DC": node.datacenter,
        "NOMAD_GROUP_NAME": alloc.task_group,
        "NOMAD_JOB_ID": job.id,
        "NOMAD_JOB_NAME": job.id,
        "NOMAD_MEMORY_LIMIT": str(resources.get("MemoryMB", 0)),
        "NOMAD_NAMESPACE": job.namespace,
        "NOMAD_REGION": "global",
        "NOMAD_SECRETS_DIR": f"{base}/secrets",
        "NOMAD_SHORT_ALLOC_ID": alloc.id[:8],
        "NOMAD_TASK_DIR": f"{base}/local",
        "NOMAD_TASK_NAME": task["Name"],
    }
    if job.parent_id:
        values["NOMAD_JOB_PARENT_ID"] = job.parent_id
    group_meta = job.spec.groups[alloc.task_group].spec.get("Meta")
    for meta in (job.meta, group_meta, task.get("Meta")):
        for key, value in (meta or {}).items():
            name = re.sub(r"\W", "_", key)
            values[f"NOMAD_META_{name}"] = value
            values[f"NOMAD_META_{name.upper()}"] = value
    for key, value in (task.get("Env") or {}).items():
        values[key] = str(fill_in(value, values, job, node))
    return values


def fill_in(value: Any, env: Mapping[str, str], job: Job, node: Node) -> Any:
    """Return a configuration value with its `${...}` replaced; unknown ones stay as they are."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _lookup(match, env, job, node), value) if "${" in value else value
    if isinstance(value, Mapping):
        return {key: fill_in(item, env, job, node) for key, item in value.items()}
    return [fill_in(item, env, job, node) for item in value] if isinstance(value, list) else value


def _lookup(match: re.Match[str], env: Mapping[str, str], job: Job, node: Node) -> str:
    name = match[1].strip()
    if name in env:
        return env[name]
    if index := _ENV_INDEX.match(name):
        return env.get(index[1], match[0])
    if name.startswith("meta."):
        # A job's own meta is not meant here in Nomad, but the node's; a job's is a convenience.
        found = value_of(match[0], node)
        return found if found is not None else (job.meta or {}).get(name[5:], match[0])
    found = value_of(match[0], node)
    return match[0] if found is None else found


def prepare_folder(directory: Path, job: Job, task: Mapping[str, Any]) -> None:
    """Make a task's folder, with the dispatch payload in it."""
    local = directory / "local"
    for folder in (local, directory / "alloc", directory / "secrets"):
        folder.mkdir(parents=True, exist_ok=True)
    dispatch_payload = task.get("DispatchPayload") or {}
    if dispatch_payload.get("File") and job.payload:
        target = local / dispatch_payload["File"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(job.payload)


def fetch_artifacts(directory: Path | None, task: Mapping[str, Any]) -> None:
    """Copy a task's artifacts from this machine.

    Raises:
        StartFailed: the source is no file here; the simulator downloads nothing.
    """
    for artifact in task.get("Artifacts") or ():
        source = artifact.get("GetterSource", "")
        path = Path(source.removeprefix("file://"))
        if not path.is_file():
            problem = f'failed to download artifact "{source}": the simulator only copies local files'
            failure: StartFailure = "Failed Artifact Download"
            raise StartFailed(failure, problem, recoverable=True)
        if directory is not None:
            target = directory / (artifact.get("RelativeDest") or "local")
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
