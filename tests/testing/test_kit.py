"""The test kit runs whole stories in a test's process, with and without asyncio."""

import asyncio
import logging
import signal
import threading

import pytest
import structlog

from worker.client import Verdict
from worker.testing import Simulator, Stack, job, running

pytestmark = pytest.mark.anyio


async def test_a_whole_story_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOMAD_ADDR", raising=False)
    async with Stack([job("render", meta=["who"])]) as stack, stack.client() as client:
        sent = await client.send(job="render", meta={"who": "ada", "exit_code": "3"})
        final = await client.wait(sent, timeout=30)

        assert (final.verdict, final.exit_code) == ("failed", 3)
        assert stack.dispatched() == {sent.id: 1}


async def test_the_simulator_can_be_made_to_misbehave() -> None:
    async with Stack([job("render")]) as stack, stack.client() as client:
        stack.nomad.faults.respond("dispatch", 429, "Too many requests", times=2)
        final = await client.wait(await client.send(job="render"), timeout=30)

    assert final.verdict is Verdict.SUCCEEDED


async def test_a_simulator_of_ones_own_may_be_given() -> None:
    nomad = Simulator([job("batch", payload="required")], nodes=1)
    async with Stack(nomad=nomad) as stack, stack.client() as client:
        final = await client.wait(await client.send(job="batch"), timeout=30)

    assert final.error_code == "nomad.payload_required"


async def test_two_stacks_do_not_meet_and_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with Stack([job("a")]) as one, Stack([job("b")]) as other:
        async with one.client() as client:
            final = await client.wait(await client.send(job="b"), timeout=30)

        assert signal.getsignal(signal.SIGTERM) is before
        assert other.dispatched() == {}
    assert final.verdict is Verdict.REJECTED


async def test_logging_is_afterwards_as_it_was() -> None:
    before = structlog.get_config(), list(logging.getLogger().handlers), logging.getLogger().level

    async with Stack([job("render")]):
        assert structlog.get_config() != before[0]

    assert (structlog.get_config(), logging.getLogger().handlers, logging.getLogger().level) == before


def test_a_test_without_asyncio() -> None:
    threads = threading.active_count()
    with running([job("render")]) as stack, stack.sync_client() as client:
        final = client.wait(client.send(job="render", meta={"run_for": "10ms"}), timeout=30)

        assert final.verdict is Verdict.SUCCEEDED
    assert threading.active_count() <= threads + 1


def test_what_keeps_a_stack_from_coming_up_is_told() -> None:
    with (
        pytest.raises(Exception, match="WORKER_LEASE_SECONDS"),
        running(settings={"WORKER_LEASE_SECONDS": "x"}),
    ):
        pytest.fail("it came up")


async def test_the_loop_is_free_while_the_stack_works() -> None:
    async with Stack([job("render")]) as stack, stack.client() as client:
        sent = await asyncio.gather(*(client.send(job="render") for _ in range(50)))
        finals = await asyncio.gather(*(client.wait(one, timeout=60) for one in sent))

    assert {final.verdict for final in finals} == {Verdict.SUCCEEDED}
