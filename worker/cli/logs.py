"""Shows what a dispatched job's tasks write, while its replies come in.

Asks Nomad, and so needs its address and a token with `read-job` and `read-logs`; Redis knows no logs.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from worker.cli.console import Console
from worker.core.model import Place
from worker.core.reply import Reply
from worker.errors import ChildUnknown, NomadDenied, NomadRefused, NomadUnavailable

if TYPE_CHECKING:
    from worker.adapters.nomad.client import NomadClient

READ_SECONDS = 1.0
LAST_SECONDS = 5.0
"""For what was written between the last look and the end."""

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


class LogFollower:
    """Use as `async with`; tell it of every reply."""

    def __init__(self, nomad: "NomadClient", console: Console) -> None:
        self._nomad = nomad
        self._console = console
        self._place = Place("", "")
        self._job_id = ""
        self._read: dict[tuple[str, str, Stream], int] = {}
        """How much was shown of each task's output."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()
        await self._nomad.aclose()

    async def hear(self, reply: Reply) -> None:
        """Begin when the job is dispatched, also that of a further run; on the final reply show the rest."""
        if reply.dispatched_job_id not in {"", self._job_id}:
            await self._finish()
            self._place, self._job_id = Place(reply.region, reply.namespace), reply.dispatched_job_id
            self._task = asyncio.create_task(self._follow(), name="logs")
        if reply.final:
            await self._finish()

    async def _finish(self) -> None:
        if not self._job_id:
            return
        await self._stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._show_new()

    async def _follow(self) -> None:
        while await self._show_new():  # noqa: ASYNC110 - nobody announces new output
            await asyncio.sleep(READ_SECONDS)

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _show_new(self) -> bool:
        """Show what is new; whether it is worth looking again."""
        try:
            snapshot = await self._nomad.snapshot(self._place, self._job_id)
            for allocation in snapshot.allocations.values():
                for task in allocation.task_states or {}:
                    for stream in STREAMS:
                        await self._show(allocation.id, task, stream)
        except NomadDenied as error:
            self._console.notice(f"Logs are not to be had: {error}. The token needs read-job and read-logs.")
            return False
        except NomadUnavailable:
            # Nomad is away: the next look shows what was missed.
            return True
        return True

    async def _show(self, allocation: str, task: str, stream: Stream) -> None:
        shown = self._read.get((allocation, task, stream), 0)
        try:
            part = await self._nomad.logs_from(self._place, allocation, task, stream, shown)
        except (ChildUnknown, NomadRefused, NomadUnavailable):
            # There is none (any more), or its node is away: then the next look shows what was missed.
            return
        self._read[allocation, task, stream] = shown + len(part)
        if part:
            self._console.log(part, stream)
