"""The story of one child as its events tell it, in a form that two runs of different length share."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOLD = ("Status", "TriggeredBy", "StatusDescription", "ClientStatus", "ClientDescription")
_TOLD_OF_ALLOCS = ("DesiredStatus", "DesiredDescription", "Timeout", "TimeoutReason")
_LINKS_OF_EVALS = ("BlockedEval", "PreviousEval", "WaitUntil")
_LINKS_OF_ALLOCS = ("NextAllocation", "PreviousAllocation", "FollowupEvalID")


def flat(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event of the stream with its payload's fields beside its own, as the transcripts summarise it."""
    payload = event["Payload"]
    topics = [topic for topic in ("Job", "Evaluation", "Allocation") if topic in payload]
    shown: dict[str, Any] = payload[topics[0]] if topics else {}
    extra = {key: value for key, value in payload.items() if not isinstance(value, dict)}
    return {**shown, **extra, "Topic": event["Topic"], "Type": event["Type"], "Key": event["Key"]}


def told(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an event says, without IDs, indexes and times."""
    fields = _TOLD + (_TOLD_OF_ALLOCS if event["Topic"] == "Allocation" else ())
    words = [_UUID.sub("<id>", str(event.get(field) or "")) for field in fields]
    links = [link for link in (*_LINKS_OF_EVALS, *_LINKS_OF_ALLOCS) if event.get(link)]
    groups = [sorted(event.get(field) or ()) for field in ("QueuedAllocations", "FailedTGAllocs")]
    return (event["Topic"], event["Type"], bool(event.get("Deleted")), *words, links, *groups)


def server_story(frames: Iterable[Mapping[str, Any]], job_id: str) -> list[list[tuple[Any, ...]]]:
    """The frames the servers made by themselves, in order."""
    story = []
    for frame in frames:
        events = [event for event in frame["Events"] if job_id in {event["Key"], event.get("JobID")}]
        if events and events[0]["Type"] != "AllocationUpdated":
            story.append([_without_client(told(event), event) for event in events])
    return story


def _without_client(words: tuple[Any, ...], event: Mapping[str, Any]) -> tuple[Any, ...]:
    """Leave out what a client said last: whether `running` was reported in between is chance."""
    if event["Topic"] != "Allocation" or event.get("ClientStatus") not in {"pending", "running"}:
        return words
    return tuple("" if word == event.get("ClientDescription") else word for word in words)


def job_story(frames: Iterable[Mapping[str, Any]], job_id: str) -> list[str]:
    """The statuses the job went through."""
    statuses: list[str] = []
    for frame in frames:
        for event in frame["Events"]:
            status = "deleted" if event.get("Deleted") else event.get("Status", "")
            if event["Topic"] == "Job" and event["Key"] == job_id and statuses[-1:] != [status]:
                statuses.append(status)
    return statuses


def alloc_story(frames: Iterable[Mapping[str, Any]], job_id: str) -> list[list[tuple[str, ...]]]:
    """Per allocation, sorted: the statuses it went through; a client may skip `pending` and `running`."""
    fields = ("ClientStatus", "ClientDescription", "DesiredStatus", "DesiredDescription")
    stories: dict[str, list[tuple[str, ...]]] = {}
    for frame in frames:
        for event in frame["Events"]:
            if event["Topic"] != "Allocation" or event.get("JobID") != job_id:
                continue
            words = tuple(event.get(field, "") for field in fields)
            story = stories.setdefault(event["Key"], [])
            if words[0] not in {"pending", "running"} and story[-1:] != [words]:
                story.append(words)
    return sorted(stories.values())


def combined(frames: Iterable[Mapping[str, Any]], job_id: str) -> list[list[str]]:
    """The topics, and the job's status, of the client frames in which the job changed."""
    found = []
    for frame in frames:
        events = [event for event in frame["Events"] if job_id in {event["Key"], event.get("JobID")}]
        if events and events[0]["Type"] == "AllocationUpdated" and events[-1]["Topic"] == "Job":
            found.append([*sorted({event["Topic"] for event in events}), events[-1]["Status"]])
    return found


def ends(allocations: Iterable[Mapping[str, Any]]) -> list[Any]:
    """How allocations ended, from a read: statuses, and per task its state and the words of its events."""
    fields = ("ClientStatus", "ClientDescription", "DesiredStatus", "DesiredDescription", "TaskGroup")
    links = ("NextAllocation", "FollowupEvalID", "RescheduleTracker")
    found = []
    for alloc in allocations:
        words = [*(alloc[field] for field in fields), alloc["Name"].partition(".")[2]]
        tasks = [[name, *_task(task)] for name, task in sorted((alloc["TaskStates"] or {}).items())]
        found.append((words, [bool(alloc[link]) for link in links], tasks))
    return sorted(found, key=str)


def _task(task: Mapping[str, Any]) -> list[Any]:
    stamps = [bool(task[field]) for field in ("StartedAt", "FinishedAt", "LastRestart")]
    events = [_event(event) for event in task["Events"]]
    return [task["State"], task["Failed"], task["Restarts"], stamps, events]


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    """A task event without its time, and without the random part of a restart's delay."""
    shown = {key: event[key] for key in sorted(event) if event[key] and key != "Time"}
    if "Details" in shown:
        shown["Details"] = dict(sorted(shown["Details"].items()))
    if event["Type"] == "Restarting":
        shown["Details"] = {**shown["Details"], "start_delay": "<delay>"}
        shown["StartDelay"] = 0
        shown["DisplayMessage"] = re.sub(r"in [\d.]+m?s$", "in <delay>", shown["DisplayMessage"])
    return shown
