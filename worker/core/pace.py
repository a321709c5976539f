"""How many dispatches may be on their way at once: as many as Nomad answers without slowing down.

Knows nothing of clocks or of who waits; it is told of every answer and keeps one number. Each call takes a
few comparisons, whatever the number of messages.

The rule, for a Nomad that needs more than `CALM_SECONDS` for an answer:

- It is measured unloaded: the fastest of some answers with one request under way at a time, at the start and
  once in every `epoch` (which all replicas share, so that they measure an unloaded Nomad together).
- Answers come in rounds, each at least as long as it takes for all requests on their way to come back. Was a
  round `TOLERANCE` times slower than unloaded, the limit goes down in proportion; was it not, and the limit
  used up, it goes up by one, or doubles before it has ever been reached.
- A failure (no answer, 429, 5xx) halves it, once per round.
- What Nomad has waiting, and how many dispatched jobs it keeps, press on it from above.
"""

import math
from enum import StrEnum

CALM_SECONDS = 0.03
"""Answers this fast are no sign of load."""
TOLERANCE = 3.0
"""How much slower than unloaded an answer may be. At twice, a server that gains throughput only by queueing
gives away a third of it; at four times, one that suffers under load loses a tenth of it."""
FIRST_LIMIT = 4
UNLOADED_SAMPLES = 5
UNLOADED_SECONDS = 1.0
"""At most so long for those, where each takes long: messages wait meanwhile."""
DRAINING = 2.0
"""Answers' times that it takes for the requests of all workers to come back."""
RISE = 2.0
"""How much slower an unloaded Nomad may be found at once: one bad moment must not count as normal."""
ROUND_SAMPLES = 5
ROUND_SECONDS = 2.0
LEAST_CUT, MOST_CUT = 0.9, 0.5


class Brake(StrEnum):
    """What holds the limit down."""

    NONE = "none"
    LATENCY = "latency"
    ERRORS = "errors"
    EVALUATIONS = "evaluations"
    """Nomad has too much waiting to be placed."""
    CHILDREN = "children"
    """A job has so many dispatched jobs that Nomad's look for a token among them is slow."""


class Pace:
    """One worker's limit on concurrent dispatches.

    Args:
        most: the limit never exceeds it, and never goes below 1.
        adaptive: whether it ever changes.
    """

    def __init__(self, most: int, *, adaptive: bool = True) -> None:
        self._most = most
        self._adaptive = adaptive
        self._own = float(min(most, FIRST_LIMIT) if adaptive else most)
        self._ceiling = most
        self._pressing = Brake.NONE
        self._braked = Brake.NONE
        self._epoch: int | None = None
        self._measuring = adaptive
        self._mean = 0.0
        """Seconds that an answer took in the last round."""
        self._since = -math.inf
        """Requests sent before this tell of an earlier limit."""
        self._until = -math.inf
        """Measuring goes on until then."""
        self._samples, self._seconds, self._used = 0, 0.0, 0
        self._fastest = math.inf
        self.unloaded_seconds = math.inf
        """How long an answer takes when there is no load."""
        self.limit = self._limit()

    @property
    def brake(self) -> Brake:
        """What holds the limit down now."""
        if self._ceiling < min(self._own, self._most):
            return self._pressing
        return self._braked if self._own < self._most else Brake.NONE

    def answered(self, now: float, seconds: float, used: int, epoch: int) -> None:
        """Nomad answered a dispatch as it should.

        Args:
            now: steady seconds.
            seconds: since the request was sent.
            used: slots in use, this one included.
            epoch: number of the present stretch of time; in each one an unloaded answer is measured.
        """
        if not self._adaptive:
            return
        if self._epoch is None:
            self._epoch = epoch
        elif epoch != self._epoch:
            self._epoch = epoch
            if self._mean > CALM_SECONDS and not self._measuring:
                self._begin_round(now, measuring=True)
                # Other workers hear of the new epoch with their next answer, and what they have sent is still
                # on its way then. Only after that is Nomad unloaded; all wait until all have seen it so.
                self._since += DRAINING * self._mean
                self._until = self._since + DRAINING * self._mean
                return
        if now - seconds < self._since:
            return
        if self._since == -math.inf:
            self._since = now - seconds
        self._samples += 1
        self._seconds += seconds
        self._fastest = min(self._fastest, seconds)
        self._used = max(self._used, used)
        if self._measuring:
            self._measured(now)
        elif self._round_is_over(now):
            self._judge(self._seconds / self._samples)
            self._begin_round(now)

    def failed(self, now: float, seconds: float) -> None:
        """Nomad did not answer a dispatch sent `seconds` ago, or answered 429 or 5xx."""
        if not self._adaptive or now - seconds < self._since:
            return
        self._own = max(1.0, min(self._own, self._most) * MOST_CUT)
        self._braked = Brake.ERRORS
        self._begin_round(now)

    def pressed(self, evaluations: float, children: float) -> None:
        """How hard what Nomad has to carry already presses on the limit, each from 0 (not) to 1 (most)."""
        pressure = max(0.0, min(1.0, max(evaluations, children)))
        self._pressing = Brake.EVALUATIONS if evaluations >= children else Brake.CHILDREN
        self._ceiling = self._most
        if self._adaptive and pressure:
            self._ceiling = max(1, math.floor(self._most * (1 - pressure)))
        self.limit = self._limit()

    def _limit(self) -> int:
        if self._measuring:
            return 1
        return max(1, min(self._most, self._ceiling, int(self._own)))

    def _begin_round(self, now: float, *, measuring: bool = False) -> None:
        self._measuring = measuring
        self._since = now
        self._samples, self._seconds, self._used = 0, 0.0, 0
        self._fastest = math.inf
        self.limit = self._limit()

    def _measured(self, now: float) -> None:
        # The fastest: what delays a single answer, this process too, is no sign of how fast Nomad is.
        found = self._fastest
        enough = self._samples >= UNLOADED_SAMPLES or now - self._since >= UNLOADED_SECONDS
        if now < self._until or (not enough and found > CALM_SECONDS / TOLERANCE):
            return
        self.unloaded_seconds = min(found, RISE * self.unloaded_seconds)
        self._begin_round(now)

    def _round_is_over(self, now: float) -> bool:
        long_enough = self._samples >= ROUND_SAMPLES or now - self._since >= ROUND_SECONDS
        return long_enough and self._samples >= self.limit

    def _judge(self, mean: float) -> None:
        self._mean = mean
        self.unloaded_seconds = min(self.unloaded_seconds, mean)
        allowed = max(CALM_SECONDS, TOLERANCE * self.unloaded_seconds)
        if mean > allowed:
            cut = max(MOST_CUT, min(LEAST_CUT, allowed / mean))
            # From what was really used: a ceiling may have kept it below the limit's own.
            self._own = max(1.0, min(self._own, self._ceiling) * cut)
            self._braked = Brake.LATENCY
        elif self._used >= self.limit and self._own < self._most:
            first = self._braked is Brake.NONE
            self._own = min(float(self._most), self._own * 2 if first else self._own + 1)


def pressure(carried: int, eased: int, most: int) -> float:
    """How hard a number presses: 0 up to `eased`, 1 from `most` on, in proportion between."""
    if most <= eased:
        return 1.0 if carried >= most else 0.0
    return max(0.0, min(1.0, (carried - eased) / (most - eased)))
