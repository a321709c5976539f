"""The event stream's memory: a ring of frames, what a subscriber asked for, and which frames it is owed.

Knows nothing of connections, tokens or heartbeats.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from worker.dev.simulator.records import go_name

Listener = Callable[["Frame"], None]
ALL = "*"


class Event(msgspec.Struct, frozen=True, rename=go_name):
    """One change of one object; `payload` is encoded at the time of the change."""

    filter_keys: list[str] | None
    index: int
    key: str
    namespace: str
    payload: msgspec.Raw
    topic: str
    type: str


class Frame(msgspec.Struct, rename=go_name):
    """The events of one write. One write may come as two frames with the same index."""

    events: list[Event]
    index: int

    def line(self) -> bytes:
        """Return the frame as one line of the stream."""
        return msgspec.json.encode(self) + b"\n"


class BadStream(Exception):
    """The query of an event stream is wrong; the message is Nomad's, to be sent with status 400."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one stream wants: keys per topic (`*` for any), and one namespace (`*` for any)."""

    topics: dict[str, frozenset[str]]
    namespace: str
    index: int

    @classmethod
    def parse(cls, topics: Sequence[str], namespace: str, index: str) -> "Subscription":
        """Read the query of GET /v1/event/stream.

        Raises:
            BadStream: bad index, or a topic with more than one colon.
        """
        try:
            start = int(index or "0")
        except ValueError:
            msg = f'Unable to parse index: strconv.Atoi: parsing "{index}": invalid syntax'
            raise BadStream(msg) from None
        wanted: dict[str, set[str]] = {}
        for topic in topics or [ALL]:
            name, *keys = topic.split(":")
            if len(keys) > 1:
                msg = f"error parsing topics: Invalid key value pair for topic, topic: {topic}"
                raise BadStream("Invalid topic query: " + msg)
            wanted.setdefault(name, set()).add(keys[0] if keys else ALL)
        return cls({name: frozenset(keys) for name, keys in wanted.items()}, namespace, start)

    def wants(self, event: Event) -> bool:
        """Whether the event matches: keys are compared exactly, with the key and the filter keys."""
        if event.namespace and self.namespace not in {ALL, event.namespace}:
            return False
        keys = self.topics.get(event.topic) or self.topics.get(ALL)
        if keys is None:
            return False
        return ALL in keys or event.key in keys or not keys.isdisjoint(event.filter_keys or ())

    def select(self, frame: Frame) -> Frame | None:
        """Return the frame with the wanted events only; None if there are none."""
        events = [event for event in frame.events if self.wants(event)]
        if len(events) == len(frame.events):
            return frame
        return Frame(events, frame.index) if events else None


class EventRing:
    """The newest frames, for streams that start in the past, and the listeners that follow along."""

    def __init__(self, size: int = 100) -> None:
        # Nomad replays one frame more than `event_buffer_size`.
        self._frames: deque[Frame] = deque(maxlen=size + 1)
        self._listeners: set[Listener] = set()
        self._skip = 0

    def append(self, index: int, events: Iterable[Event]) -> None:
        """Add a frame, dropping the oldest one beyond the size, and tell the listeners."""
        frame = Frame(list(events), index)
        if not frame.events:
            return
        if self._skip:
            self._skip -= 1
            return
        self._frames.append(frame)
        for listener in tuple(self._listeners):
            listener(frame)

    def since(self, index: int) -> list[Frame]:
        """Return the frames a stream with this index starts with.

        Inclusive. 0: all. Older than the ring: all there is, without an error. Newer than the newest: the
        newest frame once more.
        """
        frames = [frame for frame in self._frames if frame.index >= index]
        return frames or list(self._frames)[-1:]

    def listen(self, listener: Listener) -> None:
        """Call the listener with every frame from now on."""
        self._listeners.add(listener)

    def forget(self, listener: Listener) -> None:
        """Stop calling the listener."""
        self._listeners.discard(listener)

    def skip(self, frames: int) -> None:
        """Misbehave: lose this many of the next frames, for every stream and for the ring."""
        self._skip += frames

    def clear(self) -> None:
        """Forget all frames, as a restarted server does."""
        self._frames.clear()
