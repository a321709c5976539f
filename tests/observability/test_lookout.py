"""What Nomad tells when asked now and then: children per job, and the end of the token."""

import math
import time

import pytest

from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadOptions
from worker.core.model import Order, Place
from worker.dev.demo_jobs import demo_jobs
from worker.dev.simulator import Simulator
from worker.errors import NomadDenied, WorkerError
from worker.runtime.lookout import Lookout
from worker.runtime.metrics import Metrics

pytestmark = pytest.mark.anyio

PLACE = Place("", "default")
TOKEN = "5ec2e700-0000-4000-8000-000000000001"
EXPIRY = "nomad_token_expiry_timestamp_seconds"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"dispatch_worker_{name}", labels)


def made() -> Metrics:
    return Metrics(["requests"], [PLACE], max_in_flight=5, version="1")


async def test_children_are_counted_and_jobs_are_named_before_their_first_dispatch() -> None:
    metrics = made()
    async with (
        Simulator(jobs=demo_jobs()) as nomad,
        NomadClient(NomadOptions(address=nomad.address)) as client,
    ):
        lookout = Lookout(client, metrics, [PLACE])
        await lookout.look_at_jobs()
        before = value(metrics, "nomad_children_entries", nomad_job="demo-render")
        for number in range(3):
            await client.dispatch(Order(PLACE, "demo-render", f"token-{number}"))
        await lookout.look_at_jobs()
        await lookout.look_at_token()

    assert before == 0
    assert value(metrics, "nomad_children_entries", nomad_job="demo-render") == 3
    assert value(metrics, "dispatches_total", nomad_job="demo-render", outcome="created") == 0
    assert value(metrics, EXPIRY) == 0


async def test_what_waits_in_nomad_presses_on_the_pace_and_an_answer_that_is_missing_lets_go() -> None:
    metrics, pressed = made(), list[tuple[float, float]]()

    async with (
        Simulator(jobs=demo_jobs(), nodes=0) as nomad,
        NomadClient(NomadOptions(address=nomad.address)) as client,
    ):
        lookout = Lookout(
            client, metrics, [PLACE], lambda *pressure: pressed.append(pressure), waiting_limit=8
        )
        for number in range(6):
            await client.dispatch(Order(PLACE, "demo-render", f"token-{number}"))
        await lookout.look_at_evaluations()
        told = value(metrics, "nomad_open_evaluations")
        nomad.faults.respond("evaluations.count", 404, "")
        with pytest.raises(WorkerError):
            await lookout.look_at_evaluations()

    assert told == 6
    assert pressed == [(0.5, 0.0), (0.0, 0.0)]
    assert math.isnan(value(metrics, "nomad_open_evaluations") or 0)


async def test_the_end_of_a_token_is_told_and_a_token_that_may_not_list_leaves_children_out() -> None:
    metrics = made()
    acl = {
        "policies": {"dispatch": {"default": ["dispatch-job", "read-job"]}},
        "tokens": [{"secret": TOKEN, "policies": ["dispatch"], "ttl_seconds": 3600}],
    }
    now = time.time()
    async with (
        Simulator(jobs=demo_jobs(), acl=acl) as nomad,
        NomadClient(NomadOptions(address=nomad.address, token=TOKEN)) as client,
    ):
        lookout = Lookout(client, metrics, [PLACE])
        metrics.children({"demo-render": 7})

        await lookout.look_at_token()
        with pytest.raises(NomadDenied):
            await lookout.look_at_jobs()

    assert value(metrics, EXPIRY) == pytest.approx(now + 3600, abs=30)
    assert value(metrics, "nomad_children_entries", nomad_job="other") is None
