"""Whether this process works (alive) and whether it can serve now (ready), with the reasons.

Knows nothing of the loops it watches: each tells when it came round, each condition when it changed.
"""

import time
from collections.abc import Awaitable, Callable


class Ticker:
    """One supervised loop's sign of life: call it on every round."""

    def __init__(self, health: "Health", name: str, stall_seconds: float) -> None:
        self._health = health
        self.name = name
        self.stall_seconds = stall_seconds
        self.last = health.monotonic()

    def __call__(self) -> None:
        """The loop came round."""
        self.last = self._health.monotonic()

    def done(self) -> None:
        """The loop ended as it should; its silence means nothing from now on."""
        self._health.forget(self)


class Health:
    """What is known of this process's own state.

    Args:
        stall_seconds: a loop silent for longer is stalled.
        monotonic: seconds on a steady clock.
    """

    def __init__(self, stall_seconds: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._stall_seconds = stall_seconds
        self._tickers: list[Ticker] = []
        self._faults: dict[str, str] = {}

    def loop(self, name: str, *, stall_seconds: float | None = None) -> Ticker:
        """Watch a loop from now on.

        Args:
            name: for people; two loops may share one.
            stall_seconds: where a round of this loop may take longer than others.
        """
        ticker = Ticker(self, name, stall_seconds or self._stall_seconds)
        self._tickers.append(ticker)
        return ticker

    async def watched(self, name: str, run: Callable[[Ticker], Awaitable[None]]) -> None:
        """Run a loop, handing it its ticker. When it ends, told to or cancelled, nobody misses it.

        Else a worker that leaves would look stalled as soon as its drain lasts for longer than a stall, and
        would lose its lease over it.
        """
        ticker = self.loop(name)
        try:
            await run(ticker)
        finally:
            ticker.done()

    def forget(self, ticker: Ticker) -> None:
        """Watch a loop no longer."""
        self._tickers.remove(ticker)

    def condition(self, name: str, ok: bool, reason: str = "") -> None:  # noqa: FBT001 - reads as a sentence
        """Say whether something that serving needs holds: `condition("redis", False, "no answer")`."""
        if ok:
            self._faults.pop(name, None)
        else:
            self._faults[name] = reason or "not so"

    def stalled(self) -> list[str]:
        """Names of the loops that have not come round in time."""
        now = self.monotonic()
        return [ticker.name for ticker in self._tickers if now - ticker.last > ticker.stall_seconds]

    def not_alive(self) -> dict[str, str]:
        """Reasons to restart this process; empty: none."""
        return dict.fromkeys(self.stalled(), "has not come round in time")

    def not_ready(self) -> dict[str, str]:
        """Reasons for which this process takes no new work now; empty: none."""
        return self.not_alive() | self._faults
