"""Rows F31 to F34 and F55 of the fault matrix: Nomad itself forgets, falls silent, or says what is not so.

Each test has a simulator and a worker of its own, for the faults are the whole cluster's.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.outcomes.grounds import simulated
from tests.outcomes.stage import Message, Stage, stage
from tests.processes.jobs import held, scripted
from tests.simulator.cluster import group, job, shell
from worker.dev.simulator import Simulator

pytestmark = pytest.mark.anyio

NEVER = "3600"
STREAM_LOSSES = "dispatch_worker_event_stream_losses_total"
NEXT_SECONDS = 20.0
"""What is told or read at once comes within this, on any machine; the next sweep would not."""


@dataclass
class World:
    """A worker on a simulator whose tasks end when the test says so."""

    stage: Stage
    nomad: Simulator
    folder: Path

    async def holds(self) -> Message:
        """A message whose job runs until it is released."""
        message = await self.stage.send("held", meta={"file": str(self.folder / "release")})
        await message.said("running")
        return message

    async def release(self, message: Message, exit_code: int = 0) -> None:
        """Let the held jobs end, and wait until Nomad's servers know."""
        part = self.folder / "release.part"
        part.write_text(str(exit_code))
        part.rename(self.folder / "release")
        await self.dead(message)

    async def dead(self, message: Message) -> None:
        """Wait until Nomad calls a message's job dead; by a look, for the worker is not told."""
        async with asyncio.timeout(NEXT_SECONDS):
            while self.nomad.job(message.child).status != "dead":  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)

    async def asked(self, route: str, count: int) -> None:
        """Wait until Nomad was asked this often; by a look, too."""
        async with asyncio.timeout(NEXT_SECONDS):
            while self.nomad.record.requests[route] < count:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.005)


@asynccontextmanager
async def world(folder: Path, *, event_buffer_size: int = 100, **settings: Any) -> AsyncIterator[World]:
    """A worker that sweeps only after a new connection, unless told otherwise."""
    options = {"update_seconds": 0.02, "event_buffer_size": event_buffer_size, "heartbeat_seconds": 5.0}
    async with simulated(**options) as ground:
        loud = shell("echo 'this was the end.' >&2; exit 1", LogConfig={"MaxFiles": 1, "MaxFileSizeMB": 1})
        for spec in (held("held"), scripted("render"), job("loud", group(loud))):
            ground.simulator.register(spec)
        more = {"WORKER_SWEEP_SECONDS": NEVER, "WORKER_EVENT_HEARTBEAT_SECONDS": "5"} | settings
        async with stage(ground.address, **more) as on_stage:
            await on_stage.until("dispatch_worker_sweeps_total", 1)
            yield World(on_stage, ground.simulator, folder)


# F31 -------------------------------------------------------------------------------------------------


async def test_f31_an_answered_job_that_never_existed_is_not_believed_after_a_repeat(tmp_path: Path) -> None:
    quick: Any = {"WORKER_NOMAD_TIMEOUT_SECONDS": "0.9", "WORKER_LEASE_SECONDS": "3"}
    async with world(tmp_path, **quick) as here:
        here.nomad.faults.phantoms, here.nomad.faults.phantom_window_seconds = True, 0.5
        here.nomad.faults.drop("dispatch")

        message = await here.stage.send("render")
        await here.asked("dispatch", 2)
        # A request of a former owner with the same token, which overtakes the repeat under way.
        overtaker = here.nomad.dispatch("render", token=message.id)
        final = await message.final()

        assert (final.verdict, final.dispatched_job_id) == ("succeeded", overtaker.job_id)
        assert {reply.dispatched_job_id for reply in message.replies} == {"", overtaker.job_id}
        assert [entry["token"] for entry in here.nomad.record.dispatches] == [message.id]


