"""Cancelling a message: one script that orders it, and what its answer means.

Knows nothing of how a worker carries it out.
"""

from enum import Enum

from worker.client.errors import MessageUnknown
from worker.client.exchange import Steps, call
from worker.client.scripts import Script
from worker.core.keys import Keys
from worker.core.model import MessageKey

ORDER_SECONDS = 30 * 24 * 3600
"""After this an order is forgotten whose message nobody ever settled: its entry was deleted by hand."""

_SCRIPT = Script.load("cancel")


class Cancelled(Enum):
    """What an order to cancel came to. The message's final reply follows in any case."""

    PREVENTED = "prevented"
    """It will never be dispatched."""
    ORDERED = "ordered"
    """It may be dispatched or run already: its job will be stopped, unless it ends by itself before."""
    TOO_LATE = "too_late"
    """It had ended before; its result stands."""


def cancel(keys: Keys, key: MessageKey) -> Steps[Cancelled]:
    """Order a message's cancellation; ordering it again changes nothing.

    Raises:
        MessageUnknown: neither ledger nor stream knows it.
        RedisUnavailable: safe to repeat.
    """
    names = [
        *(keys.stream(key.stream), keys.message(key), keys.cancels, keys.control),
        *(keys.floor(key.stream), keys.deadlines(key.stream)),
    ]
    answer = yield from call(_SCRIPT, names, [key.id, ORDER_SECONDS * 1000])
    match answer[0]:
        case b"prevented":
            return Cancelled.PREVENTED
        case b"ordered":
            return Cancelled.ORDERED
        case b"settled":
            return Cancelled.TOO_LATE
        case _:
            message = f"no message {key}: neither the stream nor the ledger knows it"
            raise MessageUnknown(message)
