"""The producer's client without an event loop: sends requests and follows their replies.

Carries out what `exchange` says. Each following thread reads the reply stream itself.
"""

import random
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self, Unpack

from redis import RedisCluster

from worker.adapters.redis.connection import FAILURES, Purpose, RedisOptions, connect_sync, translate
from worker.client.cancelling import Cancelled, cancel
from worker.client.claims import RedisClaims, SyncClaimStore, claimed, digest_of, is_large, keep
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
from worker.client.replies import Sent, StreamEntry, Thread, stream_entries
from worker.client.scripts import Command
from worker.core.backoff import Backoff
from worker.core.keys import Keys
from worker.core.model import MessageKey, Record, Request
from worker.core.reply import Reply
from worker.errors import RedisUnavailable, Then

BLOCK_MILLISECONDS = 1000
READ_COUNT = 500

_BACKOFF = Backoff(first_seconds=0.1, most_seconds=5.0)


class SyncDispatchClient:
    """As `DispatchClient`, for threads. Use as `with`; any number of threads may share one client.

    Up to 64 threads can follow replies at once. A program with more waits should use `DispatchClient`.
    """

    def __init__(
        self,
        options: RedisOptions,
        *,
        prefix: str = DEFAULT_PREFIX,
        namespace: str = "default",
        idempotency_seconds: float = IDEMPOTENCY_SECONDS,
        poll_seconds: float = 3.0,
        claims: RedisClaims | SyncClaimStore | None = None,
    ) -> None:
        """See `DispatchClient`."""
        self._keys = Keys(prefix)
        self._sender = Sender(self._keys, namespace, idempotency_seconds)
        self._poll_seconds = poll_seconds
        self._claims = claims
        self._ops: Any = connect_sync(options, Purpose.OPS)
        self._reader: Any = connect_sync(options, Purpose.READER, block_seconds=BLOCK_MILLISECONDS / 1000)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls under way in other threads end with `ClientClosed` soon."""
        self._closed = True
        self._reader.close()
        self._ops.close()

    def send(
        self,
        request: Request | None = None,
        *,
        stream: str = "requests",
        timeout: float = 30.0,
        **fields: Unpack[RequestFields],
    ) -> Sent:
        """Put one request into its stream, exactly once: see `DispatchClient.send`."""
        (sent,) = self.send_many([request_of(request, fields)], stream=stream, timeout=timeout)
        return sent

    def send_many(
        self, requests: Iterable[Request], *, stream: str = "requests", timeout: float = 30.0
    ) -> list[Sent]:
        """Send requests in order, pipelined: see `DispatchClient.send_many`."""
        patience = Patience(timeout, time.monotonic, random.random)
        small = [self._without_large_payload(request, patience) for request in requests]
        parcels = [self._sender.parcel(request, stream) for request in small]
        return self._perform(deliver(self._keys, parcels, patience))

    def wait(self, sent: Sent, timeout: float | None = None) -> Reply:
        """Wait for the final reply: see `DispatchClient.wait`.

        Raises:
            WaitTimedOut: it did not come in time, give or take one second. The request goes on.
            ClientClosed, RedisDenied.
        """
        if sent.repeated and (final := self.result(sent.stream, sent.id)):
            return final
        with closing(self.events(sent, timeout)) as replies:
            for reply in replies:
                if reply.final:
                    return reply
        message = f"the replies to {sent.key} ended without a final one"
        raise ClientClosed(message)

    def events(self, sent: Sent, timeout: float | None = None) -> Generator[Reply, None, None]:
        """The replies to a request from its first to its final one, each once; then it ends.

        Raises:
            WaitTimedOut: the final reply did not come in time.
            ClientClosed, RedisDenied.
        """
        thread = Thread(sent.key)
        for entry_or_final in self._arrivals(sent, timeout):
            reply = entry_or_final if isinstance(entry_or_final, Reply) else thread.take(entry_or_final)
            if reply is not None:
                yield reply
                if reply.final:
                    return

    def result(self, stream: str, message_id: str) -> Reply | None:
        """The final reply of a message, long after if need be: see `DispatchClient.result`."""
        return self._perform(look_up(self._keys, MessageKey(stream, message_id)))

    def cancel(self, stream: str, message_id: str) -> Cancelled:
        """Order a message's cancellation: see `DispatchClient.cancel`."""
        return self._perform(cancel(self._keys, MessageKey(stream, message_id)))

    def recall(self, stream: str, message_id: str) -> Record | None:
        """What the ledger knows of a message now: see `DispatchClient.recall`."""
        return self._perform(recall(self._keys, MessageKey(stream, message_id)))

    def find(self, stream: str, message_id: str) -> Sent:
        """A message sent earlier or elsewhere: see `DispatchClient.find`."""
        return self._perform(locate(self._keys, MessageKey(stream, message_id)))

    def _arrivals(self, sent: Sent, timeout: float | None) -> Generator[StreamEntry | Reply, None, None]:
        position, failures, settled_before = sent.replies_after, 0, False
        until = None if timeout is None else time.monotonic() + timeout
        next_poll = time.monotonic() + self._poll_seconds
        while until is None or time.monotonic() < until:
            self._check_open()
            try:
                block = BLOCK_MILLISECONDS if until is None else _milliseconds_until(until)
                answer = self._reader.xread({sent.reply_stream: position}, count=READ_COUNT, block=block)
            except FAILURES as error:
                self._check_open()
                named = translate(error)
                if named.then is not Then.RETRY:
                    raise named from error
                failures += 1
                time.sleep(_BACKOFF.delay(failures, random.random()))  # noqa: S311 - spreads load only
                continue
            failures = 0
            for entry in stream_entries(answer):
                position = entry[0]
                yield entry
            if time.monotonic() >= next_poll:
                next_poll = time.monotonic() + self._poll_seconds
                # Only the second time, for the reader brings the earlier replies too.
                final = self._final_if_reachable(sent.key)
                if final is not None and settled_before:
                    yield final
                settled_before = final is not None
        message = f"no final reply to {sent.key} within {timeout:g} s"
        raise WaitTimedOut(message)

    def _final_if_reachable(self, key: MessageKey) -> Reply | None:
        try:
            return self.result(key.stream, key.id)
        except RedisUnavailable:
            return None  # the reader waits for the end of outages; the next round is soon enough

    def _check_open(self) -> None:
        if self._closed:
            message = "the client is closed"
            raise ClientClosed(message)

    def _perform(self, steps: Steps[T]) -> T:
        answers: Any = None
        while True:
            try:
                step = steps.send(answers)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Pause(seconds):
                    time.sleep(seconds)
                case Run(commands):
                    answers = self._run(commands)

    def _without_large_payload(self, request: Request, patience: Patience) -> Request:
        if self._claims is None or not is_large(request):
            return request
        digest = digest_of(request.payload)
        if isinstance(self._claims, RedisClaims):
            steps = keep(self._keys, self._claims, digest, request.payload, patience)
            return claimed(request, self._perform(steps), digest)
        return claimed(request, self._claims.put(digest, request.payload), digest)

    def _run(self, commands: Sequence[Command]) -> Sequence[Any]:
        self._check_open()
        if isinstance(self._ops, RedisCluster):
            # redis-py's cluster pipeline refuses EVALSHA; all keys are in one slot anyway.
            return [self._answer(command) for command in commands]
        pipeline = self._ops.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            answers: Sequence[Any] = pipeline.execute(raise_on_error=False)
        except FAILURES as error:
            return [error] * len(commands)
        return answers

    def _answer(self, command: Command) -> Any:
        try:
            return self._ops.execute_command(*command)
        except FAILURES as error:
            return error


def _milliseconds_until(until: float) -> int:
    # At least 1: a BLOCK of 0 waits for ever.
    return max(1, min(BLOCK_MILLISECONDS, int((until - time.monotonic()) * 1000)))
