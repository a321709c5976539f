"""Short soaks in every slow run; the long one is `make soak`. And that a seed gives the same plan again."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.soak.plan import Fault, Plan, Topology
from tests.soak.soak import soak


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.anyio
@pytest.mark.parametrize(("topology", "messages"), [("standalone", 300), ("sentinel", 200)])
async def test_what_is_sent_while_everything_breaks_is_answered_once_and_truly(
    tmp_path: Path, topology: Topology, messages: int
) -> None:
    report = await soak(Plan(20_260, messages, topology), tmp_path, 280, print)

    print(report)  # noqa: T201 - shown where it fails
    assert report.faults == []
    assert report.finals == messages
    assert len(report.broken) >= 8


def _all_of(plan: Plan) -> tuple[object, list[list[Fault]]]:
    def some(lane: str) -> Iterator[Fault]:
        return islice(plan.faults(lane), 50)

    return list(plan.bursts()), [list(some(lane)) for lane in plan.lanes]


def test_the_same_seed_gives_the_same_plan_again() -> None:
    assert _all_of(Plan(7, 500)) == _all_of(Plan(7, 500))
    assert _all_of(Plan(7, 500)) != _all_of(Plan(8, 500))


def test_a_plan_has_every_kind_of_request_and_as_many_as_were_asked_for() -> None:
    requests = [request for _, burst in Plan(1, 1_000).bursts() for request in burst]

    assert [request.number for request in requests] == list(range(1_000))
    assert {request.kind for request in requests} == {"good", "bad", "late", "unknown", "garbage"}


def test_a_plan_comes_to_every_fault() -> None:
    for topology in ("standalone", "sentinel"):
        plan = Plan(1, 10, topology)
        found = {fault.action for lane in plan.lanes for fault in islice(plan.faults(lane), 200)}
        assert len(found) >= 20
