"""The worker on Redis as it stands in production: Sentinel, Cluster, TLS, a narrow user, confirmed writes."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from tests.faults.checker import all_is_well
from tests.faults.conftest import QUICK
from tests.faults.planned import DEAF, start_with
from tests.faults.topologies import (
    ClusterOfThree,
    Pair,
    client_of,
    cluster_of_three,
    make_certificates,
    sentinel_pair,
    tls_server,
)
from tests.processes.fleet import ROOT, Fleet, WorkerProcess, crew, until
from tests.processes.jobs import held, scripted
from worker.adapters.redis.connection import Purpose, RedisOptions, connect
from worker.core.keys import Keys
from worker.dev.embedded_redis import EmbeddedRedis
from worker.dev.simulator import Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.processes]


@asynccontextmanager
async def world_on(
    url: str, folder: Path, environment: Mapping[str, str] = QUICK, client: Any = None
) -> AsyncIterator[Fleet]:
    """A Nomad, and workers on a Redis that is there already."""
    redis: Any = client or connect(RedisOptions(url), Purpose.OPS)
    try:
        async with (
            Simulator(jobs=[scripted("render"), held("held")]) as nomad,
            crew(nomad, redis, url, folder, environment) as made,
        ):
            yield made
    finally:
        if client is None:
            await redis.aclose()


async def is_ready(worker: WorkerProcess) -> bool:
    return not await worker.not_ready()


async def sent_and_confirmed(world: Fleet, number: int, **meta: str) -> list[str]:
    """Requests that a replica has: what a producer must do for its request to outlive a failover."""
    sent = []
    for _ in range(number):
        pipeline = world.redis.pipeline(transaction=False)
        pipeline.xadd(world.stream, {"job": "render", "meta": json.dumps(meta)})
        pipeline.wait(1, 1_000)
        entry_id, replicas = await pipeline.execute()
        assert replicas == 1
        sent.append(entry_id.decode())
    return sent


# Sentinel ----------------------------------------------------------------------------------------------


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with sentinel_pair() as made:
        yield made


@pytest.mark.parametrize("way", ["ordered", "primary_killed"])
async def test_F13_c17_a_failover_while_messages_flow_loses_and_doubles_nothing(
    pair: Pair, tmp_path: Path, way: str
) -> None:
    async with world_on(pair.url, tmp_path, {**QUICK, "WORKER_DURABILITY": "replica"}) as world:
        first, second = await asyncio.gather(world.start(), world.start())
        held_id = await world.holds()
        owner = await world.owner(held_id)
        sent = await sent_and_confirmed(world, 60, run_for="1s")
        old = await pair.primary()

        if way == "ordered":
            await pair.fail_over()
        else:
            await old.kill()
        await pair.other_than(old)
        await until(lambda: is_ready(first), 30, "the first is ready again")
        await until(lambda: is_ready(second), 30, "the second is ready again")
        if way == "primary_killed":
            # It comes back as a replica of the other, and intents can be confirmed again.
            await old.start()
        await pair.replicated()
        sent += await sent_and_confirmed(world, 20)
        world.release()
        finals = await world.all_final([held_id, *sent], 60)

        assert {final.verdict for final in finals} == {"succeeded"}
        assert await world.owner(held_id) == ""
        assert next(final.worker for final in finals if final.id == held_id) == owner
        assert await first.metric("takeovers_total") + await second.metric("takeovers_total") == 0
        await all_is_well(world, dict.fromkeys([held_id, *sent], 0))


async def test_F13_c20_a_failover_that_loses_what_was_done_dispatches_nothing_a_second_time(
    pair: Pair, tmp_path: Path
) -> None:
    async with world_on(pair.url, tmp_path) as world:
        await world.start()
        old = await pair.primary()
        (slow,) = await sent_and_confirmed(world, 1, run_for="12s")
        await world.reply_of(slow, "running")
        (message_id,) = await sent_and_confirmed(world, 1, run_for="800ms")
        await world.reply_of(message_id, "running")
        await pair.cut_replication()
        before = await world.final(message_id)
        lost = [await world.send(job="render") for _ in range(3)]
        await world.all_final(lost, 15)
        jobs = len(world.dispatched())

        await old.kill()
        await pair.other_than(old)
        again = await world.final(message_id, 40)
        await world.final(slow, 40)

        assert (before.verdict, again.verdict) == ("succeeded", "succeeded")
        assert again.dispatched_job_id == before.dispatched_job_id
        assert len(world.dispatched()) == jobs
        assert {reply.id for reply in await world.replies()}.isdisjoint(lost)
        # In the history that survived there is one final reply each, and nothing of what was lost with it.
        finals = [reply.id for reply in await world.finals()]
        assert finals.count(message_id) == finals.count(slow) == 1
        await until(lambda: nothing_pending(world), 20, "nothing is pending")


async def nothing_pending(world: Fleet) -> bool:
    return await world.pending() == 0


async def test_c18_a_replica_that_was_empty_when_it_was_promoted_is_served_without_a_restart(
    tmp_path: Path,
) -> None:
    async with sentinel_pair() as pair, world_on(pair.url, tmp_path) as world:
        old = await pair.primary()
        await pair.cut_replication()
        worker = await world.start()
        held_id = await world.holds()

        await old.kill()
        await pair.other_than(old)
        await until(lambda: is_ready(worker), 30, "the worker is ready again")
        new = await world.send(job="render")
        await world.final(new)
        world.release(exit_code=5)
        final = await world.final(held_id)

        assert (final.verdict, final.exit_code) == ("failed", 5)
        assert world.children_by_token() == {held_id: 1, new: 1}
        assert len(await world.finals()) == 2
        assert worker.logged("intake.group_missing")


async def test_c19_a_former_primary_that_wakes_up_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    async with world_on(pair.url, tmp_path) as world:
        worker, _ = await asyncio.gather(world.start(), world.start())
        held_id = await world.holds()
        await sent_and_confirmed(world, 1)
        old = await pair.primary()

        old.pause()
        await pair.other_than(old)
        old.resume()
        await pair.replicated()
        await until(lambda: is_ready(worker), 30, "the worker is ready again")
        sent = await sent_and_confirmed(world, 20)
        world.release()
        await world.all_final([held_id, *sent], 40)

        finals = [reply.id for reply in await world.finals()]
        assert {message_id: finals.count(message_id) for message_id in [held_id, *sent]} == dict.fromkeys(
            [held_id, *sent], 1
        )
        assert max(world.children_by_token().values()) == 1
        await until(lambda: nothing_pending(world), 20, "nothing is pending")


# Durability --------------------------------------------------------------------------------------------


@asynccontextmanager
async def replicated() -> AsyncIterator[tuple[EmbeddedRedis, EmbeddedRedis]]:
    """A primary and its replica, without Sentinels."""
    async with EmbeddedRedis() as primary:
        follow = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
        async with EmbeddedRedis(args=follow) as replica:
            client = client_of(primary)
            await until(lambda: has_replica(client), 30, "the replica is there")
            await client.aclose()
            yield primary, replica


async def has_replica(client: Any) -> bool:
    replication = await client.info("replication")
    return bool(replication["connected_slaves"] and replication["slave0"]["state"] == "online")


async def test_c28_an_intent_that_no_replica_confirms_is_not_dispatched(tmp_path: Path) -> None:
    async with replicated() as (primary, replica):
        environment = {**QUICK, "WORKER_DURABILITY": "replica"}
        async with world_on(primary.url, tmp_path, environment) as world:
            worker = await world.start()
            held_id = await world.holds()
            assert (await world.final(await world.send(job="render"))).verdict == "succeeded"
            jobs = len(world.dispatched())

            replica.pause()
            waiting = await world.send(job="render")
            await until(lambda: retried(worker, "redis.not_confirmed"), 15, "the intent is counted")
            world.release()
            final = await world.final(held_id)
            during = len(world.dispatched())
            told_within = await until(lambda: told_of_it(worker), 10, "the unconfirmed reply is told of")
            replica.resume()

            # The final reply of what ran is not held back, only told of.
            assert final.verdict == "succeeded"
            assert told_within >= 0
            assert await worker.metric("redis_errors_total", kind="redis.not_confirmed") >= 1
            assert during == jobs
            assert (await world.final(waiting)).verdict == "succeeded"
            assert len(world.dispatched()) == jobs + 1
            assert await world.pending() == 0


async def told_of_it(worker: WorkerProcess) -> bool:
    return bool(worker.logged("ledger.settled_unconfirmed"))


async def retried(worker: WorkerProcess, code: str) -> bool:
    return await worker.metric("step_retries_total", code=code) > 0


async def test_without_a_durability_a_replica_that_is_cut_off_is_nobodys_business(tmp_path: Path) -> None:
    async with replicated() as (primary, replica), world_on(primary.url, tmp_path) as world:
        await world.start()
        replica.pause()

        assert (await world.final(await world.send(job="render"), 10)).verdict == "succeeded"
        replica.resume()


async def test_a_durability_the_server_cannot_give_is_refused_at_start_with_the_reason(
    world: Fleet,
) -> None:
    version = tuple(int(part) for part in world.server.version.split(".")[:2])

    worker = await world.start(wait=False, WORKER_DURABILITY="aof")

    assert await worker.ended(20) == 1
    (line,) = worker.logged("worker.failed")
    assert line["code"] == "redis.unsuitable"
    reason = "appendonly yes" if version >= (7, 2) else "WAITAOF, which this server does not know"
    assert reason in line["error"]


# Cluster -----------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster() -> AsyncIterator[ClusterOfThree]:
    async with cluster_of_three() as made:
        yield made


@pytest.mark.parametrize("durability", ["none", "replica"])
async def test_F53_a_cluster_serves_all_keys_of_a_prefix_from_one_slot_wherever_that_goes(
    cluster: ClusterOfThree, tmp_path: Path, durability: str
) -> None:
    # A prefix of the first node, which has a replica.
    prefix = next(f"{{d{n}}}" for n in range(1_000) if key_slot(f"d{n}".encode()) < 5_000)
    slot = key_slot(prefix.strip("{}").encode())
    environment = {**QUICK, "WORKER_DURABILITY": durability, "WORKER_PREFIX": prefix}
    async with Simulator(jobs=[scripted("render"), held("held")]) as nomad:
        keys = Keys(prefix)
        async with crew(nomad, cluster.client, cluster.url, tmp_path, environment, keys) as world:
            first, second = await asyncio.gather(world.start(), start_with(world, DEAF))
            held_id = await world.holds()
            sent = [await world.send(job="render") for _ in range(100)]
            if durability == "none":
                moved = await cluster.move(slot, 1)
                sent += [await world.send(job="render") for _ in range(50)]
            else:
                moved = await fail_over(cluster)
            await world.all_final(sent, 60)
            first.kill()
            await world.owned_by_other(held_id, first.name)
            world.release()
            final = await world.final(held_id)

            assert moved > 0
            # Leases are deadlines on the clock of the node that has them: no other is to be asked.
            assert not await told_the_time(cluster.client_at(2))
            assert (final.verdict, final.worker) == ("succeeded", second.name)
            assert {key_slot(key) for key in await keys_of(cluster)} == {slot}
            await all_is_well(world, dict.fromkeys([held_id, *sent], 0))


async def told_the_time(client: Any) -> bool:
    return "cmdstat_time" in await client.info("commandstats")


async def fail_over(cluster: ClusterOfThree) -> int:
    """Let the first node's replica take its place; returns how many keys it then has."""
    replica = cluster.client_at(3)
    await replica.execute_command("CLUSTER", "FAILOVER")

    async def promoted() -> bool:
        return bool((await replica.info("replication"))["role"] == "master")

    await until(promoted, 20, "the replica is promoted")
    await until(lambda: has_replica(replica), 30, "the former primary follows it")
    return int(await replica.dbsize())


