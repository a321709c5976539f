"""A loop that ends by itself ends the process; one that was told to end does not."""

import asyncio

import pytest

from worker.runtime.tasks import TaskTree

pytestmark = pytest.mark.anyio


class Loops:
    """A tree of loops that end when they are let."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.tree = TaskTree(self.failures.append)
        self.end = asyncio.Event()

    async def ends(self) -> None:
        await self.end.wait()

    async def breaks(self) -> None:
        await self.end.wait()
        raise ValueError("a fault of ours")


async def settled() -> None:
    """Let every callback that is due be called."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_loop_that_ends_or_breaks_unasked_is_told_of() -> None:
    loops = Loops()
    loops.tree.start("ends", loops.ends())
    loops.tree.start("breaks", loops.breaks())

    loops.end.set()
    await settled()

    assert sorted(map(str, loops.failures)) == ["a fault of ours", "the loop ends ended by itself"]


async def test_a_loop_that_was_told_to_end_may_do_so_before_it_is_waited_for() -> None:
    loops = Loops()
    loops.tree.start("ends", loops.ends())
    loops.tree.start("breaks", loops.breaks())

    loops.tree.may_end("ends", "breaks")
    loops.end.set()
    await settled()
    await loops.tree.finish("ends", 1)

    assert [str(failure) for failure in loops.failures] == ["a fault of ours"]


async def test_a_loop_that_takes_too_long_to_end_is_cancelled() -> None:
    loops = Loops()
    loops.tree.start("ends", loops.ends())

    await loops.tree.finish("ends", 0)
    await loops.tree.cancel()

    assert loops.failures == []
