"""The client agents of the simulated nodes: start and stop work as told, report in batches, fall silent.

Knows nothing of HTTP or scheduling; the servers' tables are changed only by reports.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from worker.dev.simulator.allocs import AllocRunner
from worker.dev.simulator.commands import client_update
from worker.dev.simulator.drivers import Driver
from worker.dev.simulator.records import Allocation
from worker.dev.simulator.state import State

_AT_ONCE = 1e6
"""A speed at which kill timeouts are over at once."""


class Clients:
    """All client agents of one simulator.

    Args:
        state: the servers' tables.
        drivers: by name.
        directory: where tasks get their folders.
        now: the clock, nanoseconds since the epoch.
        update_seconds: how long reports are gathered before they are sent; 0: each at once.
        speed: by how much the delays and timeouts of job specifications are shortened.
    """

    def __init__(
        self,
        state: State,
        drivers: Mapping[str, Driver],
        directory: Path,
        now: Callable[[], int],
        *,
        update_seconds: float,
        speed: float,
    ) -> None:
        self.state = state
        self.drivers = drivers
        self.directory = directory
        self.now = now
        self.speed = speed
        self.update_seconds = update_seconds
        self.runners: dict[str, AllocRunner] = {}
        self.runs: list[dict[str, Any]] = []
        """Every start of a task: job, allocation, node, task, start and end (seconds), exit code."""
        self._news: dict[str, dict[str, AllocRunner]] = {}
        self._timers: dict[str, asyncio.Handle] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._silent: set[str] = set()

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run a coroutine until it ends or the simulator closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def follow(self) -> None:
        """Look at the allocations the servers changed or removed since the last call."""
        while self.state.removed_allocs:
            alloc_id = self.state.removed_allocs.popleft()
            runner = self.runners.pop(alloc_id, None)
            if runner is not None:
                runner.destroy()
                self._news.get(runner.node.id, {}).pop(alloc_id, None)
                if runner.directory.exists():
                    shutil.rmtree(runner.directory, ignore_errors=True)
        while self.state.changed_allocs:
            alloc = self.state.changed_allocs.popleft()
            if alloc.node_id not in self._silent:
                self._follow(alloc)

    def _follow(self, alloc: Allocation) -> None:
        runner = self.runners.get(alloc.id)
        job = self.state.job_of(alloc)
        if runner is not None:
            if alloc.desired_status != "run":
                runner.stop()
        elif alloc.live and job is not None:
            runner = AllocRunner(self, alloc, job, self.state.nodes[alloc.node_id])
            self.runners[alloc.id] = runner
            runner.start()

    def report(self, runner: AllocRunner) -> None:
        """Send a runner's news with the node's next batch."""
        node_id = runner.node.id
        self._news.setdefault(node_id, {})[runner.alloc.id] = runner
        if node_id in self._silent or node_id in self._timers:
            return
        loop = asyncio.get_running_loop()
        if self.update_seconds:
            self._timers[node_id] = loop.call_later(self.update_seconds, self._send, node_id)
        else:
            self._timers[node_id] = loop.call_soon(self._send, node_id)

    def _send(self, node_id: str) -> None:
        self._timers.pop(node_id, None)
        if node_id in self._silent:
            return
        news = self._news.pop(node_id, {})
        client_update(self.state, [runner.update() for runner in news.values()], self.now())

    def silence(self, node_id: str) -> None:
        """A node's client stops talking to the servers; its tasks go on."""
        self._silent.add(node_id)

    def resume(self, node_id: str) -> None:
        """A node's client talks again: it tells all it kept, and hears what it missed."""
        if node_id not in self._silent:
            return
        self._silent.discard(node_id)
        for alloc in list(self.state.nodes[node_id].allocs.values()):
            runner = self.runners.get(alloc.id)
            if runner is None:
                self._follow(alloc)
                continue
            if alloc.client_status == "unknown":
                runner.reconnected()
            if alloc.client_status in {"unknown", "lost"} or not runner.ended:
                self._news.setdefault(node_id, {})[alloc.id] = runner
            if alloc.desired_status != "run":
                runner.stop()
        self._send(node_id)

    def logs(self, alloc_id: str, task: str, stream: str) -> bytes | None:
        """Return a task's whole log so far; None if no client has the allocation.

        Raises:
            KeyError: the allocation has no such task.
        """
        runner = self.runners.get(alloc_id)
        return None if runner is None else runner.logs(task, stream)

    async def close(self) -> None:
        """End every task and forget every report."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        # Nobody waits for a graceful end any more.
        self.speed = _AT_ONCE
        for runner in self.runners.values():
            if not runner.ended:
                runner.destroy()
        if self._work:
            await asyncio.wait(self._work, timeout=10)
        for task in tuple(self._work):
            task.cancel()
        if self._work:
            await asyncio.gather(*self._work, return_exceptions=True)
