"""The producer's side: send requests, follow their replies, look results up long after.

Needs redis and msgspec, and nothing of the worker that runs: no HTTP, no settings, no CLI.

    async with DispatchClient(RedisOptions("redis://localhost")) as client:
        sent = await client.send(job="render", payload=b"...", meta={"who": "ada"})
        final = await client.wait(sent, timeout=600)
        print(final.verdict, final.exit_code)
"""

from worker.adapters.redis.connection import RedisOptions
from worker.client.asynchronous import DispatchClient
from worker.client.cancelling import Cancelled
from worker.client.claims import ClaimStore, PayloadGone, RedisClaims, SyncClaimStore, fetch_payload
from worker.client.errors import ClientClosed, ClientError, MessageUnknown, NotSent, WaitTimedOut
from worker.client.replies import Sent
from worker.client.synchronous import SyncDispatchClient
from worker.core.model import MessageKey, Request, Verdict
from worker.core.reply import Reply
from worker.errors import RequestRejected, WorkerError

__all__ = [
    "Cancelled",
    "ClaimStore",
    "ClientClosed",
    "ClientError",
    "DispatchClient",
    "MessageKey",
    "MessageUnknown",
    "NotSent",
    "PayloadGone",
    "RedisClaims",
    "RedisOptions",
    "Reply",
    "Request",
    "RequestRejected",
    "Sent",
    "SyncClaimStore",
    "SyncDispatchClient",
    "Verdict",
    "WaitTimedOut",
    "WorkerError",
    "fetch_payload",
]
