"""A stalled loop fails the liveness check; what serving needs fails the readiness check only."""

from worker.runtime.health import Health


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_that_does_not_come_round_is_stalled_until_it_does() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    reader, _monitor = health.loop("reader"), health.loop("monitor", stall_seconds=60)

    clock.now += 31
    silent = health.stalled(), health.not_alive()
    reader()

    assert silent == (["reader"], {"reader": "has not come round in time"})
    assert health.stalled() == []
    clock.now += 61
    assert health.stalled() == ["reader", "monitor"]


def test_a_loop_that_ended_as_it_should_is_not_missed() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    ticker = health.loop("reader")

    ticker.done()
    clock.now += 31

    assert health.not_alive() == {}


def test_conditions_and_stalls_make_a_worker_unready_but_only_stalls_make_it_dead() -> None:
    clock = Hand()
    health = Health(30, monotonic=clock)
    health.loop("reader")

    health.condition("redis", ok=False, reason="no answer")
    health.condition("draining", ok=False)
    health.condition("nomad", ok=True)

    assert health.not_alive() == {}
    assert health.not_ready() == {"redis": "no answer", "draining": "not so"}
    health.condition("redis", ok=True)
    health.condition("draining", ok=True)
    assert health.not_ready() == {}
    clock.now += 31
    assert health.not_ready() == {"reader": "has not come round in time"}
