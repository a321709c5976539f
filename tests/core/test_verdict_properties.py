"""What holds for every story Nomad could tell, in any order, and for nonsense."""

import random
from typing import Any

import msgspec
from hypothesis import assume, event, given
from hypothesis import strategies as st

from tests.core import stories
from tests.core.stories import JOB_ID, MAIN, POSTSTOP, SIDECAR
from worker.core.gather import merge, replace_with
from worker.core.model import Verdict
from worker.core.observed import (
    Allocation,
    Snapshot,
    Task,
    TaskGroup,
)
from worker.core.verdict import Final, judge

# Stories: every part is possible, whether or not they fit together --------------------------------------

LIMIT = "allocation exceeded max_run_duration"
SPECS = (
    stories.group("g", MAIN),
    stories.group("g", MAIN, SIDECAR, POSTSTOP),
    stories.group("g", Task(name="main", leader=True), Task(name="follow")),
    stories.group("g", MAIN, count=2),
)
RESTARTED = stories.state(
    stories.event("Started", 1),
    stories.exited(1, at=2),
    stories.event("Restarting", 2),
    stories.event("Started", 3),
    stories.exited(0, at=4),
    restarts=1,
)
FOLLOWED = st.sampled_from([stories.ran(), stories.killed(because="Leader Task Dead")])
STATES = st.sampled_from(
    [
        *[stories.ran()] * 6,
        stories.ran(1),
        stories.ran(137, 9, oom="true"),
        stories.ran(0, oom="true"),
        stories.ran(-1),
        stories.state(stories.event("Started", 1), stories.exited(2)),
        stories.state(stories.event("Started", 1), stories.exited(0, 15)),
        stories.state(stories.event("Started", 1), stories.exited(0), failed=True),
        stories.state(stories.event("Started", 1), stories.exited(0), now="pending"),
        stories.killed(),
        stories.killed(0, 0),
        stories.killed(said=LIMIT),
        stories.killed(because="Leader Task Dead"),
        stories.killed(because="Main Tasks Dead"),
        stories.killed(because="Sibling Task Failed"),
        stories.running(),
        stories.state(stories.event("Received"), now="pending"),
        RESTARTED,
        stories.state(
            stories.event("Started", 1),
            stories.exited(0, at=2),
            stories.event("Restarting", 2),
            now="pending",
            restarts=1,
        ),
    ]
)
INDEXES = st.integers(10, 25)
IDS = st.sampled_from(["a1", "a2", "a3"])
EVALS = st.sampled_from(["e1", "e2", "e3"])

