"""The contract of the `Nomad` port, run alike on the simulator and on a real Nomad."""

import asyncio
import base64
from contextlib import aclosing
from urllib.parse import quote

import pytest

from tests.contract.nomad_cluster import HERE, SLEEP, WAIT_SECONDS, Cluster
from tests.frames import one_by_one
from worker.adapters.nomad import client as client_module
from worker.core.frames import Frame
from worker.core.model import Order, Place
from worker.errors import (
    ChildUnknown,
    FeedRefused,
    JobNotParameterized,
    JobStopped,
    JobUnknown,
    MetaMissing,
    MetaUnpermitted,
    NomadRefused,
    PayloadForbidden,
    PayloadOversize,
    PayloadRequired,
    PriorityOutOfRange,
    RegionUnknown,
)
from worker.ports import Nomad

pytestmark = pytest.mark.anyio


# Dispatch -----------------------------------------------------------------------------------------


async def test_a_dispatch_gives_a_child_that_carries_what_was_ordered(cluster: Cluster) -> None:
    parent = await cluster.register()
    order = Order(
        HERE,
        parent,
        "1719999999999-0",
        payload=b"hello",
        meta={"who": "ada"},
        id_prefix="nightly",
        priority=70,
    )

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(order)
        child = await nomad.job(HERE, dispatched.job_id)

    assert dispatched.job_id.startswith(f"{parent}/dispatch-nightly-")
    assert not dispatched.repeated
    assert child
    assert (child.id, child.parent_id) == (dispatched.job_id, parent)
    assert (child.dispatch_idempotency_token, child.type) == ("1719999999999-0", "batch")
    raw = await cluster.ask("GET", f"/v1/job/{quote(dispatched.job_id, safe='')}")
    assert (raw["Priority"], raw["Meta"]) == (70, {"who": "ada"})
    assert base64.b64decode(raw["Payload"]) == b"hello"


async def test_payload_and_meta_reach_the_task_and_its_output_can_be_read(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "1-0", payload=b"hello", meta={"who": "ada"}))
        await cluster.ended(nomad, dispatched.job_id)
        [alloc] = (await nomad.snapshot(HERE, dispatched.job_id)).allocations
        whole = await nomad.logs(HERE, alloc, "main", "stdout", 4096)
        tail = await nomad.logs(HERE, alloc, "main", "stdout", 4)
        errors = await nomad.logs(HERE, alloc, "main", "stderr", 4096)
        with pytest.raises(NomadRefused):
            await nomad.logs(HERE, alloc, "other", "stdout", 4)
        with pytest.raises(ChildUnknown):
            await nomad.logs(HERE, "11111111-2222-3333-4444-555555555555", "main", "stdout", 4)

    assert whole == b"payload: hello\nwho: ada\n"
    assert tail == b"ada\n"
    assert errors == b"to stderr\n"


async def test_every_refusal_has_its_own_name(cluster: Cluster) -> None:
    free = await cluster.register()
    strict = await cluster.register(payload="required", required=("bucket",))
    bare = await cluster.register(payload="forbidden", optional=())
    plain = await cluster.register(parameterized=False, script="true")
    stopped = await cluster.register()
    await cluster.ask("DELETE", f"/v1/job/{stopped}")
    elsewhere = Place("", f"{free}-ns")
    nowhere = Place("mars", "")

    async with cluster.client() as nomad:
        for order, kind in (
            (Order(HERE, f"{free}-unknown", "1-0"), JobUnknown),
            (Order(elsewhere, free, "1-0"), JobUnknown),
            (Order(nowhere, free, "1-0"), RegionUnknown),
            (Order(HERE, plain, "1-0"), JobNotParameterized),
            (Order(HERE, stopped, "1-0"), JobStopped),
            (Order(HERE, bare, "1-0", payload=b"x"), PayloadForbidden),
            (Order(HERE, strict, "1-0", meta={"bucket": "b"}), PayloadRequired),
            (Order(HERE, free, "1-0", payload=b"x" * 16_385), PayloadOversize),
            (Order(HERE, strict, "1-0", payload=b"x", meta={"zzz": "1"}), MetaUnpermitted),
            (Order(HERE, strict, "1-0", payload=b"x"), MetaMissing),
            (Order(HERE, free, "1-0", priority=101), PriorityOutOfRange),
        ):
            with pytest.raises(NomadRefused) as caught:
                await nomad.dispatch(order)
            assert type(caught.value) is kind

        assert await nomad.live_children(HERE, free) == {}


async def test_a_payload_of_exactly_the_limit_is_accepted(cluster: Cluster) -> None:
    parent = await cluster.register(script=SLEEP)

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "1-0", payload=bytes(16_384)))

        assert await nomad.job(HERE, dispatched.job_id)


