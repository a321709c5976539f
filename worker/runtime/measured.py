"""Measures the calls of a port: how long each took, and which error it ended with.

Knows nothing of what the port does; what is told goes to one function.
"""

import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from worker.errors import WorkerError

Port = TypeVar("Port")

Tell = Callable[[str, str, float], None]
"""Operation (the method's name), `ok` or an error's code, seconds."""


def measured(port: Port, tell: Tell) -> Port:
    """The same port; each of its asynchronous calls is told of when it ends.

    Cancelled calls, and faults that are no `WorkerError`, are not told: nobody answered.
    """
    return cast("Port", _Measured(port, tell))


class _Measured:
    def __init__(self, port: object, tell: Tell) -> None:
        self._port = port
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if not inspect.iscoroutinefunction(value):
            return value
        call = self._measuring(name, value)
        # Kept, so that this method is not asked again.
        self.__dict__[name] = call
        return call

    def _measuring(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            try:
                answer = await method(*args, **kwargs)
            except WorkerError as error:
                self._tell(name, error.code, time.monotonic() - started)
                raise
            self._tell(name, "ok", time.monotonic() - started)
            return answer

        return call
