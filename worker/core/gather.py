"""Merges what events and API reads tell of one dispatched job into one snapshot, in whatever order it comes.

Decides nothing about how the job ended, and knows nothing of streams or requests.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from worker.core.observed import Allocation, Evaluation, Job, Snapshot

_Object = TypeVar("_Object", Job, Evaluation, Allocation)
_Listed = TypeVar("_Listed", Evaluation, Allocation)


def merge(
    snapshot: Snapshot,
    *,
    job: Job | None = None,
    deleted: bool = False,
    evaluations: Iterable[Evaluation] = (),
    allocations: Iterable[Allocation] = (),
) -> Snapshot:
    """Apply what an event tells; the same events in any order, repeated or not, give the same snapshot.

    Args:
        snapshot: what is known so far.
        job: the job as told; also with `deleted`, where its status tells a purge of a running job from the
            garbage collection of a dead one. Nomad announces both alike.
        deleted: the job was deleted.
        evaluations: evaluations of this job.
        allocations: allocations of this job.

    Returns:
        The new snapshot, or the one given, itself, where nothing is new. A changed snapshot is not `whole`:
        nobody can say what else changed since the read.
    """
    merged_job = job if snapshot.job is None else snapshot.job if job is None else _later(snapshot.job, job)
    merged_evaluations = _merge_all(snapshot.evaluations, evaluations)
    merged_allocations = _merge_all(snapshot.allocations, allocations)
    purged = snapshot.purged or deleted
    if (
        merged_job is snapshot.job
        and merged_evaluations is snapshot.evaluations
        and merged_allocations is snapshot.allocations
        and purged == snapshot.purged
    ):
        return snapshot
    return Snapshot(
        job_id=snapshot.job_id,
        job=merged_job,
        gone=snapshot.gone,
        purged=purged,
        evaluations=merged_evaluations,
        allocations=merged_allocations,
    )


def replace_with(read: Snapshot, known: Snapshot) -> Snapshot:
    """Take an API read as the truth, save for what events told after it was made.

    Args:
        read: from the API; `gone` where Nomad answered 404.
        known: what was known when the answer came: events may have been merged while it was under way.

    Returns:
        What was known, with `gone`, where the read found nothing. Else the read, with the links between
        allocations that list stubs lack; objects that an event told a later version of keep that version,
        and the snapshot is then not `whole`.
    """
    if read.gone:
        return msgspec.structs.replace(known, gone=True)
    job = read.job
    if job is None or (known.job is not None and known.job.modify_index > job.modify_index):
        job = known.job
    job_index = read.job.modify_index if read.job is not None else 0
    linked = {key: _linked(told, known.allocations.get(key)) for key, told in read.allocations.items()}
    evaluations = _overlay(read.evaluations, known.evaluations, job_index)
    allocations = _overlay(linked, known.allocations, job_index)
    later = (
        job is not read.job
        or any(read.evaluations.get(key) is not held for key, held in evaluations.items())
        or any(linked.get(key) is not held for key, held in allocations.items())
    )
    return Snapshot(
        job_id=read.job_id,
        job=job,
        purged=known.purged,
        evaluations=evaluations,
        allocations=allocations,
        whole=read.whole and not later,
    )


def _later(held: _Object, told: _Object) -> _Object:
    if told.modify_index != held.modify_index:
        return told if told.modify_index > held.modify_index else held
    if told == held:
        return held
    # Nomad sends two versions of a job under one index when a dead job is stopped: dead, then pending.
    # The one that ends nothing wins, then the fuller one, so that the order of arrival does not matter.
    return max(held, told, key=_rank)


def _rank(told: Job | Evaluation | Allocation) -> tuple[bool, int, bytes]:
    alive = isinstance(told, Job) and told.status != "dead"
    encoded = msgspec.json.encode(told, order="deterministic")
    return alive, len(encoded), encoded


def _merge_all(held: Mapping[str, _Listed], told: Iterable[_Listed]) -> Mapping[str, _Listed]:
    merged: dict[str, _Listed] | None = None
    for one in told:
        current = (held if merged is None else merged).get(one.id)
        later = one if current is None else _later(current, one)
        if later is not current:
            # A job holds one or two of each as a rule: copying is cheaper than anything cleverer.
            merged = dict(held) if merged is None else merged
            merged[one.id] = later
    return held if merged is None else merged


def _overlay(
    read: Mapping[str, _Listed], known: Mapping[str, _Listed], job_index: int
) -> Mapping[str, _Listed]:
    """The read objects, with later versions and later objects that events told.

    The job is read before the lists: an object no later than the job, or than anything listed with it, that
    the list lacks was garbage-collected.
    """
    horizon = max((one.modify_index for one in read.values()), default=0)
    horizon = max(horizon, job_index)
    overlaid = dict(read)
    for key, held in known.items():
        told = read.get(key)
        if held.modify_index > (horizon if told is None else told.modify_index):
            overlaid[key] = held
    return overlaid


def _linked(told: Allocation, known: Allocation | None) -> Allocation:
    if known is None or told.previous_allocation or not known.previous_allocation:
        return told
    return msgspec.structs.replace(told, previous_allocation=known.previous_allocation)