async def test_a_repeated_token_gives_the_same_child_dead_or_alive_until_it_is_purged(
    cluster: Cluster,
) -> None:
    parent = await cluster.register()
    order = Order(HERE, parent, "1-0")

    async with cluster.client() as nomad:
        first = await nomad.dispatch(order)
        again = await nomad.dispatch(Order(HERE, parent, "1-0", meta={"who": "other"}))
        await cluster.ended(nomad, first.job_id)
        after_its_end = await nomad.dispatch(order)
        other = await nomad.dispatch(Order(HERE, parent, "1-1"))
        await nomad.purge(HERE, first.job_id)
        after_the_purge = await nomad.dispatch(order)

    assert (first.repeated, again.repeated, after_its_end.repeated) == (False, True, True)
    assert first.job_id == again.job_id == after_its_end.job_id
    assert other.job_id != first.job_id
    assert (after_the_purge.repeated, after_the_purge.job_id == first.job_id) == (False, False)


async def test_without_a_token_every_dispatch_is_a_new_child(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with cluster.client() as nomad:
        dispatched = [await nomad.dispatch(Order(HERE, parent, "")) for _ in range(2)]

    assert len({one.job_id for one in dispatched}) == 2


ODD_NAMES = [
    "/sub",
    "/../up",
    "//two",
    "%2fx",
    "%",
    "?a=1&b",
    "#h",
    "+p",
    ";s",
    "ünï",
    "'q'",
    '"dq"',
    "back\\s",
    "`t",
    "<&>",
]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_a_job_with_an_odd_name_is_dispatched_found_and_stopped(cluster: Cluster, name: str) -> None:
    parent = await cluster.register(name, script=SLEEP)
    token = f"t{name}"

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, token))
        child = await nomad.job(HERE, dispatched.job_id)
        assert child
        assert (child.parent_id, child.dispatch_idempotency_token) == (parent, token)
        assert await nomad.find_by_token(HERE, parent, token) == child.id
        assert set(await nomad.live_children(HERE, parent)) == {child.id}

        await nomad.stop(HERE, child.id)

        assert (await cluster.ended(nomad, child.id)).stop


async def test_a_token_that_begins_with_a_slash_is_found(cluster: Cluster) -> None:
    """In a filter, `"/1-0"` would be a path into the datum and match nothing."""
    parent = await cluster.register(script=SLEEP)

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "/1-0"))

        assert await nomad.find_by_token(HERE, parent, "/1-0") == dispatched.job_id


# Finding ------------------------------------------------------------------------------------------


async def test_a_child_is_found_by_its_token_dead_or_alive_and_only_there(cluster: Cluster) -> None:
    parent, other = await cluster.register(), await cluster.register()

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "1-0"))
        alive = await nomad.find_by_token(HERE, parent, "1-0")
        await cluster.ended(nomad, dispatched.job_id)

        assert alive == dispatched.job_id
        assert await nomad.find_by_token(HERE, parent, "1-0") == dispatched.job_id
        assert await nomad.find_by_token(HERE, parent, "1-1") is None
        assert await nomad.find_by_token(HERE, other, "1-0") is None
        assert await nomad.find_by_token(Place("", "nowhere"), parent, "1-0") is None


async def test_live_children_are_those_of_this_parent_that_are_not_dead_on_all_pages(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_JOBS", 2)
    parent = await cluster.register(script=SLEEP)
    neighbour = f"{parent}2"
    cluster.registered.append(neighbour)

    async with cluster.client() as nomad:
        alive = [(await nomad.dispatch(Order(HERE, parent, f"{n}-0"))).job_id for n in range(5)]
        dead = (await nomad.dispatch(Order(HERE, parent, "9-0"))).job_id
        await nomad.stop(HERE, dead)
        await cluster.ended(nomad, dead)

        listed = await nomad.live_children(HERE, parent)
        assert set(listed) == set(alive)
        assert await nomad.live_children(HERE, neighbour) == {}
        # What the list shows of a job that has not changed since is no later than what a read shows.
        for job_id, living in listed.items():
            read = await nomad.snapshot(HERE, job_id)
            indexes = {one.modify_index for one in read.allocations.values()}
            assert living.changed_at <= max(indexes | {one.modify_index for one in read.evaluations.values()})


# Reading ------------------------------------------------------------------------------------------


async def test_a_snapshot_of_a_success_shows_the_exit_code(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "1-0"))
        await cluster.ended(nomad, dispatched.job_id)
        snapshot = await nomad.snapshot(HERE, dispatched.job_id)

    assert (snapshot.whole, snapshot.gone, snapshot.job_id) == (True, False, dispatched.job_id)
    assert snapshot.job
    assert (snapshot.job.status, snapshot.job.stop) == ("dead", False)
    assert dispatched.eval_id in snapshot.evaluations
    assert snapshot.evaluations[dispatched.eval_id].status == "complete"
    [alloc] = snapshot.allocations.values()
    assert (alloc.client_status, alloc.desired_status, alloc.task_group) == ("complete", "run", "group")
    assert alloc.job_id == dispatched.job_id
    assert alloc.name == f"{dispatched.job_id}.group[0]"
    assert alloc.node_name
    assert alloc.create_index
    assert alloc.task_states
    task = alloc.task_states["main"]
    assert (task.state, task.failed) == ("dead", False)
    assert [event.exit_code for event in task.events or () if event.type == "Terminated"] == [0]
    assert snapshot.job.task_groups
    assert [one.name for one in snapshot.job.task_groups[0].tasks or ()] == ["main"]


