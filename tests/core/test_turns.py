"""Which stream is served next: shares and levels as properties, and over thousands of virtual hours."""

import heapq
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.turns import Shares, Strict

WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 20), min_size=1)


@given(weights=WEIGHTS, turns=st.integers(1, 300))
def test_while_all_wait_each_has_its_share_to_within_one_turn_of_each(
    weights: dict[str, int], turns: int
) -> None:
    shares, served = Shares(weights), Counter[str]()
    for _ in range(turns):
        stream = shares.next(weights)
        shares = shares.charged(stream, 1)
        served[stream] += 1

    rounds = {stream: served[stream] / weight for stream, weight in weights.items()}
    for stream, weight in weights.items():
        for other, its_weight in weights.items():
            assert abs(rounds[stream] - rounds[other]) <= 1 / weight + 1 / its_weight + 1e-9


@given(weights=WEIGHTS, data=st.data())
def test_who_has_something_is_served_within_one_round_whoever_comes_and_goes(
    weights: dict[str, int], data: st.DataObject
) -> None:
    shares = Shares(weights)
    for _ in range(data.draw(st.integers(0, 30))):
        some = data.draw(st.sets(st.sampled_from(sorted(weights)), min_size=1))
        shares = shares.charged(shares.next(some), data.draw(st.integers(1, 16)))
    patient = data.draw(st.sampled_from(sorted(weights)))
    longest = 1 + len(weights) + 16 * sum(weights.values()) // weights[patient]

    for _ in range(longest + 1):
        some = data.draw(st.sets(st.sampled_from(sorted(weights)))) | {patient}
        stream = shares.next(some)
        shares = shares.charged(stream, 1)
        if stream == patient:
            break
    else:
        pytest.fail(f"waited for {longest} turns")


def test_what_gave_nothing_is_charged_nothing() -> None:
    shares = Shares({"a": 1, "b": 1})

    assert shares.charged("a", 0) == shares


def test_strictly_the_highest_weight_goes_first_and_the_older_among_equals() -> None:
    strict = Strict({"low": 1, "high": 5, "urgent": 5}, 0)

    assert strict.next({"low": 1, "high": 100, "urgent": 99}) == "urgent"
    assert strict.next({"low": 1, "high": 100}) == "high"
    assert strict.next({"low": 1}) == "low"


@given(weights=WEIGHTS, heads=st.data(), ageing=st.integers(1, 1_000))
def test_a_message_overtakes_only_what_came_after_it_had_aged(
    weights: dict[str, int], heads: st.DataObject, ageing: int
) -> None:
    came = {stream: heads.draw(st.integers(0, 10_000_000)) for stream in weights}
    levels = sorted(set(weights.values()), reverse=True)

    chosen = Strict(weights, ageing).next(came)

    for stream, at in came.items():
        between = levels.index(weights[chosen]) - levels.index(weights[stream])
        assert came[chosen] + between * ageing * 1000 <= at


# A discrete-event simulation: no clock, no Redis, every hour of it virtual --------------------------------


@dataclass
class Queue:
    """Streams of messages by when they came (milliseconds), served by some slots."""

    chooser: Shares | Strict
    slots: int
    waiting: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    served: list[tuple[str, int, int]] = field(default_factory=list)
    """Stream, when it came, when it was served."""

    def serve(self, now: int) -> None:
        heads = {stream: came[0] for stream, came in self.waiting.items() if came}
        stream = self.chooser.next(heads)
        self.served.append((stream, heapq.heappop(self.waiting[stream]), now))
        if isinstance(self.chooser, Shares):
            self.chooser = self.chooser.charged(stream, 1)


def simulate(queue: Queue, per_hour: dict[str, float], *, hours: int, job_minutes: float, seed: int) -> Queue:
    """Messages come at random, jobs take a random time; `queue` decides who gets each free slot."""
    chance = random.Random(seed)
    hour = 3_600_000
    events: list[tuple[int, str]] = []
    for stream, rate in per_hour.items():
        at = 0.0
        while at < hours * hour:
            at += chance.expovariate(rate) * hour
            events.append((int(at), stream))
    heapq.heapify(events)
    free = queue.slots
    while events:
        now, what = heapq.heappop(events)
        if what:
            heapq.heappush(queue.waiting[what], now)
        else:
            free += 1
        while free and any(queue.waiting.values()):
            queue.serve(now)
            free -= 1
            ends = now + int(chance.expovariate(1 / job_minutes) * 60_000) + 1
            heapq.heappush(events, (ends, ""))
    return queue


def test_over_a_thousand_hours_of_overload_streams_get_their_shares() -> None:
    weights = {"high": 6, "normal": 3, "low": 1}
    # Some 40 an hour can be served: every stream alone has more than its share.
    queue = Queue(Shares(weights), slots=20)

    simulate(queue, {"high": 40, "normal": 40, "low": 40}, hours=1_000, job_minutes=30, seed=1)

    busy = [served for served in queue.served if served[2] < 1_000 * 3_600_000]
    counts = Counter(stream for stream, _, _ in busy)
    for stream, weight in weights.items():
        assert counts[stream] / len(busy) == pytest.approx(weight / 10, abs=0.002)


def test_what_one_stream_does_not_use_the_others_share() -> None:
    queue = Queue(Shares({"high": 6, "normal": 3, "low": 1}), slots=20)

    simulate(queue, {"high": 4, "normal": 40, "low": 40}, hours=1_000, job_minutes=30, seed=2)

    high_waits = sorted(at - came for stream, came, at in queue.served if stream == "high")
    busy = Counter(stream for stream, _, at in queue.served if at < 1_000 * 3_600_000)
    assert busy["normal"] / busy["low"] == pytest.approx(3, abs=0.05)
    # A free slot is some 90 s away, and it is never more than a turn or two until it is its own.
    assert high_waits[len(high_waits) * 99 // 100] < 15 * 60_000


def test_over_two_thousand_hours_of_overload_ageing_bounds_every_wait() -> None:
    ageing_seconds = 4 * 3600
    weights = {"high": 3, "normal": 2, "low": 1}
    levels = {"high": 0, "normal": 1, "low": 2}
    queue = Queue(Strict(weights, ageing_seconds), slots=20)

    simulate(queue, {"high": 38, "normal": 4, "low": 1}, hours=2_000, job_minutes=30, seed=3)

    # Whatever was served before a message came no later than the head start that its level gave it.
    newest = dict.fromkeys(weights, 0)
    for stream, came, _ in queue.served:
        for other, newest_ms in newest.items():
            head_start_ms = max(0, levels[stream] - levels[other]) * ageing_seconds * 1000
            if levels[other] < levels[stream]:
                assert newest_ms <= came + head_start_ms
        newest[stream] = came
    waits = {
        name: max(at - came for stream, came, at in queue.served if stream == name) / 3_600_000
        for name in weights
    }
    # All of it is the head start of the levels above, and the jobs that came meanwhile.
    assert waits["low"] <= waits["normal"] + 4 <= waits["high"] + 8
    assert waits["low"] > 4


def test_without_ageing_the_lowest_starves_under_overload() -> None:
    queue = Queue(Strict({"high": 2, "low": 1}, 0), slots=20)

    simulate(queue, {"high": 45, "low": 1}, hours=500, job_minutes=30, seed=4)

    low = [at for stream, _, at in queue.served if stream == "low" and at < 500 * 3_600_000]
    assert len(low) < 25
