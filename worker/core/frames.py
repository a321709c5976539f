"""Reads one line of Nomad's event stream into the jobs, evaluations and allocations it tells about.

Knows nothing of connections, and decides nothing about what an event means.

Events of jobs that nobody here waits for cost a scan or a skip, seldom a full decode. Source: Nomad HTTP API,
GET /v1/event/stream.
"""

import re
from collections.abc import Callable, Sequence

import msgspec

from worker.core.observed import Allocation, Evaluation, Job, Observed

CHILD_MARK = b"/dispatch-"
"""Stands in every dispatched job's ID: a line without it tells about none."""

_INDEX_LAST = re.compile(rb'"Index"\s*:\s*(\d{1,20})\s*\}\s*\Z')
_INDEX_FIRST = re.compile(rb'\s*\{\s*"Index"\s*:\s*(\d{1,20})\s*,')
_TAIL_BYTES = 64
"""Nomad writes its keys in order of the alphabet, so the frame's own index ends the line."""

_TOPICS = frozenset({"Job", "Evaluation", "Allocation"})
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Frame(msgspec.Struct, frozen=True):
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


class _Payload(Observed, frozen=True):
    """Of whichever topic: each has one of these."""

    job: Job | None = None
    deleted: bool = False
    evaluation: Evaluation | None = None
    allocation: Allocation | None = None


class _Head(Observed, frozen=True):
    topic: str = ""
    key: str = ""
    filter_keys: list[str] | None = None


class _Event(_Head, frozen=True):
    payload: _Payload = _Payload()


class _RawEvent(_Head, frozen=True):
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class _Line(Observed, frozen=True):
    index: int = 0
    events: list[_Event] | None = None


class _RawLine(Observed, frozen=True):
    index: int = 0
    events: list[_RawEvent] | None = None


_LINE = msgspec.json.Decoder(_Line)
_RAW_LINE = msgspec.json.Decoder(_RawLine)
_PAYLOAD = msgspec.json.Decoder(_Payload)


def decode(line: bytes, wanted: Callable[[str], bool]) -> Frame:
    """Read one line.

    Args:
        line: one JSON object, with or without the line's end.
        wanted: asked with the ID of each dispatched job the line tells about; events of the others are
            dropped.

    Returns:
        The frame. A line or event that cannot be read gives an `incomplete` frame and no exception, with
        the index as far as it can be found.
    """
    if line.rstrip() == b"{}":
        return HEARTBEAT
    at = line.find(CHILD_MARK)
    if at < 0 and (index := _index(line, line)):
        return Frame(index)
    if at < 0 or not _begins_with_wanted(line, at, wanted):
        return _decode_one_by_one(line, wanted)
    try:
        whole = _LINE.decode(line)
    except _UNDECODABLE:
        return _decode_one_by_one(line, wanted)
    told = [(event.topic, event.payload) for event in whole.events or () if _concerns(event, wanted)]
    return _frame(whole, told)


def _begins_with_wanted(line: bytes, at: int, wanted: Callable[[str], bool]) -> bool:
    """Whether the first dispatched job in the line, whose mark is at `at`, is wanted.

    Only a hint: then most of the line is, and to decode it at once is the faster way; else the slower one.
    """
    job_id = line[line.rfind(b'"', 0, at) + 1 : line.find(b'"', at)]
    return wanted(job_id.decode(errors="replace"))


def _decode_one_by_one(line: bytes, wanted: Callable[[str], bool]) -> Frame:
    """Payloads of unwanted events are skipped, and one that cannot be read is no loss to the others."""
    try:
        whole = _RAW_LINE.decode(line)
    except _UNDECODABLE:
        return Frame(_index(line, line), incomplete=True)
    told, broken = [], False
    for event in whole.events or ():
        if not _concerns(event, wanted):
            continue
        try:
            told.append((event.topic, _PAYLOAD.decode(event.payload)))
        except _UNDECODABLE:
            broken = True
    return _frame(whole, told, incomplete=broken)


def _frame(
    line: _Line | _RawLine, events: Sequence[tuple[str, _Payload]], *, incomplete: bool = False
) -> Frame:
    """The frame of a line, with topic and payload of the events that concern the reader."""
    incomplete = incomplete or (bool(line.events) and not line.index)
    jobs: list[Job] = []
    deleted: list[str] = []
    evaluations: list[Evaluation] = []
    allocations: list[Allocation] = []
    for topic, told in events:
        if topic == "Job" and told.job is not None:
            jobs.append(told.job)
            if told.deleted:
                deleted.append(told.job.id)
        elif topic == "Evaluation" and told.evaluation is not None:
            evaluations.append(told.evaluation)
        elif topic == "Allocation" and told.allocation is not None:
            allocations.append(told.allocation)
        else:
            incomplete = True
    return Frame(line.index, tuple(jobs), tuple(deleted), tuple(evaluations), tuple(allocations), incomplete)


def oversize(head: bytes, tail: bytes) -> Frame:
    """The frame for a line too long to be kept.

    Args:
        head: the line's first bytes.
        tail: the line's last bytes.
    """
    return Frame(_index(head, tail), incomplete=True)


def _index(head: bytes, tail: bytes) -> int:
    """The frame's own index without decoding the line; 0 where it does not stand at either end."""
    at = tail.rfind(b'"Index"', -_TAIL_BYTES)
    found = (_INDEX_LAST.match(tail, at) if at >= 0 else None) or _INDEX_FIRST.match(head)
    return int(found[1]) if found else 0


def _concerns(event: _Head, wanted: Callable[[str], bool]) -> bool:
    if event.topic not in _TOPICS:
        return False
    # The first filter key of an evaluation or allocation is its job's ID; a job's event has only its key.
    job_id = event.key if event.topic == "Job" else next(iter(event.filter_keys or ()), "")
    return bool(job_id) and wanted(job_id)
