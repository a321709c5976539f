"""How long a round of the event loop takes, from how late a sleeper is woken."""

import asyncio
from collections.abc import Iterable

import pytest

from worker.runtime.looplag import LoopLag

pytestmark = pytest.mark.anyio


class LateClock:
    """Wakes sleepers so many seconds late, one after the other, and then no more."""

    def __init__(self, late: Iterable[float]) -> None:
        self._late = iter(late)
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def now_ms(self) -> int:
        return int(self._now * 1000)

    async def sleep(self, seconds: float) -> None:
        late = next(self._late, None)
        if late is None:
            raise asyncio.CancelledError
        self._now += seconds + late


async def lag_after(late: Iterable[float]) -> float:
    lag = LoopLag(LateClock(late))
    with pytest.raises(asyncio.CancelledError):
        await lag.run()
    return lag.round_seconds


async def test_a_loop_that_is_idle_adds_nothing() -> None:
    assert await lag_after([0.0] * 50) == 0.0


async def test_a_sleeper_is_woken_after_half_a_round_on_average() -> None:
    # Rounds of 40 ms, that a sleeper's time runs out in at any moment.
    assert await lag_after([0.0, 0.01, 0.02, 0.03, 0.04] * 40) == pytest.approx(0.04, rel=0.3)


async def test_what_is_over_is_soon_forgotten() -> None:
    busy, calm = [0.02] * 50, [0.0] * 50

    assert await lag_after(busy) == pytest.approx(0.04, rel=0.05)
    assert await lag_after(busy + calm) < 0.001


async def test_a_clock_that_wakes_early_is_no_speed() -> None:
    assert await lag_after([-0.001] * 20) == 0.0
