"""Runs the Lua scripts: in batches, by digest, re-sent in full to a server that does not know them.

Decides nothing about what a script's answer means.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.resources import files
from typing import Any

import msgspec
from redis.asyncio import RedisCluster
from redis.exceptions import MovedError, NoScriptError, RedisError, ResponseError

from worker.adapters.redis.connection import translate
from worker.adapters.redis.durability import Durability
from worker.adapters.redis.held import HeldConnection
from worker.errors import RedisDenied, RedisUnavailable, Then, WorkerError

MAX_BATCH = 200
"""Scripts in one pipeline: enough to hide the round trip, few enough not to keep other clients waiting."""


class Script(Enum):
    """Every script, by its file's name; then the shared heads it needs besides the common one."""

    ADMIT = ("admit",)
    PARK = ("park", "_slots", "_waiting")
    PICK = ("pick", "_slots", "_waiting")
    MEND = ("mend", "_waiting")
    OCCUPY = ("occupy", "_owned", "_slots")
    RECOUNT = ("recount",)
    INTEND = ("intend", "_owned")
    PUT_OFF = ("put_off", "_owned")
    DISPATCHED = ("dispatched",)
    PROGRESS = ("progress", "_owned")
    REPEAT = ("repeat", "_owned")
    ORDER_STOP = ("order_stop", "_owned")
    SETTLE = ("settle", "_slots")
    BEAT = ("beat",)
    RELEASE = ("release",)
    TAKE = ("take",)
    RETIRE = ("retire",)
    TRIM = ("trim",)
    SWEEP = ("sweep",)
    EXPIRE_DEAD = ("expire_dead",)
    KEEP_KEY = ("keep_key",)

    # An enum's own looks at the member's name, in Python: six times a message.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class _Source:
    text: str
    digest: str