async def test_a_snapshot_of_a_failure_shows_the_exit_code(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "1-0", meta={"code": "7"}))
        await cluster.ended(nomad, dispatched.job_id)
        snapshot = await nomad.snapshot(HERE, dispatched.job_id)

    [alloc] = snapshot.allocations.values()
    assert alloc.client_status == "failed"
    assert alloc.task_states
    task = alloc.task_states["main"]
    assert task.failed
    assert [event.exit_code for event in task.events or () if event.type == "Terminated"] == [7]


async def test_a_snapshot_of_a_job_that_fits_nowhere_says_why(cluster: Cluster) -> None:
    parent = await cluster.register(constraint="no-such-node")

    async with cluster.client() as nomad:
        dispatched = await nomad.dispatch(Order(HERE, parent, "1-0"))
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                snapshot = await nomad.snapshot(HERE, dispatched.job_id)
                by_status = {one.status: one for one in snapshot.evaluations.values()}
                if {"blocked", "complete"} <= set(by_status):
                    break
                await asyncio.sleep(0.05)

    assert snapshot.job
    assert snapshot.job.status == "pending"
    assert snapshot.allocations == {}
    assert by_status["complete"].blocked_eval == by_status["blocked"].id
    failed = by_status["complete"].failed_tg_allocs
    assert failed
    assert failed["group"].nodes_filtered >= 1
    assert failed["group"].constraint_filtered


async def test_a_stopped_child_stays_readable_and_a_purged_one_is_gone(cluster: Cluster) -> None:
    parent = await cluster.register(script=SLEEP)

    async with cluster.client() as nomad:
        child = (await nomad.dispatch(Order(HERE, parent, "1-0"))).job_id
        await cluster.until(nomad, child, "running")
        await nomad.stop(HERE, child)
        stopped = await cluster.ended(nomad, child)
        await nomad.stop(HERE, child)
        assert await nomad.find_by_token(HERE, parent, "1-0") == child

        await nomad.purge(HERE, child)

        snapshot = await nomad.snapshot(HERE, child)
        assert await nomad.job(HERE, child) is None
        await nomad.stop(HERE, child)
        await nomad.purge(HERE, child)

    assert stopped.stop
    assert (snapshot.gone, snapshot.whole, snapshot.job) == (True, True, None)


# Events -------------------------------------------------------------------------------------------


async def until_dead(nomad: Nomad, index: int, child: str) -> list[Frame]:
    """The frames of a stream up to the one that tells the child's death."""
    frames: list[Frame] = []
    async with (
        asyncio.timeout(WAIT_SECONDS),
        aclosing(one_by_one(nomad.events(HERE, index, child.__eq__))) as feed,
    ):
        async for frame in feed:
            frames.append(frame)
            if any(job.status == "dead" for job in frame.jobs):
                break
    return frames


