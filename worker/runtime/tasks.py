"""The task tree: every loop has a name and an owner, and the death of one is the end of the process.

Knows nothing of what the loops do.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


class TaskTree:
    """Loops that run until they are stopped.

    Args:
        failed: called once per loop that ended by itself; a loop that is gone must not go unnoticed.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._may_end: set[str] = set()

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Run a loop under a name that is not in use."""
        task = asyncio.create_task(loop, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._ended)

    def may_end(self, *names: str) -> None:
        """These loops are about to be told to stop: from now on their end is no accident."""
        self._may_end.update(names)

    async def finish(self, name: str, seconds: float) -> None:
        """Wait for a loop that was told to stop; cancel it when it takes longer."""
        task = self._tasks.pop(name, None)
        if task is not None:
            await asyncio.wait([task], timeout=seconds)
            await _cancel([task])

    async def cancel(self) -> None:
        """Cancel all that is left and wait for it."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        await _cancel(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._tasks.get(task.get_name()) is not task:
            return  # told to stop
        del self._tasks[task.get_name()]
        if task.cancelled() or (task.get_name() in self._may_end and task.exception() is None):
            return
        error = task.exception() or RuntimeError(f"the loop {task.get_name()} ended by itself")
        log.error("loop.died", loop=task.get_name(), exc_info=error)
        self._failed(error)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
