"""Recorded outcomes of a real Nomad as snapshots: from the API reads, and from the event stream."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from worker.core.frames import decode
from worker.core.gather import merge
from worker.core.observed import Allocation, Evaluation, Job, Snapshot, TaskState

FOLDER = Path(__file__).parents[1] / "data" / "nomad-transcripts"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"04-outcome-{name}.json").read_text())
    return found


def child(name: str) -> str:
    for entry in load(name)["exchanges"]:
        if "DispatchedJobID" in (entry.get("response", {}).get("json") or {}):
            return str(entry["response"]["json"]["DispatchedJobID"])
    raise AssertionError(name)


def read(name: str, when: str = "final") -> Snapshot:
    """What the API showed at the moment that the transcript's notes call `when`."""
    job_id = child(name)
    job: Job | None = None
    evaluations: list[Evaluation] = []
    allocations: list[Allocation] = []
    for entry in load(name)["exchanges"]:
        if "request" not in entry or not entry["note"].startswith(when):
            continue
        path, body = unquote(entry["request"]["path"]), entry["response"].get("json")
        if path == f"/v1/job/{job_id}" and entry["response"]["status"] == 200:
            job = msgspec.convert(body, Job)
        elif path.endswith("/evaluations"):
            evaluations = msgspec.convert(body, list[Evaluation])
        elif path.endswith("/allocations"):
            allocations = msgspec.convert(body, list[Allocation])
    return Snapshot(
        job_id=job_id,
        job=job,
        gone=job is None,
        evaluations={one.id: one for one in evaluations},
        allocations={one.id: one for one in allocations},
        whole=True,
    )


Update = dict[str, Any]
"""Keyword arguments of `merge`: what one event tells."""


def events(name: str) -> Iterator[Update]:
    """The recorded events of the job.

    The transcripts keep of each event only the statuses and the names of the task events. What never changes
    over an object's life (the job's groups, an allocation's name, a task event once it was there) is taken
    from the last read; so nothing is told before the recorded stream told it.
    """
    job_id, last = child(name), read(name)
    for frame in load(name)["event_frames_summary"]:
        for told in frame["Events"]:
            if told["Topic"] == "Job" and told["Key"] == job_id:
                groups = last.job.task_groups if last.job is not None else None
                job = Job(
                    id=job_id,
                    type=last.job.type if last.job is not None else "",
                    status=told["Status"],
                    stop=told.get("Stop", False),
                    task_groups=groups,
                    modify_index=frame["Index"],
                )
                yield {"job": job, "deleted": told.get("Deleted", False)}
            elif told["Topic"] == "Evaluation" and told["JobID"] == job_id:
                yield {"evaluations": [_evaluation(told, frame["Index"])]}
            elif told["Topic"] == "Allocation" and told["JobID"] == job_id:
                yield {"allocations": [_allocation(told, frame["Index"], last)]}


def full_life() -> Iterator[Update]:
    """A job's complete events, decoded as the worker decodes them: dispatched, run, and purged when done."""
    text = (FOLDER / "05-event-stream-full-life.json").read_text()
    for entry in json.loads(text)["exchanges"]:
        if "frame" not in entry:
            continue
        frame = decode(json.dumps(entry["frame"]).encode(), lambda _: True)
        yield from ({"job": job} for job in frame.jobs)
        yield from ({"deleted": True} for _ in frame.deleted)
        yield {"evaluations": frame.evaluations, "allocations": frame.allocations}


def gathered(name: str) -> Snapshot:
    """All that the recorded events told in the end."""
    known = Snapshot(job_id=child(name))
    for update in events(name):
        known = merge(known, **update)
    return known


def _evaluation(told: dict[str, Any], index: int) -> Evaluation:
    return Evaluation(
        id=told["Key"],
        job_id=told["JobID"],
        triggered_by=told["TriggeredBy"],
        status=told["Status"],
        wait_until=told.get("WaitUntil"),
        modify_index=index,
    )


def _allocation(told: dict[str, Any], index: int, last: Snapshot) -> Allocation:
    final = last.allocations.get(told["Key"], Allocation(id=told["Key"], create_index=index))
    states = {}
    for task, short in (told.get("TaskStates") or {}).items():
        lasting = (final.task_states or {}).get(task, TaskState())
        seen = lasting.events or []
        names = [one.type for one in seen]
        # Nomad keeps the latest ten events: the recorded names are somewhere within them, in order.
        shown = seen[: len(short["Events"])] if names[: len(short["Events"])] == short["Events"] else seen
        states[task] = msgspec.structs.replace(
            lasting,
            state=short["State"],
            failed=short["Failed"],
            restarts=short["Restarts"],
            events=shown,
        )
    return msgspec.structs.replace(
        final,
        client_status=told["ClientStatus"],
        client_description=told.get("ClientDescription", ""),
        desired_status=told["DesiredStatus"],
        desired_description=told.get("DesiredDescription", ""),
        next_allocation=told.get("NextAllocation", ""),
        followup_eval_id=told.get("FollowupEvalID", ""),
        task_states=states or None,
        modify_index=index,
    )