def _load(script: Script) -> _Source:
    name, *heads = script.value
    folder = files("worker.adapters.redis") / "lua"
    parts = ["_common", *heads, name]
    text = "\n".join((folder / f"{part}.lua").read_text() for part in parts)
    return _Source(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


SOURCES = {script: _load(script) for script in Script}


Args = Sequence[str | bytes | int]

pack: Callable[[Sequence[str]], bytes] = msgspec.msgpack.Encoder().encode
"""Fields and values as the scripts take them. Text only: Redis's own MessagePack cannot read bytes."""


@dataclass(slots=True)
class _Call:
    script: Script
    keys: Sequence[str]
    args: Args
    confirm: bool = False
    confirmed: bool = True
    """Whether what it wrote is known to be durable, where that was asked for."""
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def command(self, *, whole: bool) -> tuple[Any, ...]:
        source = SOURCES[self.script]
        head = ("EVAL", source.text) if whole else ("EVALSHA", source.digest)
        return (*head, len(self.keys), *self.keys, *self.args)


class ScriptRunner:
    """Runs scripts on one connection pool; calls made while a pipeline is under way share the next one.

    Every script is safe to repeat, so a call whose answer was lost may simply be made again.

    Args:
        redis: a client for operations.
        durability: what `run_confirmed` asks for.
        keep_connection: hold one connection of the client's for good.
    """

    def __init__(
        self, redis: Any, durability: Durability = Durability.NONE, *, keep_connection: bool = False
    ) -> None:
        self._redis = redis
        # A cluster's client has no pool of its own, but one for each node.
        self._held = HeldConnection(getattr(redis, "connection_pool", None), keep=keep_connection)
        self._durability = durability
        self._waiting: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    async def run(self, script: Script, keys: Sequence[str], args: Args) -> Any:
        """Run one script and return its answer: bytes, ints and lists of them.

        Raises:
            RedisUnavailable: (or a kind of it) no answer, or none that counts; safe to repeat.
            RedisDenied: the Redis user may not run what the script needs.
        """
        return await self._run(_Call(script, keys, args))

    async def run_confirmed(self, script: Script, keys: Sequence[str], args: Args) -> tuple[Any, bool]:
        """Run one script and ask whether what it wrote is durable.

        Returns:
            Its answer, and whether that was confirmed in time; True where no durability is asked for.

        Raises:
            RedisUnavailable, RedisDenied: as `run`.
        """
        call = _Call(script, keys, args, confirm=self._durability is not Durability.NONE)
        return await self._run(call), call.confirmed

    async def _run(self, call: _Call) -> Any:
        if self._closed:
            message = "the connection is closed"
            raise RedisUnavailable(message)
        self._waiting.append(call)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name="redis.scripts")
        return await call.answer

    async def close(self) -> None:
        """Wait for what is under way; later calls are refused."""
        self._closed = True
        if self._sender is not None:
            await self._sender
        await self._held.close()

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            try:
                await self._answer(batch, whole=False)
            except Exception as error:  # noqa: BLE001 - every waiter must hear of it, whatever it is
                for call in batch:
                    if not call.answer.done():
                        call.answer.set_exception(_named(error))

    async def _answer(self, batch: Sequence[_Call], *, whole: bool) -> None:
        commands = [call.command(whole=whole) for call in batch]
        if any(call.confirm for call in batch):
            answers, confirmed = await self._execute_confirmed(batch[0].keys[0], commands)
            for call in batch:
                call.confirmed = confirmed
        else:
            answers = await self._execute(commands)
        unknown = []
        for call, answer in zip(batch, answers, strict=True):
            if isinstance(answer, NoScriptError) and not whole:
                unknown.append(call)
            elif call.answer.done():
                continue  # its waiter was cancelled
            elif isinstance(answer, Exception):
                named = _named(answer)
                call.answer.set_exception(_denied(call.script, named) if named.then is Then.STOP else named)
            else:
                call.answer.set_result(answer)
        if unknown:
            # A restarted or newly promoted server: none of these has run.
            await self._answer(unknown, whole=True)

    async def _execute(self, commands: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        if isinstance(self._redis, RedisCluster):
            # redis-py's cluster pipeline refuses EVALSHA; all keys are in one slot anyway.
            return await asyncio.gather(
                *(self._redis.execute_command(*command) for command in commands), return_exceptions=True
            )
        return await self._held.exchange(commands)

    async def _execute_confirmed(
        self, key: str, commands: Sequence[tuple[Any, ...]]
    ) -> tuple[Sequence[Any], bool]:
        """The answers, and whether all that was written is durable: asked on the connection that wrote."""
        whole = [*commands, self._durability.command]
        if isinstance(self._redis, RedisCluster):
            answers = await self._on_one_connection(self._redis, key, whole)
        else:
            answers = await self._held.exchange(whole)
        return answers[:-1], Durability.confirms(answers[-1])

    async def _on_one_connection(
        self, cluster: RedisCluster, key: str, commands: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        await cluster.initialize()
        node = cluster.get_node_from_key(key)
        if node is None:
            message = "no node of the cluster serves the worker's slot"
            raise RedisUnavailable(message)
        connection = node.acquire_connection()
        answers: list[Any] = []
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            await connection.send_packed_command(connection.pack_commands(commands))
            for command in commands:
                try:
                    answers.append(await node.parse_response(connection, str(command[0])))
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            # Answers may still be on their way, and would be taken for those of the next command.
            await connection.disconnect()
            raise
        finally:
            node.release(connection)
        if any(isinstance(answer, MovedError) for answer in answers):
            # The slot is somewhere else. The client follows, and knows from then on; not confirmed this time.
            return [*await self._execute(commands[:-1]), 0]
        return answers


def _denied(script: Script, error: WorkerError) -> WorkerError:
    """Redis tells the script's digest and line; people want the command that stands there."""
    line = re.search(r"user_script:(\d+)", str(error))
    source = SOURCES[script].text.splitlines()
    command = re.search(r"redis\.call\('(\w+)'", source[int(line[1]) - 1]) if line else None
    if command is None:
        return error
    return RedisDenied(f"the Redis user may not run {command[1]}, which the script {script.name} needs")


def _named(error: Exception) -> WorkerError:
    if isinstance(error, WorkerError):
        return error
    if isinstance(error, RedisError | OSError | asyncio.TimeoutError):
        return translate(error)
    # A fault of ours (say, an argument of a wrong type): named, so that its waiter hears of it.
    return RedisUnavailable(f"{type(error).__name__}: {error}")