async def test_the_life_of_one_child_is_told_in_order(cluster: Cluster) -> None:
    parent = await cluster.register()
    frames: list[Frame] = []

    def of_this_parent(job_id: str) -> bool:
        # Events can overtake the dispatch's answer, which names the child.
        return job_id.startswith(f"{parent}/")

    async with (
        cluster.client() as nomad,
        asyncio.timeout(WAIT_SECONDS),
        aclosing(one_by_one(nomad.events(HERE, 0, of_this_parent))) as feed,
    ):
        assert (await anext(feed)).heartbeat
        child = (await nomad.dispatch(Order(HERE, parent, "1-0"))).job_id
        async for frame in feed:
            frames.append(frame)
            if any(job.status == "dead" for job in frame.jobs):
                break

    assert not any(frame.incomplete for frame in frames)
    indexes = [frame.index for frame in frames if frame.index]
    assert indexes == sorted(indexes)
    statuses = [job.status for frame in frames for job in frame.jobs]
    assert (statuses[0], statuses[-1]) == ("pending", "dead")
    assert {job.id for frame in frames for job in frame.jobs} == {child}
    assert {job.dispatch_idempotency_token for frame in frames for job in frame.jobs} == {"1-0"}
    evaluations = [one for frame in frames for one in frame.evaluations]
    assert {one.job_id for one in evaluations} == {child}
    assert (evaluations[0].status, evaluations[-1].status) == ("pending", "complete")
    allocations = [one for frame in frames for one in frame.allocations]
    assert {one.job_id for one in allocations} == {child}
    assert allocations[0].client_status == "pending"
    assert allocations[-1].client_status == "complete"
    states = allocations[-1].task_states
    assert states
    assert [one.exit_code for one in states["main"].events or () if one.type == "Terminated"] == [0]
    # The last allocation and the job's death come together.
    assert frames[-1].allocations == (allocations[-1],)


async def test_a_purge_is_told(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with cluster.client() as nomad, asyncio.timeout(WAIT_SECONDS):
        child = (await nomad.dispatch(Order(HERE, parent, "1-0"))).job_id
        await cluster.ended(nomad, child)
        async with aclosing(one_by_one(nomad.events(HERE, 0, child.__eq__))) as feed:
            await anext(feed)
            await nomad.purge(HERE, child)
            async for frame in feed:
                if frame.deleted:
                    break

    assert frame.deleted == (child,)


async def test_a_stream_resumes_at_an_index_and_repeats_it(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with cluster.client() as nomad:
        job = await nomad.dispatch(Order(HERE, parent, "1-0"))
        created = (await nomad.snapshot(HERE, job.job_id)).job
        assert created
        whole = await until_dead(nomad, created.create_index, job.job_id)
        told = [frame for frame in whole if not frame.heartbeat]
        again = await until_dead(nomad, told[-1].index, job.job_id)

    assert whole[0].heartbeat
    assert told[0].index == created.create_index
    assert next(frame.index for frame in again if not frame.heartbeat) == told[-1].index


async def test_events_of_other_jobs_are_not_shown(cluster: Cluster) -> None:
    parent = await cluster.register()

    async with (
        cluster.client() as nomad,
        asyncio.timeout(WAIT_SECONDS),
        aclosing(one_by_one(nomad.events(HERE, 0, lambda _: False))) as feed,
    ):
        await anext(feed)
        child = (await nomad.dispatch(Order(HERE, parent, "1-0"))).job_id
        job = await nomad.job(HERE, child)
        assert job
        async for frame in feed:
            assert (frame.jobs, frame.evaluations, frame.allocations) == ((), (), ())
            if frame.index > job.create_index:
                break


async def test_heartbeats_come_while_nothing_happens(cluster: Cluster) -> None:
    async with (
        cluster.client() as nomad,
        asyncio.timeout(cluster.heartbeat_seconds * 2 + WAIT_SECONDS),
        aclosing(one_by_one(nomad.events(HERE, 0, lambda _: False))) as feed,
    ):
        beats = 0
        async for frame in feed:
            beats += frame.heartbeat
            if beats == 2:
                break

    assert beats == 2


async def test_a_stream_of_an_unknown_region_is_refused_by_silence(cluster: Cluster) -> None:
    async with cluster.client(first_line_seconds=1.0) as nomad:
        with pytest.raises(FeedRefused):
            await anext(nomad.events(Place("mars", ""), 0, bool))


# For the doctor -----------------------------------------------------------------------------------


async def test_the_doctor_sees_jobs_leader_token_and_health(cluster: Cluster) -> None:
    parent = await cluster.register()
    await cluster.register(parameterized=False, script="true")

    async with cluster.client() as nomad:
        child = (await nomad.dispatch(Order(HERE, parent, "1-0"))).job_id
        await cluster.ended(nomad, child)
        [found] = await nomad.parents(HERE, parent)
        names = [one.id for one in await nomad.parents(HERE, "contract-")]
        leader = await nomad.leader()
        health = await nomad.agent_health()
        token = await nomad.token_self()

    assert (found.id, found.type, found.priority, found.stop) == (parent, "batch", 50, False)
    assert found.submit_time > 1_000_000_000_000_000_000
    assert (found.children.dead, found.children.running) == (1, 0)
    assert set(names) & set(cluster.registered) == {parent}
    assert ":" in leader
    assert health.ok
    assert token
    assert token.acl_disabled