async def keys_of(cluster: ClusterOfThree) -> set[bytes]:
    found: set[bytes] = set()
    for number in range(3):
        found |= set(await cluster.client_at(number).keys("*"))
    return {key for key in found if b":selftest:" not in key}


async def test_F53_partitions_share_a_cluster_and_a_nomad_and_nothing_else(
    cluster: ClusterOfThree, tmp_path: Path
) -> None:
    async with Simulator(jobs=[scripted("render")]) as nomad:
        worlds: list[Fleet] = []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            environment = {**QUICK, "WORKER_TOKEN_TEMPLATE": f"{number}:{{message_id}}"}
            worlds.append(
                Fleet(nomad, cluster.client, cluster.url, folder, environment, Keys(f"{{part:{number}}}"))
            )
        try:
            await asyncio.gather(*(world.start() for world in worlds for _ in range(2)))
            sent = [[await world.send(job="render") for _ in range(40)] for world in worlds]
            finals = [await world.all_final(ids, 40) for world, ids in zip(worlds, sent, strict=True)]
        finally:
            for world in worlds:
                for worker in world.workers:
                    worker.kill()
                    await worker.process.wait()

        assert all(final.verdict == "succeeded" for found in finals for final in found)
        tokens = worlds[0].children_by_token()
        assert tokens == {f"{n}:{message_id}": 1 for n, ids in enumerate(sent) for message_id in ids}


