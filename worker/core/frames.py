"""Reads one line of Nomad's event stream into the jobs, evaluations and allocations it tells about.

Knows nothing of connections, and decides nothing about what an event means.

Events of jobs that nobody here waits for cost a scan or a skip, never a full decode. Source: Nomad HTTP API,
GET /v1/event/stream.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from worker.core.observed import Allocation, Evaluation, Job, Observed

CHILD_MARK = b"/dispatch-"
"""Stands in every dispatched job's ID: a line without it tells about none."""

_INDEX_LAST = re.compile(rb'"Index"\s*:\s*(\d{1,20})\s*\}\s*\Z')
_INDEX_FIRST = re.compile(rb'\s*\{\s*"Index"\s*:\s*(\d{1,20})\s*,')
_TAIL_BYTES = 64
"""Nomad writes its keys in order of the alphabet, so the frame's own index ends the line."""

_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of an event stream, with the events of jobs the reader asked for."""

    index: int
    """Nomad's raft index, the same on several frames of one write. 0: a heartbeat, or not readable."""
    jobs: Sequence[Job] = ()
    deleted: Sequence[str] = ()
    """IDs of jobs that were purged or garbage-collected; as they last were, they stand in `jobs` too."""
    evaluations: Sequence[Evaluation] = ()
    allocations: Sequence[Allocation] = ()
    incomplete: bool = False
    """The line was too long or not understood, at least in part: what it told is lost, so sweep."""

    @property
    def heartbeat(self) -> bool:
        """Whether the line was `{}`."""
        return self.index == 0 and not self.incomplete


HEARTBEAT = Frame(index=0)


class _Event(Observed, frozen=True):
    topic: str = ""
    key: str = ""
    filter_keys: list[str] | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class _Line(Observed, frozen=True):
    index: int = 0
    events: list[_Event] | None = None


class _JobPayload(Observed, frozen=True):
    job: Job
    deleted: bool = False


class _EvaluationPayload(Observed, frozen=True):
    evaluation: Evaluation


class _AllocationPayload(Observed, frozen=True):
    allocation: Allocation


_LINE = msgspec.json.Decoder(_Line)
_JOB = msgspec.json.Decoder(_JobPayload)
_EVALUATION = msgspec.json.Decoder(_EvaluationPayload)
_ALLOCATION = msgspec.json.Decoder(_AllocationPayload)


def decode(line: bytes, wanted: Callable[[str], bool]) -> Frame:
    """Read one line.

    Args:
        line: one JSON object, with or without the line's end.
        wanted: asked with the ID of each dispatched job the line tells about; events of the others are
            dropped undecoded.

    Returns:
        The frame. A line or event that cannot be read gives an `incomplete` frame and no exception, with
        the index as far as it can be found.
    """
    if line.rstrip() == b"{}":
        return HEARTBEAT
    if CHILD_MARK not in line and (index := _index(line, line)):
        return Frame(index)
    try:
        whole = _LINE.decode(line)
    except _UNDECODABLE:
        return Frame(_index(line, line), incomplete=True)
    jobs: list[Job] = []
    deleted: list[str] = []
    evaluations: list[Evaluation] = []
    allocations: list[Allocation] = []
    incomplete = bool(whole.events) and not whole.index
    for event in whole.events or ():
        if not _concerns(event, wanted):
            continue
        try:
            match event.topic:
                case "Job":
                    told = _JOB.decode(event.payload)
                    jobs.append(told.job)
                    if told.deleted:
                        deleted.append(told.job.id)
                case "Evaluation":
                    evaluations.append(_EVALUATION.decode(event.payload).evaluation)
                case "Allocation":
                    allocations.append(_ALLOCATION.decode(event.payload).allocation)
                case _:
                    continue
        except _UNDECODABLE:
            incomplete = True
    return Frame(whole.index, tuple(jobs), tuple(deleted), tuple(evaluations), tuple(allocations), incomplete)


def oversize(head: bytes, tail: bytes) -> Frame:
    """The frame for a line too long to be kept.

    Args:
        head: the line's first bytes.
        tail: the line's last bytes.
    """
    return Frame(_index(head, tail), incomplete=True)


def _index(head: bytes, tail: bytes) -> int:
    """The frame's own index without decoding the line; 0 where it does not stand at either end."""
    found = _INDEX_LAST.search(tail, max(0, len(tail) - _TAIL_BYTES)) or _INDEX_FIRST.match(head)
    return int(found[1]) if found else 0


def _concerns(event: _Event, wanted: Callable[[str], bool]) -> bool:
    # The first filter key of an evaluation or allocation is its job's ID; a job's event has only its key.
    job_id = event.key if event.topic == "Job" else next(iter(event.filter_keys or ()), "")
    return bool(job_id) and wanted(job_id)
