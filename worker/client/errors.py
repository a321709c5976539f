"""What can go wrong for a producer, beyond what `worker.errors` names for requests and Redis.

Knows nothing of how requests are sent or replies read.
"""

from worker.errors import Then, WorkerError


class ClientError(WorkerError):
    """Base of the producer's own failures."""

    code = "client.error"


class NotSent(ClientError):
    """Redis did not confirm the request within the time given to `send`.

    Attributes:
        maybe_sent: an answer was lost on the way, so the request may be in the stream. With the
            same idempotency key it can be sent again without becoming two.
    """

    code = "client.not_sent"
    then = Then.RETRY

    def __init__(self, message: str, *, maybe_sent: bool) -> None:
        super().__init__(message)
        self.maybe_sent = maybe_sent


class WaitTimedOut(ClientError):
    """No final reply came in the time given to `wait`. The request goes on; wait again any time."""

    code = "client.timeout"
    then = Then.RETRY


class MessageUnknown(ClientError):
    """Neither the request stream nor the ledger knows this message: never sent, or long forgotten."""

    code = "client.message_unknown"
    then = Then.DEAD_LETTER


class ClientClosed(ClientError):
    """The client was closed while the call was under way, or before it."""

    code = "client.closed"
    then = Then.STOP
