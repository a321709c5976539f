"""Payloads beyond Nomad's 16 KiB: kept elsewhere, with a reference and a digest in the job's meta.

Knows nothing of what is in them. The job has to allow the three meta keys, and fetches the payload itself:
`fetch_payload`, or the shell lines in `docs/producers.md`.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from worker.adapters.redis.connection import FAILURES, Purpose, RedisOptions, connect_sync, translate
from worker.client.errors import ClientError
from worker.client.exchange import Patience, Run, Steps
from worker.core.keys import Keys
from worker.core.model import PAYLOAD_LIMIT_BYTES, Request
from worker.errors import Then

REFERENCE = "dispatch_payload_ref"
DIGEST = "dispatch_payload_sha256"
SIZE = "dispatch_payload_bytes"
META_KEYS = (REFERENCE, DIGEST, SIZE)
"""Meta keys that a job must allow; in its task they are `NOMAD_META_dispatch_payload_ref` and so on."""


class PayloadUnfit(ClientError):
    """A payload is larger than the store takes."""

    code = "client.payload_too_large"
    then = Then.DEAD_LETTER


class PayloadGone(ClientError):
    """The payload is not there (any more), or is not the one that was sent."""

    code = "client.payload_gone"
    then = Then.DEAD_LETTER


class ClaimStore(Protocol):
    """A place for payloads, for instance an object store."""

    async def put(self, digest: str, data: bytes) -> str:
        """Keep a payload for as long as its job may need it. Putting it twice must do no harm.

        Args:
            digest: SHA-256 of `data`, in hexadecimal: a good name for it.
            data: the payload.

        Returns:
            What the job needs to find it, at most some hundred characters: it goes into the job's meta.
        """
        ...


class SyncClaimStore(Protocol):
    """As `ClaimStore`, for `SyncDispatchClient`."""

    def put(self, digest: str, data: bytes) -> str:
        """See `ClaimStore.put`."""
        ...


@dataclass(frozen=True, slots=True)
class RedisClaims:
    """Keeps payloads in Redis, in a key named after their digest; the reference is the key.

    Attributes:
        ttl_seconds: how long; the time in the queue and the run must fit in, and a requeue of a dead letter.
        max_bytes: larger ones are refused: Redis holds them in memory.
    """

    ttl_seconds: float = 7 * 24 * 3600
    max_bytes: int = 64 * 1024 * 1024


def digest_of(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def is_large(request: Request) -> bool:
    """Whether Nomad would not take the payload."""
    return len(request.payload) > PAYLOAD_LIMIT_BYTES


def claimed(request: Request, reference: str, digest: str) -> Request:
    """The request with a reference in the place of its payload."""
    meta = {REFERENCE: reference, DIGEST: digest, SIZE: str(len(request.payload))}
    return replace(request, payload=b"", meta={**request.meta, **meta})


def keep(keys: Keys, claims: RedisClaims, digest: str, data: bytes, patience: Patience) -> Steps[str]:
    """Put a payload into Redis.

    Raises:
        PayloadUnfit: it is too large.
        NotSent: not confirmed in time.
    """
    if len(data) > claims.max_bytes:
        message = f"the payload has {len(data)} bytes; at most {claims.max_bytes} are kept in Redis"
        raise PayloadUnfit(message)
    key = keys.payload(digest)
    while True:
        (answer,) = yield Run((("SET", key, data, "PX", int(claims.ttl_seconds * 1000)),))
        if not isinstance(answer, Exception):
            return key
        yield patience.pause(answer)


def fetch_payload(
    *,
    file: str = "",
    environment: Mapping[str, str] = os.environ,
    read: Callable[[str], bytes] | None = None,
) -> bytes:
    """On the job's side: the payload, checked against its digest.

    Args:
        file: where the job's `dispatch_payload` block puts a small payload, below the task's `local/` folder.
        environment: the task's; `NOMAD_META_dispatch_payload_*`, `REDIS_URL`, `NOMAD_TASK_DIR`.
        read: fetches what a reference of another store than Redis means.

    Raises:
        PayloadGone: it is not there (any more), or is not the one that was sent.
        RedisUnavailable: safe to repeat.
    """
    reference = environment.get(f"NOMAD_META_{REFERENCE}", "")
    if not reference:
        return (Path(environment.get("NOMAD_TASK_DIR", "local")) / file).read_bytes() if file else b""
    data = read(reference) if read else _from_redis(environment.get("REDIS_URL", ""), reference)
    if digest_of(data) != environment.get(f"NOMAD_META_{DIGEST}"):
        message = f"the payload at {reference} is not the one that was sent: its SHA-256 differs"
        raise PayloadGone(message)
    return data


def _from_redis(url: str, key: str) -> bytes:
    redis: Any = connect_sync(RedisOptions(url or "redis://127.0.0.1:6379/0"), Purpose.OPS)
    try:
        data: bytes | None = redis.get(key)
    except FAILURES as error:
        raise translate(error) from error
    finally:
        redis.close()
    if data is None:
        message = f"no payload at {key}: it has expired; send it again"
        raise PayloadGone(message)
    return data
