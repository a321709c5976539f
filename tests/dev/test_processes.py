"""Child processes of the dev tools: ended when asked, and never left behind."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.dev import processes
from worker.dev.guardian import survivors
from worker.dev.processes import ChildProcess, start_child

pytestmark = pytest.mark.anyio

WITHIN_SECONDS = 10.0


@pytest.fixture
def ignored_interrupts() -> Iterator[None]:
    """As a shell leaves them for a command in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def start(*args: str) -> ChildProcess:
    return start_child(args, env=dict(os.environ), cwd=Path("/"))


async def end_of(child: ChildProcess) -> int:
    return await asyncio.wait_for(child.wait(), WITHIN_SECONDS)


@pytest.mark.usefixtures("ignored_interrupts")
async def test_a_child_can_be_interrupted_even_if_this_process_cannot() -> None:
    child = start("sleep", "600")

    returncode = await child.stop(signal_number=signal.SIGINT, timeout_seconds=WITHIN_SECONDS)

    assert returncode == -signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("pidfd", [True, False])
async def test_the_end_of_a_child_is_seen_with_and_without_pidfd(
    monkeypatch: pytest.MonkeyPatch, *, pidfd: bool
) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)

    child = start("sh", "-c", "exit 7")

    assert await end_of(child) == 7
    assert child.returncode == 7
    child.send_signal(signal.SIGKILL)  # nothing: the ID may already be somebody else's
    child.send_group_signal(signal.SIGKILL)


async def test_a_stopped_process_is_continued_to_end() -> None:
    child = start("sleep", "600")
    child.send_signal(signal.SIGSTOP)

    assert await child.stop(timeout_seconds=WITHIN_SECONDS) == -signal.SIGTERM


async def test_a_program_that_does_not_exist_is_an_error_and_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        start("/no/such/program")


async def test_a_guardian_that_was_killed_gets_a_successor_that_knows_all_groups() -> None:
    first = start("sleep", "600")
    registry = processes._registry()
    assert registry._guardian is not None
    killed = registry._guardian
    killed.kill()
    killed.wait(WITHIN_SECONDS)

    second = start("sleep", "600")

    assert registry._guardian is not killed
    assert {first.pid, second.pid} <= registry._groups
    registry._close()  # as at the end of this process: the guardian ends what is left
    assert await end_of(first) == await end_of(second) == -signal.SIGKILL


def test_the_guardian_ends_what_was_added_and_not_removed() -> None:
    assert survivors([b"+10\n", b"+11\n", b"-10\n", b"-99\n", b"+12"]) == {11}
