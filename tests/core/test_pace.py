"""How many dispatches go at once: rules by example and property, and whole servers as discrete events."""

import heapq
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.pace import CALM_SECONDS, TOLERANCE, Brake, Pace, pressure

UNLOADED = 0.05
"""Seconds a modelled server needs for an answer when it has nothing else to do."""


def rounds(pace: Pace, seconds: float, count: int = 1, *, start: float = 0.0) -> float:
    """Full rounds in which every answer takes so long; returns the time after them."""
    now = start
    for _ in range(count):
        for _ in range(max(5, pace.limit)):
            now += seconds / pace.limit
            pace.answered(now + seconds, seconds, pace.limit, 0)
        now += seconds
    return now


def test_it_begins_with_one_at_a_time_and_then_doubles_up_to_the_most() -> None:
    pace = Pace(16)
    limits = [pace.limit]

    now = 0.0
    for _ in range(4):
        now = rounds(pace, 0.05, start=now)
        limits.append(pace.limit)

    assert limits == [1, 4, 8, 16, 16]
    assert pace.brake is Brake.NONE


def test_a_fast_nomad_is_measured_with_one_answer() -> None:
    pace = Pace(16)

    pace.answered(1.0, 0.004, 1, 0)

    assert (pace.limit, pace.unloaded_seconds) == (4, 0.004)


def test_slow_answers_lower_the_limit_in_proportion_and_never_below_one() -> None:
    pace = Pace(16)
    now = rounds(pace, 0.05, 4)
    limits = []

    for _ in range(8):
        now = rounds(pace, 0.05 * TOLERANCE * 1.5, start=now)
        limits.append(pace.limit)

    assert limits[:4] == [10, 7, 4, 3]
    assert limits[-1] == 1
    assert pace.brake is Brake.LATENCY


def test_afterwards_it_rises_one_at_a_time_and_only_while_it_is_used_up() -> None:
    pace = Pace(16)
    now = rounds(pace, 0.05, 3)
    now = rounds(pace, 0.4, 1, start=now)
    lowered = pace.limit
    now = rounds(pace, 0.05, 2, start=now)
    raised = pace.limit

    for number in range(40):
        pace.answered(now + number, 0.05, 1, 0)

    assert (lowered, raised, pace.limit) == (8, 10, 10)


def test_answers_of_requests_sent_before_a_change_say_nothing() -> None:
    pace = Pace(16)
    now = rounds(pace, 0.05, 3)
    now = rounds(pace, 0.4, 1, start=now)
    lowered = pace.limit

    for _ in range(16):
        pace.answered(now + 0.1, 0.5, 16, 0)
        pace.failed(now + 0.1, 0.5)

    assert pace.limit == lowered


def test_failures_halve_it_once_per_round() -> None:
    pace = Pace(16)
    now = rounds(pace, 0.01, 4) + 1

    for number in range(4):
        pace.failed(now + number / 1000, 0.1)
    once = pace.limit
    pace.failed(now + 2, 0.1)

    assert (once, pace.limit, pace.brake) == (8, 4, Brake.ERRORS)


def test_what_nomad_carries_presses_from_above_and_lets_go_again() -> None:
    pace = Pace(16)
    rounds(pace, 0.01, 4)
    found = []

    for evaluations, children in [(0.0, 0.5), (0.25, 0.0), (1.0, 0.0), (0.0, 0.0)]:
        pace.pressed(evaluations, children)
        found.append((pace.limit, pace.brake))

    assert found == [(8, Brake.CHILDREN), (12, Brake.EVALUATIONS), (1, Brake.EVALUATIONS), (16, Brake.NONE)]


def test_a_fixed_pace_never_changes() -> None:
    pace = Pace(7, adaptive=False)
    rounds(pace, 9.0, 5)
    pace.failed(1e6, 1.0)
    pace.pressed(1.0, 1.0)

    assert (pace.limit, pace.brake) == (7, Brake.NONE)


@pytest.mark.parametrize(("carried", "expected"), [(0, 0), (1_000, 0), (1_500, 0.5), (2_000, 1), (9_999, 1)])
def test_pressure_grows_between_its_two_numbers(carried: int, expected: float) -> None:
    assert pressure(carried, 1_000, 2_000) == expected


steps = st.one_of(
    st.tuples(st.just("answered"), st.floats(0, 10), st.integers(1, 100)),
    st.tuples(st.just("failed"), st.floats(0, 10), st.just(0)),
    st.tuples(st.just("pressed"), st.floats(-1, 2), st.integers(0, 1)),
)