_jobs = st.builds(
    lambda status, stop, spec, modified, type: stories.job(  # noqa: A006
        status, spec, stop=stop, modified=modified, type=type
    ),
    st.sampled_from(["pending", "running", "dead", "dead", "dead"]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from(SPECS),
    INDEXES,
    st.sampled_from(["batch", "batch", "sysbatch"]),
)
_evaluations = st.builds(
    lambda id, kind, status, modified: stories.evaluation(kind, status, id=id, modified=modified),  # noqa: A006
    EVALS,
    st.sampled_from(
        ["job-register", "job-register", "queued-allocs", "node-update", "alloc-stop", "node-drain"]
    ),
    st.sampled_from(["complete", "complete", "complete", "pending", "blocked", "failed", "canceled"]),
    INDEXES,
)
_allocations = st.builds(
    lambda id, tasks, client, desired, index, said, wanted, next, created, modified, followup: (  # noqa: A006
        stories.allocation(
            tasks,
            client,
            desired,
            id=id,
            index=index,
            said=said,
            wanted=wanted,
            next=next,
            created=created,
            modified=modified,
            followup=followup,
        )
    ),
    IDS,
    st.one_of(
        st.none(), st.fixed_dictionaries({"main": STATES, "side": STATES, "post": STATES, "follow": STATES})
    ),
    st.sampled_from(["complete", "complete", "complete", "failed", "lost", "unknown", "running", "pending"]),
    st.sampled_from(["run", "run", "run", "stop", "evict"]),
    st.integers(0, 1),
    st.sampled_from(["", "", "All tasks have completed", LIMIT]),
    st.sampled_from(["", "", "alloc is being migrated", stories.NOT_NEEDED, stories.NODE_DOWN]),
    st.sampled_from(["", "", "", "", "a2", "unseen"]),
    st.integers(10, 13),
    INDEXES,
    st.sampled_from(["", "", "", "", "e2", "unseen"]),
)
Update = dict[str, Any]
_update = st.one_of(
    _jobs.map(lambda one: {"job": one}),
    _evaluations.map(lambda one: {"evaluations": [one]}),
    _allocations.map(lambda one: {"allocations": [one]}),
    _allocations.map(lambda one: {"allocations": [one]}),
)
# A job that ended well, as a start: what comes on top makes near misses of a success.
_plain: list[Update] = [
    {"job": stories.job("dead", modified=18)},
    {"evaluations": [stories.evaluation(id="e1", modified=12)]},
    {"allocations": [stories.allocation({"main": stories.ran()}, id="a1", modified=18)]},
]
_updates = st.one_of(
    st.lists(_update, max_size=8), st.lists(_update, max_size=2).map(lambda more: [*_plain, *more])
)
_stopping = st.sampled_from(["", "", "timed_out", "cancelled", "unplaced"])


def told(updates: list[Update]) -> Snapshot:
    known = Snapshot(job_id=JOB_ID)
    for update in updates:
        known = merge(known, **update)
    return known


def whole(known: Snapshot) -> Snapshot:
    return msgspec.structs.replace(known, whole=True)


# A success, proven a second time, by other means ------------------------------------------------------------


def is_proven_success(known: Snapshot) -> bool:
    """Whether every task that is the job's work shows, in its last run, exit code 0 and no kill."""
    job = known.job
    if job is None or not job.task_groups:
        return False
    specs = {spec.name: spec for spec in job.task_groups}
    slots: dict[tuple[str, str], list[Allocation]] = {}
    for one in known.allocations.values():
        place = one.node_id if job.type == "sysbatch" else one.name.split("[")[-1].rstrip("]")
        slots.setdefault((one.task_group, place), []).append(one)
    if job.type != "sysbatch":
        wanted = {(spec.name, str(number)) for spec in job.task_groups for number in range(spec.count)}
        if wanted - set(slots):
            return False
    for ones in slots.values():
        standing = [one for one in ones if one.next_allocation == ""]
        if not standing:
            moved = job.type == "sysbatch" and all(one.next_allocation in known.allocations for one in ones)
            if moved:
                continue
            return False
        last = max(standing, key=lambda one: (one.create_index, one.create_time, one.id))
        if last.client_status not in ("complete", "failed") or not _work_done(last, specs[last.task_group]):
            return False
    return bool(slots)


def _work_done(one: Allocation, spec: TaskGroup) -> bool:
    tasks = spec.tasks or []
    work = [task for task in tasks if task.lifecycle is None]
    has_leader = any(task.leader for task in tasks)
    for task in work:
        state = (one.task_states or {}).get(task.name)
        if state is None or state.failed or state.state != "dead":
            return False
        kinds = [happened.type for happened in state.events or []]
        started = len(kinds) - 1 - kinds[::-1].index("Started") if "Started" in kinds else 0
        run = (state.events or [])[started:]
        exits = [happened for happened in run if happened.type == "Terminated"]
        if has_leader and not task.leader and any(happened.type == "Leader Task Dead" for happened in run):
            continue
        if any(happened.type.startswith("Kill") for happened in run) or not exits:
            return False
        end = exits[-1]
        if end.exit_code or end.signal or (end.details or {}).get("oom_killed") == "true":
            return False
    return True


# Properties -------------------------------------------------------------------------------------------------


@given(_updates, st.randoms(use_true_random=False), _stopping, st.booleans())
def test_any_order_and_repetition_of_events_gives_the_same_snapshot_and_finding(
    updates: list[Update],
    chance: random.Random,
    stopping: str,
    grace_over: bool,  # noqa: FBT001
) -> None:
    shuffled = updates + chance.choices(updates, k=len(updates)) if updates else []
    chance.shuffle(shuffled)

    one_way, other_way = told(updates), told(shuffled)

    assert one_way == other_way
    assert judge(one_way, stopping=stopping, grace_over=grace_over) == judge(
        other_way, stopping=stopping, grace_over=grace_over
    )


@given(_updates, _stopping)
def test_what_events_alone_decide_a_read_of_the_same_decides_alike(
    updates: list[Update], stopping: str
) -> None:
    from_events = judge(told(updates), stopping=stopping)
    from_read = judge(whole(told(updates)), stopping=stopping)

    if isinstance(from_events, Final):
        event("decided by events")
        assert from_read == from_events


@given(_updates, st.randoms(use_true_random=False))
def test_a_read_is_judged_alike_whatever_part_of_the_events_was_seen_before(
    updates: list[Update], chance: random.Random
) -> None:
    read = whole(told(updates))
    seen = told([update for update in updates if chance.random() < 0.5])

    assert judge(replace_with(read, seen)) == judge(read)


@given(_updates, _stopping, st.booleans(), st.booleans(), st.booleans())
def test_success_is_never_claimed_unless_every_main_task_exited_0_unkilled(
    updates: list[Update],
    stopping: str,
    grace_over: bool,  # noqa: FBT001
    gone: bool,  # noqa: FBT001
    read: bool,  # noqa: FBT001
) -> None:
    known = msgspec.structs.replace(told(updates), gone=gone, whole=read)

    finding = judge(known, stopping=stopping, grace_over=grace_over)

    if isinstance(finding, Final):
        succeeded = finding.outcome.verdict is Verdict.SUCCEEDED
        event(f"final, succeeded: {succeeded}")
        assert not succeeded or is_proven_success(known)
        assert (finding.outcome.exit_code == 0) == succeeded
        assert (finding.outcome.error_code == "") == succeeded


@given(st.sampled_from(SPECS), st.data())
def test_a_proven_success_of_a_dead_job_is_always_claimed(spec: TaskGroup, data: st.DataObject) -> None:
    well = st.sampled_from([stories.ran(), RESTARTED])
    allocations = []
    for index in range(spec.count):
        one = data.draw(_allocations)
        tasks = dict(one.task_states or {}) | {"main": data.draw(well), "follow": data.draw(FOLLOWED)}
        allocations.append(
            msgspec.structs.replace(
                one,
                id=f"a{index}",
                name=f"{JOB_ID}.g[{index}]",
                client_status=data.draw(st.sampled_from(["complete", "failed"])),
                next_allocation="",
                task_states=tasks,
            )
        )
    known = stories.snapshot(stories.job("dead", spec, stop=data.draw(st.booleans())), allocations)
    waiting = any(one.client_status == "failed" and one.followup_eval_id for one in allocations)

    finding = judge(known, grace_over=True)

    assert is_proven_success(known)
    assert isinstance(finding, Final)
    # A failed allocation about to be tried again when the job was stopped: its work was not over.
    assert finding.outcome.verdict is Verdict.SUCCEEDED or (
        waiting and known.job is not None and known.job.stop
    )


@given(_updates, st.booleans())
def test_no_job_is_final_while_it_lives_or_something_may_revive_it(
    updates: list[Update],
    grace_over: bool,  # noqa: FBT001
) -> None:
    known = whole(told(updates))

    finding = judge(known, grace_over=grace_over)

    if isinstance(finding, Final):
        assert known.job is not None
        assert known.job.status == "dead"
        statuses = {one.status for one in known.evaluations.values()}
        assert known.job.stop or not statuses & {"pending", "blocked"}


@given(_updates, _stopping)
def test_a_job_that_is_gone_is_always_final(updates: list[Update], stopping: str) -> None:
    finding = judge(msgspec.structs.replace(told(updates), gone=True), stopping=stopping)

    assert isinstance(finding, Final)


@given(_updates)
def test_a_dead_job_that_is_not_final_waits_for_its_tasks_or_asks_for_a_read(updates: list[Update]) -> None:
    known = told(updates)
    assume(known.job is not None and known.job.status == "dead")

    finding = judge(known, grace_over=True)

    assert isinstance(finding, Final) or finding.needs_read