# TLS and rights ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")
async def test_over_tls_with_a_certificate_of_its_own_a_worker_works_and_a_stranger_does_not(
    tmp_path: Path,
) -> None:
    certificates = await make_certificates(tmp_path)
    ours, our_key = (str(path) for path in certificates.of("client"))
    theirs, their_key = (str(path) for path in certificates.of("stranger"))
    authority = str(certificates.authority)
    async with tls_server(certificates) as (server, url):
        client = client_of(server)
        environment = {**QUICK, "REDIS_CA_FILE": authority}
        async with world_on(url, tmp_path, environment, client) as world:
            stranger = await world.start(wait=False, REDIS_CERT_FILE=theirs, REDIS_KEY_FILE=their_key)
            naked = await world.start(wait=False)
            worker = await world.start(REDIS_CERT_FILE=ours, REDIS_KEY_FILE=our_key)
            final = await world.final(await world.send(job="render"))
            await until(lambda: refused(stranger), 20, "the stranger is refused")
            await until(lambda: refused(naked), 20, "and who shows no certificate")

            assert (final.verdict, final.worker) == ("succeeded", worker.name)
            assert await stranger.not_ready() != {}
        await client.aclose()


async def refused(worker: WorkerProcess) -> bool:
    return bool(worker.logged("redis.unreachable"))