async def test_f31_a_first_answer_that_names_no_job_is_never_a_success(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.nomad.faults.phantoms, here.nomad.faults.phantom_window_seconds = True, 0.5

        message = await here.stage.send("render")
        await here.asked("dispatch", 1)
        overtaker = here.nomad.dispatch("render", token=message.id)
        final = await message.final()

        assert (final.verdict, final.error_code) == ("unknown_gc", "job.gone")
        assert final.dispatched_job_id != overtaker.job_id
        assert message.id in await here.stage.dead_letters()
        assert here.nomad.record.requests["dispatch"] == 1


# F32 -------------------------------------------------------------------------------------------------


async def test_f32_an_end_that_fell_out_of_the_servers_buffer_is_found_on_connecting(tmp_path: Path) -> None:
    async with world(tmp_path, event_buffer_size=5) as here:
        message = await here.holds()
        closed = here.nomad.faults.respond("stream", 500, "rpc error: EOF")
        here.nomad.faults.close_streams()
        await here.release(message, exit_code=3)
        for _ in range(6):
            here.nomad.dispatch("render")
        here.nomad.faults.remove(closed.id)

        final = await message.final(seconds=NEXT_SECONDS)

        assert (final.verdict, final.exit_code) == ("failed", 3)
        assert await here.stage.metric("dispatch_worker_sweep_corrections_total") >= 1


async def test_f32_an_end_of_which_no_frame_ever_came_is_found_by_the_next_sweep(tmp_path: Path) -> None:
    async with world(tmp_path, WORKER_SWEEP_SECONDS="1") as here:
        message = await here.holds()
        here.nomad.cluster.ring.skip(1_000)
        await here.release(message, exit_code=3)

        final = await message.final(seconds=NEXT_SECONDS)

        assert (final.verdict, final.exit_code) == ("failed", 3)


async def test_f32_a_job_goes_on_over_a_restart_of_the_servers(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        message = await here.holds()
        await here.nomad.stop_server()
        await here.release(message, exit_code=3)
        await here.nomad.start_server()

        final = await message.final(seconds=NEXT_SECONDS)

        assert (final.verdict, final.exit_code) == ("failed", 3)


async def test_f32_ends_are_seen_after_the_index_went_back(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for _ in range(10):
            await (await here.stage.send("render")).final()
        message = await here.holds()
        known = here.nomad.job(message.child).modify_index
        await here.nomad.stop_server()
        await here.nomad.start_server(index_back=50)
        later = await here.stage.send("render")
        final_of_later = await later.final(seconds=NEXT_SECONDS)
        await here.release(message, exit_code=3)

        final = await message.final(seconds=NEXT_SECONDS)

        assert final_of_later.verdict == "succeeded"
        assert (final.verdict, final.exit_code) == ("failed", 3)
        assert here.nomad.job(message.child).modify_index < known


# F33 -------------------------------------------------------------------------------------------------


async def test_f33_a_stream_that_falls_silent_is_given_up_and_the_sweep_tells_ends_meanwhile(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, WORKER_SWEEP_SECONDS="1") as here:
        message = await here.holds()
        here.nomad.faults.mute_streams()
        silent_since = time.monotonic()
        await here.release(message, exit_code=3)

        final = await message.final(seconds=NEXT_SECONDS)
        told_after = time.monotonic() - silent_since
        await here.asked("stream", 2)
        opened_after = time.monotonic() - silent_since

        assert (final.verdict, final.exit_code) == ("failed", 3)
        assert told_after < 8
        # Two beats of 5 s, 5 s of patience, and the first pause before a new connection.
        assert 10 < opened_after < 18
        assert await here.stage.metric(STREAM_LOSSES, code="nomad.event_stream_lost") == 1


async def test_f33_a_stream_that_never_says_anything_is_opened_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        message = await here.holds()
        here.nomad.faults.mute_new_streams = True
        here.nomad.faults.close_streams()
        await here.asked("stream", 2)
        await here.release(message)
        here.nomad.faults.mute_new_streams = False

        final = await message.final(seconds=NEXT_SECONDS)

        assert final.verdict == "succeeded"
        assert await here.stage.metric(STREAM_LOSSES, code="nomad.event_stream_refused") == 1


# F34 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["collected", "purged"])
async def test_f34_a_job_that_vanished_unseen_is_unknown_and_never_run_again(
    tmp_path: Path, how: str
) -> None:
    async with world(tmp_path) as here:
        message = await here.holds()
        await here.nomad.stop_server()
        if how == "collected":
            await here.release(message)
            assert message.child in here.nomad.collect_garbage()
        else:
            here.nomad.stop_job(message.child, purge=True)
        await here.nomad.start_server()

        final = await message.final(seconds=NEXT_SECONDS)

        assert (final.verdict, final.error_code, final.exit_code) == ("unknown_gc", "job.gone", None)
        letter = (await here.stage.dead_letters())[message.id]
        assert letter["job"] == "held"
        assert final.data["job"]["gone"] is True
        assert [one["client_status"] for one in final.data["allocations"]] == ["running"]
        assert [entry["token"] for entry in here.nomad.record.dispatches] == [message.id]
        assert await here.stage.pending() == 0


# F55 -------------------------------------------------------------------------------------------------


async def test_f55_a_verdict_carries_the_last_words_of_the_task_that_failed(tmp_path: Path) -> None:
    async with world(tmp_path, WORKER_LOG_TAIL_BYTES="12") as here:
        message = await here.stage.send("loud")
        final = await message.final()

        assert final.data["logs"] == {"stderr": "as the end.\n", "stdout": ""}


@pytest.mark.parametrize("how", ["unreachable", "collected", "silent"])
async def test_f55_a_verdict_comes_without_logs_and_with_a_note_when_they_are_not_to_be_had(
    tmp_path: Path, how: str
) -> None:
    async with world(tmp_path, WORKER_LOG_TAIL_BYTES="100") as here:
        match how:
            case "unreachable":
                here.nomad.faults.respond("logs", 500, "Unknown node 0e4b8ea4")
            case "collected":
                here.nomad.faults.respond("logs", 404, 'Unknown allocation "0e4b8ea4"')
            case _:
                here.nomad.faults.add("logs", "hang")

        message = await here.stage.send("render", meta={"exit_code": "4"})
        await message.said("dispatched")
        await here.dead(message)
        dead_since = time.monotonic()
        final = await message.final(seconds=NEXT_SECONDS)

        assert (final.verdict, final.exit_code) == ("failed", 4)
        assert list(final.data["logs"]) == ["note"]
        assert "stderr is not to be had: nomad." in final.data["logs"]["note"]
        assert time.monotonic() - dead_since < 6
        assert here.nomad.record.requests["logs"] == 1
