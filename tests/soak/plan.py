"""What a soak sends and what it breaks, out of one number: the same seed gives the same plan.

Decides everything by chance and carries out nothing. Faults come in lanes: one after the other within a lane,
side by side between them.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from tests.faults.checker import Told

Topology = Literal["standalone", "sentinel"]

KINDS = {"good": 80, "bad": 9, "late": 3, "unknown": 4, "garbage": 4}
"""Parts of a hundred. `late`: its task takes longer than the request allows."""
RUN_SECONDS = (0.05, 4.0)
BURST = (1, 40)
"""Requests at a time."""
SECONDS_LEAST = 45.0
PER_SECOND_MOST = 40.0
"""Requests are spread over a time: faults are to meet all of them, also where there are few."""
BAD_EXIT_CODE = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and what it must come to."""

    number: int
    kind: str
    run_seconds: float

    @property
    def told(self) -> Told:
        """What its task is told to do, for the checker."""
        match self.kind:
            case "good":
                return Told(0, self.run_seconds, frozenset({"succeeded"}))
            case "bad":
                return Told(BAD_EXIT_CODE, self.run_seconds, frozenset({"failed"}))
            case "late":
                return Told(0, self.run_seconds, frozenset({"timed_out"}))
            case _:
                return Told(None, verdicts=frozenset({"rejected"}))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to break."""

    lane: str
    number: int
    after_seconds: float
    """Since the lane's fault before was made good."""
    action: str
    seconds: float
    """How long it stays broken."""
    dice: float
    """From 0 to 1: which of those that could be hit, or how hard."""

    def __str__(self) -> str:
        return f"{self.lane}.{self.number} {self.action} for {self.seconds:.1f} s"


WORKERS = {"kill": 4, "kill_and_time": 2, "pause": 3, "nap": 2, "stop": 3}
NOMAD = {
    "dispatch_500": 3, "dispatch_429": 2, "all_500": 2, "refused": 2, "no_leader": 2, "lost_answers": 4,
    "dropped": 2, "late_answers": 3, "phantoms": 2, "streams_cut": 3, "streams_muted": 2,
    "streams_short": 2, "lookups_fail": 2,
}  # fmt: skip
REDIS = {
    "standalone": {"restart": 3, "freeze": 2, "cut": 3, "half_open": 2, "black_hole": 2, "slow": 1},
    "sentinel": {"primary_killed": 3, "ordered_failover": 2, "freeze": 2, "replica_frozen": 1},
}
QUIET_SECONDS: Mapping[str, tuple[float, float]] = {
    "workers": (0.5, 6.0),
    "redis": (4.0, 12.0),
    "nomad": (0.5, 4.0),
}
BROKEN_SECONDS: Mapping[str, tuple[float, float]] = {
    "workers": (0.2, 9.0),
    "redis": (0.2, 4.0),
    "nomad": (0.5, 5.0),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that chance decides."""

    seed: int
    messages: int
    topology: Topology = "standalone"

    @property
    def lanes(self) -> list[str]:
        """Two for workers and two for Nomad: their faults overlap."""
        return ["workers.a", "workers.b", "redis.a", "nomad.a", "nomad.b"]

    def bursts(self) -> Iterator[tuple[float, list[Request]]]:
        """All requests, in the lots they are sent in, each with the pause before it, in seconds."""
        seconds_each = max(SECONDS_LEAST, self.messages / PER_SECOND_MOST) / self.messages
        chance = random.Random(f"{self.seed}/requests")
        kinds, weights = list(KINDS), list(KINDS.values())
        made = 0
        while made < self.messages:
            size = min(chance.randint(*BURST), self.messages - made)
            burst = []
            for number in range(made, made + size):
                (kind,) = chance.choices(kinds, weights)
                seconds = 3_600.0 if kind == "late" else round(chance.uniform(*RUN_SECONDS), 3)
                burst.append(Request(number, kind, seconds))
            yield chance.uniform(0, 2) * seconds_each * size, burst
            made += size

    def faults(self, lane: str) -> Iterator[Fault]:
        """A lane's faults, without end."""
        chance = random.Random(f"{self.seed}/{lane}")
        what = lane.partition(".")[0]
        weights = {"workers": WORKERS, "nomad": NOMAD, "redis": REDIS[self.topology]}[what]
        for number in count(1):
            (action,) = chance.choices(list(weights), list(weights.values()))
            yield Fault(
                lane,
                number,
                chance.uniform(*QUIET_SECONDS[what]),
                action,
                chance.uniform(*BROKEN_SECONDS[what]),
                chance.random(),
            )
