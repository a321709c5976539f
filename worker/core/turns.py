"""Which request stream is served next: by weights, or strictly with ageing.

Knows nothing of how a stream is read. A stream is served a few messages at a time, and charged for those it
really gave; one that has nothing does not hold the others up.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Shares:
    """What each stream had of its share: start-time fair queuing, with virtual times as tags."""

    weights: Mapping[str, int]
    tags: Mapping[str, float] = field(default_factory=dict)
    now: float = 0.0
    """The tag of the stream served last: whoever comes back starts here, however long it was away."""

    def next(self, waiting: Collection[str]) -> str:
        """The stream whose turn it is among those (one at least) that have something."""
        order = list(self.weights)
        return min(waiting, key=lambda stream: (self._tag(stream), order.index(stream)))

    def charged(self, stream: str, count: int) -> "Shares":
        """After a stream gave so many messages."""
        if not count:
            return self
        tag = self._tag(stream)
        tags = {**self.tags, stream: tag + count / self.weights[stream]}
        return Shares(self.weights, tags, max(self.now, tag))

    def _tag(self, stream: str) -> float:
        return max(self.tags.get(stream, 0.0), self.now)


@dataclass(frozen=True, slots=True)
class Strict:
    """The stream of the highest weight first, always; but a message rises by one level per `ageing_seconds`.

    Streams of one weight are one level, where the older message goes first.
    So a message of a level waits for those of higher levels only that came before it had waited
    `ageing_seconds` for every level between them. 0: it does not age.
    """

    weights: Mapping[str, int]
    ageing_seconds: float

    def next(self, heads: Mapping[str, int]) -> str:
        """The stream whose turn it is, by when each one's oldest message came (Unix milliseconds)."""
        levels = sorted(set(self.weights.values()), reverse=True)

        def rank(stream: str) -> tuple[float, float]:
            level = levels.index(self.weights[stream])
            if not self.ageing_seconds:
                return level, heads[stream]
            return heads[stream] + level * self.ageing_seconds * 1000, level

        order = list(self.weights)
        return min(heads, key=lambda stream: (rank(stream), order.index(stream)))
