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
    queued: int | None = None
    """Of the pending ones, those that wait in Redis for their turn, held by a cap, a rate or a fair share."""
    delayed: int | None = None
    """Of the pending ones, those that wait in Redis for their time."""
    oldest_queued_seconds: float | None = None
    """How long the oldest of the queued has waited for its turn; 0 when there is none."""

    @property
    def in_hand(self) -> int | None:
        """Of the pending ones, those that a worker holds."""
        if self.pending is None:
            return None
        # Read one after the other, so that a message may be counted on both sides.
        return max(0, self.pending - (self.queued or 0) - (self.delayed or 0))


@dataclass(frozen=True, slots=True)
class Backlog:
    """Everything that replicas share."""

    streams: Mapping[str, StreamBacklog] = field(default_factory=dict)
    dead_letters: int | None = None
    workers: int | None = None
    """Replicas whose lease is not over."""
    slots_taken: Mapping[str, int] = field(default_factory=dict)
    """Slots of the caps by scope; empty where it is not known."""
    dead_letters_expire: bool | None = None
    """Whether some were announced to be dropped soon for their age."""
