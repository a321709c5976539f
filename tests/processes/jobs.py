"""Parameterized jobs for tests: scripted tasks, so that a thousand of them cost little."""

from typing import Any

from worker.dev.simulator.jobfile import canonical_job


def scripted(job_id: str) -> dict[str, Any]:
    """A job whose task runs and ends as its meta says: `run_for` (default 200ms), `exit_code` (default 0)."""
    config = {"run_for": "${NOMAD_META_run_for}", "exit_code": "${NOMAD_META_exit_code}"}
    return _job(job_id, "mock_driver", config, {"run_for": "200ms", "exit_code": "0"})


def held(job_id: str) -> dict[str, Any]:
    """A job whose task runs until the file in its meta exists, and ends with the exit code written there."""
    script = 'until [ -e "$NOMAD_META_file" ]; do sleep 0.05; done; exit "$(cat "$NOMAD_META_file")"'
    return _job(job_id, "raw_exec", {"command": "/bin/sh", "args": ["-c", script]}, {"file": ""})


def flaky(job_id: str) -> dict[str, Any]:
    """A job whose task ends with 7 until the file in its meta exists, which it makes; then with 0."""
    script = '[ -e "$NOMAD_META_file" ] && exit 0; touch "$NOMAD_META_file"; exit 7'
    return _job(job_id, "raw_exec", {"command": "/bin/sh", "args": ["-c", script]}, {"file": ""})


def _job(job_id: str, driver: str, config: dict[str, Any], meta: dict[str, str]) -> dict[str, Any]:
    task = {
        "Name": "main",
        "Driver": driver,
        "Config": config,
        "Resources": {"CPU": 1, "MemoryMB": 10},
        "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
    }
    group = {
        "Name": "main",
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
        "EphemeralDisk": {"SizeMB": 10},
        "Tasks": [task],
    }
    return canonical_job(
        {
            "ID": job_id,
            "Type": "batch",
            "Datacenters": ["*"],
            "Meta": meta,
            "ParameterizedJob": {"Payload": "optional", "MetaOptional": sorted(meta)},
            "TaskGroups": [group],
        }
    )
