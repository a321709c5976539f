"""`dispatch-worker dlq` as people run it, and killed half-way."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.deadletter.conftest import Morgue

pytestmark = pytest.mark.anyio

SOON = 30.0
LETTERS = 400


def environment(morgue: Morgue) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **morgue.environment}


async def dlq(morgue: Morgue, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "worker", "dlq", *words],
        env=environment(morgue),
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
        stdin=subprocess.DEVNULL,
    )


async def test_letters_are_listed_for_people_and_for_scripts(morgue: Morgue) -> None:
    first = await morgue.dies("nomad.job_unknown", "acme", job=b"encode")
    await morgue.dies("request.poison")

    table = await dlq(morgue, "list")
    lines = (await dlq(morgue, "list", "--json", "--reason", "nomad.*")).stdout.splitlines()

    assert table.returncode == 0
    assert table.stdout.splitlines()[0].split()[:4] == ["ID", "AGE", "MESSAGE", "JOB"]
    assert f"{first}  encode  acme    nomad.job_unknown" in table.stdout
    assert "2 of 2 dead letters match" in table.stderr
    [letter] = [json.loads(line) for line in lines]
    assert (letter["message_id"], letter["job"], letter["code"]) == (first.id, "encode", "nomad.job_unknown")


async def test_a_letter_is_shown_with_its_payload_in_a_file(morgue: Morgue, tmp_path: Path) -> None:
    key = await morgue.dies(payload=b"\x00\xffraw", meta=b'{"a": "1"}')
    [letter] = [letter async for letter in morgue.letters.find()]

    shown = await dlq(morgue, "show", letter.id, "--payload", str(tmp_path / "p"))
    as_json = json.loads((await dlq(morgue, "show", letter.id, "--json")).stdout)

    assert (tmp_path / "p").read_bytes() == b"\x00\xffraw"
    assert f"Message         {key}" in shown.stdout
    assert 'meta = {"a": "1"}' in shown.stdout
    assert f"dlq requeue {letter.id}" in shown.stderr
    assert as_json["payload_base64"] == "AP9yYXc="


async def test_a_dry_run_does_nothing(morgue: Morgue) -> None:
    await morgue.dies()
    await morgue.dies("request.meta_invalid", meta=b"no")

    dry = await dlq(morgue, "requeue", "--all", "--dry-run")

    assert dry.returncode == 1
    assert "would be requeued" in dry.stdout
    assert "not requeued: field meta" in dry.stderr
    assert await morgue.letters.count() == 2


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("requeue",), "give IDs, a filter such as --reason 'nomad.*', or --all"),
        (("drop",), "give IDs, a filter"),
        (("drop", "--all"), "add --yes, or --dry-run"),
        (("requeue", "1-1", "--all"), "Give either IDs, or filters, or --all"),
        (("requeue", "1-1"), "dispatch-worker dlq list"),
        (("show", "1-1"), "dispatch-worker dlq list"),
        (("requeue", "--all", "-meta", "x"), "takes NAME=VALUE"),
        (("list", "--older", "soon"), "is no duration"),
    ],
)
async def test_a_wrong_use_says_what_to_do_and_changes_nothing(
    morgue: Morgue, words: tuple[str, ...], advice: str
) -> None:
    await morgue.dies()

    ended = await dlq(morgue, *words)

    assert ended.returncode != 0
    assert advice in ended.stderr
    assert "Traceback" not in ended.stderr
    assert await morgue.letters.count() == 1


async def test_letters_are_dropped_by_filter(morgue: Morgue) -> None:
    await morgue.dies("nomad.job_unknown")
    await morgue.dies("request.poison")

    ended = await dlq(morgue, "drop", "--reason", "request.poison", "--yes")

    assert ended.returncode == 0
    assert [letter.code async for letter in morgue.letters.find()] == ["nomad.job_unknown"]


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("n", 2), ("", 2)])
async def test_a_drop_by_filter_asks_first_and_says_how_many(morgue: Morgue, answer: str, left: int) -> None:
    for reason in ("nomad.job_unknown", "request.poison"):
        await morgue.dies(reason)

    code, told = await at_a_terminal(morgue, answer, "drop", "--reason", "request.*")

    assert "Drop 1 dead letters for good? (y/N)" in told
    assert (code, await morgue.letters.count()) == (0 if left == 1 else 1, left)
    assert "Traceback" not in told


async def at_a_terminal(morgue: Morgue, answer: str, *words: str) -> tuple[int, str]:
    """Run a command whose input is a terminal, and answer its question; returns its code and what it told."""
    terminal, other_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "dlq", *words),
        env=environment(morgue),
        stdin=other_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.close(other_end)
    os.write(terminal, f"{answer}\n".encode())
    try:
        async with asyncio.timeout(SOON):
            told, _ = await process.communicate()
    finally:
        os.close(terminal)
    return process.returncode or 0, told.decode()


async def test_a_single_requeue_tells_how_to_follow_it(morgue: Morgue) -> None:
    await morgue.dies()
    [letter] = [letter async for letter in morgue.letters.find()]

    ended = await dlq(morgue, "requeue", letter.id)

    key = ended.stdout.split()[-1]
    assert f"Follow it with: dispatch-worker wait {key}" in ended.stderr


async def test_no_letters_at_all_is_told(morgue: Morgue) -> None:
    assert (await dlq(morgue, "list")).stderr == "There are no dead letters.\n"


@pytest.mark.processes
async def test_a_requeue_killed_again_and_again_loses_and_doubles_nothing(morgue: Morgue) -> None:
    keys = [await morgue.dies(payload=str(n).encode()) for n in range(LETTERS)]
    kills = 0
    while kills < 3:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "dlq", "requeue", "--all", "--rate", "100000"),
            env=environment(morgue),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        async with asyncio.timeout(SOON):
            for _ in range(25 * (kills + 1)):
                await process.stdout.readline()
        process.kill()
        await process.communicate()
        kills += 1
        left = await morgue.letters.count()
        requeued = len(await morgue.requests()) - LETTERS
        assert left + requeued == LETTERS
        assert 0 < left < LETTERS

    ended = await dlq(morgue, "requeue", "--all", "--rate", "100000")

    assert ended.returncode == 0
    assert await morgue.letters.count() == 0
    replays = Counter(
        fields[b"replay_of"].decode() for fields in await morgue.requests() if b"replay_of" in fields
    )
    assert replays == Counter(map(str, keys))