def documented_rule(user: str) -> list[str]:
    """The ACL rule that the guide gives for a user, as words."""
    text = (ROOT / "docs" / "operations.md").read_text()
    (rule,) = re.findall(rf"```\nACL SETUSER {user} (.*?)\n```", text, re.DOTALL)
    return str(rule).replace("\\\n", " ").split()


async def test_the_documented_rights_are_enough_and_each_is_used(world: Fleet) -> None:
    rule = documented_rule("worker")
    assert ">PASSWORD" in rule
    assert "~{dispatch}:*" in rule
    words = [">s3cret" if word == ">PASSWORD" else word for word in rule]
    await world.redis.execute_command("ACL", "SETUSER", "worker", *words)
    world.url = world.url.replace("redis://", "redis://worker:s3cret@")

    first, second = await asyncio.gather(world.start(), start_with(world, DEAF))
    held_id = await world.holds()
    bad = await world.send(job="nowhere")
    await world.final(bad)
    first.kill()
    await world.owned_by_other(held_id, first.name)
    world.release()
    await world.final(held_id)
    status = await second.get("/status")
    metrics = await second.get("/metrics")

    assert status.is_success
    assert "stream_pending_entries" in metrics.text
    assert not second.logged("housekeeping.failed")
    assert await world.redis.execute_command("ACL", "LOG") == []
    stats = await world.redis.info("commandstats")
    used = {name.removeprefix("cmdstat_") for name in stats}
    assert {word[1:] for word in rule if word.startswith("+")} <= used
    await all_is_well(world, {held_id: 0, bad: None})


async def test_a_right_that_is_missing_is_named_at_start(world: Fleet) -> None:
    words = [">s3cret" if word == ">PASSWORD" else word for word in documented_rule("worker")]
    await world.redis.execute_command("ACL", "SETUSER", "worker", *words, "-xclaim")
    url = world.url.replace("redis://", "redis://worker:s3cret@")

    worker = await world.start(wait=False, REDIS_URL=url)

    assert await worker.ended(20) == 1
    (line,) = worker.logged("worker.failed")
    assert line["code"] == "redis.denied"
    assert "XCLAIM" in line["error"]
