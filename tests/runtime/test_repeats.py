"""Runs repeated by the policy, with a whole worker on a real Redis and the simulated Nomad."""

from itertools import pairwise
from pathlib import Path

import pytest

from worker.cli.monitor import Monitor
from worker.core.instants import parse_rfc3339
from worker.testing import Stack, job

pytestmark = pytest.mark.anyio

POLICY = """
[retries."*"]
on = ["failed", "timed_out"]
max_attempts = 3
exit_codes = [75]
backoff_seconds = 0.2
max_backoff_seconds = 0.4
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return {"WORKER_ALLOW_FILE": str(path)}


async def test_a_run_that_fails_is_repeated_until_its_rule_is_used_up(settings: dict[str, str]) -> None:
    async with Stack([job("render")], settings=settings) as stack, stack.client() as client:
        sent = await client.send(job="render", meta={"exit_code": "75"})
        replies = [reply async for reply in client.events(sent)]
        tokens = dict(stack.dispatched())

    final, runs = replies[-1], replies[-1].data["runs"]
    assert (final.verdict, final.exit_code, final.attempt) == ("failed", 75, 3)
    assert tokens == {sent.id: 1, f"{sent.id}/2": 1, f"{sent.id}/3": 1}
    assert [(run["attempt"], run["verdict"], run["exit_code"]) for run in runs] == [
        (1, "failed", 75),
        (2, "failed", 75),
        (3, "failed", 75),
    ]
    assert len({run["dispatched_job_id"] for run in runs}) == 3
    assert final.dispatched_job_id == runs[-1]["dispatched_job_id"]
    told = [
        (reply.type, reply.attempt) for reply in replies if reply.type in {"dispatched", "retrying", "result"}
    ]
    assert told == [
        ("dispatched", 1),
        ("retrying", 1),
        ("dispatched", 2),
        ("retrying", 2),
        ("dispatched", 3),
        ("result", 3),
    ]
    assert [reply.seq for reply in replies] == list(range(1, len(replies) + 1))
    for before, after in pairwise(runs):
        # One at a time: the next is dispatched after the one before has ended and its wait is over.
        assert parse_rfc3339(after["dispatched_at"]) >= parse_rfc3339(before["ended_at"]) + 100


async def test_another_exit_code_is_final_at_once(settings: dict[str, str]) -> None:
    async with Stack([job("render")], settings=settings) as stack, stack.client() as client:
        final = await client.wait(await client.send(job="render", meta={"exit_code": "1"}), timeout=30)
        tokens = dict(stack.dispatched())

    assert (final.verdict, final.exit_code, final.attempt) == ("failed", 1, 1)
    assert "runs" not in final.data
    assert len(tokens) == 1


async def test_a_run_past_its_own_time_limit_is_repeated_only_because_the_rule_names_it(
    settings: dict[str, str],
) -> None:
    async with Stack([job("render")], settings=settings) as stack, stack.client() as client:
        sent = await client.send(job="render", meta={"run_for": "30s"}, timeout_seconds=0.3)
        final = await client.wait(sent, timeout=60)

    assert (final.verdict, final.attempt) == ("timed_out", 3)
    assert [run["verdict"] for run in final.data["runs"]] == ["timed_out"] * 3


async def test_a_next_run_that_nomad_refuses_leaves_the_last_one_s_end(settings: dict[str, str]) -> None:
    async with Stack([job("render")], settings=settings) as stack, stack.client() as client:
        stack.nomad.faults.add("dispatch", "respond", status=500, text="parameterized job not found", after=1)
        final = await client.wait(await client.send(job="render", meta={"exit_code": "75"}), timeout=30)

    assert (final.verdict, final.exit_code, final.attempt) == ("failed", 75, 1)
    assert final.data["retry_not_begun"]["code"] == "nomad.job_unknown"
    assert final.dispatched_job_id == final.data["runs"][0]["dispatched_job_id"]


async def test_the_command_tells_each_run(settings: dict[str, str]) -> None:
    async with Stack([job("render")], settings=settings) as stack, stack.client() as client:
        sent = await client.send(job="render", meta={"exit_code": "75"})
        monitor = Monitor()
        lines = [line async for reply in client.events(sent) for line in monitor.lines(reply)]

    assert sum(line.startswith("Dispatched Job ID = ") for line in lines) == 3
    assert sum("ended: failed, exit code 75" in line for line in lines) == 2
    assert any("Run 3 is to begin at " in line for line in lines)


async def test_between_two_runs_a_message_holds_no_slot_of_a_cap(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.replace("0.2", "1").replace("0.4", "2") + "[limits]\ncap = 1\n")
    async with (
        Stack([job("render")], settings={"WORKER_ALLOW_FILE": str(path)}) as stack,
        stack.client() as client,
    ):
        failing = await client.send(job="render", meta={"exit_code": "75"})
        others = [await client.send(job="render") for _ in range(3)]
        finals = [await client.wait(sent, timeout=60) for sent in (failing, *others)]
        tokens = [entry["token"] for entry in stack.nomad.record.dispatches]

    assert [(final.verdict, final.attempt) for final in finals] == [("failed", 3), *[("succeeded", 1)] * 3]
    # The others go while it waits for its next run.
    assert tokens == [failing.id, *(sent.id for sent in others), f"{failing.id}/2", f"{failing.id}/3"]
