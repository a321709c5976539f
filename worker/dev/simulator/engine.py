"""Keeps the simulated cluster going: runs evaluations when they are due and lets the clients follow.

Decides nothing itself; knows nothing of HTTP.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop
from pathlib import Path

from worker.dev.simulator import nodes
from worker.dev.simulator.clients import Clients
from worker.dev.simulator.drivers import DRIVERS, Driver
from worker.dev.simulator.evaluating import process, unblock
from worker.dev.simulator.state import Node, State

_EVALUATIONS_PER_TURN = 32


@dataclass(frozen=True, slots=True)
class Timings:
    """How fast the simulated cluster is."""

    scheduling_seconds: float = 0.002
    """From a new evaluation to its plan."""
    update_seconds: float = 0.2
    """How long clients gather reports. With more, `running` is missed more often; 0: each report at once."""
    task_speed: float = 1.0
    """By how much the delays and timeouts of job specifications are shortened (restart and reschedule delays,
    kill_timeout, max_run_duration, lost_after). What tasks do takes its own time."""


class Engine:
    """The loop of the servers and the clients."""

    def __init__(
        self,
        state: State,
        directory: Path,
        timings: Timings | None = None,
        drivers: Mapping[str, Driver] = DRIVERS,
    ) -> None:
        self.state = state
        self.timings = timings or Timings()
        self.clients = Clients(
            state,
            drivers,
            directory,
            self.now,
            update_seconds=self.timings.update_seconds,
            speed=self.timings.task_speed,
        )
        self._handle: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0
        self._drains: dict[str, asyncio.TimerHandle] = {}
        self._running = False

    def now(self) -> int:
        """Return the time in nanoseconds since the epoch."""
        return time.time_ns()

    def start(self) -> None:
        """Begin to follow the state."""
        self._running = True
        self.state.on_write.append(self.kick)
        self.kick()

    async def close(self) -> None:
        """Stop following, and end every task."""
        self._running = False
        self.state.on_write.remove(self.kick)
        for handle in (self._handle, self._alarm, *self._drains.values()):
            if handle is not None:
                handle.cancel()
        await self.clients.close()

    def kick(self) -> None:
        """Look at what is due soon."""
        if self._handle is None and self._running:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(self.timings.scheduling_seconds, self._turn)

    def _turn(self) -> None:
        state, now = self.state, self.now()
        self._handle = None
        self.clients.follow()
        while state.waiting_evals and state.waiting_evals[0][0] <= now:
            _, eval_id = heappop(state.waiting_evals)
            state.ready_evals.append(eval_id)
        for _ in range(min(len(state.ready_evals), _EVALUATIONS_PER_TURN)):
            process(state, state.ready_evals.popleft(), now)
        if state.capacity_changed:
            unblock(state, now)
        self.clients.follow()
        if state.ready_evals or state.capacity_changed:
            self.kick()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake up for the earliest delayed evaluation."""
        due = self.state.waiting_evals[0][0] if self.state.waiting_evals else 0
        if due == self._alarm_at and self._alarm is not None:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = due
        if due:
            delay = max((due - self.now()) / 1e9, 0)
            self._alarm = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.kick()

    def node(self, name_or_id: str) -> Node:
        """Return a node by name, ID or the beginning of its ID.

        Raises:
            KeyError: no such node.
        """
        for node in self.state.nodes.values():
            if name_or_id in {node.name, node.id} or (name_or_id and node.id.startswith(name_or_id)):
                return node
        raise KeyError(name_or_id)

    def lose_node(self, node: Node) -> None:
        """The node's client is cut off; the servers notice at once."""
        self.clients.silence(node.id)
        if node.status == "ready":
            nodes.lose(self.state, node, self.now())

    def return_node(self, node: Node) -> None:
        """The node's client is back."""
        if node.status != "ready":
            nodes.come_back(self.state, node, self.now())
        self.clients.resume(node.id)

    def drain_node(self, node: Node, deadline: int) -> int:
        """Drain a node; return the index. `deadline` is in nanoseconds, see `nodes.drain`."""
        index = nodes.drain(self.state, node, deadline, self.now())
        if deadline:
            delay = max(deadline, 0) / 1e9 / self.timings.task_speed
            loop = asyncio.get_running_loop()
            self._drains[node.id] = loop.call_later(delay, self._evict, node)
        return index

    def end_drain(self, node: Node, *, eligible: bool) -> int:
        """Cancel a drain; return the index."""
        timer = self._drains.pop(node.id, None)
        if timer is not None:
            timer.cancel()
        return nodes.end_drain(self.state, node, self.now(), eligible=eligible)

    def _evict(self, node: Node) -> None:
        self._drains.pop(node.id, None)
        if node.drain is not None:
            nodes.evict(self.state, node, self.now())
