"""What waits in Redis, shared by all replicas: read when somebody asks, never remembered.

Knows nothing of how it is read. `None` means unknown, which is not zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StreamBacklog:
    """One request stream, as the consumer group sees it."""

    lag: int | None = None
    """Entries not yet given to any worker. Redis itself does not know it after some deletions."""
    pending: int | None = None
    """Entries given to a worker and not yet settled."""
    oldest_pending_seconds: float | None = None
    """Age of the oldest of them, by its entry ID; 0 when there is none."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Everything that replicas share."""

    streams: Mapping[str, StreamBacklog] = field(default_factory=dict)
    dead_letters: int | None = None
    workers: int | None = None
    """Replicas whose lease is not over."""
