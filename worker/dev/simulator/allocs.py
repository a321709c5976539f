"""A simulated client's work on one allocation: its tasks, their order, restarts and ends.

Knows nothing of servers: it is told to start, stop or vanish, and says when there is news to report.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from worker.dev.simulator.commands import ClientUpdate
from worker.dev.simulator.drivers import Driver, RunningTask, StartFailed, TaskSpec
from worker.dev.simulator.jobs import Job
from worker.dev.simulator.records import Allocation, TaskEvent, TaskState, go_time
from worker.dev.simulator.restarts import (
    RestartTracker,
    failure_event,
    killing_event,
    plain_event,
    setup_event,
    sibling_event,
    terminated_event,
)
from worker.dev.simulator.state import Node
from worker.dev.simulator.taskenv import SCRIPTED, environment, fetch_artifacts, fill_in, prepare_folder
from worker.dev.simulator.tasks import StartFailure

_OUT_OF_TIME = "allocation exceeded max_run_duration"
_STATUS_TEXTS = {
    "failed": "Failed tasks",
    "running": "Tasks are running",
    "pending": "No tasks have started",
    "complete": "All tasks have completed",
}


class Client(Protocol):
    """What the runner needs of the client agent around it."""

    drivers: Mapping[str, Driver]
    directory: Path
    speed: float
    now: Callable[[], int]
    runs: list[dict[str, Any]]

    def report(self, runner: "AllocRunner") -> None:
        """Note that the runner has news."""

    def spawn(self, work: Any) -> "asyncio.Task[None]":
        """Run a coroutine, owned by the client."""


class TaskRunner:
    """One task: starts it, waits, restarts it by its policy, ends it."""

    def __init__(self, owner: "AllocRunner", spec: Mapping[str, Any]) -> None:
        lifecycle = spec.get("Lifecycle") or {}
        self.owner = owner
        self.spec = spec
        self.name: str = spec["Name"]
        self.hook: str = lifecycle.get("Hook") or ""
        self.sidecar = bool(lifecycle.get("Sidecar"))
        self.leader = bool(spec.get("Leader"))
        self.state = TaskState(events=[])
        self.running: RunningTask | None = None
        self.settled = False
        self._killed = False
        self._wake: asyncio.Event | None = None
        self._policy = RestartTracker(spec.get("RestartPolicy") or owner.group.spec.get("RestartPolicy"))

    @property
    def alive(self) -> bool:
        """Whether the task has not ended for good."""
        return self.state.state != "dead"

    def told_to_end(self) -> bool:
        """Whether a kill has begun."""
        return self._killed

    def add(self, event: TaskEvent) -> None:
        """Append a task event."""
        self.state.add(event)

    async def run(self, gate: asyncio.Event | None = None) -> None:
        """Run the task to its end; with a gate, begin when it opens."""
        if gate is not None:
            await gate.wait()
        if not self.told_to_end():
            self.add(setup_event(self.owner.now()))
            self.owner.changed()
            await self._attempts()
        self._end()

    async def _attempts(self) -> None:
        while not self.told_to_end():
            try:
                self.running = await self._start()
            except StartFailed as error:
                now = self.owner.now()
                self.add(failure_event(error, now))
                verdict = self._policy.next(now, recoverable=error.recoverable)
            else:
                end = await self._watch(self.running)
                now = self.owner.now()
                self.add(terminated_event(end, now))
                if self.told_to_end():
                    self.add(plain_event("Killed", now))
                    return
                if end.successful and not self.sidecar:
                    return
                verdict = self._policy.next(now)
            if self.told_to_end():
                return
            self.add(verdict.event)
            if verdict.delay is None:
                self.state.failed = True
                return
            self.state.state = "pending"
            self.state.restarts += 1
            self.state.last_restart = go_time(now)
            self.owner.changed()
            await self._pause(verdict.delay / 1e9 / self.owner.client.speed)

    async def _start(self) -> RunningTask:
        owner, spec = self.owner, self.spec
        driver = owner.client.drivers.get(spec["Driver"])
        if driver is None:
            problem = f'failed to find driver "{spec["Driver"]}"'
            failure: StartFailure = "Driver Failure"
            raise StartFailed(failure, problem)
        directory = None
        if spec["Driver"] not in SCRIPTED:
            directory = owner.directory / self.name
            prepare_folder(directory, owner.job, spec)
        if spec.get("Artifacts"):
            self.add(plain_event("Downloading Artifacts", owner.now()))
            owner.changed()
            fetch_artifacts(directory, spec)
        env = environment(owner.job, owner.alloc, spec, owner.node, directory)
        config = fill_in(spec.get("Config") or {}, env, owner.job, owner.node)
        return await driver.start(TaskSpec(self.name, spec["Driver"], config, env, directory))

    async def _watch(self, running: RunningTask) -> Any:
        now = self.owner.now()
        self.add(plain_event("Started", now))
        self.state.state = "running"
        self.state.started_at = go_time(now)
        self.owner.changed()
        if self.told_to_end():
            # Told to end while it was starting.
            await self._kill(running)
        run = {
            "job_id": self.owner.job.id,
            "alloc_id": self.owner.alloc.id,
            "node": self.owner.node.name,
            "task": self.name,
            "started_at": now / 1e9,
            "ended_at": None,
            "exit_code": None,
        }
        self.owner.client.runs.append(run)
        end = await running.wait()
        run.update(ended_at=self.owner.now() / 1e9, exit_code=end.exit_code)
        return end

    async def _pause(self, seconds: float) -> None:
        self._wake = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _end(self) -> None:
        self.state.state = "dead"
        self.state.finished_at = go_time(self.owner.now())
        self.owner.changed()

    def kill(self, event: TaskEvent | None = None, reason: str = "") -> None:
        """Begin to end the task; it is dead when `alive` is false."""
        if not self.alive or self._killed:
            return
        now = self.owner.now()
        if event is not None:
            self.add(event)
        self.add(killing_event(int(self.spec.get("KillTimeout") or 0), reason, now))
        self._killed = True
        if self._wake is not None:
            self._wake.set()
        if self.running is not None and self.state.state == "running":
            self.owner.client.spawn(self._kill(self.running))

    async def _kill(self, running: RunningTask) -> None:
        timeout = (self.spec.get("KillTimeout") or 0) / 1e9 / self.owner.client.speed
        await running.kill(signal=self.spec.get("KillSignal") or "", timeout_seconds=timeout)


class AllocRunner:
    """One allocation on its node."""

    def __init__(self, client: Client, alloc: Allocation, job: Job, node: Node) -> None:
        self.client = client
        self.alloc = alloc
        self.job = job
        self.node = node
        self.group = job.spec.groups[alloc.task_group]
        self.now = client.now
        self.directory = client.directory / alloc.id
        self.tasks = {spec["Name"]: TaskRunner(self, spec) for spec in self.group.tasks}
        self.stopping = False
        self._out_of_time = False
        self._silent = False
        self._ending_siblings = False
        self._gates: dict[str, asyncio.Event] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._simple = all(not task.hook for task in self.tasks.values())

    @property
    def ended(self) -> bool:
        """Whether every task has ended."""
        return not any(task.alive for task in self.tasks.values())

    def start(self) -> None:
        """Begin the work."""
        now = self.now()
        for task in self.tasks.values():
            task.add(plain_event("Received", now))
        if limit := self.group.spec.get("MaxRunDuration"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limit / 1e9 / self.client.speed, self._time_is_up)
        for task in self.tasks.values():
            gate = None if self._simple else self._gates.setdefault(task.name, asyncio.Event())
            self.client.spawn(task.run(gate))
        self._open_gates()

    def stop(self) -> None:
        """End all tasks because the servers want it."""
        if not self.stopping:
            self.stopping = True
            self._kill_all()
            self.changed()

    def destroy(self) -> None:
        """End all tasks and report nothing any more: the allocation is gone."""
        self._silent = True
        self._kill_all(poststop=True)

    def reconnected(self) -> None:
        """Note in the running tasks that the servers hear of them again."""
        for task in self.tasks.values():
            if task.alive:
                task.add(plain_event("Reconnected", self.now()))

    def changed(self) -> None:
        """React to a task's news: end siblings, let the next tasks begin, report."""
        for task in self.tasks.values():
            if not task.alive and not task.settled:
                task.settled = True
                self._task_ended(task)
        self._open_gates()
        if self.ended and self._timer is not None:
            self._timer.cancel()
        # A client that ends a failed task's siblings reports nothing until they are dead.
        if self._ending_siblings and any(task.alive for task in self._others("poststop")):
            return
        if not self._silent:
            self.client.report(self)

    def update(self) -> ClientUpdate:
        """Return what the client reports now."""
        status = self._status()
        return ClientUpdate(
            alloc_id=self.alloc.id,
            status="complete" if self._out_of_time else status,
            description=_OUT_OF_TIME if self._out_of_time else _STATUS_TEXTS[status],
            task_states={name: task.state.snapshot() for name, task in self.tasks.items()},
            timeout=_OUT_OF_TIME if self._out_of_time else "",
        )

    def logs(self, task: str, stream: str) -> bytes:
        """Return a task's whole log so far; empty if it never started."""
        running = self.tasks[task].running
        return running.logs(stream) if running is not None else b""

    def _status(self) -> str:
        states = [task.state for task in self.tasks.values()]
        if any(state.state == "dead" and state.failed for state in states):
            return "failed"
        for status in ("running", "pending"):
            if any(state.state == status for state in states):
                return status
        return "complete"

    def _others(self, *hooks: str) -> list[TaskRunner]:
        return [task for task in self.tasks.values() if task.hook not in hooks]

    def _task_ended(self, task: TaskRunner) -> None:
        others = [other for other in self._others("poststop") if other.alive]
        if not others or task.hook == "poststop":
            return
        now = self.now()
        mains = [other for other in self.tasks.values() if not other.hook]
        if task.state.failed:
            self._ending_siblings = True
            for other in others:
                other.kill(sibling_event(task.name, now))
        elif task.leader:
            self._ending_siblings = True
            for other in others:
                other.kill(plain_event("Leader Task Dead", now))
        elif not task.hook and not any(main.alive for main in mains):
            self._ending_siblings = True
            for other in others:
                other.kill(plain_event("Main Tasks Dead", now))

    def _open_gates(self) -> None:
        """Let tasks begin whose turn has come; a killed one passes its gate to end at once."""
        if self._simple:
            return
        main_may = all(
            task.state.state == "running" if task.sidecar else not task.alive and not task.state.failed
            for task in self.tasks.values()
            if task.hook == "prestart"
        )
        mains = [task for task in self.tasks.values() if not task.hook]
        turns = {
            "prestart": True,
            "": main_may,
            "poststart": all(task.state.started_at for task in mains),
            "poststop": not any(task.alive for task in mains),
        }
        for task in self.tasks.values():
            if turns.get(task.hook, True) or task.told_to_end():
                self._gates[task.name].set()

    def _kill_all(self, reason: str = "", *, poststop: bool = False) -> None:
        for task in self.tasks.values():
            if poststop or task.hook != "poststop":
                task.kill(reason=reason)
        self._open_gates()

    def _time_is_up(self) -> None:
        self._out_of_time = True
        self._kill_all(_OUT_OF_TIME)
        self.changed()
