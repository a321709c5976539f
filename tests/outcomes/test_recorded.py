"""Every recorded outcome, from the request in Redis to the final reply: verdict, reasons, steps."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.outcomes.grounds import Ground
from tests.outcomes.recorded import SITUATIONS, named
from tests.outcomes.situations import Situation, deciding, play
from tests.outcomes.stage import Message, stage

pytestmark = pytest.mark.anyio

TRANSCRIPTS = Path(__file__).parents[1] / "data" / "nomad-transcripts"
SETTINGS = {"WORKER_PLACEMENT_DEADLINE_SECONDS": "15", "WORKER_SWEEP_SECONDS": "5"}
"""What is never placed comes to its end; events that were missed do not hold a test up."""

Plays = dict[str, "asyncio.Task[Message]"]


@pytest.fixture(scope="module")
async def plays(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plays]:
    """All situations at once, on one worker."""
    folder = tmp_path_factory.mktemp("outcome")
    async with stage(ground.address, **SETTINGS) as on_stage:
        begun = {
            one.name: asyncio.create_task(play(one, on_stage, ground, folder), name=one.name)
            for one in SITUATIONS
            if not _missing(one, ground)
        }
        yield begun
        for task in begun.values():
            task.cancel()
        await asyncio.wait(begun.values())


def _missing(situation: Situation, ground: Ground) -> str:
    """Why a situation cannot be brought about here; empty: it can."""
    if situation.harms and not ground.may_harm:
        return "the Nomad at NOMAD_ADDR has no node that may be harmed"
    if lacking := situation.drivers - ground.drivers:
        return f"this Nomad lacks the driver {', '.join(lacking)}, which only its development builds have"
    return ""


def test_every_recorded_outcome_is_played() -> None:
    recorded = {path.stem.removeprefix("04-outcome-") for path in TRANSCRIPTS.glob("04-outcome-*.json")}

    assert {one.name for one in SITUATIONS} == recorded


@pytest.mark.parametrize("name", [one.name for one in SITUATIONS])
async def test_a_recorded_outcome_is_told_as_it_was(plays: Plays, ground: Ground, name: str) -> None:
    situation = named(name)
    if reason := _missing(situation, ground):
        pytest.skip(reason)

    message = await plays[name]
    final = message.replies[-1]

    told = (final.verdict, final.exit_code, final.error_code)
    assert told == (situation.verdict, situation.exit_code, situation.error_code), final.error_message
    assert re.fullmatch(situation.steps, message.steps), message.steps
    assert situation.says in final.error_message
    assert deciding(final).get("task", "") == situation.task
    assert [reply.seq for reply in message.replies] == list(range(1, len(message.replies) + 1))
    assert [reply.final for reply in message.replies].count(True) == 1
    assert situation.because in " ".join(
        reply.data.get("reason", "") for reply in message.replies if reply.type == "blocked"
    )
    durations, allocations = final.data["durations"], final.data["allocations"]
    assert {"queue", "dispatch", "total"} <= durations.keys()
    assert ("placement" in durations) == bool(allocations)
    assert ("run" in durations) <= bool(allocations)
    assert all(0 <= seconds <= durations["total"] + 1 for seconds in durations.values()), durations
    assert len(allocations) == situation.allocations
    if situation.task:
        (decided,) = [one for one in allocations if one["allocation"] == deciding(final)["allocation"]]
        assert decided["counts"]
