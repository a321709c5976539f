"""Events and reads come together to one snapshot."""

import msgspec

from tests.core.stories import JOB_ID, allocation, ended, evaluation, job, ran, running, snapshot
from worker.core.gather import merge, replace_with
from worker.core.model import Verdict
from worker.core.observed import Snapshot

EMPTY = Snapshot(job_id=JOB_ID)


def test_an_older_version_changes_nothing_and_gives_the_same_snapshot_back() -> None:
    known = merge(
        EMPTY, job=job("dead", modified=20), allocations=[allocation(modified=20)], evaluations=[evaluation()]
    )

    again = merge(
        known,
        job=job("running", modified=19),
        allocations=[allocation(client="running", modified=19), allocation(modified=20)],
        evaluations=[evaluation(modified=11), evaluation()],
    )

    assert again is known


def test_a_newer_version_replaces_what_is_known() -> None:
    known = merge(EMPTY, job=job("running", modified=15), allocations=[allocation(client="running")])

    merged = merge(known, job=job("dead", modified=20), allocations=[allocation(modified=21)])

    assert merged.job is not None
    assert merged.job.status == "dead"
    assert merged.allocations["08bd7328-0000"].client_status == "complete"
    assert known.allocations["08bd7328-0000"].client_status == "running"


def test_of_two_versions_of_a_job_under_one_index_the_living_one_wins() -> None:
    # Measured: stopping a dead job is announced as dead and as pending, both under one index.
    pending = job("pending", stop=True, modified=154)
    dead = msgspec.structs.replace(job("dead", stop=True, modified=154), status_description="any text")

    assert merge(merge(EMPTY, job=dead), job=pending) == merge(merge(EMPTY, job=pending), job=dead)
    assert merge(merge(EMPTY, job=pending), job=dead).job == pending


def test_a_deletion_is_remembered_and_what_was_known_stays() -> None:
    known = merge(EMPTY, job=job("running"), allocations=[allocation(client="running")])

    purged = merge(known, deleted=True)

    assert purged == msgspec.structs.replace(known, purged=True)
    assert merge(purged, deleted=True) is purged
    assert merge(purged, job=job("dead", modified=99)).purged


def test_a_snapshot_that_an_event_changed_is_no_longer_whole() -> None:
    read = snapshot(job("running", modified=15), [allocation(client="running", modified=15)])

    assert merge(read, allocations=[allocation(client="running", modified=14)]).whole
    assert not merge(read, allocations=[allocation(modified=16)]).whole


def test_a_read_is_the_truth_about_what_events_told_wrongly_or_not_at_all() -> None:
    # A feed was cut: an allocation and the end of the job were missed, an evaluation was collected since.
    known = merge(
        EMPTY,
        job=job("running", modified=12),
        evaluations=[evaluation("node-update", "pending", modified=13)],
    )
    read = snapshot(job("dead", modified=20), [ended(Verdict.SUCCEEDED)])

    assert replace_with(read, known) == read


def test_what_an_event_told_while_the_read_was_under_way_is_kept() -> None:
    read = snapshot(job("running", modified=15), [allocation({"main": running()}, "running", modified=15)])
    known = merge(EMPTY, job=job("dead", modified=20), allocations=[allocation({"main": ran()}, modified=20)])

    taken = replace_with(read, known)

    assert taken.job == job("dead", modified=20)
    assert taken.allocations["08bd7328-0000"].client_status == "complete"
    assert not taken.whole


def test_an_object_that_came_after_the_read_is_kept() -> None:
    read = snapshot(job("pending", modified=15), [ended(Verdict.FAILED)])
    followup = evaluation("alloc-reschedule", "pending", created=30, modified=30)

    taken = replace_with(read, merge(EMPTY, evaluations=[followup]))

    assert followup.id in taken.evaluations
    assert not taken.whole


def test_a_list_stub_gets_back_the_link_that_the_full_allocation_had() -> None:
    full = allocation(id="new", previous="old", modified=20)
    stub = allocation(id="new", modified=20)

    taken = replace_with(snapshot(job("dead"), [stub]), merge(EMPTY, allocations=[full]))

    assert taken.allocations["new"].previous_allocation == "old"
    assert taken.whole


def test_a_job_that_is_gone_keeps_what_was_known_of_it() -> None:
    known = snapshot(job("dead"), [ended(Verdict.FAILED)])
    gone = Snapshot(job_id=JOB_ID, gone=True, whole=True)

    assert replace_with(gone, known) == msgspec.structs.replace(known, gone=True)


def test_a_read_keeps_that_the_job_was_deleted() -> None:
    known = merge(EMPTY, deleted=True)

    assert replace_with(snapshot(job("running")), known).purged


def test_a_job_found_again_is_not_gone() -> None:
    # A server that lags behind may answer 404 once.
    known = replace_with(Snapshot(job_id=JOB_ID, gone=True, whole=True), merge(EMPTY, job=job("running")))

    assert not replace_with(snapshot(job("running")), known).gone