@given(most=st.integers(1, 90), told=st.lists(steps, max_size=200), gap=st.floats(0, 5))
def test_whatever_it_is_told_it_stays_between_one_and_the_most(
    most: int, told: list[tuple[str, float, int]], gap: float
) -> None:
    pace, now = Pace(most), 0.0
    for what, number, used in told:
        now += gap
        match what:
            case "answered":
                pace.answered(now, number, used, int(now // 60))
            case "failed":
                pace.failed(now, number)
            case _:
                pace.pressed(number, used)

        assert 1 <= pace.limit <= most


@given(seconds=st.floats(0.0001, CALM_SECONDS), most=st.integers(1, 90))
def test_a_nomad_that_answers_fast_is_never_held_back(seconds: float, most: int) -> None:
    pace, now = Pace(most), 0.0
    for _ in range(100):
        now = rounds(pace, seconds, start=now)

    assert (pace.limit, pace.brake) == (most, Brake.NONE)


# Whole servers ------------------------------------------------------------------------------------


@dataclass
class Ran:
    per_second: float
    mean: float
    """Of an answer, in multiples of the unloaded one."""


def run(answer: Callable[[int, float], float], paces: list[Pace], count: int = 6_000) -> Ran:
    """A backlog of dispatches against a server; `answer` gives seconds for requests at once and the time."""
    dice = random.Random(7)
    under_way: list[tuple[float, float, int, float]] = []
    used, sent, at_once, now = [0] * len(paces), 0, 0, 0.0
    took: list[float] = []
    while sent < count or under_way:
        for worker, pace in enumerate(paces):
            while used[worker] < pace.limit and sent < count:
                used[worker], at_once, sent = used[worker] + 1, at_once + 1, sent + 1
                seconds = answer(at_once, now) * dice.uniform(0.8, 1.25)
                heapq.heappush(under_way, (now + seconds, dice.random(), worker, seconds))
        now, _, worker, seconds = heapq.heappop(under_way)
        paces[worker].answered(now, seconds, used[worker], int(now // 60))
        used[worker], at_once = used[worker] - 1, at_once - 1
        took.append(seconds)
    return Ran(count / now, statistics.mean(took) / UNLOADED)


SERVERS: dict[str, Callable[[int, float], float]] = {
    "serves 4 at once, queues the rest": lambda n, _: UNLOADED * max(1, n / 4),
    "serves 1 at once": lambda n, _: UNLOADED * n,
    "each one more slows all": lambda n, _: UNLOADED * (1 + (n - 1) / 4),
    "each one more slows all a lot": lambda n, _: UNLOADED * (1 + (n - 1) / 2),
    "suffers from 4 on": lambda n, _: UNLOADED * (1 + (n / 4) ** 2),
    "suffers from 8 on": lambda n, _: UNLOADED * (1 + (n / 8) ** 2),
    "has room": lambda _n, _t: UNLOADED,
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS.keys())
def test_it_finds_the_pace_of_a_server(server: Callable[[int, float], float]) -> None:
    fixed = [run(server, [Pace(limit, adaptive=False)]) for limit in (1, 2, 3, 4, 6, 8, 12, 16)]

    adapted = run(server, [Pace(16)])

    assert adapted.per_second >= 0.8 * max(one.per_second for one in fixed)
    assert adapted.mean <= 3.2


@pytest.mark.parametrize("server", ["serves 4 at once, queues the rest", "suffers from 8 on", "has room"])
def test_three_workers_that_know_nothing_of_each_other_share_a_server(server: str) -> None:
    fixed = [run(SERVERS[server], [Pace(limit, adaptive=False)] * 3) for limit in (1, 2, 3, 4, 6, 8, 16)]
    paces = [Pace(16) for _ in range(3)]

    adapted = run(SERVERS[server], paces)

    assert adapted.per_second >= 0.8 * max(one.per_second for one in fixed)
    # Unloaded means one request of each: what they measure is that much slower.
    assert adapted.mean <= 5.0


def test_a_server_that_gets_slower_for_good_is_measured_anew_and_used_fully() -> None:
    def answer(at_once: int, now: float) -> float:
        return (UNLOADED if now < 30 else 4 * UNLOADED) * max(1, at_once / 4)

    pace = Pace(16)
    run(answer, [pace], count=12_000)

    assert pace.unloaded_seconds == pytest.approx(4 * UNLOADED, rel=0.25)
    assert pace.limit >= 4


def test_a_server_that_recovers_is_used_again() -> None:
    def answer(at_once: int, now: float) -> float:
        return UNLOADED * (1 + (at_once / 2) ** 2) if now < 30 else UNLOADED

    pace = Pace(16)
    run(answer, [pace], count=4_000)

    assert (pace.limit, pace.brake) == (16, Brake.NONE)
