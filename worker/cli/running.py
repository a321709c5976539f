"""One run of a producer's command: its end by an error, by time or by Ctrl-C, and what to do then.

Knows nothing of what the command does.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import typer

from worker.cli.console import Console
from worker.cli.monitor import EXIT_INTERRUPTED
from worker.client import Sent, WorkerError

_REACH = "Is Redis running, and REDIS_URL right? It is {redis}."
_ADVICE = {
    "redis.unavailable": _REACH,
    "client.not_sent": f"{_REACH} Sent again with the same -idempotency-token, a request stays one.",
    "redis.out_of_memory": "Redis at {redis} is full: raise its maxmemory, or let workers catch up.",
    "redis.not_writable": "Redis at {redis} is a replica, or loading: give REDIS_URL the primary, or wait.",
    "redis.denied": "Check REDIS_USERNAME and REDIS_PASSWORD_FILE, or the password in REDIS_URL ({redis}), "
    "and the user's ACL: docs/producers.md lists what a producer needs.",
    "client.message_unknown": "Of another stream? Give <stream>:<id>. Long ago? A settled request is "
    "remembered for WORKER_LEDGER_RETENTION_SECONDS.",
    "request.payload_too_large": "With -claim-check it is kept in Redis, for the job to fetch.",
    "client.payload_too_large": "Put it into a store of your own: docs/producers.md shows how.",
}
"""By error code: what to do. The other errors say it themselves."""


class Run:
    """One run of a command: its end by error, by time or by Ctrl-C is told in the same words."""

    def __init__(
        self,
        redis_address: str,
        timeout_seconds: float | None,
        *,
        idle: str = "No request was confirmed.",
        cancel: Callable[[Sent], Coroutine[Any, Any, int]] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            redis_address: named where Redis is at fault.
            timeout_seconds: for the whole of it; None: as long as it takes.
            idle: what is told of an end before any request was confirmed.
            cancel: offered on Ctrl-C at a terminal; returns the exit code.
        """
        self.sent: Sent | None = None
        self._redis_address = redis_address
        self._idle = idle
        self._cancel = cancel
        self._timeout_seconds = timeout_seconds

    def __call__(self, main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
        """Run to the end and exit with the code that `main` returns."""
        try:
            code = asyncio.run(self._in_time(main))
        except KeyboardInterrupt:
            code = self._interrupted()
        except TimeoutError:
            Console.fail(f"Timed out. {self._how_to_follow()}")
        except WorkerError as error:
            Console.fail(f"Error: {error} [{error.code}]{self._advice(error)}")
        raise typer.Exit(code)

    async def _in_time(self, main: Callable[[], Coroutine[Any, Any, int]]) -> int:
        async with asyncio.timeout(self._timeout_seconds):
            return await main()

    def _interrupted(self) -> int:
        if self.sent is not None and self._cancel is not None and Console.is_terminal():
            question = "\nInterrupted. Leave the request running (Enter), or cancel it (c)? "
            try:
                if Console.ask(question).startswith("c"):
                    return asyncio.run(self._cancel(self.sent))
            except (KeyboardInterrupt, EOFError):
                pass
        Console.notice(f"\nInterrupted. {self._how_to_follow()}")
        return EXIT_INTERRUPTED

    def _how_to_follow(self) -> str:
        if self.sent is None:
            return self._idle
        return f"The request goes on; follow it with: dispatch-worker wait {self.sent.key}"

    def _advice(self, error: WorkerError) -> str:
        advice = _ADVICE.get(error.code)
        lines = [advice.format(redis=self._redis_address)] if advice else []
        if self.sent is not None:
            lines.append(self._how_to_follow())
        return "".join(f"\n  {line}" for line in lines)
