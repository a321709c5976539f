"""Examines what a worker of these settings would find: Redis, Nomad, the token's rights, the jobs.

Changes nothing that lasts. Each finding says what to do about it; nothing here is needed by a running worker.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from worker.adapters.nomad.answers import Parent
from worker.adapters.nomad.client import NomadClient
from worker.adapters.redis.connection import Purpose, connect
from worker.adapters.redis.selftest import inspect, rehearse
from worker.adapters.redis.survey import RedisSurvey
from worker.core.instants import parse_rfc3339
from worker.core.keys import Keys
from worker.core.model import Order, Place
from worker.errors import NomadDenied, NomadRefused, SettingsInvalid, WorkerError
from worker.runtime.clock import SystemClock
from worker.runtime.policy import load_policy
from worker.runtime.wiring import nomad_options, places, redis_options
from worker.settings import Settings

SOON_SECONDS = 86_400
CROWD = 5_000
"""Children of one job from which on Nomad's token check slows each dispatch to about 7 ms."""


class Grade(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    """It works, and will hurt one day."""
    FAIL = "fail"
    """A worker will not work like this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's end."""

    area: str
    """`redis`, `nomad` or `jobs`."""
    what: str
    grade: Grade
    told: str
    advice: str = ""
    """What to do; empty when there is nothing to do."""


Findings = AsyncGenerator[Finding, None]


async def examine(settings: Settings, jobs: Sequence[str] = ()) -> Findings:
    """All findings, as they come.

    Args:
        settings: the worker's.
        jobs: parameterized jobs that must exist, besides those that the policy names.
    """
    async with aclosing(_redis(settings)) as findings:
        async for finding in findings:
            yield finding
    async with NomadClient(nomad_options(settings)) as nomad, aclosing(_nomad(settings, nomad, jobs)) as more:
        async for finding in more:
            yield finding


# Redis --------------------------------------------------------------------------------------------


async def _redis(settings: Settings) -> Findings:
    keys, redis = Keys(settings.prefix), connect(redis_options(settings), Purpose.OPS)
    try:
        try:
            report = await inspect(redis)
        except WorkerError as error:
            yield _failed(
                "redis", "reachable", error, "Check REDIS_URL, the network, and the user's password."
            )
            return
        yield Finding("redis", "reachable", Grade.OK, f"version {report.version}")
        for warning in report.warnings:
            yield Finding("redis", "configuration", Grade.WARN, warning, _redis_advice(warning))
        if not report.warnings and report.version != "unknown":
            yield Finding("redis", "configuration", Grade.OK, "nothing is evicted, appendonly is on")
        yield await _attempt(
            "redis",
            "rights",
            lambda: rehearse(redis, keys, SystemClock()),
            "every script was run once, on keys of its own",
            f"Allow the command for keys ~{settings.prefix}:* with ACL SETUSER.",
        )
        yield await _workers(settings, redis, keys)
    finally:
        await redis.aclose()


def _redis_advice(warning: str) -> str:
    if "maxmemory-policy" in warning:
        return "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf."
    if "appendonly" in warning:
        return "CONFIG SET appendonly yes, and the same in redis.conf."
    return ""


async def _workers(settings: Settings, redis: Any, keys: Keys) -> Finding:
    survey = RedisSurvey(redis, keys, streams=settings.stream_names, group=settings.group)
    try:
        backlog = await survey.backlog()
    except WorkerError as error:
        return _failed("redis", "workers", error, "Allow XINFO, XPENDING, XLEN and ZCOUNT to this user.")
    waiting = sum(stream.lag or 0 for stream in backlog.streams.values())
    if not backlog.workers and waiting:
        told = f"no worker is alive, and {waiting} requests wait"
        return Finding("redis", "workers", Grade.WARN, told, "Start one: dispatch-worker run")
    return Finding("redis", "workers", Grade.OK, f"{backlog.workers} alive, {waiting} requests wait")


# Nomad --------------------------------------------------------------------------------------------


async def _nomad(settings: Settings, nomad: NomadClient, jobs: Sequence[str]) -> Findings:
    try:
        leader = await nomad.leader()
    except WorkerError as error:
        advice = f"Check that an agent answers at NOMAD_ADDR ({settings.nomad_addr}) and has a leader."
        yield _failed("nomad", "reachable", error, advice)
        return
    yield Finding("nomad", "reachable", Grade.OK, f"leader {leader}")
    yield await _token(nomad)
    for place in places(settings):
        async with aclosing(_rights(settings, nomad, place)) as findings:
            async for finding in findings:
                yield finding
    try:
        wanted = [*jobs, *_policy_jobs(settings)]
    except SettingsInvalid as error:
        yield _failed("jobs", "policy", error, "Correct the file that WORKER_ALLOW_FILE names.")
        return
    async with aclosing(_jobs(settings, nomad, wanted)) as findings:
        async for finding in findings:
            yield finding


async def _token(nomad: NomadClient) -> Finding:
    try:
        token = await nomad.token_self()
    except WorkerError as error:
        return _failed("nomad", "token", error, "")
    if token is None:
        told = "Nomad does not know the token, or it has expired"
        return Finding(
            "nomad", "token", Grade.FAIL, told, "Set NOMAD_TOKEN_FILE or NOMAD_TOKEN to a valid one."
        )
    if token.acl_disabled:
        return Finding("nomad", "token", Grade.OK, "ACLs are off: everybody may do everything")
    named = f"{token.name or token.accessor_id} ({token.type})"
    if token.type == "management":
        advice = "Use a client token with dispatch-job, read-job, list-jobs (and submit-job to stop jobs)."
        return Finding("nomad", "token", Grade.WARN, f"{named} may do far more than is needed", advice)
    if token.expiration_time:
        left_seconds = (parse_rfc3339(token.expiration_time) - SystemClock().now_ms()) / 1000
        if left_seconds < SOON_SECONDS:
            advice = "Renew it; a file (NOMAD_TOKEN_FILE) is read again when it changes."
            return Finding("nomad", "token", Grade.WARN, f"{named} expires {token.expiration_time}", advice)
    return Finding("nomad", "token", Grade.OK, named)


async def _rights(settings: Settings, nomad: NomadClient, place: Place) -> Findings:
    # Nomad checks rights before it looks for the job: one that does not exist shows them and does no harm.
    nobody = f"dispatch-worker-doctor-{secrets.token_hex(8)}"
    where = f"in namespace {place.namespace}" + (f", region {place.region}" if place.region else "")

    async def dispatch() -> None:
        try:
            await nomad.dispatch(Order(place, nobody, token=nobody))
        except NomadRefused:
            return

    stops = "jobs are stopped (cancel, timeout_seconds) and purged with it"
    probes: tuple[tuple[str, Callable[[], Awaitable[object]], Grade, str], ...] = (
        ("dispatch-job", dispatch, Grade.FAIL, "nothing works without it"),
        ("read-job", lambda: nomad.job(place, nobody), Grade.FAIL, "no result can be told without it"),
        ("list-jobs", lambda: nomad.parents(place, nobody), Grade.WARN, "taking over is slow without it"),
        ("submit-job", lambda: nomad.stop(place, nobody), Grade.WARN, stops),
    )
    for capability, probe, grade, why in probes:
        try:
            await probe()
        except NomadDenied:
            advice = f'Add "{capability}" to the capabilities of namespace "{place.namespace}" in its policy.'
            yield Finding("nomad", capability, grade, f"missing {where}: {why}", advice)
        except WorkerError as error:
            yield _failed("nomad", capability, error, "Try again when Nomad answers.")
        else:
            yield Finding("nomad", capability, Grade.OK, where)
    yield await _attempt(
        "nomad",
        "event stream",
        lambda: _first_frame(nomad, place),
        where,
        "Without it results come with the sweep only "
        f"(every {settings.sweep_seconds:g} s). Check read-job, and proxies that buffer.",
    )


async def _first_frame(nomad: NomadClient, place: Place) -> None:
    async with aclosing(nomad.events(place, 0, lambda _: False)) as frames:
        await anext(frames)


# Jobs ---------------------------------------------------------------------------------------------


def _policy_jobs(settings: Settings) -> list[str]:
    """What the policy lets through, in its own globs."""
    streams = load_policy(settings.allow_file).file.streams or {}
    return [job for rule in streams.values() for job in rule.jobs or ()]


async def _jobs(settings: Settings, nomad: NomadClient, wanted: Sequence[str]) -> Findings:
    if not wanted:
        return
    found: dict[str, Parent] = {}
    try:
        for place in places(settings):
            found |= {job.id: job for job in await nomad.parents(place)}
    except WorkerError as error:
        yield _failed("jobs", "list", error, "Give the token list-jobs, or check each: nomad job status JOB")
        return
    for glob in dict.fromkeys(wanted):
        matching = [job for name, job in found.items() if fnmatchcase(name, glob)]
        if not matching:
            told = "no parameterized job of this name in the namespaces served"
            advice = (
                "Register it with nomad job run, add its namespace to WORKER_NAMESPACES, or mend the name."
            )
            yield Finding("jobs", glob, Grade.FAIL, told, advice)
        for job in matching:
            children = job.children.pending + job.children.running + job.children.dead
            told = f"{job.type}, {children} children"
            if job.stop:
                yield Finding("jobs", job.id, Grade.FAIL, "it is stopped", "Start it again: nomad job run")
            elif children >= CROWD:
                advice = "Set WORKER_PURGE_FINISHED, or lower the servers' job_gc_threshold."
                yield Finding("jobs", job.id, Grade.WARN, f"{told}: they slow every dispatch", advice)
            else:
                yield Finding("jobs", job.id, Grade.OK, told)


# --------------------------------------------------------------------------------------------------


async def _attempt(
    area: str, what: str, act: Callable[[], Awaitable[object]], told: str, advice: str
) -> Finding:
    try:
        await act()
    except WorkerError as error:
        return _failed(area, what, error, advice)
    return Finding(area, what, Grade.OK, told)


def _failed(area: str, what: str, error: WorkerError, advice: str) -> Finding:
    return Finding(area, what, Grade.FAIL, f"{error} [{error.code}]", advice)
