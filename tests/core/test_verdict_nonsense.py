"""Whatever Nomad could say, however little sense it makes, is gathered and judged without an error."""

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.core.stories import FINISHED_AT, JOB_ID, STARTED_AT
from worker.core.gather import merge, replace_with
from worker.core.observed import (
    Allocation,
    AllocMetric,
    DesiredTransition,
    Evaluation,
    Job,
    Lifecycle,
    RescheduleEvent,
    RescheduleTracker,
    Snapshot,
    Task,
    TaskEvent,
    TaskGroup,
    TaskState,
)
from worker.core.verdict import Ongoing, judge

_stopping = st.sampled_from(["", "timed_out", "cancelled", "unplaced"])
_word = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["dead", "running", "pending", "complete", "failed", "lost", "unknown", "stop", "evict", "blocked"]
    ),
)
_kind = st.one_of(
    st.sampled_from(["Started", "Terminated", "Killing", "Killed", "Restarting"]), st.text(max_size=4)
)
_int = st.integers(-(2**63), 2**63 - 1)
_time = st.one_of(
    st.none(), st.text(max_size=8), st.sampled_from([STARTED_AT, FINISHED_AT, "0001-01-01T00:00:00Z"])
)


def _maybe_dict(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Mapping[str, Any] | None]:
    return st.one_of(st.none(), st.dictionaries(_word, values, max_size=3))


def _maybe_list(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any] | None]:
    return st.one_of(st.none(), st.lists(values, max_size=3))


_wild_event = st.builds(
    TaskEvent,
    type=_kind,
    time=_int,
    display_message=_word,
    message=_word,
    exit_code=_int,
    signal=_int,
    fails_task=st.booleans(),
    details=_maybe_dict(st.one_of(_word, _int.map(str))),
)
_wild_state = st.builds(
    TaskState,
    state=_word,
    failed=st.booleans(),
    restarts=_int,
    started_at=_time,
    finished_at=_time,
    events=_maybe_list(_wild_event),
)
_wild_task = st.builds(
    Task,
    name=_word,
    lifecycle=st.one_of(st.none(), st.builds(Lifecycle, hook=_word, sidecar=st.booleans())),
    leader=st.booleans(),
)
_wild_job = st.builds(
    Job,
    id=_word,
    type=_word,
    status=_word,
    stop=st.booleans(),
    task_groups=_maybe_list(
        st.builds(TaskGroup, name=_word, count=st.integers(-1, 3), tasks=_maybe_list(_wild_task))
    ),
    submit_time=_int,
    modify_index=st.integers(0, 9),
)
_counts = _maybe_dict(_int)
_wild_metric = st.builds(
    AllocMetric,
    nodes_evaluated=_int,
    nodes_available=_counts,
    constraint_filtered=_counts,
    class_filtered=_counts,
    dimension_exhausted=_counts,
    quota_exhausted=_maybe_list(_word),
    nodes_exhausted=_int,
)
_wild_evaluation = st.builds(
    Evaluation,
    id=_word,
    triggered_by=_word,
    status=_word,
    wait_until=st.one_of(st.none(), _word),
    failed_tg_allocs=_maybe_dict(_wild_metric),
    modify_index=st.integers(0, 9),
)
_wild_tracker = st.builds(
    RescheduleTracker, events=_maybe_list(st.builds(RescheduleEvent, reschedule_time=_int, delay=_int))
)
_wild_allocation = st.builds(
    Allocation,
    id=_word,
    name=_word,
    task_group=_word,
    node_id=_word,
    node_name=_word,
    client_status=_word,
    client_description=_word,
    desired_status=_word,
    desired_description=_word,
    desired_transition=st.one_of(st.none(), st.builds(DesiredTransition, migrate=st.booleans())),
    task_states=_maybe_dict(_wild_state),
    next_allocation=_word,
    previous_allocation=_word,
    followup_eval_id=_word,
    preempted_by_allocation=_word,
    reschedule_tracker=st.one_of(st.none(), _wild_tracker),
    create_index=st.integers(0, 9),
    modify_index=st.integers(0, 9),
    create_time=_int,
    modify_time=_int,
)


@given(
    st.one_of(st.none(), _wild_job),
    st.lists(_wild_evaluation, max_size=3),
    st.lists(_wild_allocation, max_size=3),
    st.booleans(),
    st.booleans(),
    _stopping,
    st.booleans(),
)
def test_nothing_that_nomad_could_say_makes_judging_or_gathering_fail(
    job: Job | None,
    evaluations: list[Evaluation],
    allocations: list[Allocation],
    gone: bool,  # noqa: FBT001
    read: bool,  # noqa: FBT001
    stopping: str,
    grace_over: bool,  # noqa: FBT001
) -> None:
    known = merge(Snapshot(job_id=JOB_ID), job=job, evaluations=evaluations, allocations=allocations)
    known = msgspec.structs.replace(known, gone=gone, whole=read)

    finding = judge(replace_with(known, known), stopping=stopping, grace_over=grace_over)

    data = finding.data if isinstance(finding, Ongoing) else finding.outcome.evidence
    assert msgspec.json.decode(msgspec.json.encode(data)) == data
