"""Planned faults of the simulated servers: what to do to which requests and streams, and how often.

Only plans; the HTTP layer carries them out.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, Protocol

Kind = Literal["delay", "load", "late_answer", "respond", "drop", "lose_answer", "hang"]


@dataclass(slots=True)
class Fault:
    """One planned fault.

    Kinds: `delay` waits before the request is handled; `load` too, for the longer the more requests it has at
    once: `seconds` times 1 + (requests / `knee`)²; `late_answer` waits after it (events overtake the answer);
    `respond` answers with `status` and `text` instead; `drop` cuts the connection before, `lose_answer` after
    the request was handled; `hang` never answers.
    """

    route: str
    """A route name such as `dispatch`, `job` or `jobs`, or a pattern (`job*`, `*`)."""
    kind: Kind
    seconds: float = 0.0
    status: int = 500
    text: str = "No cluster leader"
    times: int | None = None
    """How many requests it hits; None: all."""
    after: int = 0
    """How many matching requests it lets pass first."""
    probability: float = 1.0
    knee: float = 4.0
    """`load`: with so many requests at once each takes twice as long, and the most are served in a second."""
    at_once: int = 0
    """`load`: requests it holds now."""
    held_seconds: float = 0.0
    """`load`: for how long it held all requests so far, together."""
    busy_seconds: float = 0.0
    """`load`: what they took of the server's time, those at once sharing it evenly."""
    id: int = field(default_factory=itertools.count(1).__next__)


class Stream(Protocol):
    """An open event stream."""

    muted: bool

    def close(self) -> None:
        """End it, as a server that goes away does."""


@dataclass
class Faults:
    """What is planned, and the modes that stay on until they are switched off."""

    planned: list[Fault] = field(default_factory=list)
    streams: set[Stream] = field(default_factory=set)
    leaderless_seconds: float | None = None
    """Without a leader: how long a request waits for its 500. None: there is a leader."""
    phantoms: bool = False
    """Concurrent dispatches with one token get job IDs that never exist, except one."""
    phantom_window_seconds: float = 0.02
    """How long concurrent dispatches of one token wait for each other in that mode."""
    mute_new_streams: bool = False
    stream_life_seconds: float | None = None
    """Each new stream is cut after a random time up to this; None: never."""

    def add(
        self,
        route: str,
        kind: Kind,
        *,
        seconds: float = 0.0,
        status: int = 500,
        text: str = "No cluster leader",
        times: int | None = None,
        after: int = 0,
        probability: float = 1.0,
        knee: float = 4.0,
    ) -> Fault:
        """Plan a fault; it is tried after those planned before."""
        fault = Fault(route, kind, seconds, status, text, times, after, probability, knee)
        self.planned.append(fault)
        return fault

    def respond(self, route: str, status: int, text: str, times: int | None = None) -> Fault:
        """Plan an answer instead of the real one."""
        return self.add(route, "respond", status=status, text=text, times=times)

    def delay(self, route: str, seconds: float, times: int | None = None) -> Fault:
        """Plan a delay before requests are handled."""
        return self.add(route, "delay", seconds=seconds, times=times)

    def load(self, route: str, seconds: float, knee: float) -> Fault:
        """Plan that requests take the longer the more there are at once: a server that suffers from load."""
        return self.add(route, "load", seconds=seconds, knee=knee)

    def lose_answer(self, route: str, times: int | None = 1) -> Fault:
        """Plan that requests are handled, but their connection is cut before the answer."""
        return self.add(route, "lose_answer", times=times)

    def drop(self, route: str, times: int | None = 1) -> Fault:
        """Plan that connections are cut before requests are handled."""
        return self.add(route, "drop", times=times)

    def events_before_answers(self, seconds: float, times: int | None = None) -> Fault:
        """Plan that a dispatch's events arrive this long before its answer."""
        return self.add("dispatch", "late_answer", seconds=seconds, times=times)

    def remove(self, fault_id: int) -> bool:
        """Forget one fault; return whether it was planned."""
        before = len(self.planned)
        self.planned = [fault for fault in self.planned if fault.id != fault_id]
        return len(self.planned) < before

    def clear(self) -> None:
        """Forget all planned faults and switch all modes off."""
        self.planned.clear()
        self.leaderless_seconds = None
        self.phantoms = False
        self.mute_new_streams = False
        self.stream_life_seconds = None
        self.mute_streams(muted=False)

    def take(self, route: str) -> Iterator[Fault]:
        """Yield the faults that hit this request, using up their count."""
        for fault in tuple(self.planned):
            if not fnmatchcase(route, fault.route):
                continue
            if fault.after:
                fault.after -= 1
                continue
            if fault.probability < 1 and random.random() >= fault.probability:  # noqa: S311 - a test's dice
                continue
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self.planned.remove(fault)
            yield fault

    def close_streams(self) -> int:
        """End all open event streams; return how many there were."""
        open_streams = tuple(self.streams)
        for stream in open_streams:
            stream.close()
        return len(open_streams)

    def new_stream_life(self) -> float | None:
        """Return after how many seconds a new stream is cut; None: never."""
        longest = self.stream_life_seconds
        return None if longest is None else random.uniform(0, longest)  # noqa: S311 - a test's dice

    def mute_streams(self, *, muted: bool = True) -> None:
        """Let open streams say nothing any more, heartbeats included, without closing them."""
        for stream in self.streams:
            stream.muted = muted
