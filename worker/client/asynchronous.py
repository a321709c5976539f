"""The producer's client for asyncio: sends requests and follows their replies.

Carries out what `exchange` says; the shared reply readers are in `feed`.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

from redis.asyncio import RedisCluster

from worker.adapters.redis.connection import FAILURES, Purpose, RedisOptions, connect
from worker.client.cancelling import Cancelled, cancel
from worker.client.claims import ClaimStore, RedisClaims, claimed, digest_of, is_large, keep
from worker.client.errors import ClientClosed, WaitTimedOut
from worker.client.exchange import (
    DEFAULT_PREFIX,
    IDEMPOTENCY_SECONDS,
    Patience,
    Pause,
    RequestFields,
    Run,
    Sender,
    Steps,
    T,
    deliver,
    locate,
    look_up,
    recall,
    request_of,
)
from worker.client.feed import BLOCK_MILLISECONDS, ReplyFeed
from worker.client.replies import Sent
from worker.client.scripts import Command
from worker.core.keys import Keys
from worker.core.model import MessageKey, Record, Request
from worker.core.reply import Reply


class DispatchClient:
    """Sends dispatch requests and follows what becomes of them. Use as `async with`, on one event loop.

    Any number of tasks may use one client: their waits share one connection per reply stream.
    """

    def __init__(
        self,
        options: RedisOptions,
        *,
        prefix: str = DEFAULT_PREFIX,
        namespace: str = "default",
        idempotency_seconds: float = IDEMPOTENCY_SECONDS,
        poll_seconds: float = 3.0,
        claims: RedisClaims | ClaimStore | None = None,
    ) -> None:
        """Prepare a client; it connects when first used.

        Args:
            options: where Redis is.
            prefix: the workers' `WORKER_PREFIX`.
            namespace: the workers' default Nomad namespace; only the scope of idempotency keys
                depends on it.
            idempotency_seconds: how long an idempotency key leads to its first message while no worker
                has read it; from then on, for as long as the workers' ledger remembers the message.
            poll_seconds: how often waiting callers ask the ledger, in case a reply was trimmed.
            claims: where payloads beyond 16 KiB are kept, for the job to fetch (see `worker.client.claims`);
                None: such payloads are rejected.

        Raises:
            SettingsInvalid: the Redis URL is wrong.
        """
        self._keys = Keys(prefix)
        self._sender = Sender(self._keys, namespace, idempotency_seconds)
        self._poll_seconds = poll_seconds
        self._claims = claims
        self._ops: Any = connect(options, Purpose.OPS)
        self._reader: Any = connect(options, Purpose.READER, block_seconds=BLOCK_MILLISECONDS / 1000)
        self._feeds: dict[str, ReplyFeed] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; calls under way end with `ClientClosed`."""
        self._closed = True
        for feed in self._feeds.values():
            await feed.close()
        await self._reader.aclose()
        await self._ops.aclose()

    async def send(
        self,
        request: Request | None = None,
        *,
        stream: str = "requests",
        timeout: float = 30.0,
        **fields: Unpack[RequestFields],
    ) -> Sent:
        """Put one request into its stream, exactly once.

        Lost answers and outages are tried again until the timeout; the request never doubles, for
        each call marks its message in Redis under a key of its own (kept for ten minutes) or, with
        `idempotency_key`, under that key within (namespace, job).

        Args:
            request: the request; `fields` (those of `Request`) make one, or change this one.
            stream: short name of the request stream.
            timeout: seconds to keep trying, at most 300.
            fields: see `request`.

        Returns:
            Where the message is; with a key that was used before, the message of its first use.

        Raises:
            RequestRejected: the worker would reject it (a kind of it names the field).
            NotSent: not confirmed in time; safe to repeat with the same `idempotency_key` only.
            RedisDenied, RedisUnsuitable: waiting will not help.
        """
        (sent,) = await self.send_many([request_of(request, fields)], stream=stream, timeout=timeout)
        return sent

    def check(self, request: Request) -> None:
        """Raise what `send` would raise of the request itself, and send nothing.

        Raises:
            RequestRejected: (or a kind of it) the worker would reject it.
        """
        if self._claims is not None and is_large(request):
            request = claimed(request, "", digest_of(request.payload))
        self._sender.parcel(request, "requests")

    async def send_many(
        self, requests: Iterable[Request], *, stream: str = "requests", timeout: float = 30.0
    ) -> list[Sent]:
        """Send requests in order, pipelined. Not a transaction: on `NotSent` a part may have arrived.

        Raises:
            RequestRejected: one of them would be rejected; none was sent.
            NotSent, RedisDenied, RedisUnsuitable: as `send`.
        """
        patience = Patience(timeout, time.monotonic, random.random)
        small = [await self._without_large_payload(request, patience) for request in requests]
        parcels = [self._sender.parcel(request, stream) for request in small]
        return await self.perform(deliver(self._keys, parcels, patience))

    async def wait(self, sent: Sent, timeout: float | None = None) -> Reply:
        """Wait for the final reply.

        Args:
            sent: as returned by `send` or `find`.
            timeout: seconds; None: for ever.

        Raises:
            WaitTimedOut: it did not come in time. The request goes on.
            ClientClosed, RedisDenied.
        """
        try:
            async with asyncio.timeout(timeout), aclosing(self.events(sent)) as replies:
                if sent.repeated and (final := await self.result(sent.stream, sent.id)):
                    return final
                async for reply in replies:
                    if reply.final:
                        return reply
        except TimeoutError:
            message = f"no final reply to {sent.key} within {timeout:g} s"
            raise WaitTimedOut(message) from None
        message = f"the replies to {sent.key} ended without a final one"
        raise ClientClosed(message)

    async def events(self, sent: Sent) -> AsyncGenerator[Reply, None]:
        """The replies to a request from its first to its final one, each once; then it ends.

        Survives lost connections and outages. Where replies were trimmed, the final one comes from
        the ledger, without `data`.

        Raises:
            ClientClosed, RedisDenied.
        """
        if self._closed:
            message = "the client is closed"
            raise ClientClosed(message)
        feed = self._feeds.get(sent.reply_stream)
        if feed is None:
            feed = ReplyFeed(self._reader, self.perform, self._keys, sent.reply_stream, self._poll_seconds)
            self._feeds[sent.reply_stream] = feed
        async with aclosing(feed.follow(sent)) as replies:
            async for reply in replies:
                yield reply

    async def result(self, stream: str, message_id: str) -> Reply | None:
        """The final reply of a message, long after if need be; None while there is none.

        From the reply stream where it is still kept there, else from the ledger, without `data`.

        Raises:
            RedisUnavailable: safe to repeat.
            RecordUnreadable: written by a newer version of the worker.
        """
        return await self.perform(look_up(self._keys, MessageKey(stream, message_id)))

    async def cancel(self, stream: str, message_id: str) -> Cancelled:
        """Order that a message not be dispatched or, when it is, that its job be stopped.

        Ordering it again changes nothing. Its final reply comes as ever: verdict `cancelled`, unless it
        ended by itself before.

        Raises:
            MessageUnknown: neither the stream nor the ledger knows it.
            RedisUnavailable: safe to repeat.
        """
        return await self.perform(cancel(self._keys, MessageKey(stream, message_id)))

    async def recall(self, stream: str, message_id: str) -> Record | None:
        """What the ledger knows of a message now; None when it knows nothing (yet, or any more).

        Raises:
            RedisUnavailable: safe to repeat.
            RecordUnreadable: written by a newer version of the worker.
        """
        return await self.perform(recall(self._keys, MessageKey(stream, message_id)))

    async def find(self, stream: str, message_id: str) -> Sent:
        """A message sent earlier or elsewhere, to be followed with `wait` or `events`.

        Raises:
            MessageUnknown: neither the stream nor the ledger knows it.
            RedisUnavailable: safe to repeat.
        """
        return await self.perform(locate(self._keys, MessageKey(stream, message_id)))

    @property
    def keys(self) -> Keys:
        """The names of the keys this client uses."""
        return self._keys

    async def perform(self, steps: Steps[T]) -> T:
        """Carry out an exchange of this package's own, step by step."""
        answers: Any = None
        while True:
            try:
                step = steps.send(answers)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Run(commands):
                    answers = await self._run(commands)

    async def _without_large_payload(self, request: Request, patience: Patience) -> Request:
        if self._claims is None or not is_large(request):
            return request
        digest = digest_of(request.payload)
        if isinstance(self._claims, RedisClaims):
            steps = keep(self._keys, self._claims, digest, request.payload, patience)
            return claimed(request, await self.perform(steps), digest)
        return claimed(request, await self._claims.put(digest, request.payload), digest)

    async def _run(self, commands: Sequence[Command]) -> Sequence[Any]:
        if self._closed:
            message = "the client is closed"
            raise ClientClosed(message)
        if isinstance(self._ops, RedisCluster):
            # redis-py's cluster pipeline refuses EVALSHA; all keys are in one slot anyway.
            return [await self._answer(command) for command in commands]
        pipeline = self._ops.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            answers: Sequence[Any] = await pipeline.execute(raise_on_error=False)
        except FAILURES as error:
            return [error] * len(commands)
        return answers

    async def _answer(self, command: Command) -> Any:
        try:
            return await self._ops.execute_command(*command)
        except FAILURES as error:
            return error
